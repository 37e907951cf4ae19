"""What is handed out can be made again, byte for byte, and carries a signature that a changed byte breaks."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import confide
from deploy.supply import artefacts
from server.found import bundle_sha256, stage_bundle

ROOT = Path(confide.__file__).parent


def test_the_bundle_is_the_same_from_another_folder_and_at_another_time(tmp_path: Path) -> None:
    first, second = tmp_path / "one", tmp_path / "a longer name of a folder"
    stage_bundle(first)
    stage_bundle(second)
    old = time.time() - 10**8
    for path in second.rglob("*"):
        os.utime(path, (old, old))
        path.chmod(0o700)
    assert bundle_sha256(first) == bundle_sha256(second) == bundle_sha256(ROOT)
    file = second / "client" / "app.py"
    file.write_bytes(file.read_bytes() + b"\n")
    assert bundle_sha256(second) != bundle_sha256(first)


def test_signed_artefacts_verify_until_anything_changes(tmp_path: Path) -> None:
    folder, key = tmp_path / "dist", tmp_path / "release.key"
    (folder / "below").mkdir(parents=True)
    (folder / "a.whl").write_bytes(b"wheel")
    (folder / "below" / "sbom.json").write_bytes(b"{}")
    assert artefacts.main(["sign", str(folder), str(key)]) == 0
    assert key.stat().st_mode & 0o777 == 0o600
    public = tmp_path / "release.key.pub"
    assert artefacts.main(["verify", str(folder), str(public)]) == 0
    checked = subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=folder, check=False)
    assert checked.returncode == 0, "the sums are in the form that everybody's tool reads"

    def faults(change: str, data: bytes) -> str:
        path = folder / change
        before = path.read_bytes() if path.exists() else None
        path.write_bytes(data)
        found = artefacts.verify(folder, public.read_text())
        path.unlink() if before is None else path.write_bytes(before)
        return found

    assert "a.whl" in faults("a.whl", b"wheeL")
    assert "more.whl" in faults("more.whl", b"")
    assert "signature" in faults("SHA256SUMS", (folder / "SHA256SUMS").read_bytes().replace(b"a.whl", b"b.whl"))
    assert "signature" in faults("SHA256SUMS.sig", b"00" * 64)
    (folder / "a.whl").unlink()
    assert "a.whl" in artefacts.verify(folder, public.read_text())
    assert "signature" in artefacts.verify(folder, "00" * 32)
    assert artefacts.main(["sign"]) == 2


@pytest.mark.e2e
def test_the_wheel_is_the_same_when_it_is_built_twice(tmp_path: Path) -> None:
    built = []
    for name in ("one", "two"):
        command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / name)]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        [wheel] = (tmp_path / name).glob("*.whl")
        built.append(wheel.read_bytes())
    assert built[0] == built[1]
