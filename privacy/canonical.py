"""One byte string per value: the subset of RFC 8785 that confide signs, hashes and compares.

Strings, integers, booleans, null, lists and objects. Floats are refused: two machines may print one float in two ways,
and a hash must not depend on that; write an exact number as a decimal or a fraction in a string.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from json.encoder import encode_basestring
from typing import Any, NoReturn, TypeAlias

from privacy.errors import WireError

Json: TypeAlias = "bool | int | str | list[Json] | dict[str, Json] | None"

MAX_SAFE_INTEGER = 2**53 - 1
MAX_DEPTH = 32
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


def canonical_json(value: object) -> bytes:
    """Return the canonical UTF-8 bytes of `value`: keys sorted by UTF-16 code units, no white space (RFC 8785, 3.2).

    Tuples are written as lists. Raises WireError for a float, for an integer beyond 2^53 - 1 in size (RFC 8785 gives
    such numbers no exact form; use a string), a lone surrogate, a key that is not a string, nesting deeper than 32.
    """
    if _is_plain(value, 0):
        text = _ENCODER.encode(value)  # in C; with ASCII alone both orders of keys are one
        if text.isascii():
            return text.encode("ascii")
    return _canonical(value, 0).encode("utf-8")


def parse_canonical(data: bytes) -> Json:
    """Return the value whose canonical form is exactly `data`.

    Raises WireError for everything else: duplicate keys, white space, another key order, floats, another escape.
    """
    try:
        value = json.loads(
            data.decode("utf-8"), object_pairs_hook=_unique, parse_float=_refuse_number, parse_constant=_refuse_number
        )
    except (ValueError, RecursionError) as error:
        raise WireError("not canonical JSON") from error
    if canonical_json(value) != data:
        raise WireError("not canonical JSON: the same value has another canonical form")
    return value  # type: ignore[no-any-return]


def exact_fields(value: object, names: set[str], what: str) -> dict[str, Any]:
    """Return a copy of the object `value` if it has exactly the fields `names`; else raise WireError naming `what`."""
    if not isinstance(value, dict) or set(value) != names:
        raise WireError(f"{what} has not exactly the fields of its version")
    return dict(value)


def sha256_hex(data: bytes) -> str:
    """Return the SHA-256 of `data` as 64 lower-case hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def is_name(text: object) -> bool:
    """Return whether `text` may name a device or a federation: 1 to 64 of A-Z a-z 0-9 . _ -, no sign first.

    So narrow that a name has one spelling (no Unicode look-alikes) and is safe as a file name.
    """
    return isinstance(text, str) and _NAME.fullmatch(text) is not None


def is_digest(text: object) -> bool:
    """Return whether `text` is 64 lower-case hexadecimal digits: a SHA-256 or an Ed25519 public key."""
    return isinstance(text, str) and _DIGEST.fullmatch(text) is not None


_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, check_circular=False)
_LEAVES = {str, bool, type(None)}


def _is_plain(value: object, depth: int) -> bool:
    """Return whether json's own encoder writes `value` as `_canonical` does, but for what is not ASCII."""
    kind = type(value)
    if kind is dict and depth < MAX_DEPTH:
        assert isinstance(value, dict)
        names = all(type(name) is str for name in value)
        return names and all(type(item) in _LEAVES or _is_plain(item, depth + 1) for item in value.values())
    if kind in (list, tuple) and depth < MAX_DEPTH:
        assert isinstance(value, list | tuple)
        return all(type(item) in _LEAVES or _is_plain(item, depth + 1) for item in value)
    if kind is int:
        assert isinstance(value, int)
        return -MAX_SAFE_INTEGER <= value <= MAX_SAFE_INTEGER
    return kind in _LEAVES


def _canonical(value: object, depth: int) -> str:
    if depth > MAX_DEPTH:
        raise WireError(f"not canonical JSON: nested deeper than {MAX_DEPTH}")
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int):
        return _integer(value)
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, list | tuple):
        return "[" + ",".join(_canonical(item, depth + 1) for item in value) + "]"
    if isinstance(value, Mapping):
        return _object(value, depth)
    raise WireError(f"not canonical JSON: {type(value).__name__} has no exact form; write it as a string")


def _object(value: Mapping[object, object], depth: int) -> str:
    names = [name if isinstance(name, str) else _refuse_name(name) for name in value]
    if all(name.isascii() for name in names):
        names.sort()
    else:
        for name in names:
            _string(name)  # a lone surrogate would make the sort below fail
        names.sort(key=lambda name: name.encode("utf-16-be"))
    return "{" + ",".join(f"{_string(name)}:{_canonical(value[name], depth + 1)}" for name in names) + "}"


def _integer(value: int) -> str:
    if abs(value) > MAX_SAFE_INTEGER:
        raise WireError("not canonical JSON: integer beyond 2^53 - 1; write it as a string")
    return str(int(value))


def _string(value: str) -> str:
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise WireError("not canonical JSON: lone surrogate") from error
    return encode_basestring(str(value))  # escapes exactly what RFC 8785, 3.2.2.2 escapes


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise WireError("not canonical JSON: a key stands twice")
    return value


def _refuse_number(text: str) -> NoReturn:
    raise WireError("not canonical JSON: a number that is not an integer")


def _refuse_name(name: object) -> NoReturn:
    raise WireError(f"not canonical JSON: a key is {type(name).__name__}, not a string")
