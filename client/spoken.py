"""Lines of commands in their reader's language, through the same catalogue as the page's; errors stay English."""

from __future__ import annotations

import os
from collections.abc import Mapping

_VARIABLES = ("LANGUAGE", "LC_ALL", "LC_MESSAGES", "LANG")  # gettext's order


def language_of(environment: Mapping[str, str]) -> str:
    """Return the language that an environment asks for as gettext reads it, "en" where it asks for none."""
    for name in _VARIABLES:
        if value := environment.get(name):
            found = value.split(":")[0].split(".")[0].split("_")[0].lower()
            return "en" if found in ("c", "posix") else found
    return "en"


def spoken(text: str, **parts: object) -> str:
    """Return a line in the reader's language with its `{parts}` in place; English where there is no translation."""
    language = language_of(os.environ)
    if language != "en":
        from client.face.languages import translation

        text = translation(language).gettext(text)
    return text.format(**parts)
