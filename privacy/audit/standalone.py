"""A second reader of ledgers that shares no line with the first: the standard library and `cryptography`, nothing else.

    python standalone.py LEDGER.jsonl [PUBLIC_KEY_HEX]

Copy this one file to a machine that you trust. It checks the chain and every signature, then adds up what the RESERVE
entries without an ABORT cost: rho = sum 1/(2 z^2), and the exact epsilon of a Gaussian mechanism with that rho (Balle,
Wang 2018, Theorem 8). An unfinished last line is not counted. Exit status: 0 = holds, 1 = violated, 2 = cannot be read.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from fractions import Fraction
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

DELTAS = (1e-5, 1e-6, 1e-9)


def entries(data: bytes, key: Ed25519PublicKey) -> list[dict[str, object]]:
    """Return the entries of a ledger; raises ValueError with the number of the first line that is wrong."""
    found: list[dict[str, object]] = []
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
        found.append(entry)
    return found


def spent(found: list[dict[str, object]]) -> tuple[Fraction, int]:
    """Return rho over all charged events with fresh noise, and how many events have none."""
    charges: dict[str, Fraction | None] = {}
    for entry in found:
        body = entry["body"]
        if not isinstance(body, dict):
            raise ValueError("an entry without a body")
        if entry["kind"] == "RESERVE":
            query = body["query"]
            noise = Fraction(query["noise_multiplier"])
            bare = query["transport"] == "off" or query["replayed_noise"]
            charges[body["event"]] = None if bare else 1 / (2 * noise**2)
        elif entry["kind"] == "ABORT":
            charges.pop(body["event"])
    rho = sum((charge for charge in charges.values() if charge is not None), Fraction(0))
    return rho, sum(charge is None for charge in charges.values())


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
        data = path.read_bytes()
        digits = arguments[1] if len(arguments) > 1 else path.with_suffix(".pub").read_text().strip()
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(digits))
    except (IndexError, OSError, ValueError) as error:
        sys.stderr.write(f"cannot read: {error or __doc__}\n")
        return 2
    try:
        found = entries(data, key)
        rho, bare = spent(found)
    except (ValueError, KeyError, TypeError) as error:
        sys.stderr.write(f"violated: {error}\n")
        return 1
    figures = {f"{delta:g}": None if bare else round(epsilon(rho, delta), 6) for delta in DELTAS}
    said = {"entries": len(found), "rho": str(rho), "without_fresh_noise": bare, "epsilon_per_user": figures}
    sys.stdout.write(json.dumps(said) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
