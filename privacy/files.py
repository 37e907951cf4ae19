"""Files that are whole or not there: written beside their place, flushed to the disk, then renamed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol


def fsync_folder(folder: Path) -> None:
    """Flush the names in `folder` to the disk: a file just created or renamed is not durable before."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Path, data: bytes, *, mode: int = 0o644, disk: Disk | None = None) -> None:
    """Put `data` at `path`: after a crash at any moment the old bytes or the new ones are there, never a mixture.

    Flushed by `disk`, this machine's if none is given.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.new")
    disk = disk or SystemDisk()
    try:
        write_flushed(beside, data, mode=mode, disk=disk)
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    disk.fsync_folder(path.parent)


def write_flushed(path: Path, data: bytes, *, mode: int = 0o644, disk: Disk | None = None) -> None:
    """Put `data` at `path` and flush it; not atomic, for a file inside a folder that `new_folder` will rename."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
        file.write(data)
        file.flush()
        (disk or SystemDisk()).fsync(file.fileno())


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder beside `folder`; on leaving without an error it takes the place of `folder`.

    Whoever reads finds all files or no folder. A `folder` that was there before is moved away first, so that a crash
    between the two renames leaves none: write it again then. On an error the old folder stays and the new one goes.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = folder.with_name(f".{folder.name}.{os.getpid()}.new")
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    for left_over in (beside, old):
        shutil.rmtree(left_over, ignore_errors=True)
    beside.mkdir()
    try:
        yield beside
        fsync_folder(beside)
        if folder.exists():
            folder.replace(old)
        beside.replace(folder)
        fsync_folder(folder.parent)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


class Disk(Protocol):
    """The four things a ledger asks of a file system; a test can make each of them fail or kill the process."""

    def write(self, descriptor: int, data: bytes) -> int:
        """Write some of `data` and return how many bytes."""

    def fsync(self, descriptor: int) -> None:
        """Return once all written bytes are on the disk."""

    def fsync_folder(self, folder: Path) -> None:
        """Return once the names in `folder` are on the disk."""

    def truncate(self, descriptor: int, size: int) -> None:
        """Cut the file to `size` bytes."""


class SystemDisk:
    """The file system of this machine."""

    def write(self, descriptor: int, data: bytes) -> int:
        """Write some of `data` and return how many bytes."""
        return os.write(descriptor, data)

    def fsync(self, descriptor: int) -> None:
        """Return once all written bytes are on the disk."""
        os.fsync(descriptor)

    def fsync_folder(self, folder: Path) -> None:
        """Return once the names in `folder` are on the disk."""
        fsync_folder(folder)

    def truncate(self, descriptor: int, size: int) -> None:
        """Cut the file to `size` bytes."""
        os.ftruncate(descriptor, size)


class ProcessDisk(SystemDisk):
    """This machine's file system without waiting for the disk: what is written outlives its process, `kill -9` too.

    It may not outlive a power failure. For simulated people alone, of whom a run can be made again.
    """

    def fsync(self, descriptor: int) -> None:
        """Leave it to the system when to write."""

    def fsync_folder(self, folder: Path) -> None:
        """Leave it to the system when to write."""
