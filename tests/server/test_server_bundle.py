"""The bundle that Flower ships: exactly what relay and server need, loadable beside an installed confide or without."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk

import confide

ROOT = Path(confide.__file__).parent
BESIDE = {"pyproject.toml", "LICENSE", ".info/CONTENT"}

LOADED = """
import json, sys
{path}
import client.app, server.app, privacy.accounting
tops = ("privacy", "server", "client", "simulation", "confide")
ours = [m for m in sys.modules.values() if m and m.__name__.split(".")[0] in tops]
large = ("torch", "transformers", "peft", "opacus", "presidio_analyzer", "ray")
heavy = [name for name in large if name in sys.modules]
types = [type(module.app).__name__ for module in (client.app, server.app)]
print(json.dumps([sorted(m.__file__ for m in ours), heavy, *types]))
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the unpacked bundle of this checkout."""
    folder = tmp_path_factory.mktemp("bundle")
    zipfile.ZipFile(io.BytesIO(build_fab_from_disk(ROOT))).extractall(folder)
    return folder


def contents(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def loaded(bundle: Path, tmp_path: Path, *flags: str, packages: bool) -> tuple[set[str], list[str], list[str]]:
    """Import relay and server from the bundle in a fresh process; return files of ours, heavy packages, their types."""
    lines = f"sys.path.insert(0, {str(bundle)!r})"
    if packages:  # without the .pth files there: no confide but the bundle's
        lines += f"\nsys.path.append({sysconfig.get_path('purelib')!r})"
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("PYTHONPATH", None)
    command = [sys.executable, "-P", *flags, "-c", LOADED.format(path=lines)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    files, heavy, *types = json.loads(done.stdout)
    assert all(Path(file).is_relative_to(bundle) for file in files)
    return {Path(file).relative_to(bundle).as_posix() for file in files}, heavy, types


def test_the_bundle_holds_what_relay_and_server_import_and_nothing_else(bundle: Path, tmp_path: Path) -> None:
    files, heavy, types = loaded(bundle, tmp_path, "-S", packages=True)
    assert contents(bundle) == files | BESIDE
    assert heavy == []
    assert types == ["ClientApp", "ServerApp"]


def test_the_bundle_loads_beside_an_installed_confide_and_takes_nothing_from_it(bundle: Path, tmp_path: Path) -> None:
    files, heavy, _ = loaded(bundle, tmp_path, packages=False)
    assert files | BESIDE == contents(bundle)
    assert heavy == []


def test_the_same_checkout_gives_the_same_bundle() -> None:
    assert build_fab_from_disk(ROOT) == build_fab_from_disk(ROOT)


def test_the_edges_to_flower_are_thin() -> None:
    for path in ("client/app.py", "server/app.py"):
        assert len((ROOT / path).read_text().splitlines()) < 100, path
