"""A conversation as JSON, in the form that OpenAI's clients send."""

from __future__ import annotations

from typing import Any

from privacy.errors import ConfigError


def turns_of(given: list[Any]) -> list[tuple[str, str]]:
    """Return the turns of a conversation from JSON. Raises ConfigError for what is none."""
    turns = []
    for each in given:
        role, content = (each.get("role"), each.get("content")) if isinstance(each, dict) else (None, None)
        if role == "developer":
            role = "system"
        if isinstance(content, list):  # OpenAI's parts; text alone is read
            parts = [part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str)]
            content = "".join(parts) if len(parts) == len(content) else None
        if role not in ("system", "user", "assistant") or not isinstance(content, str):
            raise ConfigError("a turn has a role (system, user, assistant) and a content of text")
        turns.append((role, content))
    return turns
