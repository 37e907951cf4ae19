"""Tokens of programs that may speak with the model, each with what it may do; the vault keeps their hashes alone.

chat         replies of the base model          memories     also replies made with the person's text and own adapter
embeddings   vectors of texts that are given    learn        keeps what is said of replies in the vault, to learn from
page         all that the page does; made at each start, kept nowhere
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Iterable
from typing import Any

from client.vault import Vault
from privacy.errors import ConfigError

CHAT, MEMORIES, EMBEDDINGS, LEARN, PAGE = "chat", "memories", "embeddings", "learn", "page"
GIVEN = (CHAT, MEMORIES, EMBEDDINGS, LEARN)
SETTING = "face.tokens"
_NAME = re.compile(r"[\w .-]{1,40}")
_BYTES = 32


class Tokens:
    """Who may do what: the page's own token of this run, and those of the vault."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault
        self.page = secrets.token_urlsafe(_BYTES)

    def scopes(self, token: str) -> frozenset[str]:
        """Return what the bearer of a token may do; nothing for an unknown one."""
        if hmac.compare_digest(token.encode(), self.page.encode()):
            return frozenset((*GIVEN, PAGE))
        found: frozenset[str] = frozenset()
        digest = _digest(token)
        for kept in _kept(self._vault).values():  # all of them, whichever fits: no time tells
            if hmac.compare_digest(digest, str(kept["sha256"])):
                found = frozenset(kept["scopes"])
        return found


def new_token(vault: Vault, name: str, scopes: Iterable[str]) -> str:
    """Return a fresh token of a name for some scopes; it is shown once, and one of the same name is replaced.

    Raises ConfigError for a name or a scope that cannot be.
    """
    wanted = sorted(set(scopes))
    if not _NAME.fullmatch(name):
        raise ConfigError("a token's name is 1 to 40 letters, digits, spaces, dots, dashes")
    if not wanted or not set(wanted) <= set(GIVEN):
        raise ConfigError(f"a token is for one or more of {', '.join(GIVEN)}")
    if {MEMORIES, LEARN} & set(wanted) and CHAT not in wanted:
        raise ConfigError("memories and learn are for replies: give chat as well")
    token = secrets.token_urlsafe(_BYTES)
    kept = _kept(vault) | {name: {"sha256": _digest(token), "scopes": wanted}}
    vault.set_setting(SETTING, json.dumps(kept))
    return token


def drop_token(vault: Vault, name: str) -> None:
    """Make a token worthless. Raises ConfigError where there is none of that name."""
    kept = _kept(vault)
    if name not in kept:
        raise ConfigError(f"there is no token {name}")
    del kept[name]
    vault.set_setting(SETTING, json.dumps(kept))


def token_names(vault: Vault) -> dict[str, list[str]]:
    """Return the scopes of every token that was given, by name."""
    return {name: list(each["scopes"]) for name, each in sorted(_kept(vault).items())}


def _kept(vault: Vault) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads(vault.setting(SETTING, "{}"))
    return found


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
