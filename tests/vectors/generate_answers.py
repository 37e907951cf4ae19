"""Write encoding.json and answers.json: queries, integers and whole frames, from PROTOCOL.md and not from `privacy`.

The encoding is computed with eighty decimal digits. Run: python -m tests.vectors.generate_answers
"""

from __future__ import annotations

import decimal
import hashlib
import json
from fractions import Fraction
from pathlib import Path
from typing import Any

from tests.vectors.generate_noise import draws, hkdf

decimal.getcontext().prec = 80
D = decimal.Decimal
HALF = D("0.5")
UNSHAPING = ("ledger_head", "policy_sha256", "directory_sha256")


def exact(value: Fraction) -> decimal.Decimal:
    """Return a fraction with eighty digits."""
    return D(value.numerator) / D(value.denominator)


def encoded(update: list[float], clip_norm: Fraction, integer_clip: int) -> list[int]:
    """Return the integers of an update; refuses a case so close to a tie that float64 might round it otherwise."""
    c = exact(clip_norm)
    s = D(integer_clip) / c
    u = [D(value) for value in update]
    norm = sum((value * value for value in u), D(0)).sqrt()
    bound = c - D(len(u)).sqrt() / (2 * s)
    if norm > bound:
        u = [value * bound / norm for value in u]
    while True:
        scaled = [value * s for value in u]
        if any(abs(abs(value % 1) - HALF) < D("1e-6") for value in scaled if abs(value) > 1):
            raise AssertionError("a tie")
        integers = [int(value.to_integral_value(decimal.ROUND_HALF_EVEN)) for value in scaled]
        if sum(value * value for value in integers) <= integer_clip**2:
            return integers
        u = [value * (1 - D(2) ** -20) for value in u]


def integer_clip_of(invited: int, z: Fraction) -> int:
    """Return the largest power of two S with S (n + 12 z sqrt(n / honest)) <= 2^31 - 1."""
    honest = 2 * invited // 3 + 1 - invited // 10
    load = D(invited) + 12 * exact(z) * (D(invited) / D(honest)).sqrt()
    return 1 << int((D(2**31 - 1) / load).to_integral_value(decimal.ROUND_FLOOR)).bit_length() - 1


def sigma_of(invited: int, z: Fraction, integer_clip: int) -> int:
    """Return z S / sqrt(honest), rounded up."""
    honest = 2 * invited // 3 + 1 - invited // 10
    return int((exact(z) * integer_clip / D(honest).sqrt()).to_integral_value(decimal.ROUND_CEILING))


def sample(name: str, dim: int, size: float) -> list[float]:
    """Return numbers in [-size, size] from hashes of a name."""
    words = (hashlib.sha256(f"{name} {i}".encode()).digest() for i in range(dim))
    return [(int.from_bytes(word[:6], "big") / 2**47 - 1) * size for word in words]


def encoding_case(name: str, update: list[float], clip_norm: str, integer_clip: int) -> dict[str, object]:
    """Return one known encoding."""
    return {
        "name": name,
        "update": [value.hex() for value in update],
        "clip_norm": clip_norm,
        "integer_clip": integer_clip,
        "integers": encoded(update, Fraction(clip_norm), integer_clip),
    }


def encoding_cases() -> list[dict[str, object]]:
    """Return encodings inside the clip, at it, far beyond it, and of odd numbers."""
    clip, S = "1/10", 2**24
    return [
        encoding_case("zero", [0.0] * 5, clip, S),
        encoding_case("negative zero and subnormal", [-0.0, 5e-324, -5e-324, 2.0**-1030], clip, S),
        encoding_case("inside", sample("inside", 40, 0.001), clip, S),
        encoding_case("beyond", sample("beyond", 40, 1.0), clip, S),
        encoding_case("huge", [1e30, -3e29, 7.0, 1e-30], clip, S),
        encoding_case("nearly the largest float", [1.7e308, -1.1e308, 9e307], clip, S),
        encoding_case("small ring", sample("small", 30, 0.3), "3/7", 64),
        encoding_case("full ring", sample("full", 7, 4.0), "2/1", 2**30),
    ]


def query(number: int) -> dict[str, Any]:
    """Return the fields of a query as they are written."""
    digest = [
        hashlib.sha256(f"{what} {number}".encode()).hexdigest()
        for what in ("release", "basis", "policy", "head", "directory")
    ]
    return {
        "protocol": "confide-query/2",
        "federation": "vectors",
        "campaign": f"campaign-{number}",
        "round": number,
        "attempt": number % 2,
        "purpose": "train.persona" if number % 2 else "train.global",
        "slots": 1 + number % 3,
        "slot_dim": 5 + number,
        "clip_norm": f"{number + 1}/13",
        "noise_multiplier": ("1/1", "3/2", "1/4", "8/1")[number % 4],
        "cohort": {"invited": (3, 16, 100, 1000)[number % 4]},
        "transport": {2: "masked", 4: "off"}.get(number, "ideal"),
        "directory_sha256": digest[4] if number % 2 == 0 else "0" * 64,
        "release_sha256": digest[0],
        "basis_sha256": digest[1],
        "policy_sha256": digest[2],
        "ledger_head": digest[3],
        "objective": ("next-token", "reply-only", "preference-pairs")[number // 2],
        "choice": ("least-loss", "nearest", "declared")[number // 2] if number % 3 else "least-loss",
        "limits": {"own_tokens": 512, "local_steps": number + 1, "seconds": 600 + number},
        "replayed_noise": number == 3,
    }


def stream_name(event_id: bytes, integers: list[int]) -> bytes:
    """Return the name of the noise stream that covers these integers in this event."""
    digest = hashlib.sha256(b"".join(value.to_bytes(8, "little", signed=True) for value in integers)).digest()
    return hashlib.sha256(b"confide/answer-noise/1" + bytes(1) + event_id + digest).digest()


def answer_case(number: int, name: str) -> dict[str, object]:
    """Return a query and one device's whole answer to it, up to the bytes of the frame; the update is of that name."""
    fields = query(number)
    data = json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()
    sha256 = hashlib.sha256(data).hexdigest()
    device_id = f"device-{number}"
    event = ["confide-event/1", fields["federation"], fields["campaign"], fields["round"], fields["attempt"]]
    shaping = {key: value for key, value in fields.items() if key not in UNSHAPING}
    mechanism = hashlib.sha256(json.dumps(shaping, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    event_id = hashlib.sha256(json.dumps([*event, mechanism, device_id], separators=(",", ":")).encode()).digest()
    invited, z = fields["cohort"]["invited"], Fraction(fields["noise_multiplier"])
    integer_clip = integer_clip_of(invited, z)
    sigma = sigma_of(invited, z, integer_clip)
    dim = fields["slots"] * fields["slot_dim"] + (fields["slots"] if fields["slots"] > 1 else 0)
    update = sample(name, dim, 0.05 * (number + 1))
    noise_key = hkdf(bytes([number]) * 32, b"confide/device-noise/1\x00" + device_id.encode())
    integers = encoded(update, Fraction(fields["clip_norm"]), integer_clip)
    stream = stream_name(event_id, integers)
    noise = draws(noise_key, stream, Fraction(sigma), dim) if fields["transport"] != "off" else [0] * dim
    vector = [(x + e) % 2**32 for x, e in zip(integers, noise, strict=True)]
    frame = b"confide\x01\x01" + bytes.fromhex(sha256) + bytes(32) + bytes([len(device_id)]) + device_id.encode()
    frame += dim.to_bytes(4, "little") + b"".join(value.to_bytes(4, "little") for value in vector) + b"\x00"
    return {
        "name": name,
        "query": data.decode(),
        "query_sha256": sha256,
        "device_id": device_id,
        "event_id": event_id.hex(),
        "dim": dim,
        "integer_clip": integer_clip,
        "sigma": sigma,
        "noise_key": noise_key.hex(),
        "stream": stream.hex(),
        "update": [value.hex() for value in update],
        "answer": frame.hex(),
    }


def main() -> None:
    """Write both files beside this script."""
    here = Path(__file__).parent
    (here / "encoding.json").write_text(json.dumps({"cases": encoding_cases()}, indent=1) + "\n")
    answers = [answer_case(number, f"answer {number}") for number in range(6)]
    answers.append(answer_case(1, "answer 1, another update under the same event"))
    (here / "answers.json").write_text(json.dumps({"cases": answers}, indent=1) + "\n")


if __name__ == "__main__":
    main()
