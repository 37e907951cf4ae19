"""A second reader of ledgers that shares no line with the first: the standard library and `cryptography`, nothing else.

    python standalone.py LEDGER.jsonl [PUBLIC_KEY_HEX [WITNESS_KEY_HEX]]

Copy this one file to a machine that you trust. It checks the chain and every signature; adds up what the RESERVE
entries without an ABORT cost, rho = sum 1/(2 z^2), and what an ADOPT brought back; gives the exact epsilon of a
Gaussian with that rho (Balle, Wang 2018, Theorem 8); and, from a GRANT on, holds each charge to the signed budget of a
lifetime and of 365 days. A `.checkpoint` beside the ledger must be signed by its owner, and by the witness if one is
named, and the ledger must contain what it saw. An unfinished last line is not counted. Exit status: 0 = holds, 1 =
violated, 2 = cannot be read.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

DELTAS = (1e-5, 1e-6, 1e-9)
YEAR_MS = 365 * 24 * 3600 * 1000
UNSENT = {"not trained", "not encoded", "not stored", "not asked"}


def entries(data: bytes, key: Ed25519PublicKey) -> list[dict[str, Any]]:
    """Return the entries of a ledger; raises ValueError with the number of the first line that is wrong."""
    found: list[dict[str, Any]] = []
    prev = "0" * 64
    *lines, rest = data.split(b"\n")
    for number, line in enumerate([*lines, rest] if rest.endswith(b'"}') else lines, 1):
        try:
            prefix, packed, signature, end = line[:9], line[9:-138], line[-130:-2], line[-2:]
            if prefix != b'{"entry":' or line[-138:-130] != b',"sig":"' or end != b'"}':
                raise ValueError("frame")
            if signature != signature.lower():  # hexadecimal has two forms, an entry one
                raise ValueError("frame")
            key.verify(bytes.fromhex(signature.decode("ascii")), b"confide/ledger/1\x00" + packed)
            entry = json.loads(packed)
            if entry["prev"] != prev or entry["seq"] != number - 1:
                raise ValueError("order")
        except (ValueError, KeyError, InvalidSignature) as error:
            raise ValueError(f"line {number}: {error or 'signature'}") from error
        prev = hashlib.sha256(b"\x00" + line).hexdigest()
        found.append({**entry, "sha256": prev})
    return found


class Budget:
    """What the entries add up to, in their order; a charge past the signed policy raises ValueError."""

    def __init__(self) -> None:
        self.charges: dict[str, tuple[Fraction | None, int | None]] = {}  # rho, and the date for the year if it has one
        self.settled: set[str] = set()
        self.adopted: dict[str, Any] = {}
        self.policy: dict[str, Any] = {}
        self.genesis: dict[str, Any] = {}
        self.heads: set[str] = set()
        self.times = self.bare = self.signed_ms = 0
        self.seen: list[Any] = []
        self.forked = False

    def take(self, entry: dict[str, Any]) -> None:
        """Take one entry in."""
        body, kind = entry["body"], entry["kind"]
        if (kind == "GENESIS") != (entry["seq"] == 0):
            raise ValueError("a ledger begins with its one GENESIS")
        if kind == "GENESIS":
            self.genesis = body
        elif kind == "GRANT":
            self.grant(body, entry["ts"])
        elif kind == "RESERVE":
            self.reserve(body, entry["ts"])
        elif kind in ("COMMIT", "ABORT"):
            self.settle(kind, body)
        elif kind == "ADOPT":
            self.adopt(body, entry)
        elif kind == "SEEN":
            self.see(body["note"].encode())
        elif kind == "FORK":
            self.forked = True
        self.heads.add(entry["sha256"])

    def grant(self, body: dict[str, Any], ts: int) -> None:
        """Hold the ledger to a policy that the root key of its GENESIS signed."""
        policy = body["policy"]
        verify(self.genesis["root_key"], body["signature"], b"confide/policy/1\x00" + packed(policy))
        if policy["federation"] != self.genesis["federation"]:
            raise ValueError("GRANT for another federation")
        if self.policy and policy.get("serial", 0) <= self.policy.get("serial", 0):
            raise ValueError("GRANT with an old serial")
        was, now = self.policy.get("witness_key"), policy.get("witness_key")
        if now and not was:
            self.charges = {event: (rho, None) for event, (rho, _) in self.charges.items()}
        elif was and not now:
            self.date(ts)
        self.policy = policy

    def reserve(self, body: dict[str, Any], ts: int) -> None:
        """Charge one event, within the policy if there is one."""
        query = body["query"]
        bare = query["transport"] == "off" or query["replayed_noise"]
        rho = None if bare else 1 / (2 * Fraction(query["noise_multiplier"]) ** 2)
        if body["event"] in self.charges or body["event"] in self.settled or self.forked:
            raise ValueError("an event charged twice, or after a fork")
        if self.policy and body["device"] != "federation":
            self.judge(query, rho or Fraction(0), ts)
        self.charges[body["event"]] = (rho, None if self.policy.get("witness_key") else ts)

    def judge(self, query: dict[str, Any], rho: Fraction, ts: int) -> None:
        """Raise ValueError if a charge passes the lifetime, the year, or the number of answers."""
        if query["policy_sha256"] != hashlib.sha256(packed(self.policy)).hexdigest():
            raise ValueError("asked under another policy")
        now = self.signed_ms if self.policy.get("witness_key") else ts
        within = [r or 0 for r, date in self.charges.values() if date is None or date > now - YEAR_MS]
        if rho and self.rho() + rho > Fraction(self.policy["budget_rho"]):
            raise ValueError("past the lifetime's budget")
        if rho and "yearly_rho" in self.policy and sum(within) + rho > Fraction(self.policy["yearly_rho"]):
            raise ValueError("past the year's budget")
        if len(self.charges) + self.times >= self.policy["max_participations"]:
            raise ValueError("more answers than allowed")

    def settle(self, kind: str, body: dict[str, Any]) -> None:
        """Note a COMMIT, or take an ABORT's charge back."""
        if body["event"] not in self.charges or body["event"] in self.settled:
            raise ValueError(f"{kind} of an event that is not open")
        self.settled.add(body["event"])
        if kind == "ABORT":
            if body["reason"] not in UNSENT:
                raise ValueError("an ABORT whose answer may have left")
            self.charges.pop(body["event"])

    def adopt(self, body: dict[str, Any], entry: dict[str, Any]) -> None:
        """Add what a restored backup had forgotten: the total that was remembered, less the last state both know."""
        history, signer = body["history"], body["signer"]
        verify(signer, body["signature"], b"confide/history/1\x00" + packed(history))
        names = (history["federation"], history["owner"])
        if names != (self.genesis["federation"], self.genesis["owner"]) or names[1] == "federation":
            raise ValueError("ADOPT of another history")
        none: dict[str, Any] = {"rho": 0, "participations": 0, "unprotected": 0}
        known = [visit for visit in history["visits"] if visit["head"] in self.heads] or [none]
        total, past = history["total"], self.adopted.get(signer, none)
        lost = {n: max(Fraction(0), Fraction(total[n]) - max(Fraction(known[-1][n]), Fraction(past[n]))) for n in none}
        self.adopted[signer] = {name: max(Fraction(total[name]), Fraction(past[name])) for name in none}
        self.charges[f"adopted {entry['seq']}"] = (lost["rho"], None if self.policy.get("witness_key") else entry["ts"])
        self.times += int(lost["participations"]) - 1  # its charge stands beside the events and is none
        self.bare += int(lost["unprotected"])

    def see(self, note: bytes) -> None:
        """Check that the federation's ledger only grew, and take the time that the policy's witness signed."""
        origin, size, root = checkpoint(note)
        same = bool(self.seen) and size == self.seen[1] and root != self.seen[2]
        if self.seen and (origin != self.seen[0] or size < self.seen[1] or same):
            raise ValueError("SEEN of an impossible state")
        self.seen = [origin, size, root]
        witness = self.policy.get("witness_key")
        for seconds in cosigned(note, witness) if witness else ():
            if seconds * 1000 > self.signed_ms:
                self.signed_ms = seconds * 1000
                self.date(self.signed_ms)

    def date(self, ts: int) -> None:
        """Give a date to what has none."""
        self.charges = {event: (rho, ts if date is None else date) for event, (rho, date) in self.charges.items()}

    def rho(self) -> Fraction:
        """Return rho over everything that is charged."""
        return sum((rho for rho, _ in self.charges.values() if rho is not None), Fraction(0))

    def without_noise(self) -> int:
        """Return how many events have no fresh noise."""
        return self.bare + sum(rho is None for rho, _ in self.charges.values())


def spent(found: list[dict[str, Any]]) -> tuple[Fraction, int]:
    """Return rho over all charged events with fresh noise, and how many events have none."""
    budget = Budget()
    for entry in found:
        try:
            budget.take(entry)
        except (ValueError, KeyError, TypeError, AttributeError, InvalidSignature) as error:
            raise ValueError(f"line {entry.get('seq', -1) + 1}: {error or 'signature'}") from error
    return budget.rho(), budget.without_noise()


def checkpoint(note: bytes) -> tuple[str, int, bytes]:
    """Return origin, size and root in a signed note; nothing is verified."""
    origin, size, root, *_ = note.decode().split("\n")
    return origin, int(size), base64.b64decode(root, validate=True)


def cosigned(note: bytes, key: str | None, algorithm: int = 4) -> list[int]:
    """Return the times at which `key` signed a note: of a witness (4), or zero for each line of the owner (1)."""
    text, _, signatures = note.decode().partition("\n\n")
    public, found = Ed25519PublicKey.from_public_bytes(bytes.fromhex(str(key))), []
    for line in signatures.splitlines():
        name, _, value = line.removeprefix("\u2014 ").partition(" ")
        try:
            body = base64.b64decode(value, validate=True)
            named = hashlib.sha256(name.encode() + bytes([10, algorithm]) + public.public_bytes_raw()).digest()[:4]
            seconds = int.from_bytes(body[4:12], "big") if algorithm == 4 else 0
            head = f"cosignature/v1\ntime {seconds}\n" if algorithm == 4 else ""
            public.verify(body[12 if algorithm == 4 else 4 :], f"{head}{text}\n".encode())
            found += [seconds] if body[:4] == named else []
        except (ValueError, InvalidSignature):
            continue
    return found


def root_of(leaves: list[bytes]) -> bytes:
    """Return the root of the Merkle tree of RFC 9162 over the hashes of entries."""
    if len(leaves) == 1:
        return leaves[0]
    split = 1 << (len(leaves) - 1).bit_length() - 1
    return hashlib.sha256(b"\x01" + root_of(leaves[:split]) + root_of(leaves[split:])).digest()


def held(note: bytes, found: list[dict[str, Any]], owner: str, witness: str | None) -> None:
    """Raise ValueError unless the owner, and the witness if named, signed a state that the ledger contains."""
    _, size, root = checkpoint(note)
    if not 1 <= size <= len(found) or root_of([bytes.fromhex(e["sha256"]) for e in found[:size]]) != root:
        raise ValueError(f"the ledger does not contain the {size} entries of its checkpoint")
    if not cosigned(note, owner, 1) or (witness and not cosigned(note, witness)):
        raise ValueError("the checkpoint lacks a signature")


def verify(key: str, signature: str, text: bytes) -> None:
    """Raise InvalidSignature or ValueError unless `key` signed `text`."""
    Ed25519PublicKey.from_public_bytes(bytes.fromhex(key)).verify(bytes.fromhex(signature), text)


def packed(value: object) -> bytes:
    """Return the canonical JSON of a value that was canonical."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def epsilon(rho: Fraction, delta: float) -> float:
    """Return the epsilon of mu-GDP with mu = sqrt(2 rho) at `delta`, by bisection on its exact delta."""
    mu, low, high = math.sqrt(2 * rho), 0.0, 1.0
    if not rho:
        return 0.0

    def delta_of(e: float) -> float:
        first = math.erfc((e / mu - mu / 2) / math.sqrt(2)) / 2
        second = math.erfc((e / mu + mu / 2) / math.sqrt(2)) / 2
        return first - (math.exp(e + math.log(second)) if second > 0 else 0.0)

    while delta_of(high) > delta:
        high *= 2
    for _ in range(100):
        low, high = (low, (low + high) / 2) if delta_of((low + high) / 2) <= delta else ((low + high) / 2, high)
    return high


def main(arguments: list[str]) -> int:
    """Print what the ledger of `arguments` adds up to; return the exit status."""
    try:
        path = Path(arguments[0])
        data, beside = path.read_bytes(), path.with_suffix(".checkpoint")
        digits = arguments[1] if len(arguments) > 1 else path.with_suffix(".pub").read_text().strip()
        witness = arguments[2] if len(arguments) > 2 else None
        if witness is not None:
            Ed25519PublicKey.from_public_bytes(bytes.fromhex(witness))
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(digits))
        note = beside.read_bytes() if beside.is_file() else b""
    except (IndexError, OSError, ValueError) as error:
        sys.stderr.write(f"cannot read: {error or __doc__}\n")
        return 2
    try:
        found = entries(data, key)
        rho, bare = spent(found)
        if note or witness:
            held(note, found, digits, witness)
    except (ValueError, KeyError, TypeError) as error:
        sys.stderr.write(f"violated: {error}\n")
        return 1
    figures = {f"{delta:g}": None if bare else round(epsilon(rho, delta), 6) for delta in DELTAS}
    said: dict[str, Any] = {
        "entries": len(found),
        "rho": str(rho),
        "without_fresh_noise": bare,
        "witnessed": bool(witness),
    }
    said["epsilon_per_user"] = figures
    sys.stdout.write(json.dumps(said) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
