"""Mail as text: mbox files and .eml files, quotes and signatures stripped, the owner's own told from others'.

Of a message the subject line with sender and date stands as context; the body is the owner's own where the sender is
one of the owner's addresses. Attachments are left out, by their type.
"""

from __future__ import annotations

import mailbox
import re
from collections.abc import Collection, Iterator
from email import message_from_bytes, policy
from email.message import EmailMessage
from email.utils import getaddresses, parsedate_to_datetime
from html.parser import HTMLParser
from pathlib import Path

from client.documents import Span
from client.import_text import MAIL_SUFFIXES
from client.imported import MAIL, MAX_BYTES, Event, Skipped, Text, files_below, read_bytes
from privacy.canonical import sha256_hex
from privacy.errors import DataError

_INTRODUCES = re.compile(
    r"^(?:On\b.{0,200}\bwrote:|Am\b.{0,200}\bschrieb.{0,80}:|Le\b.{0,200}\ba écrit ?:|El\b.{0,200}\bescribió:)\s*$",
    re.DOTALL,
)
_ORIGINAL = re.compile(
    r"^(?:-{2,} ?(?:Original Message|Forwarded message|Ursprüngliche Nachricht|Message d'origine)\b.*"
    r"|_{20,}|From: .{1,200}<?\S+@\S+>?.*)$",
    re.IGNORECASE,
)
_MANGLED = re.compile(rb"^>(>*From )", re.MULTILINE)  # how an mbox writes a line of the body that begins with From
_SIGNATURE = re.compile(r"^(?:-- ?|Sent from my .{1,40}|Get Outlook for .{1,20}|Von meinem .{1,30} gesendet)$")


def read_mails(path: Path, owner: Collection[str]) -> Iterator[Event]:
    """Yield the messages of an mbox file, an .eml file, or the files of both kinds below a folder.

    `owner` holds the owner's addresses, any case. A message that cannot be parsed is skipped by its number.
    """
    mine = {address.casefold() for address in owner}
    for place, data in _messages(path):
        if isinstance(data, str):
            yield Skipped(place, data)
            continue
        try:
            message = message_from_bytes(data, policy=policy.default)
            assert isinstance(message, EmailMessage)
            yield from _read(place, message, data, mine)
        except Exception as error:  # noqa: BLE001 - the parser raises whatever a hostile header makes it raise
            yield Skipped(place, f"cannot be parsed ({type(error).__name__})")


def senders(path: Path) -> dict[str, int]:
    """Return how many messages each address sent: the owner's own is among them."""
    found: dict[str, int] = {}
    for _, data in _messages(path):
        if isinstance(data, bytes):
            header = data[:65_536].split(b"\n\n", 1)[0]
            for line in re.findall(rb"(?mi)^From:(.{1,500})$", header)[:1]:
                for _, address in getaddresses([line.decode(errors="replace")])[:1]:
                    found[address.casefold()] = found.get(address.casefold(), 0) + 1
    return found


def own_part(body: str) -> str:
    """Return a mail's body without what it quotes, without the line that introduces a quote, without its signature."""
    lines = body.replace("\r\n", "\n").split("\n")
    kept: list[str] = []
    for number, line in enumerate(lines):
        bare = line.rstrip()
        if _SIGNATURE.match(bare) or (_ORIGINAL.match(bare) and _headers_follow(lines, number)):
            break
        if bare.startswith(">"):
            while kept and not kept[-1].strip():
                kept.pop()
            for length in (1, 2):  # "On ... wrote:" may be broken over two lines
                if len(kept) >= length and _INTRODUCES.match("\n".join(kept[-length:])):
                    del kept[-length:]
                    break
            continue
        kept.append(bare)
    text = "\n".join(kept).strip()
    return re.sub(r"\n{3,}", "\n\n", text)


def _headers_follow(lines: list[str], number: int) -> bool:
    """Return whether a forwarded block begins here: a plain `From:` in a sentence is followed by no other header."""
    if not lines[number].casefold().startswith("from:"):
        return True
    return any(re.match(r"(?:Sent|Date|To|Subject): ", line) for line in lines[number + 1 : number + 4])


def _messages(path: Path) -> Iterator[tuple[str, bytes | str]]:
    """Yield each message's place and its bytes, or why it was not read."""
    if path.is_dir():
        for file in files_below(path):
            if file.suffix.lower() in MAIL_SUFFIXES:
                name = file.relative_to(path).as_posix()
                try:
                    for place, data in _messages(file):
                        yield name + place.removeprefix(file.name), data
                except DataError as error:
                    yield name, str(error).partition(": ")[2]
        return
    if path.suffix.lower() == ".eml":
        yield path.name, read_bytes(path)
        return
    try:
        box = mailbox.mbox(path, create=False)
    except (OSError, mailbox.NoSuchMailboxError):
        raise DataError(f"{path.name}: cannot be read") from None
    try:
        for number, key in enumerate(box.iterkeys(), 1):
            data = _MANGLED.sub(rb"\1", box.get_bytes(key))
            yield f"{path.name}:{number}", data if len(data) <= MAX_BYTES else f"longer than {MAX_BYTES // 2**20} MiB"
    finally:
        box.close()


def _read(place: str, message: EmailMessage, data: bytes, mine: set[str]) -> Iterator[Event]:
    name, address = (getaddresses([str(message.get("From", ""))]) or [("", "")])[0]
    own = address.casefold() in mine
    for part in message.iter_attachments():
        yield Skipped(place, f"attachment {part.get_content_type()} is not read, only text")
    body = own_part(_body(message))
    if not body:
        yield Skipped(place, "no text of its own")
        return
    subject = " ".join(str(message.get("Subject", "")).split())[:300]
    to = ", ".join(a for _, a in getaddresses([str(message.get("To", ""))])[:5] if a)
    head = f"Mail from {'me' if own else name or address} to {to or 'nobody named'}: {subject}\n"
    key = str(message.get("Message-ID", "")).strip() or sha256_hex(data)
    yield Text(key[:300], MAIL, subject, _written(message), (Span(head, own=False), Span(body + "\n", own=own)))


def _body(message: EmailMessage) -> str:
    part = message.get_body(("plain", "html"))
    if part is None:
        return ""
    try:
        text = str(part.get_content())
    except (LookupError, ValueError):  # a character set that nobody knows
        payload = part.get_payload(decode=True)
        text = payload.decode("latin-1") if isinstance(payload, bytes) else ""
    return plain_text(text) if part.get_content_subtype() == "html" else text


def _written(message: EmailMessage) -> float | None:
    try:
        return parsedate_to_datetime(str(message["Date"])).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None


class _Plain(HTMLParser):
    """Collects what a reader of a page sees, quotes marked as in plain mail."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.hidden = self.quoted = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Begin a line, a quote, or what nobody sees."""
        self.hidden += tag in ("script", "style", "head", "title")
        self.quoted += tag == "blockquote"
        if tag in ("p", "div", "br", "li", "tr", "blockquote", "h1", "h2", "h3"):
            self.parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        """End a line, a quote, or what nobody sees."""
        self.hidden -= tag in ("script", "style", "head", "title") and self.hidden > 0
        self.quoted -= tag == "blockquote" and self.quoted > 0
        if tag in ("p", "div", "blockquote"):
            self.parts.append("\n")

    def handle_data(self, data: str) -> None:
        """Keep text that is shown; a quoted line is marked."""
        if not self.hidden and data.strip():
            self.parts.append(f"\n> {' '.join(data.split())}\n" if self.quoted else " ".join(data.split()) + " ")


def plain_text(page: str) -> str:
    """Return the text of a page of HTML, its `blockquote`s marked with `> `."""
    parser = _Plain()
    parser.feed(page)
    parser.close()
    return re.sub(r" *\n *", "\n", "".join(parser.parts)).strip()
