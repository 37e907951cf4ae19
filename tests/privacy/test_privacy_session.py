"""The messages around a sum: each re-encodes, nothing else is read, signatures hold for one node and nonce."""

from __future__ import annotations

import json
import struct
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from privacy.canonical import sha256_hex
from privacy.errors import SignatureInvalid, WireError
from privacy.session import (
    MAX_DELIVERY_BYTES,
    MAX_QUERY_BYTES,
    MAX_START_NUMBERS,
    Accepted,
    Delivery,
    Greeting,
    Hello,
    Received,
    Start,
    Training,
    digest_of,
    history_item,
    read_history,
)
from privacy.wire import MAX_BYTES, MAX_REQUEST_BYTES, decode, decode_request

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
PUBLIC = KEY.public_key()
NONCE = "4" * 64
VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "session.json").read_text())

names = st.text("abcxyz019", min_size=1, max_size=30)
digests = st.binary(min_size=32, max_size=32).map(bytes.hex)
items = st.builds(lambda kind, rest: bytes([kind]) + rest, st.sampled_from([1, 2, 3]), st.binary(max_size=200))
up = st.one_of(
    st.builds(Hello, names, st.integers(0, 2**16 - 1), st.binary(min_size=64, max_size=64)),
    st.builds(Received, names, digests),
    st.builds(Accepted, digests, names),
)
down = st.one_of(
    st.builds(Greeting, digests, st.lists(digests, max_size=16).map(tuple)),
    st.builds(Delivery, st.lists(items, min_size=1, max_size=16).map(tuple)),
    st.builds(Training, st.binary(min_size=1, max_size=MAX_QUERY_BYTES)),
)


def start_of(rows: Any = ((1.0, 2.0),), **changes: Any) -> Start:
    fields: dict[str, Any] = {
        "federation": "test",
        "campaign": "spring",
        "round": 1,
        "slots": np.array(rows, np.float32),
    }
    return Start(**fields | changes)


# -- round trips and fuzz -------------------------------------------------------------------------------------------


@given(up)
def test_what_a_device_says_is_read_back_and_is_no_request(message: Any) -> None:
    assert decode(message.encode()) == message
    with pytest.raises(WireError):
        decode_request(message.encode())


@given(down)
def test_what_a_server_says_is_read_back_and_is_no_answer(message: Any) -> None:
    assert decode_request(message.encode()) == message
    with pytest.raises(WireError):
        decode(message.encode())


@given(names, names, st.integers(0, 2**32 - 1), st.integers(1, 3), st.integers(1, 9), st.data())
def test_a_start_is_read_back_bit_for_bit(
    federation: str, campaign: str, number: int, slots: int, dim: int, data: st.DataObject
) -> None:
    raw = data.draw(st.binary(min_size=4 * slots * dim, max_size=4 * slots * dim))
    rows = np.frombuffer(raw, "<f4").astype(np.float32).reshape(slots, dim)  # NaN and infinity too
    item = Start(federation, campaign, number, rows).signed(KEY).item()
    again = Start.from_item(item)
    assert again.item() == item and again.slots.tobytes() == rows.tobytes()
    again.verify(PUBLIC.public_bytes_raw().hex())


@given(st.one_of(up, down), st.data())
def test_a_message_that_is_cut_or_changed_is_refused_or_is_another_that_re_encodes_to_itself(
    message: Any, data: st.DataObject
) -> None:
    frame = bytearray(message.encode())
    how = data.draw(st.sampled_from(["cut", "longer", "flip", "insert"]))
    at = data.draw(st.integers(0, len(frame) - 1))
    if how == "cut":
        del frame[at:]
    elif how == "longer":
        frame += data.draw(st.binary(min_size=1, max_size=9))
    elif how == "flip":
        frame[at] ^= data.draw(st.integers(1, 255))
    else:
        frame[at:at] = data.draw(st.binary(min_size=1, max_size=5))
    for read in (decode, decode_request):
        try:
            got = read(bytes(frame))
        except WireError:
            continue
        assert got.encode() == bytes(frame)


@given(st.sampled_from([3, 4, 5, 64, 65, 66]), st.binary(max_size=300))
@settings(max_examples=300)
def test_any_bytes_behind_a_kind_are_a_message_or_a_wire_error(kind: int, body: bytes) -> None:
    for read in (decode, decode_request):
        try:
            got = read(b"confide\x01" + bytes([kind]) + body)
        except WireError:
            continue
        assert got.encode() == b"confide\x01" + bytes([kind]) + body


@given(st.binary(max_size=300))
def test_any_bytes_are_a_start_or_a_wire_error(data: bytes) -> None:
    for item in (data, b"\x02" + data):
        try:
            got = Start.from_item(item)
        except WireError:
            continue
        assert got.item() == item


@given(st.data())
def test_a_start_that_is_cut_or_changed_is_refused_or_not_signed(data: st.DataObject) -> None:
    item = bytearray(start_of().signed(KEY).item())
    at = data.draw(st.integers(0, len(item) - 1))
    item[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises((WireError, SignatureInvalid)):
        Start.from_item(bytes(item)).verify(PUBLIC.public_bytes_raw().hex())


# -- signatures -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("node", [0, 1, 2**63, 2**64 - 1])
def test_a_hello_holds_for_its_node_its_nonce_its_device_and_what_it_holds(node: int) -> None:
    hello = Hello.signed(KEY, "ann", 2, node, NONCE)
    hello.verify(PUBLIC, node, NONCE)
    wrong: list[Callable[[], None]] = [
        lambda: hello.verify(PUBLIC, node ^ 1, NONCE),
        lambda: hello.verify(PUBLIC, node, "5" * 64),
        lambda: hello.verify(OTHER.public_key(), node, NONCE),
        lambda: replace(hello, device_id="bob").verify(PUBLIC, node, NONCE),
        lambda: replace(hello, held=3).verify(PUBLIC, node, NONCE),
        lambda: replace(hello, signature=bytes(64)).verify(PUBLIC, node, NONCE),
    ]
    for one in wrong:
        with pytest.raises(SignatureInvalid):
            one()


@pytest.mark.parametrize(("node", "nonce"), [(-1, NONCE), (2**64, NONCE), (1, ""), (1, "4" * 63), (1, "G" * 64)])
def test_a_hello_for_no_node_or_no_nonce_is_neither_signed_nor_verified(node: int, nonce: str) -> None:
    with pytest.raises(WireError):
        Hello.signed(KEY, "ann", 0, node, nonce)
    with pytest.raises(WireError):
        Hello("ann", 0, bytes(64)).verify(PUBLIC, node, nonce)


def test_a_start_holds_for_its_signer_and_every_one_of_its_fields() -> None:
    signer, start = PUBLIC.public_bytes_raw().hex(), start_of().signed(KEY)
    start.verify(signer)
    for changed in (
        replace(start, federation="other"),
        replace(start, campaign="other"),
        replace(start, round=2),
        replace(start, slots=start.slots + 1),
        replace(start, slots=start.slots.reshape(2, 1)),
        replace(start, signature=bytes(64)),
        replace(start, signature=b""),
        start_of().signed(OTHER),
    ):
        with pytest.raises(SignatureInvalid):
            changed.verify(signer)
    for key in ("", "zz", "0" * 63, OTHER.public_key().public_bytes_raw().hex()):
        with pytest.raises(SignatureInvalid):
            start.verify(key)
    with pytest.raises(WireError):
        start_of().item()


def test_one_signature_never_stands_for_another_purpose() -> None:
    """What a hello signs is no start, and the other way round, even if a body could be read as both."""
    start = start_of().signed(KEY)
    hello = Hello("ann", 0, start.signature)
    with pytest.raises(SignatureInvalid):
        hello.verify(PUBLIC, 1, NONCE)
    with pytest.raises(SignatureInvalid):
        replace(start, signature=Hello.signed(KEY, "ann", 0, 1, NONCE).signature).verify(
            PUBLIC.public_bytes_raw().hex()
        )


# -- sizes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda: Hello("ann", 2**16, bytes(64)),
        lambda: Hello("ann", -1, bytes(64)),
        lambda: Hello("ann", 0, bytes(63)),
        lambda: Hello("a name", 0, bytes(64)),
        lambda: Received("ann", "0" * 63),
        lambda: Accepted("0" * 63, "ann"),
        lambda: Greeting("0" * 63),
        lambda: Greeting(NONCE, (NONCE,) * 17),
        lambda: Greeting(NONCE, ("x",)),
        lambda: Delivery(()),
        lambda: Delivery((b"\x01",) * 17),
        lambda: Delivery((b"",)),
        lambda: Delivery((b"\x05x",)),
        lambda: Training(b""),
        lambda: Training(bytes(MAX_QUERY_BYTES + 1)),
        lambda: start_of(round=2**32),
        lambda: start_of(round=-1),
        lambda: start_of(federation="a b"),
        lambda: start_of(slots=np.zeros((1, 2))),
        lambda: start_of(slots=np.zeros(2, np.float32)),
        lambda: start_of(slots=np.zeros((0, 2), np.float32)),
        lambda: start_of(slots=np.zeros((2**16, 1), np.float32)),
        lambda: start_of(signature=bytes(1)),
    ],
)
def test_what_is_out_of_bounds_cannot_be_made(make: Callable[[], object]) -> None:
    with pytest.raises(WireError):
        make()


def test_sizes_are_refused_before_anything_of_that_size_exists() -> None:
    head = b"\x02\x01f\x01c" + struct.pack("<I", 0)
    huge = [struct.pack("<II", 2**16 - 1, 2**32 - 1), struct.pack("<II", 1, MAX_START_NUMBERS), b"\xff" * 8]
    tracemalloc.start()
    for sizes in huge:
        with pytest.raises(WireError):
            Start.from_item(head + sizes + bytes(100))
    for size in (2**32 - 1, MAX_DELIVERY_BYTES):
        with pytest.raises(WireError):
            decode_request(b"confide\x01" + bytes([65, 1]) + struct.pack("<I", size) + bytes(100))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


def test_the_largest_messages_fit_and_one_byte_more_does_not() -> None:
    training = Training(bytes(MAX_QUERY_BYTES)).encode()
    assert decode_request(training).encode() == training
    with pytest.raises(WireError):
        decode_request(training + b"x")
    with pytest.raises(WireError):
        decode(b"confide\x01\x03" + bytes(MAX_BYTES))
    whole = Delivery((b"\x01" + bytes(MAX_DELIVERY_BYTES - 1),)).encode()
    assert len(whole) <= MAX_REQUEST_BYTES and len(decode_request(whole).items[0]) == MAX_DELIVERY_BYTES  # type: ignore[union-attr]
    with pytest.raises(WireError):
        Delivery((b"\x01" + bytes(MAX_DELIVERY_BYTES),))


# -- vectors --------------------------------------------------------------------------------------------------------


def read_start(case: Any) -> None:
    rows: NDArray[np.float32] = np.array(case["rows"], np.float32)
    start = Start(case["federation"], case["campaign"], case["round"], rows).signed(KEY)
    assert start.item().hex() == case["item"]
    assert sha256_hex(start.item()) == case["sha256"]
    Start.from_item(bytes.fromhex(case["item"])).verify(VECTORS["public_key"])


@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda case: case["kind"])
def test_the_frozen_messages_are_read_and_written(case: Any) -> None:
    if case["kind"] == "start":
        read_start(case)
        return
    frame = bytes.fromhex(case["frame"])
    made: Any
    if case["kind"] == "hello":
        made = Hello.signed(KEY, case["device_id"], case["held"], case["node"], case["nonce"])
    elif case["kind"] == "greeting":
        made = Greeting(case["nonce"], tuple(case["offered"]))
    elif case["kind"] == "delivery":
        parts = tuple(map(bytes.fromhex, case["items"]))
        made, receipt = Delivery(parts), Received("ann", digest_of(parts))
        assert receipt.encode().hex() == case["receipt"] and receipt.digest == case["digest"]
    elif case["kind"] == "training":
        made = Training(bytes.fromhex(case["query"]))
    else:
        made = Accepted(case["query_sha256"], case["device_id"])
    assert made.encode() == frame
    read: Callable[[bytes], Any] = decode if frame[8] < 64 else decode_request
    assert read(frame) == made


def test_the_generator_does_not_import_what_it_tests() -> None:
    source = (Path(__file__).parents[1] / "vectors" / "generate_session.py").read_text()
    assert "import privacy" not in source and "from privacy" not in source


@given(
    st.binary(max_size=80), st.dictionaries(st.integers(1, 2**32 - 1), st.lists(st.binary(min_size=32, max_size=32)))
)
def test_a_history_is_read_as_it_was_written(note: bytes, proofs: dict[int, list[bytes]]) -> None:
    assert read_history(history_item(note, proofs)) == (note, proofs)


@given(st.binary(max_size=300))
def test_a_history_of_other_bytes_raises_only_wire_error(tail: bytes) -> None:
    with suppress(WireError):
        assert history_item(*read_history(b"\x03" + tail)) == b"\x03" + tail
