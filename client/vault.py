"""The vault: the only store of a person's text on a device, one SQLCipher file.

    with Vault.open(folder, opener) as vault:
        with vault.change() as rows:            one transaction, on the disk when the block ends, or not at all
            rows.execute(...)

SQLite's write-ahead log with `synchronous = FULL`: a change that was reported is on the disk, one that was cut off is
gone whole, whatever process or power ended it. Two processes may read and write; a writer waits for another, at most
`BUSY_S`. Deleted content is overwritten (`secure_delete`); `erase_free_pages` takes what the log still holds as well.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import sqlcipher3.dbapi2 as sqlite

from client.vault_key import KEY_FILE, Opener, create_key, destroy_key, open_key
from client.vault_schema import MIGRATIONS, VERSION
from privacy.errors import VaultError
from privacy.files import fsync_folder

FILE = "vault.db"
BUSY_S = 10.0
HOME_VARIABLE = "CONFIDE_HOME"
BESIDE = ("", "-wal", "-shm", "-journal")  # what SQLite keeps next to its file


def home_folder() -> Path:
    """Return the folder of this person's device: CONFIDE_HOME, or `~/.local/share/confide`."""
    given = os.environ.get(HOME_VARIABLE)
    return Path(given) if given else Path.home() / ".local" / "share" / "confide"


class Vault:
    """An open vault. Made by `create` or `open`; a context manager that closes."""

    def __init__(self, folder: Path, connection: Any, opener: Opener) -> None:
        self.folder, self._rows, self.opener = folder, connection, opener
        self._lock = threading.RLock()

    @classmethod
    def create(cls, folder: Path, opener: Opener) -> Self:
        """Make an empty vault in `folder` and return it open. Raises VaultError where there is one already."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
        with _alone(folder):
            if (folder / FILE).exists():
                if (folder / KEY_FILE).exists():
                    raise VaultError(f"{folder} has a vault already")
                raise VaultError(f"{folder / FILE} has no key any more: it cannot be read; move it away first")
            key = create_key(folder, opener)
            try:
                connection = _connect(folder / FILE, key)
                _migrate(connection)
            except VaultError:
                destroy_key(folder, opener)  # made a moment ago, and opens nothing
                for end in BESIDE:
                    (folder / f"{FILE}{end}").unlink(missing_ok=True)
                raise
            fsync_folder(folder)
        return cls(folder, connection, opener)

    @classmethod
    def open(cls, folder: Path, opener: Opener) -> Self:
        """Return the vault in `folder`, brought to this program's version. Raises VaultError in one line."""
        key = open_key(folder, opener)
        if not (folder / FILE).exists():
            raise VaultError(f"{folder / FILE} is missing, its key is there: restore it from a backup")
        with _alone(folder):
            connection = _connect(folder / FILE, key)
            _migrate(connection)
        return cls(folder, connection, opener)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; what was changed is on the disk already."""
        with self._lock:
            self._rows.close()

    def select(self, statement: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        """Return the rows of one SELECT."""
        with self._lock, _plain_errors():
            found: list[tuple[Any, ...]] = self._rows.execute(statement, values).fetchall()
            return found

    def one(self, statement: str, values: tuple[Any, ...] = ()) -> Any:
        """Return the first column of the first row, None without one."""
        rows = self.select(statement, values)
        return rows[0][0] if rows else None

    @contextmanager
    def change(self) -> Iterator[Any]:
        """Yield the connection inside one write transaction: all of the block is kept, or nothing of it.

        Raises VaultError where another process writes for too long or the disk is full; the vault is then as before.
        """
        with self._lock, _plain_errors():
            self._rows.execute("BEGIN IMMEDIATE")
            try:
                yield self._rows
                self._rows.execute("COMMIT")
            except BaseException:
                if self._rows.in_transaction:  # SQLite has rolled back by itself where the disk was full
                    self._rows.execute("ROLLBACK")
                raise

    def setting(self, name: str, default: str = "") -> str:
        """Return a setting."""
        found = self.one("SELECT value FROM setting WHERE name = ?", (name,))
        return default if found is None else str(found)

    def set_setting(self, name: str, value: str) -> None:
        """Keep a setting."""
        with self.change() as rows:
            rows.execute("INSERT OR REPLACE INTO setting VALUES (?, ?)", (name, value))

    def erase_free_pages(self) -> None:
        """Rewrite the file without free pages and empty its log: nothing deleted is left in either.

        Raises VaultError where another process reads an old state, since the log must then keep it.
        """
        with self._lock, _plain_errors():
            for step in ("PRAGMA wal_checkpoint(TRUNCATE)", "VACUUM", "PRAGMA wal_checkpoint(TRUNCATE)"):
                found = self._rows.execute(step).fetchone()
                if found is not None and found[0]:
                    raise VaultError("another program reads the vault: end it, then forget again to erase the log")

    def destroy(self) -> None:
        """Destroy the key, then the file. The key goes first: whatever is cut off after it is noise."""
        self.close()
        with _alone(self.folder):
            destroy_key(self.folder, self.opener)
            for end in BESIDE:
                (self.folder / f"{FILE}{end}").unlink(missing_ok=True)
            fsync_folder(self.folder)


def _connect(path: Path, key: bytes) -> Any:
    """Return a connection that has read the file with `key`."""
    old = os.umask(0o077)
    try:
        with _plain_errors():
            rows = sqlite.connect(str(path), timeout=BUSY_S, isolation_level=None, check_same_thread=False)
            rows.execute(f"PRAGMA key = \"x'{key.hex()}'\"")
            rows.execute("PRAGMA temp_store = MEMORY")  # nothing is sorted into a file beside the vault
            rows.execute("SELECT count(*) FROM sqlite_master").fetchone()
            rows.execute("PRAGMA journal_mode = WAL").fetchone()
            for setting in ("synchronous = FULL", "secure_delete = ON", "foreign_keys = ON", "trusted_schema = OFF"):
                rows.execute(f"PRAGMA {setting}").fetchone()
            return rows
    finally:
        os.umask(old)


def _migrate(rows: Any) -> None:
    """Bring the tables to this program's version, each step whole or not at all."""
    with _plain_errors():
        version = int(rows.execute("PRAGMA user_version").fetchone()[0])
        if version > VERSION:
            raise VaultError(f"the vault is of version {version}, this program knows {VERSION}: update confide")
        for number in range(version, VERSION):
            rows.execute("BEGIN IMMEDIATE")
            try:
                for statement in filter(str.strip, MIGRATIONS[number].split(";\n")):
                    rows.execute(statement)
                rows.execute(f"PRAGMA user_version = {number + 1}")
                rows.execute("COMMIT")
            except BaseException:
                if rows.in_transaction:
                    rows.execute("ROLLBACK")
                raise


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Turn SQLite's errors into one line that holds nothing of a statement's values."""
    try:
        yield
    except sqlite.Error as error:
        text = str(error).lower()
        if "not a database" in text or "hmac" in text:
            raise VaultError("the vault's file does not fit its key, or is damaged: restore it from a backup") from None
        if "locked" in text or "busy" in text:
            raise VaultError("another program is writing to the vault: try again; nothing was changed") from None
        if "full" in text or "disk i/o" in text:
            raise VaultError("the disk is full or cannot be written: the vault is as it was before") from None
        if "malformed" in text:
            raise VaultError("the vault's file is damaged: restore it from a backup") from None
        raise VaultError(f"the vault cannot do this ({type(error).__name__})") from None


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder while a vault is made, migrated or destroyed; the system frees a dead process's lock."""
    descriptor = os.open(folder / "vault.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
