"""Messages that nobody wrote: decoding raises WireError or gives back the same bytes, and no machine falls over."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.errors import WireError
from privacy.frame import FROM_SERVER, MAGIC
from privacy.secagg.messages import DEVICE_KINDS, SERVER_KINDS, Begin
from privacy.wire import Refusal, decode, decode_request
from tests.privacy.secagg_cohort import STAGES, Round, exact_sum, name_of

KINDS = [*DEVICE_KINDS, *SERVER_KINDS]
VICTIM = name_of(1)


def real_messages() -> list[bytes]:
    """Return one message of each kind, as five devices and a server made them."""
    cohort = Round(5, 3)
    cohort.run([[], [], [name_of(4)], [], []])
    first: dict[int, bytes] = {}
    for _, _, _, frame in cohort.seen:
        first.setdefault(frame[len(MAGIC)], frame)
    assert sorted(first) == sorted(KINDS)
    return [first[kind] for kind in sorted(first)]


REAL = real_messages()


def survives(data: bytes) -> bool:
    """Return whether `data` was read; both decoders raise WireError or read what re-encodes to it."""
    read = 0
    for decoder in (decode, decode_request):
        try:
            assert decoder(data).encode() == data
            read += 1
        except WireError:
            continue
    assert read < 2, "no bytes are a message in both directions"
    return read == 1


@pytest.mark.parametrize("frame", REAL, ids=lambda frame: str(frame[len(MAGIC)]))
def test_every_real_message_re_encodes_to_itself_in_one_direction_only(frame: bytes) -> None:
    up = frame[len(MAGIC)] < FROM_SERVER
    message: Any = (decode if up else decode_request)(frame)
    assert message.encode() == frame and hash(message) is not None
    with pytest.raises(WireError):
        (decode_request if up else decode)(frame)


@settings(max_examples=300)
@given(st.sampled_from(KINDS), st.binary(max_size=400))
def test_random_bodies(kind: int, body: bytes) -> None:
    survives(MAGIC + bytes([kind]) + body)


@settings(max_examples=300)
@given(st.sampled_from(REAL), st.data())
def test_mutated_messages(frame: bytes, data: st.DataObject) -> None:
    changed = bytearray(frame)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(len(MAGIC), len(frame) - 1))
        changed[at] = data.draw(st.integers(0, 255))
    survives(bytes(changed))
    survives(bytes(changed[: data.draw(st.integers(0, len(frame)))]))


def mutated(rng: np.random.Generator, frame: bytes) -> bytes:
    """Return a message with bytes changed, a slice cut, doubled or put elsewhere, or a length overwritten."""
    data = bytearray(frame)
    way, at = int(rng.integers(6)), int(rng.integers(len(MAGIC), len(frame)))
    if way == 0:
        data[at] ^= int(rng.integers(1, 256))
    elif way == 1:
        del data[at : at + int(rng.integers(1, 40))]
    elif way == 2:
        data[at:at] = data[at : at + int(rng.integers(1, 40))]
    elif way == 3:
        data[at : at + 4] = struct.pack("<I", int(rng.choice([0, 1, 5, 2**14, 2**14 + 1, 2**31, 2**32 - 1])))
    elif way == 4:
        data[len(MAGIC)] = int(rng.choice(KINDS))
    else:
        data[at:] = rng.bytes(int(rng.integers(0, len(frame))))
    return bytes(data)


def fuzz(number: int, seed: int) -> tuple[int, int]:
    """Decode `number` mutated messages and hand each to a device and a server that wait; return how many were read.

    A device and a server are left as they were by whatever they refuse; both go on to the exact sum in the end.
    """
    rng = np.random.default_rng(seed)
    read = taken = 0
    for stage in STAGES:
        cohort = Round(5, 3, remember=True)
        while cohort.server.stage != stage:
            cohort.run_stage()
        request, begin = cohort.server.requests()[VICTIM], Begin(cohort.query.sha256).encode()
        for _ in range(number // len(STAGES)):
            frame = mutated(rng, REAL[int(rng.integers(len(REAL)))] if rng.random() < 0.7 else request)
            read += survives(frame)
            if frame in (request, begin):  # the next request, and one that may be repeated
                continue
            if frame[len(MAGIC) : len(MAGIC) + 1] < bytes([FROM_SERVER]):
                taken += cohort.server.receive(VICTIM, frame)
            elif stage not in ("mask", "confirm") or len(frame) != len(request):
                # same length at those two: other seals, or another set that is fine too (the tests of tampering)
                taken += not isinstance(decode(cohort.devices[VICTIM].reply(frame)), Refusal)
        while not cohort.server.finished:
            cohort.run_stage()
        assert np.array_equal(cohort.server.total, exact_sum(cohort.vectors, cohort.vectors))
    return read, taken


def test_five_thousand_fuzzed_messages() -> None:
    read, taken = fuzz(5_000, seed=1)
    assert 100 < read < 4_000 and taken == 0


@pytest.mark.statistical
def test_a_million_fuzzed_messages() -> None:
    read, taken = fuzz(1_000_000, seed=2)
    assert read > 10_000 and taken == 0


@pytest.mark.parametrize("declared", [2**14, 2**24, 2**32 - 1])
def test_a_declared_length_allocates_nothing(declared: int) -> None:
    bodies: list[Callable[[bytes], bytes]] = [
        lambda size: MAGIC + bytes([17]) + bytes(32) + b"\x01a" + size,
        lambda size: MAGIC + bytes([18]) + bytes(32) + b"\x01a" + bytes(32) + size,
        lambda size: MAGIC + bytes([20]) + bytes(32) + b"\x01a" + size,
        lambda size: MAGIC + bytes([81]) + bytes(32) + size,
        lambda size: MAGIC + bytes([82]) + bytes(32) + size,
        lambda size: MAGIC + bytes([83]) + bytes(32) + size,
        lambda size: MAGIC + bytes([84]) + bytes(32) + size,
    ]
    tracemalloc.start()
    for body in bodies:
        assert not survives(body(struct.pack("<I", declared)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 200_000
