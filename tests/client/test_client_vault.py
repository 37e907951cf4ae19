"""The vault: opened by one key, changed whole or not at all, in one clear line where it cannot."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from client import vault_key, vault_schema
from client.vault import BESIDE, FILE, Vault
from client.vault_key import KEY_FILE, Opener, create_key, open_key, opener_from, opens_by
from privacy.errors import VaultError

ROOT = Path(__file__).parents[2]
REAL = dict(vault_key.ARGON2ID)
OPENER = Opener(passphrase="correct horse")


class Drawer:
    """A keyring by hand."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, str], str] = {}

    def get_password(self, service: str, name: str) -> str | None:
        return self.kept.get((service, name))

    def set_password(self, service: str, name: str, password: str) -> None:
        self.kept[service, name] = password

    def delete_password(self, service: str, name: str) -> None:
        del self.kept[service, name]


def child(folder: Path, code: str) -> subprocess.Popen[str]:
    """Return a process that runs `code` with `vault` open in `folder`."""
    text = "import os, sys, time\nfrom pathlib import Path\n"
    text += "from client.vault import Vault\nfrom client.vault_key import Opener\n"
    text += f"vault = Vault.open(Path({str(folder)!r}), Opener(passphrase='correct horse'))\n" + textwrap.dedent(code)
    return subprocess.Popen(
        [sys.executable, "-c", text], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def settings(folder: Path) -> int:
    with Vault.open(folder, OPENER) as vault:
        return int(vault.one("SELECT count(*) FROM setting"))


@pytest.fixture(autouse=True)
def cheap_passphrase(monkeypatch: pytest.MonkeyPatch) -> None:
    """A passphrase costs no 64 MiB here; what a vault was made with stands in its key file."""
    monkeypatch.setattr(vault_key, "ARGON2ID", {"iterations": 1, "lanes": 1, "memory_kib": 64})


def test_a_passphrase_costs_what_the_rfc_says() -> None:
    assert REAL == {"iterations": 3, "lanes": 4, "memory_kib": 65536}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    Vault.create(tmp_path / "home", OPENER).close()
    return tmp_path / "home"


def test_what_was_kept_is_there_again_and_nowhere_in_the_clear(home: Path) -> None:
    with Vault.open(home, OPENER) as vault:
        vault.set_setting("colour", "heliotrope")
        seen = b"".join((home / f"{FILE}{end}").read_bytes() for end in BESIDE if (home / f"{FILE}{end}").exists())
    assert b"heliotrope" not in seen and b"SQLite" not in seen, "the log is encrypted as well"
    with Vault.open(home, OPENER) as vault:
        assert vault.setting("colour") == "heliotrope"
    for name in (FILE, KEY_FILE):
        assert (home / name).stat().st_mode & 0o077 == 0
    assert home.stat().st_mode & 0o077 == 0


def test_a_wrong_passphrase_opens_nothing_and_changes_nothing(home: Path) -> None:
    before = {path.name: path.read_bytes() for path in home.iterdir()}
    with pytest.raises(VaultError, match="does not open the vault") as told:
        Vault.open(home, Opener(passphrase="correct horsf"))
    assert "\n" not in str(told.value) and "horsf" not in str(told.value)
    assert {path.name: path.read_bytes() for path in home.iterdir()} == before


def test_another_vaults_key_does_not_fit(home: Path, tmp_path: Path) -> None:
    (home / KEY_FILE).unlink()
    create_key(home, OPENER)
    with pytest.raises(VaultError, match="does not fit its key"):
        Vault.open(home, OPENER)


@pytest.mark.parametrize("field", ["salt", "iterations", "memory_kib", "sealed", "nonce", "by", "version"])
def test_a_key_file_that_was_changed_opens_nothing(home: Path, field: str) -> None:
    kept = json.loads((home / KEY_FILE).read_bytes())
    value = kept[field]
    kept[field] = value + 1 if isinstance(value, int) else ("0" if value[0] != "0" else "1") + value[1:]
    (home / KEY_FILE).write_text(json.dumps(kept))
    with pytest.raises(VaultError):
        Vault.open(home, OPENER)


def test_a_keyring_opens_it_and_no_other_does(tmp_path: Path) -> None:
    drawer = Drawer()
    Vault.create(tmp_path, Opener(keyring=drawer)).close()
    assert opens_by(tmp_path) == "keyring" and len(drawer.kept) == 1
    Vault.open(tmp_path, Opener(keyring=drawer)).close()
    with pytest.raises(VaultError, match="does not hold"):
        Vault.open(tmp_path, Opener(keyring=Drawer()))
    with pytest.raises(VaultError, match="none answers"):
        Vault.open(tmp_path, OPENER)
    (only,) = drawer.kept
    drawer.kept[only] = "00" * 32
    with pytest.raises(VaultError, match="does not open"):
        Vault.open(tmp_path, Opener(keyring=drawer))


def test_the_environment_gives_a_passphrase() -> None:
    assert opener_from({"CONFIDE_PASSPHRASE": "x"}) == Opener(passphrase="x")
    with pytest.raises(VaultError, match="no keyring"):
        create_key(Path("nowhere"), Opener())


def test_the_key_destroyed_nothing_opens_it_again(home: Path) -> None:
    file = (home / FILE).read_bytes()
    with Vault.open(home, OPENER) as vault:
        vault.destroy()
    assert not any((home / f"{FILE}{end}").exists() for end in BESIDE) and not (home / KEY_FILE).exists()
    (home / FILE).write_bytes(file)  # whoever kept a copy of the file and knows the passphrase
    with pytest.raises(VaultError, match="key was destroyed"):
        Vault.open(home, OPENER)
    with pytest.raises(VaultError, match="no key any more"):
        Vault.create(home, OPENER)


def test_a_keyrings_half_is_destroyed_too(tmp_path: Path) -> None:
    drawer = Drawer()
    vault = Vault.create(tmp_path, Opener(keyring=drawer))
    vault.destroy()
    assert drawer.kept == {}


def test_a_second_vault_is_not_made_over_the_first(home: Path) -> None:
    with pytest.raises(VaultError, match="has a vault"):
        Vault.create(home, OPENER)


def test_a_newer_vault_is_refused(home: Path) -> None:
    with Vault.open(home, OPENER) as vault:
        vault.select(f"PRAGMA user_version = {vault_schema.VERSION + 1}")
    with pytest.raises(VaultError, match="update confide"):
        Vault.open(home, OPENER)


def test_a_migration_that_fails_leaves_the_old_version(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Vault.open(home, OPENER) as vault:
        vault.set_setting("colour", "red")
    from client import vault as module

    broken = (*vault_schema.MIGRATIONS, "CREATE TABLE later (x INTEGER);\nCREATE TABLE later (x INTEGER);\n")
    monkeypatch.setattr(module, "MIGRATIONS", broken)
    monkeypatch.setattr(module, "VERSION", len(broken))
    with pytest.raises(VaultError):
        Vault.open(home, OPENER)
    whole = (*vault_schema.MIGRATIONS, "CREATE TABLE later (x INTEGER);\n")
    monkeypatch.setattr(module, "MIGRATIONS", whole)
    with Vault.open(home, OPENER) as vault:
        assert vault.setting("colour") == "red" and vault.one("SELECT count(*) FROM later") == 0


def test_a_change_that_fails_leaves_nothing(home: Path) -> None:
    with Vault.open(home, OPENER) as vault:
        with pytest.raises(RuntimeError), vault.change() as rows:
            rows.execute("INSERT INTO setting VALUES ('half', 'written')")
            raise RuntimeError
        assert vault.setting("half") == ""


def test_no_statement_or_value_is_in_an_error(home: Path) -> None:
    with Vault.open(home, OPENER) as vault, pytest.raises(VaultError) as told, vault.change() as rows:
        rows.execute("INSERT INTO nowhere VALUES ('my secret')")
    assert "secret" not in str(told.value)


def test_two_processes_write_and_nothing_is_lost(home: Path) -> None:
    each = 60
    writers = [
        child(home, f"for i in range({each}): vault.set_setting(f'{name}-{{i}}', 'x')\n") for name in ("one", "two")
    ]
    for writer in writers:
        _, said = writer.communicate(timeout=120)
        assert writer.returncode == 0, said
    assert settings(home) == 2 * each


def test_a_writer_that_never_ends_is_named_and_does_no_harm(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from client import vault as module

    monkeypatch.setattr(module, "BUSY_S", 0.2)
    with Vault.open(home, OPENER) as one, Vault.open(home, OPENER) as two:
        with one.change() as rows:
            rows.execute("INSERT INTO setting VALUES ('a', 'b')")
            with pytest.raises(VaultError, match="another program is writing"):
                two.set_setting("c", "d")
            assert two.setting("a") == "", "a reader sees no half"
        assert two.setting("a") == "b"


def test_threads_share_one_vault(home: Path) -> None:
    with Vault.open(home, OPENER) as vault:
        threads = [threading.Thread(target=vault.set_setting, args=(str(i), "x")) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert vault.one("SELECT count(*) FROM setting") == 8


def test_killed_while_writing_it_holds_what_was_reported_and_no_half(home: Path) -> None:
    """SIGKILL at ten moments of a writer that reports each change: every reported pair is there, no pair is half."""
    writer = """
        i = 0
        while True:
            with vault.change() as rows:
                rows.execute("INSERT INTO setting VALUES (?, ?)", (f"left-{os.getpid()}-{i}", "x" * 3000))
                rows.execute("INSERT INTO setting VALUES (?, ?)", (f"right-{os.getpid()}-{i}", "x" * 3000))
            print(i, flush=True)
            i += 1
    """
    for lines in range(1, 11):
        process = child(home, writer)
        assert process.stdout is not None
        reported = [process.stdout.readline() for _ in range(3 * lines)][-1]
        os.kill(process.pid, signal.SIGKILL)
        rest = process.communicate(timeout=60)[0].splitlines()
        last = int((rest or [reported])[-1])
        with Vault.open(home, OPENER) as vault:
            like = (f"%-{process.pid}-%",)
            left, right = (
                int(vault.one(f"SELECT count(*) FROM setting WHERE name LIKE '{side}' || ?", like))
                for side in ("left", "right")
            )
            assert left == right >= last + 1
            assert vault.one("PRAGMA integrity_check") == "ok"


def test_a_full_disk_loses_nothing_and_says_so(home: Path) -> None:
    """The kernel refuses writes past a file size: one line, the earlier content whole, and writable again after."""
    with Vault.open(home, OPENER) as vault:
        vault.set_setting("before", "kept")
    code = """
        import resource
        from privacy.errors import VaultError
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
        try:
            with vault.change() as rows:
                for i in range(2000):
                    rows.execute("INSERT INTO setting VALUES (?, ?)", (f"big-{i}", "x" * 3000))
        except VaultError as error:
            print(error)
            print(vault.setting("before"), vault.one("SELECT count(*) FROM setting"))
    """
    said, wrong = child(home, code).communicate(timeout=120)
    assert wrong == "" and said.splitlines()[1] == "kept 1"
    assert said.splitlines()[0] == "the disk is full or cannot be written: the vault is as it was before"
    with Vault.open(home, OPENER) as vault:
        assert vault.one("PRAGMA integrity_check") == "ok"
        vault.set_setting("after", "x")
    assert settings(home) == 2


def test_the_master_key_is_of_the_system_each_time(tmp_path: Path) -> None:
    keys = set()
    for name in "ab":
        (tmp_path / name).mkdir()
        keys.add(create_key(tmp_path / name, OPENER))
        assert open_key(tmp_path / name, OPENER) in keys
    assert len(keys) == 2
