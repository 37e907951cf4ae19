"""One byte string per value, and nothing else is accepted."""

from __future__ import annotations

import json
import pickle
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.canonical import (
    MAX_DEPTH,
    _canonical,
    canonical_json,
    exact_fields,
    is_digest,
    is_name,
    parse_canonical,
    sha256_hex,
)
from privacy.errors import BudgetExhausted, ConfideError, PolicyRefused, SignatureInvalid, WireError

SAFE = st.integers(-(2**53) + 1, 2**53 - 1)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
VALUES = st.recursive(
    st.none() | st.booleans() | SAFE | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


@given(VALUES)
def test_round_trip(value: Any) -> None:
    data = canonical_json(value)
    assert parse_canonical(data) == value
    assert json.loads(data) == value


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.text("az,:[]0", max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3) | st.integers(0, 3), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(ANYTHING)
def test_the_encoder_in_c_writes_and_refuses_what_the_definition_does(value: Any) -> None:
    """Numbers and keys that have no exact form, keys and texts in any script, lone surrogates."""
    try:
        wanted: bytes | None = _canonical(value, 0).encode()
    except WireError:
        wanted = None
    if wanted is None:
        with pytest.raises(WireError):
            canonical_json(value)
    else:
        assert canonical_json(value) == wanted


@pytest.mark.parametrize("kind", [list, tuple, lambda items: {"a": items[0]} if items else {}])
@pytest.mark.parametrize("leaf", [[], [1]])
def test_the_encoder_in_c_nests_as_deep_as_the_definition(kind: Any, leaf: list[int]) -> None:
    value, depth = kind(leaf), int(bool(leaf))
    while depth < MAX_DEPTH:
        assert canonical_json(value) == _canonical(value, 0).encode()
        value, depth = kind([value]), depth + 1
    canonical_json(value)
    with pytest.raises(WireError):
        canonical_json(kind([value]))


@given(VALUES)
def test_any_other_spelling_is_refused(value: Any) -> None:
    for other in (json.dumps(value, indent=1).encode(), json.dumps(value, ensure_ascii=True).encode() + b" "):
        if other != canonical_json(value):
            with pytest.raises(WireError):
                parse_canonical(other)


@given(st.binary(max_size=60))
def test_random_bytes_raise_only_wire_error(data: bytes) -> None:
    with suppress(WireError):
        assert canonical_json(parse_canonical(data)) == data


def test_rfc_8785_order_and_escapes() -> None:
    keys = ["\u20ac", "\r", "\ufb33", "1", "\U0001f600", "\u0080", "\u00f6"]  # RFC 8785, section 3.2.3
    parsed = list(json.loads(canonical_json(dict.fromkeys(keys, 0))))
    assert parsed == ["\r", "1", "\u0080", "\u00f6", "\u20ac", "\U0001f600", "\ufb33"]
    assert canonical_json('\u20ac$\x0f\nA\'B"\\\\"/') == '"\u20ac$\\u000f\\nA\'B\\"\\\\\\\\\\"/"'.encode()


@pytest.mark.parametrize("value", [1.0, float("nan"), 2**53, -(2**53), "\ud800", {1: 2}, {"\udfff": 1}, b"x", {1, 2}])
def test_what_has_no_exact_form_is_refused(value: object) -> None:
    with pytest.raises(WireError):
        canonical_json(value)


@pytest.mark.parametrize(
    "data",
    [
        b'{"a":1,"a":1}',
        b'{"a":1,"a":2}',
        b'{"b":1,"a":2}',
        b'{ "a":1}',
        b'{"a":1}\n',
        b"1.0",
        b"1e3",
        b"-0",
        b"01",
        b"NaN",
        b"Infinity",
        b'"\\u0061"',
        b'"\\/"',
        b'"\\ud800"',
        b'"\xff"',
        b"\xef\xbb\xbf1",
        b"9007199254740992",
        b"",
        b"[" * 100_000,
        b"[" * 40 + b"]" * 40,
        b"9" * 5000,
    ],
)
def test_refused_bytes(data: bytes) -> None:
    with pytest.raises(WireError):
        parse_canonical(data)


def test_names_have_one_spelling_and_are_safe_as_files() -> None:
    assert all(is_name(text) for text in ("a", "d-1", "A.b_c", "0" * 64))
    for text in ("", ".", "..", ".hidden", "-x", "a/b", "a b", "\u0430", "a\n", "a" * 65, "a\x00", 7, None, b"a"):
        assert not is_name(text)
    assert is_digest("0" * 64)
    for text in ("0" * 63, "0" * 65, "A" * 64, "g" * 64, "0" * 64 + "\n", None):
        assert not is_digest(text)


def test_exact_fields_refuses_more_and_less() -> None:
    assert exact_fields({"a": 1}, {"a"}, "x") == {"a": 1}
    for value in ({}, {"a": 1, "b": 2}, [("a", 1)], None):
        with pytest.raises(WireError):
            exact_fields(value, {"a"}, "x")


def test_sha256_known_answer() -> None:
    assert sha256_hex(b"") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_errors_are_one_tree_and_cross_a_process_border() -> None:
    error = BudgetExhausted("budget.exhausted", "spent 1/2")
    copy = pickle.loads(pickle.dumps(error))
    assert isinstance(copy, PolicyRefused) and isinstance(copy, ConfideError)
    assert (copy.code, copy.detail, str(copy)) == ("budget.exhausted", "spent 1/2", "budget.exhausted: spent 1/2")
    assert str(SignatureInvalid()) == str(SignatureInvalid("signature")) == "signature does not verify"
