"""Importers over layouts as they lie on people's disks: mail in all its nesting, moved files, mixed folders."""

from __future__ import annotations

import mailbox
import sqlite3
import subprocess
from collections.abc import Iterator
from email.message import EmailMessage
from pathlib import Path

import pytest

from client import vault_key
from client.encoder import HashedEncoder
from client.import_mail import read_mails
from client.imported import Skipped, Text, unpacked_spans
from client.importers import add
from client.retrieve import PersonalIndex
from client.vault import Vault
from client.vault_key import Opener

ME, BEN = "ann@example.org", "ben@example.org"


@pytest.fixture
def vault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Vault]:
    monkeypatch.setattr(vault_key, "ARGON2ID", {"iterations": 1, "lanes": 1, "memory_kib": 64})
    with Vault.create(tmp_path / "home", Opener(passphrase="x")) as made:
        yield made


def own(vault: Vault) -> str:
    rows = vault.select("SELECT spans FROM document ORDER BY id")
    return "".join(span.text for row in rows for span in unpacked_spans(row[0]) if span.own)


def everything(vault: Vault) -> str:
    return "".join(row[0] for row in vault.select("SELECT spans FROM document"))


def mail(sender: str, number: int, body: str = "") -> EmailMessage:
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = sender, "somebody@example.org", f"Mail {number}"
    message["Message-ID"], message["Date"] = f"<{number}@example.org>", "Mon, 02 Mar 2020 10:00:00 +0000"
    if body:
        message.set_content(body)
    return message


def owned(message: EmailMessage, tmp_path: Path) -> tuple[str, list[str]]:
    """Return the owner's words in a mail, and what was skipped of it."""
    path = tmp_path / "one.eml"
    path.write_bytes(message.as_bytes())
    events = list(read_mails(path, [ME]))
    words = "".join(s.text for e in events if isinstance(e, Text) for s in e.spans if s.own)
    return words, [e.reason for e in events if isinstance(e, Skipped)]


def test_the_text_in_the_middle_of_nested_parts_is_found(tmp_path: Path) -> None:
    message = mail(ME, 1, "Plain words of mine.\n")
    message.add_alternative("<p>Plain words of mine.</p><img src='cid:x'>", subtype="html")
    html = message.get_payload()[1]  # type: ignore[index]
    assert isinstance(html, EmailMessage)
    html.add_related(b"GIF89a", "image", "gif", cid="<x>")
    message.add_attachment(b"%PDF-1.4", maintype="application", subtype="pdf", filename="a.pdf")
    inner = mail(BEN, 2, "Words of Ben.")
    message.add_attachment(inner)
    words, skipped = owned(message, tmp_path)
    assert words == "Plain words of mine.\n"
    assert skipped == [
        "attachment application/pdf is not read, only text",
        "attachment message/rfc822 is not read, only text",
    ]


HEAD = "On Mon, 2 Mar 2020 at 09:00, Ben <ben@example.org> wrote:"
FORWARDED = "---------- Forwarded message ---------"


@pytest.mark.parametrize(
    ("body", "mine"),
    [
        (f"Yes, at noon.\n\n{HEAD}\n> Lunch?\n> Ben\n", "Yes, at noon."),
        (f"{HEAD}\n> Lunch?\n\nYes, at noon.\n\n-- \nAnn\nLower Mill\n", "Yes, at noon."),
        ("Ben wrote:\n> Lunch?\nYes.\n> Where?\nAt the mill.\n", "Ben wrote:\nYes.\nAt the mill."),
        ("Yes.\n\n-----Original Message-----\nFrom: Ben\nSent: Monday\nLunch?\n", "Yes."),
        (f"Read on.\n\n{FORWARDED}\nFrom: Ben <b@example.org>\nDate: Mon\n\nLunch?\n", "Read on."),
        ("Ja.\n\nAm 02.03.2020 um 09:00 schrieb Ben:\n> Essen?\n", "Ja."),
        ("Yes.\n\nFrom: Ben <ben@example.org>\nSent: Monday\nTo: Ann\nSubject: Lunch\n\nLunch?\n", "Yes."),
        ("Yes.\n\n________________________________\nFrom: Ben\nLunch?\n", "Yes."),
        ("Yes.\n\nSent from my phone\n", "Yes."),
    ],
)  # fmt: skip
def test_a_reply_is_what_was_replied_wherever_it_stands(tmp_path: Path, body: str, mine: str) -> None:
    assert owned(mail(ME, 1, body), tmp_path)[0].strip() == mine


def test_a_reply_in_html_is_what_was_replied(tmp_path: Path) -> None:
    message = mail(ME, 1)
    message.set_content(
        "<html><head><style>p {}</style></head><body><div>Yes, at <b>noon</b>.</div><div class='gmail_quote'>"
        "<div>On Mon, Ben wrote:<br></div><blockquote><div>Lunch?</div><p>Ben</p></blockquote></div></body></html>",
        subtype="html",
    )
    assert owned(message, tmp_path)[0].strip() == "Yes, at noon ."


def test_an_mbox_is_told_apart_and_again_adds_what_is_new(vault: Vault, tmp_path: Path) -> None:
    path = tmp_path / "all.mbox"
    box = mailbox.mbox(path)
    for number in range(20):
        box.add(mail(ME if number % 2 else BEN, number, f"Words {number} of {'mine' if number % 2 else 'his'}.\n"))
    box.flush()
    counts = add(vault, path, [ME])
    assert (counts.new, counts.others) == (20, 10)
    assert own(vault).count("of mine") == 10 and "of his" not in own(vault)
    box.add(mail(ME, 20, "From the garden.\nFrom here on it is mine.\n"))
    box.flush()
    box.close()
    again = add(vault, path)
    assert (again.new, again.same) == (1, 20) and "From here on it is mine" in own(vault)


def test_mail_among_notes_waits_for_an_address_and_is_then_read(vault: Vault, tmp_path: Path) -> None:
    folder = tmp_path / "papers"
    (folder / "mail").mkdir(parents=True)
    (folder / "note.rst").write_text("A note of mine.")
    (folder / "mail" / "a.eml").write_bytes(mail(ME, 1, "A mail of mine.").as_bytes())
    box = mailbox.mbox(folder / "old.mbox")
    box.add(mail(BEN, 2, "A mail of his."))
    box.flush()
    box.close()
    first = add(vault, folder)
    assert first.new == 1 and first.skipped == {"mail among notes: say which is yours with --me ADDRESS": 2}
    second = add(vault, folder, [ME])
    assert (second.new, second.same, second.others) == (2, 1, 1)
    assert own(vault) == "A note of mine.A mail of mine.\n" and "A mail of his." in everything(vault)


def test_what_is_no_text_is_refused_by_name_whatever_it_is_called(vault: Vault, tmp_path: Path) -> None:
    folder = tmp_path / "things"
    folder.mkdir()
    with sqlite3.connect(folder / "app.sqlite") as rows:
        rows.execute("CREATE TABLE t (x TEXT)")
    rows.close()
    (folder / "copy.txt").write_bytes((folder / "app.sqlite").read_bytes())
    (folder / "paper.pdf").write_bytes(b"%PDF-1.4\n")
    (folder / "paper.txt").write_bytes(b"%PDF-1.4\n1 0 obj << /Length 8 >> stream\nBT (x) Tj ET\n")
    (folder / "photo.png").write_bytes(b"\x89PNG\r\n")
    (folder / "film.mp4").write_bytes(b"x")
    (folder / "README").write_text("no type")
    (folder / "ok.txt").write_text("Words.")
    counts = add(vault, folder)
    assert counts.new == 1 and dict(counts.skipped) == {
        "application/vnd.sqlite3 is not read, only text": 1,
        "application/pdf is not read, only text": 1,
        "image/png is not read, only text": 1,
        "video/mp4 is not read, only text": 1,
        "a file without a type is not read, only text": 1,
        "holds bytes that are no text": 2,
    }


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "cp1252", "latin-1"])
def test_notes_in_unusual_encodings_keep_their_letters(vault: Vault, tmp_path: Path, encoding: str) -> None:
    data = "Grüße aus Århus, façade.\r\nZweite Zeile.".encode(encoding)
    (tmp_path / "n.txt").write_bytes(b"\xfe\xff" + data if encoding == "utf-16-be" else data)
    assert add(vault, tmp_path / "n.txt").new == 1
    assert own(vault) == "Grüße aus Århus, façade.\nZweite Zeile."


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", "-C", str(folder), *arguments], check=True, capture_output=True)


def test_moving_or_copying_anothers_file_makes_none_of_its_lines_mine(vault: Vault, tmp_path: Path) -> None:
    folder = tmp_path / "repo"
    folder.mkdir()
    git(folder, "init", "-q")
    git(folder, "config", "user.email", ME)
    git(folder, "config", "user.name", "Ann")
    his = [f"his line {i}" for i in range(30)]
    (folder / "his.txt").write_text("\n".join(his) + "\n")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "By Ben", f"--author=Ben <{BEN}>")
    git(folder, "mv", "his.txt", "moved.txt")
    (folder / "moved.txt").write_text("\n".join([*his, "my line at the end"]) + "\n")
    git(folder, "commit", "-q", "-am", "Move it")
    (folder / "copy.txt").write_text("\n".join(his) + "\n")
    (folder / "moved.txt").write_text("\n".join([*his, "my line, changed"]) + "\n")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "Copy it")
    counts = add(vault, folder)
    assert (counts.new, counts.others) == (3, 1)
    assert own(vault) == "Move it\nmy line at the end\nCopy it\nmy line, changed\n"


def test_a_changed_document_keeps_its_number_and_slice_and_loses_what_was_derived(vault: Vault, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    for i in range(12):
        (tmp_path / "notes" / f"{i}.txt").write_text(f"Old words number {i}.")
    add(vault, tmp_path / "notes")
    index = PersonalIndex(vault, HashedEncoder(64))
    before = vault.select("SELECT id, key, held_back FROM document ORDER BY id")
    (tmp_path / "notes" / "7.txt").write_text("The ferry leaves at dawn.")
    assert add(vault, tmp_path / "notes").changed == 1
    assert vault.select("SELECT id, key, held_back FROM document ORDER BY id") == before
    number = next(n for n, key, _ in before if key == "7.txt")
    assert vault.one("SELECT count(*) FROM vector WHERE document = ?", (number,)) == 0
    index.refresh()
    assert index.search("ferry", 1)[0].passage.document == number and len(index) == 12
    assert all("number 7" not in passage.text for passage in index.passages)
    assert vault.one("SELECT count(*) FROM vector WHERE document = ?", (number,)) == 1
