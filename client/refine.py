"""Refinement of the words before a person's memories: trials on their own past texts, misaligned cases remembered.

    trial = opening words (+ what the misaligned cases are about)     loss on the cases, worst cases first
    a trial that does not help the worst cases is dropped before it costs more

The trials are scored on texts that choices are not scored on, each with what was found in the others; the best is an
arm like any other and has to win on the held-back slice. After FERMI (Kim, Yang 2024, "Few-shot Personalization of LLMs
with Mis-aligned Responses", arXiv:2406.18678): there a large model words the next prompt from the failures, here the
words come from templates and from the failures themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from client.importers import OWN as OWN_PURPOSE
from client.library import Kept, documents
from client.model import GLOBAL, Encoded, LanguageModel
from client.personal import scored_part, window
from client.prompt import CONTEXTUAL, CONTINUE, REFINED, About, context, templates
from client.retrieve import METHODS, PersonalIndex
from client.topics import topics
from client.vault import Vault

CASES, WORST, BUDGET = 8, 3, 60  # texts, misaligned ones kept in memory, readings by the model in all
PASSAGES, CONTEXT_TOKENS, DOCUMENT_TOKENS = 4, 256, 128
ADVICE = "advice"
_LINE = "advice: "  # before what a document left in the table of profile lines


@dataclass(frozen=True, eq=False)
class Case:
    """One past text: its number, the words searched with, its tokens, the passages of other texts found for it."""

    number: int
    encoded: Encoded
    context_of: Callable[[str, About], str]
    words: frozenset[str]


@dataclass(frozen=True)
class Refined:
    """The best words, what they and the plain prompt cost on the cases in nats, the trials and readings it took."""

    advice: str
    nats: float
    plain_nats: float
    trials: int
    readings: int
    misaligned: tuple[int, ...]


def refine(
    vault: Vault, model: LanguageModel, index: PersonalIndex, about: About, budget: int = BUDGET
) -> Refined | None:
    """Return the best opening words within the budget and keep them in the vault; None with too few texts.

    What the words take from a text is kept with that text, and goes when it is forgotten.
    """
    cases = _cases(vault, model, index)
    if len(cases) < WORST + 1:
        return None
    model.activate(GLOBAL)
    readings = 0

    def cost(kind: str, advice: str, some: Sequence[Case]) -> list[float]:
        nonlocal readings
        readings += len(some)
        rows = []
        for case in some:
            ids = model.context_ids(case.context_of(kind, replace(about, advice=advice)), CONTEXT_TOKENS + 8)
            rows.append(model.prefix(model.with_context(case.encoded, ids)))
        return [float(nats.double().sum()) for nats in model.document_nats(rows)]

    plain = cost(CONTEXTUAL, "", cases)
    best, best_costs, trials = "", plain, 0
    worst = _misaligned(cases, plain)
    for advice in templates()["advice"]["attempts"]:
        if readings + len(cases) > budget:
            break
        best, best_costs, worst = _tried(cost, cases, advice, best, best_costs, worst)
        trials += 1
    told = topics([set(cases[i].words) for i in worst])
    if best and told and readings + len(cases) <= budget:
        line = templates()["line"]["also"].replace("{text}", ", ".join(told))
        better, costs, _ = _tried(cost, cases, f"{best}\n{line}", best, best_costs, worst)
        trials += 1
        if better != best:
            best, best_costs = better, costs
    _keep(vault, best, [cases[i].number for i in worst])
    numbers = tuple(cases[i].number for i in worst)
    return Refined(best, sum(best_costs), sum(plain), trials, readings, numbers)


def kept_advice(vault: Vault) -> str:
    """Return the words that the last refinement found, without what came from texts that were forgotten since."""
    opening = vault.setting(ADVICE)
    lines = vault.select("SELECT DISTINCT line FROM profile WHERE line LIKE ? ORDER BY line", (f"{_LINE}%",))
    return "\n".join([opening, *(str(line)[len(_LINE) :] for (line,) in lines)]) if opening else ""


def _tried(
    cost: Callable[[str, str, Sequence[Case]], list[float]],
    cases: Sequence[Case],
    advice: str,
    best: str,
    best_costs: list[float],
    worst: list[int],
) -> tuple[str, list[float], list[int]]:
    """Score a trial on the misaligned cases, then, where it helps those, on the rest; return the better of the two."""
    first = cost(REFINED, advice, [cases[i] for i in worst])
    if sum(first) >= sum(best_costs[i] for i in worst):
        return best, best_costs, worst
    rest = [i for i in range(len(cases)) if i not in worst]
    found = dict(zip([*worst, *rest], [*first, *cost(REFINED, advice, [cases[i] for i in rest])], strict=True))
    costs = [found[i] for i in range(len(cases))]
    if sum(costs) >= sum(best_costs):
        return best, best_costs, worst
    return advice, costs, _misaligned(cases, costs)


def _misaligned(cases: Sequence[Case], costs: Sequence[float]) -> list[int]:
    """Return the cases that cost most a token: what the prompt serves worst."""
    mean = [cost / max(1, case.encoded.own_tokens) for case, cost in zip(cases, costs, strict=True)]
    return sorted(range(len(cases)), key=lambda i: -mean[i])[:WORST]


def _cases(vault: Vault, model: LanguageModel, index: PersonalIndex) -> list[Case]:
    newest = [kept for kept in documents(vault, OWN_PURPOSE, held_back=False) if any(s.own for s in kept.spans)]
    return [case for kept in newest[-CASES:] if (case := _case(model, index, kept)) is not None]


def _case(model: LanguageModel, index: PersonalIndex, kept: Kept) -> Case | None:
    document = kept.as_document()
    question, ranges = scored_part(document)
    encoded = window(model.encode_text(document.text, ranges, document.id, 2048), DOCUMENT_TOKENS)
    if not encoded.own_tokens:
        return None
    hits = index.search(question, 3 * PASSAGES, METHODS)
    found = [hit.passage for hit in hits if hit.passage.document != kept.number][:PASSAGES]

    def context_of(kind: str, about: About) -> str:
        return context(kind, CONTINUE, found, about, CONTEXT_TOKENS, lambda text: len(_ids(model, text)))

    own = {w for w in document.own_text.lower().split() if w.isalpha() and len(w) > 3}
    return Case(kept.number, encoded, context_of, frozenset(own))


def _ids(model: LanguageModel, text: str) -> list[int]:
    found: list[int] = model.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return found


def _keep(vault: Vault, best: str, numbers: Sequence[int]) -> None:
    opening, _, line = best.partition("\n")
    with vault.change() as rows:
        rows.execute("INSERT OR REPLACE INTO setting VALUES (?, ?)", (ADVICE, opening))
        rows.execute("DELETE FROM profile WHERE line LIKE ?", (f"{_LINE}%",))
        for number in numbers if line else ():
            rows.execute(
                "INSERT OR IGNORE INTO profile SELECT id, ? FROM document WHERE id = ?", (f"{_LINE}{line}", number)
            )
