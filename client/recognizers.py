"""Rules for what a general named-entity model misses: secrets, identifiers, addresses, names with a cue.

A rule is a regular expression whose group `pii` is what must go, and a check in code for what an expression
says badly (a check digit, an entropy). Cues ("passport", "my name is") are part of the expression, so they
need neither lemmas nor a tagger. Every repetition is bounded: a hostile text costs linear time.

The word lists here are general English (greetings, street types, months); none was taken from test data.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

Check = Callable[[str], bool]


@dataclass(frozen=True, slots=True)
class Rule:
    """One pattern of one entity. The group `pii`, or else the whole match, is what must go."""

    entity: str
    pattern: re.Pattern[str]
    check: Check | None = None
    score: float = 0.9


def digits(text: str) -> str:
    """Return the ASCII digits of `text`."""
    return "".join(c for c in text if "0" <= c <= "9")


def passes_luhn(text: str) -> bool:
    """Return whether the digits of `text` are a payment card number: 13 to 19 of them, Luhn sum 0 modulo 10."""
    number = [int(d) for d in digits(text)]
    if not 13 <= len(number) <= 19 or number[0] in (0, 7, 8, 9) or len(set(number)) == 1:
        return False
    doubled = (2 * d - 9 * (d > 4) for d in number[-2::-2])
    return (sum(number[-1::-2]) + sum(doubled)) % 10 == 0


def bits_per_character(text: str) -> float:
    """Return the empirical Shannon entropy of the characters of `text`, in bits a character."""
    return -sum(n / len(text) * math.log2(n / len(text)) for n in Counter(text).values()) if text else 0.0


def looks_random(token: str) -> bool:
    """Return whether `token` changes between digits, small and capital letters like a generated key.

    A name of a program's (`snake_case`, `CamelCase`, dotted) and a word with a number behind do not: what counts is a
    digit beside a letter, or a capital after a small letter, as a share of all neighbours.
    """
    pairs = [pair for piece in re.findall(r"[A-Za-z0-9]+", token) for pair in pairwise(piece)]
    changes = sum(a.isdigit() != b.isdigit() or (a.islower() and b.isupper()) for a, b in pairs)
    enough = 0.2 if any(c.isdigit() for c in token) else 0.35
    return changes >= max(3, enough * len(pairs)) and bits_per_character(token) >= 3.0


def looks_chosen(value: str) -> bool:
    """Return whether `value` looks like a password and not like the next word of a sentence."""
    inner = value.strip(".,;!?")
    return any(not c.isalpha() for c in inner) or not (inner.islower() or inner.istitle() or inner.isupper())


def looks_like_phone(text: str) -> bool:
    """Return whether digit groups may be a telephone number: not a date, an address of a machine, a price, a card."""
    text = re.split(r"(?i:[ ]?(?:x|ext)\b|(?<=\d)x(?=\d))", text, maxsplit=1)[
        0
    ]  # an extension is no part of the number
    groups = re.findall(r"\d+", text)
    count = sum(map(len, groups))
    if not 7 <= count <= 15:
        return False
    if text.lstrip().startswith(("+", "00", "(")):
        return True
    if len(groups) < 2 or re.fullmatch(r"\d{1,4}([-./])\d{1,2}\1\d{1,4}", text) or passes_luhn(text):
        return False
    if re.fullmatch(r"\d{1,3}(\.\d{1,3}){3}|\d+[./]\d+|\d{1,3}([ .]000)+|\d{3}-\d{2}-\d{4}|(?:\d\W){4,}\d", text):
        return False
    if len(groups) == 2 and len(groups[0]) == len(groups[1]) and not groups[0].startswith("0"):
        return False  # a range
    years = [g for g in groups if len(g) == 4 and g[:2] in ("19", "20")]
    return len(years) < len(groups)


def has_three_digits(text: str) -> bool:
    """Return whether an identifier holds at least three digits."""
    return len(digits(text)) >= 3


def has_phone_length(text: str) -> bool:
    """Return whether `text` holds 7 to 15 digits (ITU-T E.164)."""
    return 7 <= len(digits(text)) <= 15


_NOT_NAMES = frozenset(
    """
    a about again all also am an and another any anyone april are around as at august autumn back be because bed
    best bro but by can cheers church college dad dear december different do doing dude each east every
    everybody everyone everything fall february folks for friday friend friends from god going gonna good great
    guys he hello her here hey hi high him his home how i if in is it january july june just kind like lol love
    ma maam man march me miss mom monday mr mrs ms my no north not nothing november nowhere october of oh ok
    okay on one or our out people please really regards right saturday school september she sincerely sir small
    so some somebody someone somewhere sorry south spring still summer sunday sure team thank thanks that the
    their them then there they this thursday to too town tuesday up us very warm we wednesday well west what
    when where who why winter with work yeah yes you your yours
    """.split()  # noqa: SIM905 - a list of a hundred quoted words is unreadable
)


def may_be_name(value: str) -> bool:
    """Return whether words after a cue may be a name: none is a function word, a greeting or a weekday."""
    return all(word.lower() not in _NOT_NAMES for word in re.findall(r"[^\W\d_]+", value))


def has_long_name(text: str) -> bool:
    """Return whether `text` holds a word of four letters or more, and no greeting, weekday or month."""
    return re.search(r"[^\W\d_]{4,}", text) is not None and may_be_name(text)


def _rule(entity: str, pattern: str, check: Check | None = None, flags: int = 0, score: float = 0.9) -> Rule:
    return Rule(entity, re.compile(pattern, flags | re.VERBOSE), check, score)


_NAME = r"[^\W\d_]['’]?[^\W\d_]{1,40}(?:[-'’][^\W\d_]{1,40}){0,3}"
_CAPITAL = r"(?=[^\W\d_a-zß-öø-ÿ])" + _NAME
_FULL_NAME = rf"{_CAPITAL}(?:[ ](?:(?:van|von|de|der|da|di|bin|al|el|la)[ ]){{0,2}}{_CAPITAL}){{0,2}}"
_VALUE = r"""["'`]?(?P<pii>[^\s"'`<>,]{4,128})"""
_ASSIGN = r"""["']?\s{0,3}(?:[:=]|=>|:=)\s{0,3}"""
_KEY_BLOCK = r"-----BEGIN[ A-Z]{0,30}PRIVATE[ ]KEY-----[A-Za-z0-9+/=\s:,-]{0,8000}?"

SECRETS = (
    _rule("SECRET", _KEY_BLOCK + r"(?:-----END[ A-Z]{0,30}-----|(?=[^A-Za-z0-9+/=\s:,-])|\Z)", score=1.0),
    _rule("SECRET", r"\beyJ[\w-]{8,4000}\.[\w-]{8,4000}(?:\.[\w-]{0,2000})?", score=1.0),
    _rule("SECRET", r"\bsk-[A-Za-z0-9_-]{16,256}", score=1.0),
    _rule("SECRET", r"\bA(?:KIA|SIA|GPA|IDA|ROA|BIA|CCA|3T[A-Z0-9])[0-9A-Z]{16}\b", score=1.0),
    _rule("SECRET", r"\b(?:gh[pousr]_[A-Za-z0-9]{20,255}|github_pat_\w{22,255})", score=1.0),
    _rule("SECRET", r"\bgl[a-z]{2,6}-[\w-]{20,1024}", looks_random, score=1.0),
    _rule("SECRET", r"\bxox[abeoprs]-[A-Za-z0-9-]{10,256}|https://hooks\.slack\.com/[\w/]{8,128}", score=1.0),
    _rule("SECRET", r"\bAIza[\w-]{35}|\b[rsp]k_(?:live|test)_\w{16,128}", score=1.0),
    _rule("SECRET", r"\b(?:npm|hf)_\w{30,64}|\bpypi-[\w-]{32,256}", score=1.0),
    _rule("SECRET", r"\b[a-z][a-z0-9+.-]{1,20}://[^\s/:@]{1,64}:(?P<pii>[^\s/@]{3,128})@", score=1.0),
    _rule("SECRET", r"(?i:\bbearer)\s{1,3}(?P<pii>[\w.~+/-]{12,512}={0,2})", looks_random),
    _rule("SECRET", r"(?<![^\W_])(?i:pass(?:word|wd|phrase|code)?|pwd)" + _ASSIGN + _VALUE),
    _rule("SECRET", r"(?i:\bpass(?:word|phrase|code)\s{1,3}(?:is|was|to))\s{1,3}" + _VALUE, looks_chosen),
    _rule(
        "SECRET",
        r"""(?i:(?:secret|token|(?:api|access|account|auth|private|signing|encryption|storage)[ _-]?key
        |credentials?)(?:[_-]\w{1,20})?)
        (?:"""
        + _ASSIGN
        + r"|\s{1,3}is\s{1,3})"
        + _VALUE,
        looks_random,
    ),
    _rule(
        "SECRET",
        r"""(?i:\b(?:pin|cvv2?|cvc2?|security[ ]code|otp|verification[ ]code)\b)
        [^\w\n]{0,3}(?:(?i:code|number|is|was)[^\w\n]{1,3}){0,2}(?P<pii>\d{3,8})\b""",
    ),
    _rule("SECRET", r"(?<![\w/.+-])\d{8,10}:[\w-]{35}(?![\w-])", looks_random),
    _rule("SECRET", r"(?<![\w/.+-])[A-Za-z0-9+_-]{32,512}={0,2}(?![\w/])", looks_random),
    _rule("SECRET", r"(?<![\w/.+-])[A-Za-z0-9+/=_]{40,512}(?![\w/.+-])", looks_random),
    _rule("SECRET", r"(?<![\w/.+-])(?:[\w-]{2,128}\.){1,2}[A-Za-z0-9_-]{20,512}(?![\w/.])", looks_random),
)

_AT = r"\s{0,2}(?:\[at\]|\(at\)|\{at\}|<at>|_at_)\s{0,2}"
_DOT = r"(?:\s{0,2}(?:\[dot\]|\(dot\)|\{dot\}|_dot_)\s{0,2}|\s{1,2}dot\s{1,2}|\.)"
_ENDING = r"(?:com|org|net|edu|gov|info|biz|io|co|me|uk|de|fr|ca|au|nl|ch|it|es)"
_PATH = r"(?:[/?\#][^\s<>\"'\])}]{0,500})?"
ONLINE = (
    _rule("EMAIL_ADDRESS", r"(?<![\w.+-])[\w.+%'-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,5}\b", score=1.0),
    _rule("EMAIL_ADDRESS", rf"(?<![\w.+-])(?i:[\w.+-]{{1,64}}?{_AT}[\w-]{{1,63}}(?:{_DOT}[a-z][\w-]{{1,62}}){{1,3}})"),
    _rule(
        "EMAIL_ADDRESS",
        rf"(?<![\w.+-])(?i:[\w.+-]{{2,64}}\s{{1,2}}at\s{{1,2}}[\w-]{{1,63}}\s{{1,2}}dot\s{{1,2}}{_ENDING})\b",
    ),
    _rule("URL", r"\b(?i:https?|ftp|ssh|git)://[^\s<>\"'\])}]{3,2000}(?<![.,;:!?])"),
    _rule("URL", rf"(?<![\w@.])(?i:www)\.[\w-]{{1,63}}(?:\.[\w-]{{1,63}}){{1,4}}{_PATH}"),
    _rule(
        "URL", rf"(?<![\w@.])(?i:(?:[a-z0-9-]{{2,63}}\.){{1,3}}(?:com|org|net|edu|gov|info|biz)){_PATH}(?![\w@]|\.\w)"
    ),
)

_CUE = r"(?:[ ]?(?:number|num|no|nr|code|id|\#)(?!\w)\.?){0,2}(?:[ ](?:is|was)\b)?[^\w\n]{0,4}"
_IDENTIFIER = r"(?-i:(?P<pii>[A-Z0-9](?:[A-Z0-9]|[-/](?=[A-Z0-9])){3,30})\b)"
_MONTH = r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]{0,6}"
_DAY = r"\d{1,2}(?:st|nd|rd|th)?"
NUMBERS = (
    _rule("CREDIT_CARD", r"(?<![\w.-])\d(?:[ -]?\d){12,18}(?![\w-])", passes_luhn, score=1.0),
    _rule(
        "CREDIT_CARD",
        r"""(?i:\b(?:credit|debit|bank)[ ]card(?:[ ](?:number|no|is|was)\b\.?){0,2})[^\w\n]{0,4}
        (?P<pii>\d(?:[ -]?\d){11,18})(?!\d)""",
        score=0.95,
    ),
    _rule("PASSPORT", r"(?i:\bpassport" + _CUE + _IDENTIFIER + ")", has_three_digits),
    _rule(
        "MEDICAL_RECORD",
        r"(?i:\b(?:mrn|medical[ ]record|patient|chart|nhs|health[ ]card|insurance)" + _CUE + _IDENTIFIER + ")",
        has_three_digits,
    ),
    _rule(
        "ID_NUMBER",
        r"""(?i:\b(?:order|invoice|account|acct|customer|booking|reservation|confirmation|reference|ref|case|policy
        |tracking|ticket|student|employee|badge|member(?:ship)?|claim|serial|licen[cs]e|(?:licen[cs]e|number)[ ]plate
        |vin|ssn|social[ ]security|tax|vat|routing|sort|national[ ]id|swift)"""
        + _CUE
        + _IDENTIFIER
        + ")",
        has_three_digits,
    ),
    _rule("ID_NUMBER", r"(?<![\w.,+/-])\d{9,30}(?![\w%]|[.,]\d)", score=0.6),
    _rule(
        "PHONE_NUMBER",
        r"""(?<![\w.@/\#$€£:-])(?:\+|00)?\(?\d{1,4}\)?(?:[ .-]{1,2}\(?\d{1,7}\)?|/\d{2,7}){1,6}
        (?:[ ]?(?:x|ext\.?)[ ]?\d{1,6})?(?![\w@%/-]|[.,:]\d)""",
        looks_like_phone,
        score=0.8,
    ),
    _rule("PHONE_NUMBER", r"(?<!\w)\+\d{7,15}(?!\w)"),
    _rule(
        "PHONE_NUMBER",
        r"""(?i:\b(?:phone|tel|telephone|mobile|cell|fax|whatsapp|call|text|dial|ring|reach|extension)\b)[^\d\n]{0,25}
        (?P<pii>\(?\d[\d ().-]{5,16}\d)\b""",
        has_phone_length,
        score=0.95,
    ),
    _rule(
        "DATE_OF_BIRTH",
        rf"""(?i:\b(?:d\.?o\.?b\b\.?|date[ ]of[ ]birth|birth[ ]?da(?:y|te)|born)(?:[ ](?:is|was|on|in))?[^\w\n]{{0,3}}
        (?P<pii>\d{{1,4}}[/.-]\d{{1,2}}[/.-]\d{{2,4}}|{_MONTH}[ ]{_DAY}(?:,?[ ]\d{{4}})?
        |{_DAY}[ ](?:of[ ])?{_MONTH}(?:,?[ ]\d{{4}})?|(?:19|20)\d\d)\b)""",
    ),
    _rule(
        "AGE",
        r"""(?i:\b(?:aged?[ :]{1,2}(?:is[ ]|of[ ])?
        |(?:i['’]?m|i[ ]am|he['’]?s|she['’]?s|(?:i|he|she)[ ]was|(?:he|she)[ ]is|turn(?:ed|ing)?)
        [ ](?:only[ ]|just[ ]|now[ ])?)
        (?P<pii>[1-9]\d)(?=[ ,]*(?:years?\b|yrs?\b|y/?o\b|and\b)|[.,!?)\n]|$))""",
    ),
    _rule("AGE", r"\b(?P<pii>[1-9]\d)[ -](?i:years?|yrs?)[ -](?i:old)\b"),
)

_WAY = r"""(?:Street|Str|St|Avenue|Ave|Road|Rd|Boulevard|Blvd|Lane|Ln|Drive|Dr|Court|Ct|Place|Pl|Square|Sq
    |Terrace|Terr|Way|Crescent|Close|Parkway|Pkwy|Highway|Hwy|Circle|Cir|Trail|Trl|Alley|Grove|Gardens|Mews|Row|Hill|Loop|Plaza|Turnpike|Run
    |Walk|Quay)"""
_STATE = r"""(?:A[AEKLPRZ]|C[AOT]|D[CE]|FL|GA|HI|I[ADLN]|K[SY]|LA|M[ADEINOST]|N[CDEHJMVY]|O[HKR]|PA|RI|S[CD]|T[NX]|UT
    |V[AT]|W[AIVY])"""
_UNIT = r"(?:Apt|Apartment|Suite|Ste|Flat|Unit)\.?[ ]?\#?\d{1,5}[A-Za-z]?\b"
_LATIN_WAY = r"""(?:Rua|Via|Calle|Rue|Avenida|Avda|Piazza|Corso|Viale|Ulica|Chemin|Praça|Carrer|Strada|Passeig|Camino
    |Ruta|Travessa|Largo|Avenue|Boulevard|Place|Quai|Impasse|Allée|Route)"""
_LITTLE = r"(?i:d[aeou]s?|del|la|van|of|the)"
_LATIN_OF = r"(?:(?:d[aeo]s?|del|della|di|l[ae]s?|du|des)[ ]|d['’]){0,3}"
_GERMANIC_WAY = r"""(?:stra(?:ß|ss)e|str\.|gasse|weg|platz|allee|gade|vej|vegen|veien|gatan|gata|gate|vägen|väg|katu|tie
    |polku|straat|laan|plein|gracht|kade|ulica|tänav|stræde)"""
_MILITARY = r"(?:[,\s]{1,3}[AFD]PO[ ]A[AEP](?:[ ]\d{5}(?:-\d{4})?)?)?"
_NOT_A_WAY = r"(?!(?:years?|of|on|in|way|lanes?|hours?|minutes?|miles?|more|times?|and|or|the)\b)"
ADDRESSES = (
    _rule(
        "STREET_ADDRESS",
        rf"""(?<![\w.])\d{{1,6}}[A-Za-z]?,?[ ](?:[NSEW]{{1,2}}\.?[ ])?(?:{_CAPITAL}\.?[ ]){{1,4}}{_WAY}\b\.?
        (?:[ ][NSEW]{{1,2}}\b)?(?:,?\s{_UNIT})?""",
    ),
    _rule(
        "STREET_ADDRESS",
        rf"""(?<![\w.])\d{{1,6}}[a-z]?[ ](?:{_NOT_A_WAY}[a-z]{{3,20}}[ ]){{1,2}}
        (?:street|avenue|boulevard|blvd|road|lane|terrace)\b""",
    ),
    _rule("STREET_ADDRESS", rf"\b{_LATIN_WAY}[ ]{_LATIN_OF}(?:{_CAPITAL}[ ]?){{1,4}},?[ ]?\d{{1,5}}[A-Za-z]?\b"),
    _rule(
        "STREET_ADDRESS",
        rf"(?<!\w)\d{{1,5}}[A-Za-z]?,?[ ](?i:{_LATIN_WAY})[ ]{_LATIN_OF}{_CAPITAL}(?:[ ]{_CAPITAL}){{0,2}}\b",
    ),
    _rule(
        "STREET_ADDRESS",
        rf"\b(?:{_CAPITAL}[ -]){{0,2}}(?=[^\W\d_a-zß-öø-ÿ])[^\W\d_]{{2,30}}?{_GERMANIC_WAY}[ ]\d{{1,4}}[A-Za-z]?\b",
    ),
    _rule(
        "STREET_ADDRESS",
        rf"\b(?i:ul|al|os|pl|av|avda|str)\.[ ]{_CAPITAL}(?:[ ]{_CAPITAL}){{0,2}}[ ]\d{{1,4}}[A-Za-z]?\b",
    ),
    _rule(
        "STREET_ADDRESS",
        rf"\b{_CAPITAL}(?:[ ]{_CAPITAL}){{0,2}}[ ](?:u\.|utca|út|tér|sok\.|cad\.|köz)[ ]\d{{1,4}}[A-Za-z]?\b\.?",
    ),
    _rule(
        "STREET_ADDRESS",
        rf"(?<!\w)(?:\d{{1,6}}[ ])?{_CAPITAL}(?:[ ]{_CAPITAL}){{0,3}}[ ]\d{{1,4}}[A-Za-z]?(?=,?\s{{1,2}}{_UNIT})",
    ),
    _rule(
        "STREET_ADDRESS",
        rf"""(?i:\b(?:address(?:[ ]of[ ][^\n:.]{{1,40}}?)?(?:[ ]is|:)|at|(?:delivered|shipped|sent|moved|mail|ship)
        (?:[ ]it)?[ ]to)\s{{1,2}})
        (?P<pii>\d{{2,6}}[A-Za-z]?(?:,?[ ](?:\d{{1,6}}[A-Za-z]?|{_LITTLE}|{_CAPITAL}\.?)){{1,7}})""",
        has_long_name,
    ),
    _rule("STREET_ADDRESS", rf"(?i:\b(?:P\.?[ ]?O\.?[ ]?Box|Postfach))[ ]\d{{1,6}}\b{_MILITARY}"),
    _rule("STREET_ADDRESS", rf"\b(?:PSC|Unit|CMR)[ ]\d{{3,5}},?[ ]Box[ ]\d{{1,5}}{_MILITARY}"),
    _rule("STREET_ADDRESS", r"(?i:\b(?:Apt|Apartment|Suite|Ste|Flat)\.?[ ]?\#?\d{1,5}[A-Za-z]?\b)"),
    _rule("STREET_ADDRESS", rf"\b{_STATE},?[ ]{{1,2}}\d{{5}}(?:-\d{{4}})?\b"),
    _rule(
        "STREET_ADDRESS",
        r"\b[A-Z]{1,2}\d[A-Z\d]?[ ]?\d[ABD-HJLNP-UW-Z]{2}\b|\b[ABCEGHJ-NPRSTVXY]\d[A-Z][ -]?\d[A-Z]\d\b",
    ),
    _rule(
        "STREET_ADDRESS",
        r"""(?i:\b(?:zip|postal|post)(?:[ -]?code)?s?\b(?:[ ](?:is|was))?)[^\w\n]{0,3}
        (?P<pii>(?=[A-Z0-9 -]{0,8}\d)[A-Z0-9]{2,6}(?:[ -][A-Z0-9]{2,4})?)\b""",
        has_three_digits,
    ),
)

PEOPLE = (
    _rule(
        "PERSON",
        rf"(?<!\w)(?i:mrs?|ms|miss|dr|prof|professor|sir|madam|mx|rev|sgt|capt)\.?[ ](?P<pii>{_FULL_NAME})",
        may_be_name,
        score=0.85,
    ),
    _rule("PERSON", rf"(?<!\w)(?:mrs?|ms|dr|prof)\.[ ](?P<pii>{_NAME})", may_be_name, score=0.8),
    _rule(
        "PERSON",
        rf"""\b(?i:(?:my|his|her|their|your|whose|\w{{1,20}}['’]s)[ ]
        (?:(?:first|last|full|real|middle)[ ]|sur|nick)?name(?:['’]s|s|[ ]is|[ ]was))[ ]
        (?P<pii>{_NAME}(?:[ ](?:{_CAPITAL}|{_NAME}(?=[ ]?(?:[.,!?;\n]|$)))){{0,2}})""",
        may_be_name,
        score=0.85,
    ),
    _rule(
        "PERSON",
        rf"\b(?i:(?:everyone|people|friends)[ ]calls?[ ]me|call[ ]me|i[ ]go[ ]by|named)[ ](?P<pii>{_FULL_NAME})",
        may_be_name,
        score=0.8,
    ),
    _rule(
        "PERSON",
        rf"""(?:^|(?<=[\n:]))[ ]?(?i:dear|hi|hello|hey|good[ ]morning|good[ ]evening)[ ]
        (?P<pii>{_FULL_NAME})(?=[ ]?[,!.\n]|$)""",
        may_be_name,
        score=0.8,
    ),
    _rule(
        "PERSON",
        rf"""\b(?i:regards|sincerely|best[ ]wishes|cheers|many[ ]thanks|thank[ ]you|thanks|yours|love|best)[,!.]?[ ]?\n
        \s{{0,4}}(?P<pii>{_FULL_NAME})(?=[ ]?(?:\n|$))""",
        may_be_name,
        score=0.8,
    ),
)

PLACES = (
    _rule(
        "LOCATION",
        rf"""(?i:\b(?:liv(?:ed?|es|ing)|mov(?:ed?|ing)|fl(?:ew|y|ying)|travel(?:l?ed|l?ing|s)?|grew[ ]up|born|raised
        |based|settled|arriv(?:ed?|ing)|stay(?:ed|ing|s)?|resid(?:ed?|es|ing)|relocat(?:ed?|ing)|return(?:ed|ing)?)
        [ ](?:here[ ]|back[ ]|over[ ])?(?:in|to|from|near|at)[ ])(?P<pii>{_CAPITAL}(?:[ -]{_CAPITAL}){{0,2}})""",
        may_be_name,
        score=0.7,
    ),
    _rule(
        "LOCATION", rf"\b(?i:i['’]?m|i[ ]am)[ ](?:originally[ ])?(?i:from)[ ](?P<pii>{_NAME})", may_be_name, score=0.7
    ),
)

# Whatever is a number, for the strength at which all of them go.
ANY_NUMBER = (_rule("NUMBER", r"(?<!\w)\d(?:[\d.,:/-]{0,30}\d)?(?!\w)", score=0.5),)

RULES: tuple[Rule, ...] = SECRETS + ONLINE + NUMBERS + ADDRESSES + PEOPLE + PLACES + ANY_NUMBER
