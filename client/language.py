"""Whether a text is English, by its commonest words: what searching by meaning and scrubbing were made for.

    share = English function words / all words          English prose: about 0.4; German, French, Spanish: below 0.1

No language is named and nothing is translated: the person is told once what works less well with such text.
"""

from __future__ import annotations

import re
from typing import Final

LEAST_WORDS = 12  # of fewer nothing can be told
LEAST_SHARE = 0.15
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?")
# Those that are common words of other languages as well (in, an, so, was, war, me, on) are left out.
_COMMON = (
    "the of and to is it that for you with this be are have not but at from they by we she or had his her has him which"
    " would there been if will their what when who could than them its then into about some only other these our your"
    " my i he as can out up how do did just like know very because don't didn't it's i'm i've that's"
)
FUNCTION_WORDS: Final = frozenset(_COMMON.split())


def other_language(text: str) -> bool:
    """Return whether a text is long enough to tell and has too few of the commonest English words to be English."""
    words = [word.replace("’", "'") for word in _WORD.findall(text.casefold())]
    letters = sum(len(word) for word in words)
    if not words or (len(words) < LEAST_WORDS and letters < 6 * LEAST_WORDS):  # a script may set no spaces
        return False
    return sum(word in FUNCTION_WORDS for word in words) / len(words) < LEAST_SHARE
