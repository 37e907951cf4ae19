"""Exports of other programs, in layouts made by hand after their documentation."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from client import vault_key
from client.imported import BOOKMARK, EVENT, TALK, unpacked_spans
from client.importers import add, kind_of
from client.vault import Vault
from client.vault_key import Opener
from privacy.errors import DataError


@pytest.fixture
def vault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Vault:
    monkeypatch.setattr(vault_key, "ARGON2ID", {"iterations": 1, "lanes": 1, "memory_kib": 64})
    return Vault.create(tmp_path / "home", Opener(passphrase="x"))


def kept(vault: Vault) -> list[tuple[str, str, str, float | None, str, str]]:
    """Return type, title, key, time, own words and all words of every document."""
    found = []
    for kind, title, key, written, spans in vault.select("SELECT type, title, key, written, spans FROM document"):
        parts = unpacked_spans(spans)
        own = "|".join(span.text for span in parts if span.own)
        found.append((kind, title, key, written, own, "".join(span.text for span in parts)))
    return found


def second(*parts: int) -> float:
    year, month, day, hour, minute = (*parts, 0, 0)[:5]
    return datetime(year, month, day, hour, minute, tzinfo=UTC).timestamp()


ANDROID = """\
15/02/2024, 09:40 - Messages and calls are end-to-end encrypted.
15/02/2024, 09:41 - Ann Miller: Shall we walk?
15/02/2024, 09:42 - Bob: Yes, at noon: by the mill.
Bring boots.
15/02/2024, 09:43 - Ann Miller: <Media omitted>
16/02/2024, 10:00 - Bob: That was good.
"""
IPHONE = """\
[2/5/24, 9:41:12 PM] Ann: \u200eimage omitted
[2/5/24, 9:41:30 PM] Ann: Late?
[2/14/24, 12:05:00 AM] ~Bob: Not at all.
"""


def test_a_chat_of_whatsapp_is_a_document_a_day(vault: Vault, tmp_path: Path) -> None:
    place = tmp_path / "WhatsApp Chat with Ann.txt"
    place.write_text(ANDROID)
    assert kind_of(place) == "whatsapp"
    assert add(vault, place, ["bob"]).new == 2
    first, other = kept(vault)
    assert first[0] == TALK and first[3] == second(2024, 2, 15, 9, 42)
    assert first[4] == "Yes, at noon: by the mill.\nBring boots."
    assert first[5].startswith("Ann Miller: Shall we walk?\nBob: Yes") and "omitted" not in first[5]
    assert other[3] == second(2024, 2, 16, 10, 0) and "encrypted" not in first[5]
    assert add(vault, place, ["bob"]).same == 2


def test_the_other_way_to_write_a_chat_and_a_date(vault: Vault, tmp_path: Path) -> None:
    place = tmp_path / "_chat.txt"
    place.write_text(IPHONE, encoding="utf-8-sig")
    add(vault, place, ["Bob"])
    late, not_at_all = kept(vault)
    assert late[3] == second(2024, 2, 5, 21, 41) and late[4] == ""
    assert not_at_all[3] == second(2024, 2, 14, 0, 5) and not_at_all[4] == "Not at all."


def test_a_chat_asks_who_its_owner_is_and_keeps_nothing_before(vault: Vault, tmp_path: Path) -> None:
    place = tmp_path / "chat.txt"
    place.write_text(ANDROID)
    for owner in ([], ["Carla"]):
        with pytest.raises(DataError, match="--me NAME; speakers here: Ann Miller, Bob"):
            add(vault, place, owner)
    assert kept(vault) == [] and vault.one("SELECT count(*) FROM source") == 0


@pytest.mark.parametrize("text", ["Milk, 2 litres\n15/02 - call Ann\n", "15/02/2024, 09:41 - once\nand no more\n", ""])
def test_a_note_is_not_taken_for_a_chat(tmp_path: Path, text: str) -> None:
    (tmp_path / "note.txt").write_text(text)
    assert kind_of(tmp_path / "note.txt") == "notes"


def slack(folder: Path) -> Path:
    place = folder / "export"
    (place / "garden").mkdir(parents=True)
    users = [
        {"id": "U1", "name": "ann", "real_name": "Ann Miller", "profile": {"email": "ann@example.org"}},
        {"id": "U2", "name": "bob", "profile": {"display_name": "Bobby", "email": "bob@example.org"}},
    ]
    day: list[dict[str, Any]] = [
        {"type": "message", "user": "U2", "text": "<@U1> the roses &amp; <https://x.example|the plan>",
         "ts": "1707991300.0"},
        {"type": "message", "user": "U1", "text": "Lovely.", "ts": "1707991200.0"},
        {"type": "message", "subtype": "channel_join", "user": "U2", "text": "joined", "ts": "1707991100.0"},
    ]  # fmt: skip
    (place / "users.json").write_text(json.dumps(users))
    (place / "channels.json").write_text("[]")
    (place / "garden" / "2024-02-15.json").write_text(json.dumps(day))
    (place / "garden" / "2024-02-16.json").write_text("{broken")
    return place


@pytest.mark.parametrize("me", ["U2", "bob", "BOB@example.org"])
def test_a_workspace_of_slack_is_a_document_a_channel_and_day(vault: Vault, tmp_path: Path, me: str) -> None:
    place = slack(tmp_path)
    assert kind_of(place) == "slack"
    made = add(vault, place, [me])
    assert made.new == 1 and made.skipped == {"is no JSON": 1}
    ((_, title, _, written, own, words),) = kept(vault)
    assert (title, written, own) == ("garden 2024-02-15", 1707991300.0, "@Ann Miller the roses & the plan")
    assert words == "Ann Miller: Lovely.\nBobby: @Ann Miller the roses & the plan\n"


def test_a_workspace_in_which_nobody_is_the_owner_is_refused(vault: Vault, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--me NAME; speakers here: Ann Miller, Bobby"):
        add(vault, slack(tmp_path), ["carla"])


def node(role: str, parts: list[object], parent: str | None, second: float = 5.0) -> dict[str, Any]:
    content = {"content_type": "text", "parts": parts}
    return {"message": {"author": {"role": role}, "create_time": second, "content": content}, "parent": parent}


def test_a_conversation_with_chatgpt_is_the_branch_shown_last(vault: Vault, tmp_path: Path) -> None:
    mapping = {
        "root": {"message": None, "parent": None}, "s": node("system", ["hidden"], "root"),
        "u": node("user", ["Which rose?", {"asset_pointer": "x"}], "s"), "a1": node("assistant", ["The first."], "u"),
        "a2": node("assistant", ["A climbing one."], "u", 7.0),
    }  # fmt: skip
    loop = {"x": node("user", ["Round."], "y"), "y": node("assistant", ["And round."], "x")}
    conversations = [
        {"title": "Roses", "conversation_id": "c1", "mapping": mapping, "current_node": "a2"},
        {"title": "Loop", "conversation_id": "c2", "mapping": loop, "current_node": "x"},
        {"title": "Empty", "conversation_id": "c3", "mapping": {}, "current_node": None}, {"title": "Bad"},
    ]  # fmt: skip
    place = tmp_path / "conversations.json"
    place.write_text(json.dumps(conversations))
    assert kind_of(place) == "chatgpt"
    made = add(vault, place)
    assert made.new == 2 and sum(made.skipped.values()) == 2
    roses = kept(vault)[0]
    assert roses[1:] == ("Roses", "c1", 7.0, "Which rose?", "You: Which rose?\nAssistant: A climbing one.\n")


CALENDAR = """\
BEGIN:VCALENDAR
VERSION:2.0
PRODID:-//example//
BEGIN:VEVENT
UID:1@example.org
DTSTART:20240215T091500Z
SUMMARY:Walk with Ann\\, by the mill
LOCATION:The mill
END:VEVENT
BEGIN:VEVENT
UID:2@example.org
DTSTART;VALUE=DATE:20240301
ORGANIZER:mailto:ann@example.org
SUMMARY:Ann's feast
END:VEVENT
BEGIN:VEVENT
UID:3@example.org
DTSTART:20240302T091500Z
END:VEVENT
END:VCALENDAR
"""


def test_a_calendars_events_are_whose_who_organised_them(vault: Vault, tmp_path: Path) -> None:
    place = tmp_path / "year.ics"
    place.write_text(CALENDAR.replace("\n", "\r\n"))
    made = add(vault, place)
    assert made.new == 2 and made.skipped == {"holds no words": 1}
    walk, feast = kept(vault)
    assert walk[0] == EVENT and walk[3] == second(2024, 2, 15, 9, 15)
    assert walk[4] == "Walk with Ann, by the mill\nThe mill"
    assert feast[3] == second(2024, 3, 1) and feast[4] == "" and feast[5] == "Ann's feast"
    (tmp_path / "broken.ics").write_text("BEGIN:VEVENT\nno colon")
    with pytest.raises(DataError, match=r"broken.ics: is no iCalendar file"):
        add(vault, tmp_path / "broken.ics")


BOOKMARKS = """\
<!DOCTYPE NETSCAPE-Bookmark-file-1>
<TITLE>Bookmarks</TITLE>
<DL><p>
    <DT><H3 ADD_DATE="1">Garden</H3>
    <DL><p>
        <DT><A HREF="https://roses.example/climbing" ADD_DATE="1707991200">Climbing roses &amp; care</A>
        <DT><A HREF="javascript:alert(1)">A trick</A>
    </DL><p>
    <DT><A HREF="https://mill.example/">The mill</A>
</DL><p>
"""


def test_bookmarks_are_found_by_title_and_folder_and_are_nobodys_own_words(vault: Vault, tmp_path: Path) -> None:
    place = tmp_path / "bookmarks.html"
    place.write_text(BOOKMARKS)
    assert kind_of(place) == "bookmarks"
    assert add(vault, place).new == 2
    roses, mill = kept(vault)
    assert roses[0] == BOOKMARK and roses[1] == "Climbing roses & care" and roses[3] == 1707991200.0
    assert roses[5] == "Climbing roses & care\nGarden\nhttps://roses.example/climbing"
    assert mill[5] == "The mill\nhttps://mill.example/" and not roses[4] and not mill[4]
    (tmp_path / "page.html").write_text("<p>A page</p>")
    with pytest.raises(DataError, match="text/html is not read"):
        kind_of(tmp_path / "page.html")
