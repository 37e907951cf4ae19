"""The page's words in the reader's language, through gettext: English stands in the page, others in `locale/*.po`."""

from __future__ import annotations

import gettext
import io
from functools import lru_cache
from pathlib import Path

from babel.core import negotiate_locale
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po

LOCALE = Path(__file__).parent / "locale"
ENGLISH = "en"


@lru_cache(maxsize=1)
def languages() -> tuple[str, ...]:
    """Return the languages that there are, English first."""
    return (ENGLISH, *sorted(path.stem for path in LOCALE.glob("*.po")))


@lru_cache(maxsize=8)
def translation(language: str) -> gettext.NullTranslations:
    """Return the translation of a language; the words as they stand for English or one that there is not."""
    if language == ENGLISH or language not in languages():
        return gettext.NullTranslations()
    with (LOCALE / f"{language}.po").open("rb") as file:
        catalog = read_po(file, locale=language)
    compiled = io.BytesIO()
    write_mo(compiled, catalog)
    compiled.seek(0)
    return gettext.GNUTranslations(compiled)


def words(language: str) -> dict[str, str]:
    """Return every word of the page by its English, for the page's script; empty for English."""
    if language == ENGLISH or language not in languages():
        return {}
    with (LOCALE / f"{language}.po").open("rb") as file:
        catalog = read_po(file, locale=language)
    return {str(message.id): str(message.string) for message in catalog if message.id and message.string}


def preferred(header: str) -> str:
    """Return the first language of an Accept-Language header that there is; English where none is."""
    wanted: list[tuple[float, str]] = []
    for part in header.split(",")[:16]:
        name, _, quality = part.strip().partition(";q=")
        try:
            weight = float(quality or 1)
        except ValueError:
            weight = 0.0
        if name and weight > 0:
            wanted.append((-weight, name))
    names = [name for _, name in sorted(wanted, key=lambda each: each[0])]
    found = negotiate_locale(names, languages(), sep="-")
    return found.split("-")[0] if found else ENGLISH
