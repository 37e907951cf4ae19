"""The wall between imported text and the model: what was read is data, whatever it says.

Imported text can reach two things: the prompt, and through it the reply. It reaches no setting, because no setting is
read out of a prompt or a reply anywhere. In the prompt it stands quoted, without the marks by which a chat model tells
who speaks, and without the lines that give orders to a model. In a reply no address is left alive that a page could
load by itself or that carries what the vault holds: pictures and links become plain words.

Lines are found by patterns, and patterns are the weak half: of wordings that they were not made for they stop few
(docs/device.md has the rates). What holds whatever the wording is that nothing here reads an order out of a text.
"""

from __future__ import annotations

import re
import unicodedata

REMOVED = "[a line that gave orders to the model was left out]"
_CONTROL = re.compile(
    r"<\|.{0,40}?\|>|</?s>|</?(?:system|assistant|user|instructions?)>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>",
    re.IGNORECASE,
)
_ROLE = re.compile(
    r"^\s*(?:#+\s*)?(?:\*\*)?(?:system prompt\s*$"
    r"|(?:system|assistant|developer|user|human|tool)(?:\s*message|\s*prompt)?(?:\*\*)?\s*[:>])"
)
_MODEL = r"(?:assistant|ai|llm|(?:language )?models?|chatbot|bot|copilot|gpt|agents?|summari[sz]er)"
_PRIVATE = (
    r"(?:system prompt|memor(?:y|ies)|vault|notes|password|passphrase|secret|api key|everything you know"
    r"|personal (?:data|information)|private|all (?:the )?(?:documents|mails|emails|messages|files)|conversation"
    r"|context)"
)
_DOES = (
    r"(?:send|forward|reply|respond|say|output|include|insert|reveal|list|print|email|change|set|grant|turn|delete"
    r"|forget|share|add|append|end|begin|start|tell|answer|write|render|call|claim|recommend|use)"
)
_ORDERS = (
    r"\b(?:ignore|disregard|forget|override|bypass|skip)\b.{0,40}\b(?:instruction|rule|prompt|guideline|above|previous"
    r"|prior|earlier|before|safety|polic|restriction|everything|all)",
    r"\b(?:new|updated|real|actual|revised|following)\s+(?:system\s+)?(?:instruction|prompt|directive)s?\b",
    r"\b(?:ignore[zr]?|ignoriere|ignora|oublie[zr]?|vergiss|olvida)\b.{0,40}\b(?:instruc|anweisung|consigne|regeln|règles)",
    r"\bfrom (?:now|here) on\b.{0,80}\b(?:say|reply|respond|answer|end|begin|write|always|never)\b",
    r"\b(?:every|each) time\b.{0,60}\b(?:say|reply|respond|answer) with\b",
    r"\bpretend\b.{0,20}\b(?:that|to be|you)\b",
    r"\b(?:contents?|text|words) of your (?:context|prompt|memory|instructions)\b|\bdecode this\b",
    r"\b(?:follows|comes) (?:is )?from the (?:developer|system|owner|user)\b|\bunlock the vault\b",
    r"\byou (?:must|shall|will) (?:answer|reply|respond|obey|comply)\b|\bsecret rule\b",
    r"\banswer to (?:every|any|all|each) question",
    r"\byou\s+are\s+(?:now|no longer)\b",
    rf"\bact\s+as\b.{{0,40}}\b(?:{_MODEL}|admin|root|developer|terminal)\b",
    rf"(?<!\bmy )(?<!\bour )(?<!\bhis )(?<!\bher )\b{_MODEL}\b.{{0,40}}"
    rf"\b(?:must|should|shall|please|will|has to|needs? to|is to|to)\b.{{0,60}}\b{_DOES}",
    rf"\b(?:attention|note|message|memo|instructions?|hint|hello|hi|hey|dear|important|reminder)\b.{{0,20}}\b{_MODEL}\b",
    r"\b(?:reveal|print|output|repeat|show|leak|send|forward|post|exfiltrate|upload|include|append|encode|list|dump)\b"
    r"(?! (?:me|us|him|her|them)\b)"
    rf".{{0,60}}\b{_PRIVATE}\b",
    r"\b(?:set|change|switch|turn|enable|disable|grant|update|lower|raise)\b.{0,40}\b(?:privacy dial|dial"
    r"|consent|setting|scrubbing|epsilon|sharing|filter|permission|logging|wall|safety)\b",
    r"\b(?:when|if|whenever)\b.{0,40}\b(?:asked|summari[sz]ing|answering|replying|the user asks"
    rf"|you (?:read|answer|see|summari[sz]e|process))\b.{{0,80}}\b{_DOES}\b",
    r"\b(?:end|begin|start|finish|prefix)\b.{0,20}\b(?:every|each|all|your)\b.{0,20}\b(?:repl(?:y|ies)|answer|response"
    r"|message|sentence)",
    r"\b(?:do not|don't|never)\b.{0,30}\b(?:tell|mention|reveal|inform|alert|warn)\b.{0,30}\b(?:user|person|owner|human"
    r"|anyone)\b",
    r"\b(?:end of|begin|start of|close)\s+(?:the\s+)?(?:notes|context|document|data|quote|system prompt|user input"
    r"|memories)\b",
    r"!\[[^\]]*\]\(\s*https?:",
    r"\b(?:jailbreak|developer mode|dan mode|god mode|admin mode|sudo mode|prompt injection)\b",
    r"\b(?:execute|run|call|invoke|use)\b.{0,30}\b(?:tool|\w+_\w+ function|command|shell|plugin|curl)\b",
)
_ORDER = re.compile("|".join(f"(?:{pattern})" for pattern in _ORDERS), re.IGNORECASE)
_PICTURE = re.compile(r"!\[([^\]]*)\]\([^)]*\)?")
_LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)?")
_TAG = re.compile(r"<(?:img|a|iframe|script|link|object|embed|form|svg|video|audio|style|meta)\b[^>]*>?", re.IGNORECASE)
_ADDRESS = re.compile(
    r"(?:https?|ftp|file)://\S+|\b(?:https?|ftp|file|data|javascript|mailto):\S+|\bwww\.\S+", re.IGNORECASE
)
LINK_LEFT_OUT = "[a link was left out]"


def as_data(text: str) -> str:
    """Return imported text as it may stand in a prompt: no chat marks, no invisible characters, no orders.

    Lines that pose as another speaker's turn go, down to the next empty line; so does each line that gives orders.
    """
    plain = "".join(c for c in unicodedata.normalize("NFKC", text) if c in "\n\t" or unicodedata.category(c)[0] != "C")
    kept: list[str] = []
    spoken = False  # inside what poses as another speaker's turn: to the next empty line
    for line in plain.splitlines():
        spoken = bool(line.strip()) and (spoken or bool(_CONTROL.search(line)) or bool(_ROLE.match(line.casefold())))
        if not spoken and not gives_orders(line):
            kept.append(line)
        elif not kept or kept[-1] != REMOVED:
            kept.append(REMOVED)
    return "\n".join(kept)


def gives_orders(line: str) -> bool:
    """Return whether a line speaks to a model instead of to a person, by its wording."""
    return bool(_ORDER.search(line) or _ROLE.match(line.casefold()))


def harmless_reply(reply: str, question: str = "") -> str:
    """Return a reply without live addresses, chat marks or tags; an address that the question itself holds stays."""
    text = _CONTROL.sub(" ", reply)
    text = _PICTURE.sub(r"\1", text)
    text = _LINK.sub(r"\1", text)
    text = _TAG.sub("", text)
    return _ADDRESS.sub(lambda found: found.group() if found.group() in question else LINK_LEFT_OUT, text)
