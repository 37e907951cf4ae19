"""Nothing but a whole message decodes, and every message that decodes encodes to the same bytes."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.errors import SignatureInvalid, WireError
from privacy.frame import MAGIC
from privacy.wire import MAX_BYTES, NO_HEAD, Answer, Refusal, RefusalCode, decode

KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))
DIGESTS = st.binary(min_size=32, max_size=32).map(bytes.hex)
NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True)
VECTORS = st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=9).map(lambda v: np.array(v, dtype=np.uint32))
SIGNATURES = st.just(b"") | st.binary(min_size=64, max_size=64)
ANSWERS = st.builds(Answer, DIGESTS, NAMES, VECTORS, DIGESTS, SIGNATURES)
REFUSALS = st.builds(Refusal, DIGESTS, NAMES, st.sampled_from(RefusalCode))


def answer(dim: int = 3) -> Answer:
    return Answer("a" * 64, "d1", np.arange(dim, dtype=np.uint32) + 2**31).signed(KEY, "b" * 64)


@given(ANSWERS | REFUSALS)
def test_round_trip(message: Answer | Refusal) -> None:
    data = message.encode()
    assert decode(data) == message
    assert decode(data).encode() == data
    assert hash(decode(data)) == hash(message)


@settings(max_examples=500)
@given(st.binary(max_size=300), st.sampled_from([b"", MAGIC, MAGIC + b"\x01", MAGIC + b"\x02"]))
def test_random_bytes_raise_only_wire_error(tail: bytes, head: bytes) -> None:
    with suppress(WireError):
        assert decode(head + tail).encode() == head + tail


def test_every_flipped_bit_of_a_signed_answer_is_seen() -> None:
    good = answer().encode()
    for at in range(len(good)):
        for bit in range(8):
            bad = good[:at] + bytes([good[at] ^ 1 << bit]) + good[at + 1 :]
            try:
                message = decode(bad)
            except WireError:
                continue
            assert isinstance(message, Answer) and message.encode() == bad and message != answer()
            with pytest.raises(SignatureInvalid):
                message.verify(KEY.public_key())


def test_every_changed_byte_of_a_refusal_is_refused_or_another_refusal() -> None:
    good = Refusal("a" * 64, "d1", RefusalCode.BUDGET).encode()
    for at in range(len(good)):
        for value in set(range(256)) - {good[at]}:
            bad = good[:at] + bytes([value]) + good[at + 1 :]
            with suppress(WireError):
                assert decode(bad).encode() == bad


def test_every_prefix_and_every_longer_message_is_refused() -> None:
    for good in (answer().encode(), Refusal("a" * 64, "d1", RefusalCode.UNABLE).encode()):
        for end in range(len(good)):
            with pytest.raises(WireError):
                decode(good[:end])
        with pytest.raises(WireError):
            decode(good + b"\x00")


def test_a_declared_gigabyte_is_refused_before_it_is_made() -> None:
    head = answer().encode()[: len(MAGIC) + 1 + 64 + 3]
    tracemalloc.start()
    for dim in (2**28, 2**32 - 1, 2**24, 2**24 + 1):
        with pytest.raises(WireError):
            decode(head + struct.pack("<I", dim) + bytes(64))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20
    with pytest.raises(WireError, match="longer than"):
        decode(bytes(MAX_BYTES + 1))


@pytest.mark.parametrize(
    "head",
    [b"confide\x00\x01", b"confide\x02\x01", b"Confide\x01\x01", b"confide\x01\x00", b"confide\x01\x03"],
)
def test_other_versions_and_kinds_are_refused(head: bytes) -> None:
    with pytest.raises(WireError):
        decode(head + answer().encode()[len(head) :])


def test_the_order_of_codes_is_the_wire_and_never_changes() -> None:
    for index, code in enumerate(
        [
            "federation.other",
            "policy.other",
            "basis.other",
            "purpose.not-granted",
            "transport.unprotected",
            "noise.replayed",
            "cohort.too-small",
            "cohort.floor-too-low",
            "noise.too-low",
            "clip.too-high",
            "dim.too-large",
            "limits.too-high",
            "participations.used-up",
            "budget.exhausted",
            "query.stale",
            "release.unknown",
            "device.unable",
        ]
    ):
        assert Refusal("a" * 64, "d1", RefusalCode(code)).encode()[-1] == index
    with pytest.raises(WireError):
        Refusal("a" * 64, "d1", "no disk: /home/anna")  # type: ignore[arg-type]


def test_what_is_no_answer_cannot_be_made() -> None:
    vector = np.ones(3, dtype=np.uint32)
    makers: list[Callable[[], Answer]] = [
        lambda: Answer("A" * 64, "d1", vector),
        lambda: Answer("a" * 63, "d1", vector),
        lambda: Answer("a" * 64, "d\u0131", vector),
        lambda: Answer("a" * 64, "", vector),
        lambda: Answer("a" * 64, "d1", vector, "head"),
        lambda: Answer("a" * 64, "d1", vector, NO_HEAD, b"short"),
        lambda: Answer("a" * 64, "d1", vector[:0]),
        lambda: Answer("a" * 64, "d1", vector.reshape(3, 1)),
        lambda: Answer("a" * 64, "d1", vector.astype(np.int64)),
    ]
    for make in makers:
        with pytest.raises(WireError):
            make()


def test_a_signature_covers_query_device_vector_and_head() -> None:
    signed = answer()
    signed.verify(KEY.public_key())
    for other in (
        Answer("c" * 64, signed.device_id, signed.vector, signed.ledger_head, signed.signature),
        Answer(signed.query_sha256, "d2", signed.vector, signed.ledger_head, signed.signature),
        Answer(
            signed.query_sha256, signed.device_id, signed.vector + np.uint32(1), signed.ledger_head, signed.signature
        ),
        Answer(signed.query_sha256, signed.device_id, signed.vector, NO_HEAD, signed.signature),
        Answer(signed.query_sha256, signed.device_id, signed.vector, signed.ledger_head),
    ):
        with pytest.raises(SignatureInvalid, match=r"^answer does not verify$"):
            other.verify(KEY.public_key())
    with pytest.raises(SignatureInvalid):
        signed.verify(Ed25519PrivateKey.from_private_bytes(b"\x01" * 32).public_key())


def test_an_answer_cannot_be_changed_after_it_is_made() -> None:
    vector = np.ones(3, dtype=np.uint32)
    message = Answer("a" * 64, "d1", vector)
    vector[0] = 9
    assert message.vector.tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match="read-only"):
        message.vector[0] = 9


def test_the_size_of_an_answer_says_nothing_about_its_content() -> None:
    sizes = {
        len(Answer("a" * 64, "d1", np.full(7, value, dtype=np.uint32)).signed(KEY).encode())
        for value in (0, 1, 2**32 - 1)
    }
    assert len(sizes) == 1
