"""Importers: whose words are whose, nothing twice, and what was left out by name."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from client import vault_key
from client.forget import Wanted, forget
from client.import_git import read_commits
from client.import_mail import own_part, plain_text, read_mails
from client.imported import Skipped, Text, unpacked_spans
from client.importers import add, kind_of
from client.vault import Vault
from client.vault_key import Opener
from privacy.errors import DataError

ME = "ann@example.org"


@pytest.fixture
def vault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Vault]:
    monkeypatch.setattr(vault_key, "ARGON2ID", {"iterations": 1, "lanes": 1, "memory_kib": 64})
    with Vault.create(tmp_path / "home", Opener(passphrase="x")) as made:
        yield made


def texts(vault: Vault) -> list[str]:
    rows = vault.select("SELECT spans FROM document ORDER BY id")
    return ["".join(span.text for span in unpacked_spans(row[0])) for row in rows]


def own(vault: Vault) -> str:
    rows = vault.select("SELECT spans FROM document ORDER BY id")
    return "".join(span.text for row in rows for span in unpacked_spans(row[0]) if span.own)


# -- folders ------------------------------------------------------------------------------------------------------


def notes(folder: Path) -> Path:
    (folder / "deep").mkdir(parents=True)
    (folder / "one.txt").write_text("# Boats\n\nI keep a boat.")
    (folder / "deep" / "two.txt").write_bytes("Café, im Süden.".encode("cp1252"))
    (folder / "three.txt").write_bytes("Häuser".encode("utf-16"))
    (folder / "photo.jpg").write_bytes(b"\xff\xd8")
    (folder / "talk.mp3").write_bytes(b"x")
    (folder / "broken.txt").write_bytes(b"a\0b")
    (folder / "empty.txt").write_text(" \n")
    (folder / ".hidden.txt").write_text("not this")
    return folder


def test_a_folder_is_read_and_other_media_are_refused_by_name(vault: Vault, tmp_path: Path) -> None:
    counts = add(vault, notes(tmp_path / "notes"))
    assert (counts.new, counts.same) == (3, 0)
    assert dict(counts.skipped) == {
        "image/jpeg is not read, only text": 1,
        "audio/mpeg is not read, only text": 1,
        "holds bytes that are no text": 1,
        "empty": 1,
    }
    assert "photo.jpg: image/jpeg is not read, only text" in counts.shown
    found = "".join(texts(vault))
    assert "Café, im Süden." in found and "Häuser" in found and "not this" not in found


def test_imported_again_only_what_is_new_is_taken(vault: Vault, tmp_path: Path) -> None:
    folder = notes(tmp_path / "notes")
    add(vault, folder)
    again = add(vault, folder)
    assert (again.new, again.changed, again.same) == (0, 0, 3)
    (folder / "one.txt").write_text("# Boats\n\nI sold the boat.")
    (folder / "four.txt").write_text("Four.")
    third = add(vault, folder)
    assert (third.new, third.changed, third.same) == (1, 1, 2)
    assert "keep a boat" not in "".join(texts(vault)) and "sold the boat" in "".join(texts(vault))


def test_the_same_words_twice_are_kept_once(vault: Vault, tmp_path: Path) -> None:
    folder = tmp_path / "notes"
    folder.mkdir()
    for name in ("a.txt", "b.txt"):
        (folder / name).write_text("The very same words.")
    counts = add(vault, folder)
    assert counts.new == 1 and counts.skipped["the vault holds these words already"] == 1
    assert add(vault, folder).new == 0


def test_a_link_that_leads_out_is_not_followed(vault: Vault, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("outside")
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "in.txt").write_text("inside")
    (folder / "link.txt").symlink_to(tmp_path / "secret.txt")
    add(vault, folder)
    assert texts(vault) == ["inside"]


def test_a_file_of_another_type_is_refused_by_its_type(vault: Vault, tmp_path: Path) -> None:
    (tmp_path / "talk.pdf").write_bytes(b"%PDF")
    with pytest.raises(DataError, match=r"talk.pdf: application/pdf is not read"):
        add(vault, tmp_path / "talk.pdf")
    with pytest.raises(DataError, match="no such file"):
        add(vault, tmp_path / "nothing")
    assert vault.one("SELECT count(*) FROM source") == 0


def test_what_was_forgotten_does_not_come_back_by_itself(vault: Vault, tmp_path: Path) -> None:
    folder = notes(tmp_path / "notes")
    add(vault, folder)
    number = vault.one("SELECT id FROM document WHERE key = 'one.txt'")
    forget(vault, Wanted(documents=(number,)))
    counts = add(vault, folder)
    assert counts.new == 0 and not any("boat" in text for text in texts(vault))
    assert add(vault, folder, again=True).new == 1


# -- mail ---------------------------------------------------------------------------------------------------------

REPLY = """\
No, the 4th is better for me.

On Mon, 3 Nov 2025 at 10:00, Bob <bob@example.org>
wrote:
> Shall we meet on the 3rd?
> Bob

See you then.
--\x20
Ann
Harbour Road 1
"""


def mail(sender: str, body: str, number: int, subject: str = "Meeting", kind: str = "plain") -> str:
    return (
        f"From: {sender}\nTo: bob@example.org\nSubject: {subject}\nMessage-ID: <{number}@x>\n"
        f"Date: Mon, {number} Nov 2025 10:00:00 +0000\nContent-Type: text/{kind}; charset=utf-8\n\n{body}\n"
    )


@pytest.fixture
def box(tmp_path: Path) -> Path:
    lines = [
        mail(f"Ann <{ME}>", REPLY, 4),
        mail("Bob <bob@example.org>", "Shall we meet on the 3rd?\nBob", 3),
        mail(f"Ann <{ME.upper()}>", "<p>Page <b>text</b></p><blockquote>Old words</blockquote>", 5, kind="html"),
    ]
    path = tmp_path / "in.mbox"
    path.write_text("".join(f"From x@y Mon Nov  3 10:00:00 2025\n{line}\n" for line in lines))
    return path


def test_quotes_and_signature_are_no_part_of_a_mail() -> None:
    assert own_part(REPLY) == "No, the 4th is better for me.\n\nSee you then."
    assert own_part("Yes.\n\n-----Original Message-----\nFrom: Bob\nno") == "Yes."
    assert own_part("Yes.\nFrom: Bob <b@x.org>\nSent: Monday\nTo: Ann\n\nno") == "Yes."
    assert own_part("It came\nFrom: me to you, b@x.org says.\nand on it went") == (
        "It came\nFrom: me to you, b@x.org says.\nand on it went"
    )
    assert own_part("Fine.\nSent from my iPhone") == "Fine."
    assert own_part("> only a quote") == ""
    assert plain_text("<style>x{}</style><p>a<br>b</p><script>no</script>") == "a\nb"


def test_own_mails_are_told_from_others(vault: Vault, box: Path) -> None:
    counts = add(vault, box, [ME])
    assert counts.new == 3 and counts.others == 1
    assert own(vault) == "No, the 4th is better for me.\n\nSee you then.\nPage text\n"
    assert "Old words" not in "".join(texts(vault)) and "Harbour" not in "".join(texts(vault))
    assert "Shall we meet" in "".join(texts(vault)), "another's mail is there to be found"
    written = vault.select("SELECT written FROM document ORDER BY written")
    assert written[1][0] - written[0][0] == 86400


def test_mail_without_a_known_address_asks_and_keeps_nothing(vault: Vault, box: Path) -> None:
    with pytest.raises(DataError, match=f"--me ADDRESS; senders here: {ME}, bob@example.org"):
        add(vault, box)
    assert vault.one("SELECT count(*) FROM source") == 0
    add(vault, box, [ME])
    assert add(vault, box).same == 3, "an address given once is known"


def test_the_same_mail_in_a_folder_is_not_kept_twice(vault: Vault, box: Path, tmp_path: Path) -> None:
    add(vault, box, [ME])
    folder = tmp_path / "export"
    folder.mkdir()
    (folder / "a.eml").write_text(mail(f"Ann <{ME}>", REPLY, 4))
    (folder / "b.eml").write_text(mail(f"Ann <{ME}>", "Something new.", 6))
    assert kind_of(folder) == "mail"
    counts = add(vault, folder)
    assert counts.new == 1 and counts.skipped["the vault holds these words already"] == 1


def test_attachments_and_what_cannot_be_parsed_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.eml"
    path.write_text(
        f"From: {ME}\nMIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=b\n\n--b\nContent-Type: text/plain\n\n"
        "Here it is.\n--b\nContent-Type: image/png\nContent-Disposition: attachment\n\nxx\n--b--\n"
    )
    found = list(read_mails(path, [ME]))
    assert found[0] == Skipped("x.eml", "attachment image/png is not read, only text")
    assert isinstance(found[1], Text) and found[1].spans[1].text == "Here it is.\n"
    path.write_bytes(b"From: \xff\xfe\nContent-Type: text/plain; charset=nonsense\n\nbody \xe9\n")
    assert all(isinstance(event, Text | Skipped) for event in read_mails(path, [ME]))


# -- git ----------------------------------------------------------------------------------------------------------


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", "-C", str(folder), *arguments], check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repo"
    folder.mkdir()
    git(folder, "init", "-q")
    git(folder, "config", "user.email", ME)
    for name, text, author in (("a.py", "own = 1", f"Ann <{ME}>"), ("b.py", "theirs = 2", "Bob <bob@example.org>")):
        (folder / name).write_text(text + "\n")
        git(folder, "add", ".")
        git(folder, "-c", "user.name=Ann", "commit", "-q", "-m", f"Add {name}\n\nBecause.", f"--author={author}")
    return folder


def test_commits_are_told_by_author(vault: Vault, repository: Path) -> None:
    counts = add(vault, repository)
    assert counts.new == 2 and counts.others == 1 and counts.kind == "git"
    assert own(vault) == "Add a.py\nBecause.\nown = 1\n"
    assert "theirs = 2" in texts(vault)[1] and "Bob" in texts(vault)[1]
    assert add(vault, repository).same == 2


def test_a_repository_cannot_start_a_program(repository: Path, tmp_path: Path) -> None:
    """Every hook of its configuration that a log could trip over; none may run."""
    trap, sprung = tmp_path / "trap.sh", tmp_path / "sprung"
    trap.write_text(f"#!/bin/sh\ntouch {sprung}\n")
    trap.chmod(0o755)
    for name in ("core.pager", "core.fsmonitor", "diff.external", "diff.x.textconv", "diff.x.command", "gpg.program"):
        git(repository, "config", name, str(trap))
    git(repository, "config", "log.showSignature", "true")
    (repository / ".gitattributes").write_text("* diff=x filter=x\n")
    git(repository, "config", "filter.x.smudge", str(trap))
    assert len(list(read_commits(repository, [ME]))) == 2
    assert not sprung.exists()
    # That the trap is one: the same log without our precautions springs it.
    subprocess.run(["git", "-C", str(repository), "log", "-p", "--ext-diff"], check=False, capture_output=True)
    assert sprung.exists()


def test_a_repository_without_commits_says_so(vault: Vault, tmp_path: Path) -> None:
    folder = tmp_path / "new"
    folder.mkdir()
    git(folder, "init", "-q")
    counts = add(vault, folder, [ME])
    assert dict(counts.skipped) == {"no commit yet": 1} and counts.new == 0


# -- ratings and records ------------------------------------------------------------------------------------------


def test_ratings_with_titles_beside_them(vault: Vault, tmp_path: Path) -> None:
    (tmp_path / "movies.csv").write_text("movieId,title,genres\n1,Toy Story (1995),Animation|Comedy\n")
    path = tmp_path / "ratings.csv"
    path.write_text("userId,movieId,rating,timestamp\n7,1,4.5,964982703\n7,2,good,1\n7,3,2,964982704\n")
    counts = add(vault, path)
    assert counts.ratings == 2 and counts.skipped["the rating is no number"] == 1
    assert vault.select("SELECT title, about FROM item WHERE key = '1'") == [("Toy Story (1995)", "Animation|Comedy")]
    assert add(vault, path).ratings == 0


def test_a_table_of_several_people_asks_who(vault: Vault, tmp_path: Path) -> None:
    path = tmp_path / "ratings.csv"
    path.write_text("user,item,rating\nann,x,1\nbob,x,5\n")
    with pytest.raises(DataError, match="2 people: say which is you"):
        add(vault, path)
    assert add(vault, path, ["bob"]).ratings == 1
    assert vault.one("SELECT rating FROM interaction") == 5
    path.write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="no column"):
        add(vault, path)


def test_records_of_one_person_of_several(vault: Vault, tmp_path: Path) -> None:
    path = tmp_path / "people.jsonl"
    path.write_text(
        '{"user": "u1", "task": "talk", "i": 0, "turns": [["you", "Tea?"], ["me", "Yes, please."]]}\n'
        '{"user": "u2", "task": "talk", "i": 0, "turns": ["Not mine."]}\nbroken\n'
    )
    with pytest.raises(DataError, match="2 people"):
        add(vault, path)
    counts = add(vault, path, ["u1"])
    assert counts.new == 1 and own(vault) == "Yes, please.\n"
    assert list(counts.skipped) == ["not JSON at column 1"]


def test_nothing_of_a_source_is_shared_until_somebody_says_so(vault: Vault, tmp_path: Path) -> None:
    add(vault, notes(tmp_path / "notes"))
    assert vault.select("SELECT purpose, granted FROM consent ORDER BY purpose") == [("own", 1), ("shared", 0)]
