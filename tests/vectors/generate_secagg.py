"""Write secagg/*.json: whole private sums and one abort a file, from PROTOCOL.md 10 to 15 and not from `privacy`.

Four devices, eight numbers, entropy from hashes. Run: python -m tests.vectors.generate_secagg
"""

from __future__ import annotations

import hashlib
import hmac
import itertools
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

P = 2**256 - 189
N, DIM = 4, 8
LEAST = 2 * N // 3 + 1
CODES = {"query.stale": 14, "directory.other": 22, "sum.refused": 23}


def canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def sha(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(parts)).digest()


def named(name: str) -> bytes:
    return bytes([len(name)]) + name.encode()


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def rank_set(members: set[int], size: int) -> bytes:
    data = bytearray(-(-size // 8))
    for rank in members:
        data[rank // 8] |= 1 << rank % 8
    return u32(size) + bytes(data)


def frame(kind: int, *parts: bytes) -> bytes:
    return b"confide\x01" + bytes([kind]) + b"".join(parts)


def keystream(key: bytes) -> list[int]:
    data = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor().update(bytes(4 * DIM))
    return list(struct.unpack(f"<{DIM}I", data))


def root_of(leaves: list[bytes]) -> bytes:
    if len(leaves) == 1:
        return leaves[0]
    cut = 1
    while cut * 2 < len(leaves):
        cut *= 2
    return sha(b"\x01", root_of(leaves[:cut]), root_of(leaves[cut:]))


class Device:
    """One device: its long-term key, its entropy, its vector and what it does at each stage."""

    def __init__(self, index: int, case: str) -> None:
        self.name, self.case = f"device-{index}", case
        self.key = Ed25519PrivateKey.from_private_bytes(sha(b"signing key", named(self.name)))
        self.seed = sha(b"entropy", case.encode(), named(self.name))
        self.counter = itertools.count()
        self.dealt: dict[int, list[bytes]] = {}  # by rank: share of b, share of the mask secret
        words = (sha(b"vector", case.encode(), named(self.name), bytes([i])) for i in range(DIM))
        self.vector = [int.from_bytes(word[:4], "little") for word in words]
        self.head = sha(b"head", named(self.name)).hex()

    def entropy(self, size: int) -> bytes:
        """Return the next bytes: SHAKE-256 of the seed and a counter of calls."""
        return hashlib.shake_256(self.seed + u32(next(self.counter))).digest(size)

    def number(self) -> int:
        while (value := int.from_bytes(self.entropy(32), "big")) >= P:
            pass
        return value

    def advertise(self, ctx: bytes) -> bytes:
        self.ctx = ctx
        self.mask_secret = self.number()
        self.mask = X25519PrivateKey.from_private_bytes(self.mask_secret.to_bytes(32, "big"))
        self.share = X25519PrivateKey.from_private_bytes(self.entropy(32))
        self.b = self.number()
        commitment = sha(b"confide/secagg/commit/1\x00", ctx, named(self.name), self.b.to_bytes(32, "big"))
        public = self.mask.public_key().public_bytes_raw() + self.share.public_key().public_bytes_raw()
        unsigned = frame(16, ctx, named(self.name), public, commitment)
        self.row = public + commitment + self.key.sign(b"confide/secagg/advertise/1\x00" + unsigned)
        return unsigned + self.row[96:]


class Sum:
    """A private sum of four: `steps` holds each device's requests and answers in order."""

    def __init__(self, case: str, **changes: Any) -> None:
        self.case, self.steps, self.rebuilt = case, list[dict[str, str]](), list[dict[str, str]]()
        self.devices = [Device(index, case) for index in range(N)]
        rows = [
            {
                "id": d.name,
                "organisation": "vectors",
                "public_key": d.key.public_key().public_bytes_raw().hex(),
                "vetted": True,
            }
            for d in self.devices
        ]
        self.directory = canonical({"devices": rows, "federation": "vectors", "protocol": "confide-directory/1"})
        fields = {
            "protocol": "confide-query/2",
            "federation": "vectors",
            "campaign": "private-sum",
            "round": 3,
            "attempt": 0,
            "purpose": "train.global",
            "slots": 1,
            "slot_dim": DIM,
            "clip_norm": "1/10",
            "noise_multiplier": "1/1",
            "cohort": {"invited": N},
            "transport": "masked",
            "directory_sha256": sha(self.directory).hex(),
            **{f"{what}_sha256": sha(what.encode()).hex() for what in ("release", "basis", "policy")},
            "ledger_head": sha(b"head").hex(),
            "objective": "next-token",
            "choice": "least-loss",
            "limits": {"own_tokens": 512, "local_steps": 2, "seconds": 3600},
            "replayed_noise": False,
        }
        self.query = canonical(fields | changes)
        self.ctx = sha(self.query)

    def step(self, device: Device, request: bytes, answer: bytes, lost: bool = False) -> None:
        """Note a request and its answer; `lost` if the answer never reaches the server."""
        self.steps.append(
            {"device": device.name, "request": request.hex(), "answer": answer.hex(), "lost": "yes" if lost else "no"}
        )

    def refuse(self, device: Device, request: bytes, code: str = "sum.refused") -> None:
        """Note a request that this device answers with a code."""
        self.step(device, request, frame(2, self.ctx, named(device.name), bytes([CODES[code]])), lost=True)

    def begin(self, lost: set[int] = frozenset()) -> None:  # type: ignore[assignment]
        for index, device in enumerate(self.devices):
            self.step(device, frame(80, self.ctx), device.advertise(self.ctx), index in lost)
        self.u1 = [d for index, d in enumerate(self.devices) if index not in lost]

    def roster(self, reader: Device, **changes: Any) -> bytes:
        """Return the request 81 to `reader`; changes to `names`, `rows` (of all, by rank) or `root` make it false."""
        names = changes.get("names", [d.name for d in self.u1])
        rows = changes.get("rows", [d.row for d in self.u1])
        own = [d.name for d in self.u1].index(reader.name)
        leaves = [sha(b"\x00", named(name), row) for name, row in zip(names, rows, strict=False)]
        root = changes.get("root", root_of(leaves))
        near = [row for rank, row in enumerate(rows) if rank != own]
        parts = (u32(len(names)), *map(named, names), root, b"\x00", u32(len(near)), *near)
        return frame(81, self.ctx, *parts)

    def share(self, lost: set[int] = frozenset()) -> None:  # type: ignore[assignment]
        names = [d.name for d in self.u1]
        root = root_of([sha(b"\x00", named(d.name), d.row) for d in self.u1])
        self.R = sha(b"confide/secagg/roster/1\x00", self.ctx, u32(len(names)), *map(named, names), root)
        self.sealed: dict[tuple[str, str], bytes] = {}
        for index, device in enumerate(self.u1):
            self.step(device, self.roster(device), self._sealed_by(device, index), index in lost)
        self.u2 = {index for index in range(len(self.u1)) if index not in lost}
        self.V = sha(b"confide/secagg/view/1\x00", self.R, rank_set(self.u2, len(self.u1)))

    def _sealed_by(self, device: Device, own: int) -> bytes:
        others = [rank for rank in range(len(self.u1)) if rank != own]
        first = [device.number() for _ in range(LEAST - 1)]
        second = [device.number() for _ in range(LEAST - 1)]
        device.dealt = {}
        for rank in range(len(self.u1)):
            x = rank + 1
            values = [
                (secret + sum(a * x ** (k + 1) for k, a in enumerate(some))) % P
                for secret, some in ((device.b, first), (device.mask_secret, second))
            ]
            device.dealt[rank] = [value.to_bytes(32, "big") for value in values]
        parts = []
        for rank in others:
            peer = self.u1[rank]
            way = named(device.name) + named(peer.name)
            agreed = device.share.exchange(X25519PublicKey.from_public_bytes(peer.row[32:64]))
            key = self.kdf(agreed, b"confide/secagg/seal/1\x00" + self.R + way)
            nonce = device.entropy(12)
            parts.append(nonce + AESGCM(key).encrypt(nonce, b"".join(device.dealt[rank]), way))
            self.sealed[device.name, peer.name] = parts[-1]
        body = self.ctx + named(device.name) + u32(len(parts)) + b"".join(parts)
        return frame(17, body, device.key.sign(b"confide/secagg/shares/1\x00" + self.R + body))

    def kdf(self, secret: bytes, info: bytes) -> bytes:
        extracted = hmac.new(self.ctx, secret, hashlib.sha256).digest()
        return hmac.new(extracted, info + b"\x01", hashlib.sha256).digest()

    def sharing(self, reader: Device, chosen: set[int] | None = None) -> bytes:
        """Return the request 82 to `reader`; another `chosen` set makes it false."""
        u2 = self.u2 if chosen is None else chosen
        own = self.u1.index(reader)
        parts = [self.sealed[self.u1[rank].name, reader.name] for rank in sorted(u2) if rank != own]
        return frame(82, self.ctx, rank_set(u2, len(self.u1)), u32(len(parts)), *parts)

    def mask(self, lost: set[int] = frozenset()) -> None:  # type: ignore[assignment]
        for rank in sorted(self.u2):
            self.step(self.u1[rank], self.sharing(self.u1[rank]), self._masked(self.u1[rank], rank), rank in lost)
        self.u3 = self.u2 - set(lost)

    def _masked(self, device: Device, own: int) -> bytes:
        info = b"confide/secagg/self-mask/1\x00" + self.V + named(device.name)
        mask = keystream(self.kdf(device.b.to_bytes(32, "big"), info))
        y = [x + m for x, m in zip(device.vector, mask, strict=True)]
        for rank in sorted(self.u2 - {own}):
            peer = self.u1[rank]
            low, high = (device, peer) if own < rank else (peer, device)
            agreed = device.mask.exchange(X25519PublicKey.from_public_bytes(peer.row[:32]))
            ends = named(low.name) + named(high.name) + low.row[:32] + high.row[:32]
            mask = keystream(self.kdf(agreed, b"confide/secagg/pair-mask/1\x00" + self.V + ends))
            y = [value + (m if own < rank else -m) for value, m in zip(y, mask, strict=True)]
        data = struct.pack(f"<{DIM}I", *(value % 2**32 for value in y))
        start = self.ctx + named(device.name) + bytes.fromhex(device.head) + u32(DIM)
        signature = device.key.sign(b"confide/secagg/masked/1\x00" + self.V + start + sha(data))
        return frame(18, start, data, signature)

    def survivors(self, chosen: set[int] | None = None) -> bytes:
        """Return the request 83; another `chosen` set makes it false."""
        return frame(83, self.ctx, rank_set(self.u3 if chosen is None else chosen, len(self.u1)))

    def signature(self, device: Device) -> bytes:
        return device.key.sign(b"confide/secagg/survivors/1\x00" + self.V + rank_set(self.u3, len(self.u1)))

    def confirm(self, lost: set[int] = frozenset()) -> None:  # type: ignore[assignment]
        for rank in sorted(self.u3):
            device = self.u1[rank]
            self.step(
                device, self.survivors(), frame(19, self.ctx, named(device.name), self.signature(device)), rank in lost
            )
        self.signers = sorted(self.u3 - set(lost))

    def signed(self, signers: list[int] | None = None, **changes: bytes) -> bytes:
        """Return the request 84 with the first signatures that are enough; `forged` replaces the first of them."""
        chosen = self.signers[:LEAST] if signers is None else signers
        signatures = [self.signature(self.u1[rank]) for rank in chosen]
        signatures = [changes.get("forged", signatures[0] if signatures else b""), *signatures[1:]] if chosen else []
        return frame(84, self.ctx, rank_set(set(chosen), len(self.u1)), *signatures)

    def unmask(self, lost: set[int] = frozenset(), false: set[int] = frozenset()) -> None:  # type: ignore[assignment]
        """Let the signers give their shares; those `false` turn a bit in each and sign that."""
        for rank in self.signers:
            device = self.u1[rank]
            shares = [self.u1[other].dealt[rank][0 if other in self.u3 else 1] for other in sorted(self.u2)]
            answer = self._unmasked(device, shares)
            if rank in false:
                self.step(device, self.signed(), answer, lost=True)
                twisted = self._unmasked(device, [bytes([share[0] ^ 1]) + share[1:] for share in shares])
                self.rebuilt.append({"device": device.name, "answer": twisted.hex()})
            else:
                self.step(device, self.signed(), answer, rank in lost)

    def _unmasked(self, device: Device, shares: list[bytes]) -> bytes:
        body = self.ctx + named(device.name) + rank_set(self.u2, len(self.u1)) + b"".join(shares)
        return frame(20, body, device.key.sign(b"confide/secagg/unmask/1\x00" + self.V + body))

    def case_file(self, says: str, total: bool = False) -> dict[str, Any]:
        """Return the file: what everybody holds, every step, and how it ends."""
        devices = [
            {
                "name": d.name,
                "signing_key": d.key.private_bytes_raw().hex(),
                "entropy_seed": d.seed.hex(),
                "vector": d.vector,
                "ledger_head": d.head,
            }
            for d in self.devices
        ]
        ends: dict[str, Any] = {"ends": says}
        if total:
            column = [sum(self.u1[rank].vector[i] for rank in self.u3) % 2**32 for i in range(DIM)]
            ends["total"] = [value - 2**32 if value >= 2**31 else value for value in column]
            ends["survivors"] = [self.u1[rank].name for rank in sorted(self.u3)]
        head = {"query": self.query.decode(), "directory": self.directory.decode(), "devices": devices}
        return {"name": self.case, **head, "steps": self.steps, "false_answers": self.rebuilt, **ends}


Build = Callable[[Sum], dict[str, Any]]


def whole(lost: dict[str, set[int]], says: str) -> Build:
    """Return the builder of a sum in which some answers are lost; it ends with the sum, or with an error."""

    def build(some: Sum) -> dict[str, Any]:
        some.begin(lost.get("begin", set()))
        for stage in ("share", "mask", "confirm", "unmask"):
            answered = {"share": "u1", "mask": "u2", "confirm": "u3", "unmask": "signers"}[stage]
            if len(getattr(some, answered)) < LEAST:
                return some.case_file(says)
            getattr(some, stage)(lost.get(stage, set()))
        return some.case_file(says, total=says == "finished")

    return build


def abort_other_sum(some: Sum) -> dict[str, Any]:
    some.refuse(some.devices[0], frame(80, sha(b"another query")))
    return some.case_file("refused")


def abort_order(some: Sum) -> dict[str, Any]:
    some.refuse(some.devices[0], frame(83, some.ctx, rank_set({0, 1, 2}, 4)))
    some.begin()
    some.refuse(some.devices[0], frame(84, some.ctx, rank_set({0}, 4), bytes(64)))
    return some.case_file("refused")


def abort_roster_names(some: Sum) -> dict[str, Any]:
    some.begin()
    names = [d.name for d in some.u1]
    for changed in (
        [names[1], names[0], *names[2:]],
        [names[0], names[0], *names[2:]],
        [*names[:3], "stranger"],
        ["another", *names[1:]],
    ):
        some.refuse(some.devices[0], some.roster(some.devices[0], names=changed))
    return some.case_file("refused")


def abort_roster_floor(some: Sum) -> dict[str, Any]:
    some.begin()
    rows = [d.row for d in some.u1]
    few = [d.name for d in some.u1][: LEAST - 1]
    some.refuse(some.devices[0], some.roster(some.devices[0], names=few, rows=rows[: LEAST - 1]))
    many = [*(d.name for d in some.u1), "device-4"]
    some.refuse(some.devices[0], some.roster(some.devices[0], names=many, rows=[*rows, rows[0]]))
    return some.case_file("refused")


def abort_roster_row(some: Sum) -> dict[str, Any]:
    some.begin()
    rows = [d.row for d in some.u1]
    own = X25519PrivateKey.from_private_bytes(sha(b"the server's own")).public_key().public_bytes_raw()
    for changed in ([rows[0], own + rows[1][32:], *rows[2:]], [rows[0], rows[2], rows[1], rows[3]]):
        some.refuse(some.devices[0], some.roster(some.devices[0], rows=changed))
    return some.case_file("refused")


def resigned(some: Sum, device: Device, keys: bytes) -> bytes:
    """Return a row with other public keys that the device signed."""
    unsigned = frame(16, some.ctx, named(device.name), keys, device.row[64:96])
    return keys + device.row[64:96] + device.key.sign(b"confide/secagg/advertise/1\x00" + unsigned)


def abort_roster_keys(some: Sum) -> dict[str, Any]:
    some.begin()
    rows, liar = [d.row for d in some.u1], some.devices[1]
    low = bytes([1]) + bytes(31)
    for keys in (
        rows[2][:64],
        liar.row[:32] * 2,
        low + liar.row[32:64],
        liar.row[:32] + low,
    ):
        changed = [rows[0], resigned(some, liar, keys), *rows[2:]]
        some.refuse(some.devices[0], some.roster(some.devices[0], rows=changed))
    return some.case_file("refused")


def abort_roster_root(some: Sum) -> dict[str, Any]:
    some.begin()
    some.refuse(some.devices[0], some.roster(some.devices[0], root=bytes(32)))
    return some.case_file("refused")


def abort_sharing(some: Sum) -> dict[str, Any]:
    some.begin()
    some.share()
    for chosen in ({0, 1}, {1, 2, 3}):
        some.refuse(some.devices[0], some.sharing(some.devices[0], chosen))
    return some.case_file("refused")


def abort_survivors(some: Sum) -> dict[str, Any]:
    some.begin()
    some.share({3})
    some.mask()
    for chosen in ({0, 1}, {1, 2}, {0, 1, 2, 3}):
        some.refuse(some.devices[0], some.survivors(chosen))
    return some.case_file("refused")


def abort_second_survivors(some: Sum) -> dict[str, Any]:
    some.begin()
    some.share()
    some.mask()
    some.confirm()
    some.refuse(some.devices[0], some.survivors({0, 1, 2}))
    return some.case_file("refused")


def abort_signatures(some: Sum) -> dict[str, Any]:
    some.begin()
    some.share()
    some.mask()
    some.confirm()
    device = some.devices[0]
    some.refuse(device, some.signed([0, 1]))
    some.refuse(device, some.signed(forged=bytes(64)))
    some.refuse(device, some.signed([0, 1, 2], forged=some.signature(some.devices[1])))
    return some.case_file("refused")


def abort_restart(some: Sum) -> dict[str, Any]:
    some.begin()
    some.share()
    some.mask()
    device = some.devices[0]
    again = some.steps[:]
    some.steps.append({"device": device.name, "request": "restart", "answer": "", "lost": "yes"})
    for step in again:
        if step["device"] == device.name:
            if bytes.fromhex(step["answer"])[8] == 17:
                some.refuse(device, bytes.fromhex(step["request"]), "query.stale")
            else:
                some.step(device, bytes.fromhex(step["request"]), bytes.fromhex(step["answer"]), lost=True)
    some.refuse(device, some.survivors(), "query.stale")
    return some.case_file("refused")


def abort_directory(some: Sum) -> dict[str, Any]:
    return some.case_file("PolicyRefused directory.other")


def abort_false_shares(some: Sum) -> dict[str, Any]:
    some.begin()
    some.share()
    some.mask()
    some.confirm()
    some.unmask(false={1, 2})
    return some.case_file("SumInvalid")


CASES: dict[str, Build] = {
    "sum-of-four": whole({}, "finished"),
    "sum-without-one-from-the-start": whole({"begin": {1}}, "finished"),
    "sum-without-one-that-shared-nothing": whole({"share": {2}}, "finished"),
    "sum-without-one-that-masked-nothing": whole({"mask": {0}}, "finished"),
    "sum-with-one-that-confirmed-nothing": whole({"confirm": {3}}, "finished"),
    "sum-with-one-that-unmasked-nothing": whole({"unmask": {1}}, "finished"),
    "abort-directory": abort_directory,
    "abort-other-sum": abort_other_sum,
    "abort-order": abort_order,
    "abort-roster-names": abort_roster_names,
    "abort-roster-floor": abort_roster_floor,
    "abort-roster-row": abort_roster_row,
    "abort-roster-keys": abort_roster_keys,
    "abort-roster-root": abort_roster_root,
    "abort-sharing": abort_sharing,
    "abort-survivors": abort_survivors,
    "abort-second-survivors": abort_second_survivors,
    "abort-signatures": abort_signatures,
    "abort-restart": abort_restart,
    "abort-few-advertise": whole({"begin": {0, 1}}, "CohortTooSmall"),
    "abort-few-shares": whole({"share": {0, 1}}, "CohortTooSmall"),
    "abort-few-masked": whole({"mask": {0, 1}}, "CohortTooSmall"),
    "abort-few-confirm": whole({"confirm": {0, 1}}, "CohortTooSmall"),
    "abort-few-unmask": whole({"unmask": {0, 1}}, "CohortTooSmall"),
    "abort-false-shares": abort_false_shares,
}


def main() -> None:
    """Write the files."""
    folder = Path(__file__).parent / "secagg"
    folder.mkdir(exist_ok=True)
    for name, build in CASES.items():
        changes = {"directory_sha256": "1" * 64} if name == "abort-directory" else {}
        (folder / f"{name}.json").write_text(json.dumps(build(Sum(name, **changes)), indent=1) + "\n")


if __name__ == "__main__":
    main()
