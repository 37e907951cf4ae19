"""What was forgotten is in no page of the vault: decrypted one by one, log and free pages too, before and after."""

from __future__ import annotations

import gc
import struct
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from client import vault_key
from client.encoder import HashedEncoder
from client.forget import RETRAIN, Certificate, Wanted, forget
from client.importers import OWN, add
from client.learner import TextLearner
from client.library import documents
from client.model import LanguageModel
from client.retrieve import PersonalIndex
from client.train import CoreTraining
from client.vault import BESIDE, FILE, Vault
from client.vault_key import Opener, open_key
from privacy.errors import ConfigError, VaultError

OPENER = Opener(passphrase="x")
PAGE, RESERVED, IV = 4096, 80, 16
SALT, WAL_HEADER, FRAME_HEADER = 16, 32, 24
PLANTED = "heliotrope-ferry-at-dawn"
KEPT = "marigold-train-at-noon"


def pages(folder: Path) -> Iterator[bytes]:
    """Yield every page of the vault's file and of its log in the clear: AES-256-CBC, the IV at the page's end."""
    key = open_key(folder, OPENER)

    def plain(page: bytes, first: bool) -> bytes:
        start = SALT if first else 0
        iv = page[PAGE - RESERVED : PAGE - RESERVED + IV]
        opened = Cipher(algorithms.AES256(key), modes.CBC(iv)).decryptor()
        return opened.update(page[start : PAGE - RESERVED]) + opened.finalize()

    file = (folder / FILE).read_bytes()
    for at in range(0, len(file), PAGE):
        yield plain(file[at : at + PAGE], at == 0)
    log = folder / f"{FILE}-wal"
    data = log.read_bytes() if log.exists() else b""
    for at in range(WAL_HEADER, len(data), FRAME_HEADER + PAGE):
        (number,) = struct.unpack(">I", data[at : at + 4])
        yield plain(data[at + FRAME_HEADER : at + FRAME_HEADER + PAGE], number == 1)


def found(folder: Path, *needles: bytes) -> list[int]:
    """Return in how many pages each needle stands."""
    clear = list(pages(folder))
    return [sum(needle in page for page in clear) for needle in needles]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "notes"
    made.mkdir()
    (made / "gone.txt").write_text((f"Meet me: {PLANTED}. " * 900) + "End.")
    (made / "kept.txt").write_text(f"Meet me: {KEPT}.")
    return made


@pytest.fixture
def vault(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Vault]:
    monkeypatch.setattr(vault_key, "ARGON2ID", {"iterations": 1, "lanes": 1, "memory_kib": 64})
    with Vault.create(tmp_path / "home", OPENER) as made:
        add(made, folder)
        yield made


def number_of(vault: Vault, key: str) -> int:
    return int(vault.one("SELECT id FROM document WHERE key = ?", (key,)))


def derive(vault: Vault, number: int, mark: bytes) -> None:
    """Put what is made of a document into the vault, `mark` in every place where it can lie."""
    with vault.change() as rows:
        rows.execute("INSERT INTO profile VALUES (?, ?)", (number, f"profile of {mark.hex()}"))
        rows.execute("INSERT INTO pseudonym VALUES ('PERSON', ?, ?, ?)", (number, mark.hex(), f"name {mark.hex()}"))
        rows.execute("INSERT INTO pseudonym_document VALUES ('PERSON', ?, ?)", (mark.hex(), number))
        rows.execute("INSERT INTO chat VALUES (?, 1, 'q', ?)", (number, f"reply {mark.hex()}"))
        rows.execute("INSERT INTO chat_document VALUES (?, ?)", (number, number))
        rows.execute("INSERT INTO adapter VALUES (?, 'lora', 'r', 1, 1, '{}', ?)", (number, mark * 3000))
        rows.execute("INSERT INTO adapter_document VALUES (?, ?)", (number, number))


def embedding(vault: Vault, number: int) -> bytes:
    return bytes(vault.one("SELECT value FROM vector WHERE document = ?", (number,)))[:64]


def test_planted_text_and_all_that_was_made_of_it_is_in_no_page_afterwards(vault: Vault) -> None:
    PersonalIndex(vault, HashedEncoder(64))
    gone, kept = number_of(vault, "gone.txt"), number_of(vault, "kept.txt")
    gone_mark, kept_mark = b"\x07goneMARK\x08", b"\x07keptMARK\x08"
    derive(vault, gone, gone_mark)
    derive(vault, kept, kept_mark)
    lost = (PLANTED.encode(), embedding(vault, gone), gone_mark, gone_mark.hex().encode())
    left = (KEPT.encode(), embedding(vault, kept), kept_mark, kept_mark.hex().encode())
    assert all(found(vault.folder, *lost)) and all(found(vault.folder, *left)), "the search finds what is there"

    made = forget(vault, Wanted(documents=(gone,)))

    assert found(vault.folder, *lost) == [0, 0, 0, 0]
    assert all(found(vault.folder, *left)), "nothing else went"
    assert (made.documents, made.profile_lines, made.pseudonyms, made.chats, made.adapters) == ((gone,), 1, 1, 1, 1)
    assert made.vectors > 1 and vault.setting(RETRAIN) == "1"
    assert vault.one("PRAGMA freelist_count") == 0 and vault.one("PRAGMA integrity_check") == "ok"
    assert vault.select("PRAGMA foreign_key_check") == []


def test_without_the_rewriting_the_log_would_keep_it(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: the same deletion, the file not rewritten: the test above can fail."""
    monkeypatch.setattr(Vault, "erase_free_pages", lambda self: None)
    forget(vault, Wanted(documents=(number_of(vault, "gone.txt"),)))
    assert vault.one("SELECT count(*) FROM document") == 1
    assert found(vault.folder, PLANTED.encode())[0] > 0


def test_a_reader_of_an_old_state_is_named_and_the_log_goes_later(
    vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    from client import vault as module

    monkeypatch.setattr(module, "BUSY_S", 0.2)
    with Vault.open(vault.folder, OPENER) as reader:
        reader._rows.execute("BEGIN")
        reader.select("SELECT count(*) FROM document")
        with Vault.open(vault.folder, OPENER) as writer, pytest.raises(VaultError, match="another program"):
            forget(writer, Wanted(documents=(number_of(vault, "gone.txt"),)))
        reader._rows.execute("ROLLBACK")
    assert vault.one("SELECT count(*) FROM document") == 1
    vault.erase_free_pages()
    assert found(vault.folder, PLANTED.encode()) == [0]


def test_all_leaves_neither_key_nor_file(vault: Vault) -> None:
    copy = (vault.folder / FILE).read_bytes()
    key_file = (vault.folder / vault_key.KEY_FILE).read_bytes()
    vault.destroy()
    assert not any((vault.folder / f"{FILE}{end}").exists() for end in BESIDE)
    left = b"".join(path.read_bytes() for path in vault.folder.iterdir())
    assert key_file not in left and copy[:64] not in left


def test_the_certificate_holds_numbers_alone(vault: Vault) -> None:
    made = forget(vault, Wanted(documents=(number_of(vault, "gone.txt"),)))
    assert isinstance(made, Certificate)
    shown = str(made.to_json())
    assert PLANTED not in shown and "gone.txt" not in shown and "no release holds anything" in shown
    assert vault.one("SELECT count(*) FROM forgotten") == 1


def test_by_source_by_day_and_by_nothing(vault: Vault, folder: Path) -> None:
    with pytest.raises(ConfigError, match="no document 99"):
        forget(vault, Wanted(documents=(99,)))
    with pytest.raises(ConfigError, match="nothing in the vault matches"):
        forget(vault, Wanted(before=1.0))
    assert vault.one("SELECT count(*) FROM document") == 2
    with vault.change() as rows:
        rows.execute("UPDATE document SET written = 5 WHERE key = 'gone.txt'")
    forget(vault, Wanted(before=6.0))
    assert vault.select("SELECT key FROM document") == [("kept.txt",)]
    forget(vault, Wanted(sources=(1,)))
    for table in ("document", "source", "consent"):
        assert vault.one(f"SELECT count(*) FROM {table}") == 0
    assert add(vault, folder).new == 1, "a source that is added again is wanted again, what went alone before is not"
    assert add(vault, folder, again=True).new == 1


def test_an_index_in_memory_forgets_with_the_vault(vault: Vault) -> None:
    index = PersonalIndex(vault, HashedEncoder(64))
    assert PLANTED in index.search("heliotrope", 1)[0].passage.text
    forget(vault, Wanted(documents=(number_of(vault, "gone.txt"),)))
    index.refresh()
    state: list[Any] = [index._shelves["note"].passages, index._shelves["note"].lexicon._rows]
    assert "heliotrope" not in str(state) and len(index) == 1
    assert all(hit.passage.text == f"Meet me: {KEPT}." for hit in index.search("heliotrope", 5))
    vectors = [v for v in index._shelves["note"]._vectors if v is not None]
    assert len(vectors) == 1 and np.isfinite(vectors[0]).all()


def test_nothing_personal_is_kept_that_no_document_owns() -> None:
    """A table that could hold words and is neither deleted with its document nor named here would outlive it."""
    from client.vault_schema import MIGRATIONS

    own = {"setting", "attribute", "preference", "thumb", "journal", "forgotten", "tombstone", "source"}
    for block in "".join(MIGRATIONS).split("CREATE TABLE ")[1:]:
        name, body = block.split(" ", 1)
        tied = "ON DELETE CASCADE" in body.split(");")[0] or name in ("document", "pseudonym", "adapter", "chat")
        assert tied or name in own, name


def test_token_ids_and_activations_lie_in_memory_alone_and_go_from_there(
    vault: Vault, new_model: Callable[..., LanguageModel]
) -> None:
    learner = TextLearner(new_model(), CoreTraining(), 64)
    learner.add("me", [kept.as_document() for kept in documents(vault, OWN)])
    cached = [learner._prefix("me", encoded) for encoded in learner._encoded["me"]]
    assert len(cached) == 2
    gone = number_of(vault, "gone.txt")
    [lost] = [each for each in cached if each.encoded.document == f"v{gone}"]
    ids, hidden = lost.encoded.ids[:16], lost.hidden[0].float()
    forms = [ids.numpy().tobytes(), ids.int().numpy().tobytes(), str(ids.tolist())[1:-1].encode()]
    forms += [hidden.numpy().tobytes()[:64], lost.hidden[0].half().numpy().tobytes()[:64]]
    assert found(vault.folder, *forms) == [0] * len(forms), "they are never written"
    alive = [weakref.ref(lost.hidden), weakref.ref(lost.encoded.ids)]
    del cached, lost, ids, hidden

    forget(vault, Wanted(documents=(gone,)))
    learner.add("me", [kept.as_document() for kept in documents(vault, OWN)])
    gc.collect()
    assert [reference() for reference in alive] == [None, None] and len(learner._encoded["me"]) == 1
    assert found(vault.folder, *forms) == [0] * len(forms)
