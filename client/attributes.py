"""Attributes of a person, made general before any prompt or query: an age band, a region, never a day or a street.

    age 34, born 1991-05-02      -> age 30 to 39
    place "Strandgaten 1, Bergen, Norway" -> region Norway
    anything that is neither and holds a digit or an @ -> left out

The vault keeps what was said; what leaves this module is general. A made-up name of an attribute passes only if its
value is a few plain words, so a new kind of detail is left out rather than let through.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import date

BAND = 10
_PLAIN = re.compile(r"[^\W\d_][^\d@<>{}\n]{0,40}")
AGE = ("age", "years")
BORN = ("born", "birthday", "date of birth", "dob")
PLACE = ("place", "city", "address", "home", "location", "region", "country")
NEVER = ("name", "email", "phone", "employer", "passport", "iban", "card", "ssn", "id")


def generalised(attributes: Mapping[str, str], today: date) -> dict[str, str]:
    """Return the general form of each attribute that has one."""
    found: dict[str, str] = {}
    for name, value in attributes.items():
        key, text = name.strip().casefold(), value.strip()
        if key in AGE and text.isdigit():
            found["age"] = _band(int(text))
        elif key in BORN and (year := re.search(r"\b(19|20)\d\d\b", text)):
            found["age"] = _band(today.year - int(year.group()))
        elif key in PLACE:
            region = text.split(",")[-1].strip()
            if _PLAIN.fullmatch(region) and (key in ("region", "country") or "," in text):
                found["region"] = region
        elif key not in NEVER and _PLAIN.fullmatch(text):
            found[key] = text
    return found


def _band(years: int) -> str:
    low = max(0, min(90, years // BAND * BAND))
    return "90 or more" if low == 90 else f"{low} to {low + BAND - 1}"
