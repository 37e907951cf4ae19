"""What runs the roles elsewhere: images, manifests, units, a proxy. Read by their own linters where these are at hand
(`make deploy-lint` fetches them), and held to the house's rules always."""

from __future__ import annotations

import re
import runpy
import shutil
import subprocess
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import confide
from server.gateway import FLEET_CALLS
from tests.operator_by_hand import operator_in

ROOT = Path(confide.__file__).parent
DEPLOY = ROOT / "deploy"
IMAGES = sorted((DEPLOY / "container").glob("*.Dockerfile"))
COMPOSED = sorted((DEPLOY / "container").glob("*compose.yaml"))


def tool(name: str) -> str:
    """Return a linter of .venv-lint or of the PATH; skips where there is none."""
    found = shutil.which(name, path=str(ROOT / ".venv-lint" / "bin")) or shutil.which(name)
    if found is None:
        pytest.skip(f"no {name} here: `make deploy-lint`")
    return found


def lint(*words: str | Path, **environment: str) -> str:
    done = subprocess.run(
        list(map(str, words)), capture_output=True, text=True, check=False, env={"PATH": "/usr/bin:/bin", **environment}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("image", IMAGES, ids=lambda path: path.name)
def test_an_image_runs_as_nobody_in_particular_and_can_be_asked_whether_it_is_well(image: Path) -> None:
    lines = [line for line in image.read_text().splitlines() if not line.startswith("#")]
    last = lines[max(i for i, line in enumerate(lines) if line.startswith("FROM")) :]
    users = [line.split()[1] for line in last if line.startswith("USER")]
    assert users and not users[-1].startswith(("0", "root"))
    assert any(line.startswith("HEALTHCHECK") for line in last)
    copied = re.findall(r"^COPY (?:--\S+ )*(.+) \S+$", "\n".join(lines), flags=re.MULTILINE)
    sources = [word for line in copied for word in line.split() if not line.startswith("/app")]
    assert sources and all((ROOT / source).exists() for source in sources), "what is copied is there"
    assert not any(word.startswith(("tests", "simulation")) for word in sources)


@pytest.mark.parametrize("image", IMAGES, ids=lambda path: path.name)
def test_hadolint_finds_nothing(image: Path) -> None:
    assert lint(tool("hadolint"), image) == ""


def test_hadolint_would_find_something(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM python\nRUN cd /tmp\n")
    done = subprocess.run([tool("hadolint"), str(tmp_path / "Dockerfile")], capture_output=True, check=False)
    assert done.returncode != 0


def needed(extra: str) -> set[str]:
    """Return the packages that `confide[extra]` needs on this machine, by the installed packages' own word."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    waiting = [Requirement(r) for r in [*project["dependencies"], *project["optional-dependencies"][extra]]]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        asked = waiting.pop()
        key = canonicalize_name(asked.name), frozenset(asked.extras)
        if key in seen:
            continue
        seen.add(key)
        try:
            requires = distribution(asked.name).requires or []
        except PackageNotFoundError:
            pytest.fail(f"{asked.name} is not installed")
        for each in map(Requirement, requires):
            extras = asked.extras or {""}
            if each.marker is None or any(each.marker.evaluate({"extra": name}) for name in {*extras, ""}):
                waiting.append(each)
    return {name for name, _ in seen}


def test_the_servers_image_holds_what_the_extra_needs_and_no_torch() -> None:
    script = runpy.run_path(str(DEPLOY / "container" / "subset.py"), run_name="read")
    names = [line for line in (DEPLOY / "container" / "server.txt").read_text().splitlines() if line and line[0] != "#"]
    assert set(names) == needed("server")
    text = script["subset"]((ROOT / "requirements.lock").read_text(), names)
    pinned = re.findall(r"^([a-z0-9.-]+)==", text, flags=re.MULTILINE)
    assert pinned == sorted(names) and "torch" not in pinned
    assert all("--hash=sha256:" in block for block in re.split(r"\n(?=[a-z0-9])", text))
    with pytest.raises(SystemExit, match="not in the lock: nothing-of-this-name"):
        script["subset"](text, ["nothing-of-this-name"])


def services() -> list[tuple[str, dict[str, Any]]]:
    return [(f"{p.name}:{n}", s) for p in COMPOSED for n, s in yaml.safe_load(p.read_text())["services"].items()]


@pytest.mark.parametrize(("name", "service"), services(), ids=lambda v: v if isinstance(v, str) else "")
def test_a_composed_service_can_write_nowhere_but_its_volumes(name: str, service: dict[str, Any]) -> None:
    assert service["read_only"] is True and service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not str(service["user"]).startswith(("0", "root"))
    assert service["restart"] == "unless-stopped" and "mem_limit" in service
    if name.endswith(":agent"):
        assert service["network_mode"] == "none", "what holds the text has no network"
    if name.endswith(":supernode"):
        mounted = {volume.split(":")[1] for volume in service["volumes"]}
        assert mounted == {f"/pinned/{n}" for n in ("relay.sock", "authority.crt", "supernode", "bundle.sha256")}


def test_the_manifests_are_kubernetes_own(tmp_path: Path) -> None:
    built = tmp_path / "all.yaml"
    built.write_text(lint(tool("kubectl"), "kustomize", DEPLOY / "kustomize", HOME=str(tmp_path)))
    lint(tool("kubernetes-validate"), "--strict", built, HOME=str(tmp_path))
    kinds = {document["kind"]: document for document in yaml.safe_load_all(built.read_text())}
    assert set(kinds) == {"Namespace", "Service", "StatefulSet", "NetworkPolicy"}
    pod = kinds["StatefulSet"]["spec"]["template"]["spec"]
    assert kinds["StatefulSet"]["spec"]["replicas"] == 1
    assert pod["securityContext"]["runAsNonRoot"] and not pod["automountServiceAccountToken"]
    for container in pod["containers"]:
        assert container["securityContext"]["readOnlyRootFilesystem"]
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    ports = [port["port"] for rule in kinds["NetworkPolicy"]["spec"]["ingress"] for port in rule["ports"]]
    assert ports == [9092], "the control interface is on loopback"


@pytest.mark.parametrize("unit", sorted((DEPLOY / "systemd").glob("*.service")), ids=lambda path: path.name)
def test_systemd_reads_the_units(unit: Path, tmp_path: Path) -> None:
    text = unit.read_text()
    command = re.search(r"^ExecStart=(\S+) (.*)$", text, flags=re.MULTILINE)
    assert command is not None and command[2].split()[0] in ("server", "device")
    for setting in ("NoNewPrivileges=yes", "UMask=0077", "LimitCORE=0"):
        assert setting in text
    copy = tmp_path / unit.name
    copy.write_text(text.replace(command[1], "/bin/true"))
    found = subprocess.run(
        [tool("systemd-analyze"), "verify", str(copy)],
        capture_output=True, text=True, check=False, env={"PATH": "/usr/bin:/bin", "XDG_RUNTIME_DIR": str(tmp_path)},
    )  # fmt: skip
    assert found.returncode == 0 and unit.name not in found.stderr, found.stderr


def test_the_proxy_lets_through_what_our_own_door_does() -> None:
    text = (DEPLOY / "proxy" / "nginx.conf").read_text()
    [names] = re.findall(r"location ~ \^/v1/fleet/\(([a-z|-]+)\)\$", text)
    assert {f"/v1/fleet/{name}" for name in names.split("|")} == FLEET_CALLS
    before, _, control = text.partition("/v1/control/")
    assert "ssl_verify_client on;" in before.rpartition("server {")[2] and "proxy_pass" in control
    assert text.count("{") == text.count("}")


def test_a_backup_brings_back_all_that_cannot_be_made_again(tmp_path: Path) -> None:
    operator = operator_in(tmp_path / "fed")
    (operator.folder / "superlink" / "logs").mkdir(parents=True)
    (operator.folder / "superlink" / "logs" / "superlink.log").write_text("long")
    scripts = DEPLOY / "backup"
    file, back = tmp_path / "fed.tar", tmp_path / "back"
    lint(scripts / "backup", operator.folder, file)
    assert file.stat().st_mode & 0o777 == 0o600
    lint(scripts / "restore", file, back)

    def held(folder: Path) -> dict[str, tuple[int, bytes]]:
        files = [
            path for path in folder.rglob("*") if path.is_file() and path.name[0] != "." and "logs" not in path.parts
        ]
        return {str(p.relative_to(folder)): (p.stat().st_mode & 0o777, p.read_bytes()) for p in files}

    assert {k: v[1] for k, v in held(operator.folder).items()} == {k: v[1] for k, v in held(back).items()}
    assert held(back)["root/root.key"][0] == 0o600
    for wrong in ((file, back), (tmp_path / "none.tar", tmp_path / "b2")):
        done = subprocess.run([str(scripts / "restore"), *map(str, wrong)], capture_output=True, text=True, check=False)
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    done = subprocess.run(
        [str(scripts / "backup"), str(tmp_path), str(file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and "no federation" in done.stderr
