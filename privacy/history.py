"""What a witness, or the server, remembers of a device's ledger, signed: so that a restored backup forgets no charge.

A device that was restored from a backup has an older ledger. It asks whoever saw the newer one for its `History` and
adopts what it lost (`privacy.ledger.Ledger.adopt`), or stays out. Amounts are gross, aborted events included, so that
they never fall; they are in the signer's own measure, and only differences of them are used.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container
from dataclasses import dataclass, fields
from fractions import Fraction
from itertools import pairwise
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from privacy.canonical import Json, canonical_json, exact_fields, is_digest, is_name, parse_canonical
from privacy.errors import SignatureInvalid, WireError
from privacy.query import fraction_text

PROTOCOL: Final = "confide-history/1"
MAX_VISITS: Final = 64
MAX_BYTES: Final = 64 * 1024
_SIGNED: Final = b"confide/history/1\x00"
_SUM = re.compile(r"(0|[1-9][0-9]{0,999})/([1-9][0-9]{0,999})")  # a sum of many fractions has long terms


@dataclass(frozen=True)
class Figures:
    """Charges up to a moment: how many events, how many without fresh noise, rho in sums, rho of the answers alone."""

    participations: int = 0
    unprotected: int = 0
    rho: Fraction = Fraction(0)
    alone_rho: Fraction = Fraction(0)

    def __add__(self, other: Figures) -> Figures:
        return self._with(other, lambda mine, more: mine + more)

    def above(self, other: Figures) -> Figures:
        """Return what these figures hold more than `other`, nothing below zero."""
        return self._with(other, lambda mine, less: mine - min(mine, less))

    def largest(self, other: Figures) -> Figures:
        """Return the larger of each figure."""
        return self._with(other, max)

    def covers(self, other: Figures) -> bool:
        """Return whether no figure is below that of `other`."""
        return self.largest(other) == self

    def body(self) -> dict[str, Json]:
        """Return the figures as they are signed."""
        exact: dict[str, Json] = {"alone_rho": fraction_text(self.alone_rho), "rho": fraction_text(self.rho)}
        return {**exact, "participations": self.participations, "unprotected": self.unprotected}

    @classmethod
    def from_body(cls, body: object) -> Figures:
        """Return the figures in `body`; raises WireError."""
        found = exact_fields(body, {each.name for each in fields(cls)}, "figures")
        if not all(type(found[name]) is int and found[name] >= 0 for name in ("participations", "unprotected")):
            raise WireError("figures: a count is not a number from 0")
        return cls(**{**found, **{name: _exact_sum(found[name]) for name in ("rho", "alone_rho")}})

    def _with(self, other: Figures, merge: Callable[[Any, Any], Any]) -> Figures:
        return Figures(*(merge(getattr(self, each.name), getattr(other, each.name)) for each in fields(self)))


@dataclass(frozen=True)
class Visit:
    """One moment at which the signer saw the ledger: the head it had, and the figures then."""

    head: str
    figures: Figures


@dataclass(frozen=True)
class History:
    """What one signer remembers of `owner`'s ledger: some of its visits, oldest first, and the figures now.

    Raises WireError where figures fall from one visit to the next or names are malformed.
    """

    federation: str
    owner: str
    visits: tuple[Visit, ...]
    total: Figures

    def __post_init__(self) -> None:
        if not (is_name(self.federation) and is_name(self.owner)) or len(self.visits) > MAX_VISITS:
            raise WireError("history: a name is malformed, or too many visits")
        rising = [Figures(), *(visit.figures for visit in self.visits), self.total]
        if not all(b.covers(a) for a, b in pairwise(rising)):
            raise WireError("history: figures that fall")
        if not all(is_digest(visit.head) for visit in self.visits):
            raise WireError("history: a head is not 64 hexadecimal digits")

    def since(self, known_heads: Container[str]) -> Figures:
        """Return the figures at the last visit whose head is among `known_heads`: up to there nothing was lost."""
        known = (visit.figures for visit in reversed(self.visits) if visit.head in known_heads)
        return next(known, Figures())

    def signed(self, key: Ed25519PrivateKey) -> bytes:
        """Return the file: canonical JSON of history, signer and signature."""
        body = canonical_json(self._body())
        signer = key.public_key().public_bytes_raw().hex()
        return canonical_json({"history": self._body(), "signature": key.sign(_SIGNED + body).hex(), "signer": signer})

    def _body(self) -> dict[str, object]:
        visits = [{"head": visit.head, **visit.figures.body()} for visit in self.visits]
        names = {"federation": self.federation, "owner": self.owner, "protocol": PROTOCOL}
        return {**names, "total": self.total.body(), "visits": visits}


def open_history(data: bytes) -> tuple[History, str]:
    """Return the history in a signed file and its signer's public key; whether to trust that key is the caller's.

    Raises WireError for form, SignatureInvalid where the signature is not that of the named signer.
    """
    if len(data) > MAX_BYTES:
        raise WireError(f"history longer than {MAX_BYTES} bytes")
    parts = exact_fields(parse_canonical(data), {"history", "signature", "signer"}, "history file")
    signer, signature, body = parts["signer"], parts["signature"], parts["history"]
    if not is_digest(signer) or not isinstance(signature, str) or len(signature) != 128:
        raise WireError("history: key or signature is malformed")
    try:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(signer))
        key.verify(bytes.fromhex(signature), _SIGNED + canonical_json(body))
    except (ValueError, InvalidSignature):
        raise SignatureInvalid("history") from None
    inner = exact_fields(body, {"protocol", "federation", "owner", "total", "visits"}, "history")
    if inner["protocol"] != PROTOCOL or not isinstance(inner["visits"], list):
        raise WireError(f"history of another protocol than {PROTOCOL}")
    visits = tuple(_visit(each) for each in inner["visits"])
    return History(inner["federation"], inner["owner"], visits, Figures.from_body(inner["total"])), signer


def _visit(value: object) -> Visit:
    if not isinstance(value, dict) or not isinstance(value.get("head"), str):
        raise WireError("history: a visit is malformed")
    return Visit(value["head"], Figures.from_body({name: each for name, each in value.items() if name != "head"}))


def _exact_sum(text: object) -> Fraction:
    if not isinstance(text, str) or not _SUM.fullmatch(text) or fraction_text(Fraction(text)) != text:
        raise WireError("figures: a sum must be written num/den in lowest terms")
    return Fraction(text)


def thinned(visits: tuple[Visit, ...]) -> tuple[Visit, ...]:
    """Return at most `MAX_VISITS` of `visits`: the newest half of that number, and of older ones every second, again.

    A visit that is missing makes a restored device count a little more, never less.
    """
    while len(visits) > MAX_VISITS:
        newest = visits[-MAX_VISITS // 2 :]
        visits = visits[: -MAX_VISITS // 2][::-1][1::2][::-1] + newest
    return visits
