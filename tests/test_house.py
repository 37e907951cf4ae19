"""The house keeps its own rules: sizes, names, calls that are never made, documents that name what exists."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import confide
from tests.documents import blocks, make_targets

ROOT = Path(confide.__file__).parent
PACKAGES = ("privacy", "client", "server", "simulation")
MAX_LINES = {"tests": 600}
MAX_LINES_ELSEWHERE = 400

# A longer file needs a reason that a reader accepts.
LONG_FILES: dict[str, str] = {}

# What a reader of the repository cannot look up: papers that are not in it, numbers of a tracker, who said it when.
PRIVATE_SOURCES = (
    r"\b(?:PRIVACY|DESIGN|FACTS|SURVEY|FIELD|STYLE) (?:§ ?)?(?:\d|[A-Z]\.?\d)",
    r"\b[Ii]ssues? #?\d|\bPR #?\d|(?<![&\w])#\d{1,4}\b",
    r"\b(?:helper|founder|piece|session) (?:[A-Z]|\d+)\b",
    r"\b(?:this|last|next|earlier|previous) session\b|\bthe (?:lead|brief)\b",
)

# Calls that are made nowhere in what runs on a device, a server or the simulation, and why.
FORBIDDEN_CALLS = {
    "pickle.load": "runs code from its input",
    "pickle.loads": "runs code from its input",
    "marshal.loads": "runs code from its input",
    "shelve.open": "is pickle",
    "torch.load": "is pickle",
    "torch.save": "writes pickle; safetensors holds tensors only",
    "yaml.load": "may build any object",
    "eval": "runs code from its input",
    "exec": "runs code from its input",
    "os.system": "is a shell",
    "np.random.seed": "one seed for everybody, noise included",
    "numpy.random.seed": "one seed for everybody, noise included",
    "np.random.RandomState": "the legacy generator",
    "np.random.normal": "noise from the global generator",
    "random.seed": "one seed for everybody",
    "random.random": "no generator of ours",
    "random.sample": "no generator of ours",
    "random.shuffle": "no generator of ours",
    "random.choice": "no generator of ours",
}
FORBIDDEN_IMPORTS = {"pickle", "shelve", "marshal", "dill", "cloudpickle", "joblib"}
PURE_CORE_FORBIDDEN_IMPORTS = {"torch", "flwr", "socket", "logging", "random", "transformers", "asyncio", "subprocess"}
VAGUE_NAMES = {"utils", "util", "common", "manager", "helper", "helpers", "misc"}


def sources(*folders: str) -> list[Path]:
    """Return the tracked-or-new Python files below `folders`, confide.py with all of them."""
    found = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    return [path for path in found if "__pycache__" not in path.parts]


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def dotted(node: ast.expr) -> str:
    """Return "a.b.c" for such an expression, else ""."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (base := dotted(node.value)):
        return f"{base}.{node.attr}"
    return ""


def calls(tree: ast.AST) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def imported(tree: ast.AST) -> set[str]:
    """Return the top-level names that a module imports, inside functions too."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


def faults(tree: ast.AST) -> list[str]:
    """Return the forbidden calls and imports of one module."""
    found = [f"imports {name}" for name in imported(tree) & FORBIDDEN_IMPORTS]
    for call in calls(tree):
        name = dotted(call.func)
        if name in FORBIDDEN_CALLS:
            found.append(f"line {call.lineno}: {name} {FORBIDDEN_CALLS[name]}")
        for keyword in call.keywords:
            value = keyword.value
            if keyword.arg in {"allow_pickle", "shell", "trust_remote_code"} and not (
                isinstance(value, ast.Constant) and value.value is False
            ):
                found.append(f"line {call.lineno}: {keyword.arg} runs what it is given")
    return found


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from pickle import loads",
        "torch.load('x')",
        "np.random.seed(1)",
        "np.load('x', allow_pickle=True)",
        "subprocess.run('x', shell=flag)",
        "AutoModel.from_pretrained('x', trust_remote_code=True)",
        "def f():\n    import cloudpickle",
        "eval('1')",
    ],
)
def test_the_search_for_forbidden_calls_finds_them(code: str) -> None:
    assert faults(ast.parse(code))


@pytest.mark.parametrize("code", ["np.load('x', allow_pickle=False)", "module.eval()", "np.random.default_rng(1)"])
def test_the_search_for_forbidden_calls_passes_what_is_fine(code: str) -> None:
    assert not faults(ast.parse(code))


def test_no_forbidden_calls() -> None:
    found = {relative(path): faults(ast.parse(path.read_text())) for path in [*sources(*PACKAGES), ROOT / "confide.py"]}
    assert {path: fault for path, fault in found.items() if fault} == {}


def test_the_pure_core_imports_no_model_network_or_log() -> None:
    found = {
        relative(path): imported(ast.parse(path.read_text())) & PURE_CORE_FORBIDDEN_IMPORTS
        for path in sources("privacy")
    }
    assert {path: names for path, names in found.items() if names} == {}


def test_arrays_become_bytes_in_one_place() -> None:
    writers = [
        relative(p) for p in sources(*PACKAGES) if re.search(r"safetensors\.numpy import .*\bsave", p.read_text())
    ]
    assert writers == ["privacy/tensors.py"], "the library scrambles what does not lie in rows"


def test_server_and_client_never_import_each_other() -> None:
    for here, there in (("client", "server"), ("server", "client")):
        for path in sources(here):
            names = imported(ast.parse(path.read_text()))
            assert not names & {there, "simulation"}, relative(path)
    for path in sources("server"):
        assert "torch" not in imported(ast.parse(path.read_text())), relative(path)


def test_no_file_grows_past_its_reason() -> None:
    too_long = {}
    for path in [*sources(*PACKAGES, "tests"), ROOT / "confide.py"]:
        name, length = relative(path), len(path.read_text().splitlines())
        if length > MAX_LINES.get(name.partition("/")[0], MAX_LINES_ELSEWHERE):
            too_long[name] = length
    assert {name: length for name, length in too_long.items() if name not in LONG_FILES} == {}
    assert set(LONG_FILES) <= set(too_long), "a reason outlived its file's length"


def test_names_say_something() -> None:
    files = [*sources(*PACKAGES, "tests"), ROOT / "confide.py"]
    assert [relative(path) for path in files if set(path.stem.split("_")) & VAGUE_NAMES] == []


def test_tests_have_unique_names_and_no_init_file() -> None:
    files = sources("tests")
    assert not [relative(path) for path in files if path.name == "__init__.py"]
    names = [path.name for path in files if path.name != "conftest.py"]
    assert len(names) == len(set(names))


def test_every_package_says_what_it_is() -> None:
    for path in sources(*PACKAGES):
        assert ast.get_docstring(ast.parse(path.read_text())), relative(path)


def published() -> list[Path]:
    """Return the files that git holds, or skip where this is no clone."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git clone")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def test_published_text_names_no_machine() -> None:
    """No absolute path of a person's or a builder's machine, no index address, in any file that is published."""
    machine = re.compile(
        r"(?<![\w.])/(?:home/\w+|root|Users/\w+|work|mnt|opt|tmp)/|file://|(?:extra-)?index-url|find-links|--trusted-host"
    )
    allowed = {"tests/test_house.py", "LICENSE"}
    found = []
    for path in published():
        if relative(path) in allowed:
            continue
        text = path.read_text(encoding="utf-8", errors="ignore")
        for match in machine.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            if not (relative(path) == "Makefile" and "--no-emit" in text.splitlines()[line - 1]):
                found.append(f"{relative(path)}:{line}: {match.group()}")
    assert found == []


def private_sources(text: str, documents: set[str]) -> list[str]:
    """Return what `text` leans on that nobody outside can read; `documents` are the Markdown files that exist."""
    named = re.findall(r"[\w./-]*\w\.md\b(?!\()", text)
    named = [name for name in named if not name.startswith("notes/")]  # what a reader writes in a tutorial
    found = [name for name in named if not any(f"/{path}".endswith(f"/{name}") for path in documents)]
    return found + [match.group() for pattern in PRIVATE_SOURCES for match in re.finditer(pattern, text)]


@pytest.mark.parametrize(
    "text",
    [
        *("See NOWHERE.md.", "as docs/README.md says", "(DESIGN 12)", "PRIVACY B.4", "PRIVACY 0b", "STYLE § 3"),
        *("issue 2", "closes #17", "helper E measured it", "piece A builds it", "an earlier session", "the lead wants"),
    ],
)
def test_the_search_for_private_sources_finds_them(text: str) -> None:
    assert private_sources(text, {"README.md", "privacy/PROTOCOL.md"})


@pytest.mark.parametrize(
    "text",
    [
        *("PROTOCOL.md, section 3", "privacy/PROTOCOL.md", "`README.md`", "color: #171614", "&#39;", "{#round-3}"),
        *('scope="session"', "the issue tracker", "_STYLE", "a piece of text", "notes.mdx"),
    ],
)
def test_the_search_for_private_sources_passes_what_is_fine(text: str) -> None:
    assert private_sources(text, {"README.md", "privacy/PROTOCOL.md"}) == []


def test_published_text_leans_on_nothing_private() -> None:
    documents = {relative(path) for path in published() if path.suffix == ".md"}
    documents |= {"docs/protocol.md", "docs/threats.md", "docs/changes.md"}  # pages that the site takes in
    found = {
        relative(path): private_sources(path.read_text(encoding="utf-8", errors="ignore"), documents)
        for path in published()
        if relative(path) not in {"tests/test_house.py", "LICENSE", "requirements.lock", "docs/requirements.lock"}
    }
    assert {name: sources for name, sources in found.items() if sources} == {}


def test_no_note_to_self_is_published() -> None:
    note = re.compile(r"\b(?:TODO|FIXME|XXX|HACK)\b")
    found = [
        relative(path)
        for path in published()
        if path.suffix in {".py", ".md", ".toml", ".j2"}
        and relative(path) != "tests/test_house.py"
        and note.search(path.read_text())
    ]
    assert found == []


def test_readme_starts_with_the_two_commands() -> None:
    text = (ROOT / "README.md").read_text()
    typed = [line for block in blocks("README.md", text) if block.shell for line, _ in block.steps()]
    assert typed[:2] == ["make demo", "make test"]
    assert text.index("make demo") < text.index("\n## "), "the commands come before the first section"


def test_every_make_target_that_help_names_exists() -> None:
    text = (ROOT / "Makefile").read_text()
    named = set(re.findall(r'@echo "make (\w+)', text))
    assert {"setup", "demo", "test", "check", "stat", "e2e"} <= named <= make_targets()


def locked() -> dict[str, str]:
    """Return the versions of both locks: what the site needs besides has one of its own."""
    text = "".join((ROOT / name).read_text() for name in ("requirements.lock", "docs/requirements.lock"))
    return dict(re.findall(r"^([a-z0-9][a-z0-9.-]*)==(\S+)", text, flags=re.MULTILINE))


def test_the_lock_holds_every_dependency_and_no_torch() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(r for extra in project["optional-dependencies"].values() for r in extra)]
    lock = locked()
    assert "torch" not in lock and "confide" not in lock
    for requirement in map(Requirement, wanted):
        if requirement.name not in {"torch", "confide"}:
            assert requirement.specifier.contains(lock[requirement.name]), str(requirement)


def test_every_locked_package_has_a_hash() -> None:
    locks = [(ROOT / name).read_text() for name in ("requirements.lock", "docs/requirements.lock")]
    blocks = [block for text in locks for block in re.split(r"\n(?=[a-z0-9])", text)]
    pinned = [block for block in blocks if re.match(r"[a-z0-9.-]+==", block)]
    assert len(pinned) == len(locked()) > 100
    assert all("--hash=sha256:" in block for block in pinned)


def test_torch_is_one_exact_version_everywhere() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    assert set(re.findall(r"torch==([\d.]+)", project + (ROOT / "Makefile").read_text())) == {"2.13.0"}
