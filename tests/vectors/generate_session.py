"""Write session.json: the messages around a sum, from PROTOCOL.md section 6 and not from `privacy`.

Run: python -m tests.vectors.generate_session
"""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

SEED = bytes(range(32))
KEY = Ed25519PrivateKey.from_private_bytes(SEED)
NONCE, OFFERED = bytes(range(100, 132)), [hashlib.sha256(bytes([i])).digest() for i in range(16)]


def message(kind: int, body: bytes) -> str:
    """Return the frame of a message in hex."""
    return (b"confide\x01" + bytes([kind]) + body).hex()


def name(text: str) -> bytes:
    """Return a name with its length."""
    return bytes([len(text)]) + text.encode("ascii")


def hello(device: str, held: int, node: int) -> dict[str, Any]:
    """Return the case of a hello."""
    end = name(device) + struct.pack("<H", held)
    signature = KEY.sign(b"confide/hello/1\0" + struct.pack("<Q", node) + NONCE + end)
    fields = {"device_id": device, "held": held, "node": node, "nonce": NONCE.hex()}
    return {"kind": "hello", **fields, "frame": message(3, end + signature)}


def start(federation: str, campaign: str, number: int, rows: list[list[float]]) -> dict[str, Any]:
    """Return the case of the adapters that a round starts from."""
    body = name(federation) + name(campaign) + struct.pack("<III", number, len(rows), len(rows[0]))
    body += b"".join(struct.pack("<f", value) for row in rows for value in row)
    item = b"\x02" + body + KEY.sign(b"confide/start/1\0" + body)
    fields = {"federation": federation, "campaign": campaign, "round": number, "rows": rows}
    return {"kind": "start", **fields, "item": item.hex(), "sha256": hashlib.sha256(item).hexdigest()}


def delivery(items: list[bytes]) -> dict[str, Any]:
    """Return the case of a delivery and of the receipt for it."""
    body = bytes([len(items)]) + b"".join(struct.pack("<I", len(item)) + item for item in items)
    digest = hashlib.sha256(b"".join(hashlib.sha256(item).digest() for item in items)).digest()
    return {
        "kind": "delivery",
        "items": [item.hex() for item in items],
        "digest": digest.hex(),
        "frame": message(65, body),
        "receipt": message(4, name("ann") + digest),
    }


def main() -> None:
    """Write the file."""
    greetings = [
        {"kind": "greeting", "nonce": NONCE.hex(), "offered": [o.hex() for o in OFFERED[:n]]}
        | {"frame": message(64, NONCE + b"".join(OFFERED[:n]))}
        for n in (0, 2, 16)
    ]
    query = b'{"a":1}'
    digest = hashlib.sha256(query).digest()
    words = [
        {"kind": "training", "query": query.hex(), "frame": message(66, query)},
        {
            "kind": "accepted",
            "query_sha256": digest.hex(),
            "device_id": "ann",
            "frame": message(5, digest + name("ann")),
        },
    ]
    first = start("test", "spring", 3, [[0.0, 1.5, -2.25], [1e-30, -0.0, 3e38]])
    cases = [
        *greetings,
        *(hello("ann", held, node) for held, node in ((0, 0), (3, 2**64 - 1), (65535, 12345678901234567890))),
        hello("x" * 64, 1, 7),
        first,
        start("f", "c", 2**32 - 1, [[0.5]]),
        delivery([b"\x01basis", bytes.fromhex(first["item"])]),
        delivery([b"\x01"]),
        *words,
    ]
    facts = {"public_key": KEY.public_key().public_bytes_raw().hex(), "seed": SEED.hex(), "cases": cases}
    Path(__file__).with_name("session.json").write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
