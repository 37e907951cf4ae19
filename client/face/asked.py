"""A request's JSON, checked field by field: what is missing or of another type is one clear line."""

from __future__ import annotations

import json
from typing import Any, TypeVar

from starlette.requests import Request

from privacy.errors import ConfigError

T = TypeVar("T", str, int, float, bool, list[Any], dict[str, Any])


async def json_of(request: Request) -> dict[str, Any]:
    """Return the JSON object of a request. Raises ConfigError for anything else."""
    try:
        found = json.loads(await request.body())
    except (ValueError, RecursionError):
        raise ConfigError("the request is no JSON") from None
    if not isinstance(found, dict):
        raise ConfigError("the request is no JSON object")
    return found


def field(asked: dict[str, Any], name: str, kind: type[T], default: T | None = None) -> T:
    """Return a field of a type, or its default. Raises ConfigError where it is missing or of another type."""
    value = asked.get(name)
    if value is None and default is not None:
        return default
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise ConfigError(f"{name} is missing or is not {_WORDS[kind]}")
    return value


def whole(asked: dict[str, Any], name: str, default: int, least: int, most: int) -> int:
    """Return a whole number within bounds. Raises ConfigError."""
    found = field(asked, name, int, default)
    if not least <= found <= most:
        raise ConfigError(f"{name} is a number from {least} to {most}")
    return found


_WORDS: dict[type, str] = {str: "a text", int: "a whole number", float: "a number", bool: "true or false",
                           list: "a list", dict: "an object"}  # fmt: skip
