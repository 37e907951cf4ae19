"""The extension points: the page's example runs, the product's own parts keep the contracts, broken ones do not."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import confide
from client.lexical import Lexicon
from privacy.errors import ConfigError
from server.optimizer import FedAdam, FedAvg
from simulation.extension import CONTRACTS, check, extension
from simulation.measures.text import rouge
from simulation.progress import Progress
from simulation.scorecard import criteria
from simulation.scorecard.arms import PROBED, WRITTEN
from simulation.scorecard.evaluate import questions, scorecard
from simulation.scorecard.lent import CardSettings
from simulation.scorecard.output import card_html, card_markdown
from simulation.scorecard.written import OWN_WORDS

PAGE = Path(confide.__file__).parent / "docs" / "extend.md"
EXAMPLES = {
    "retriever": "Newest",
    "prompt": "Quoted",
    "metric": "LengthRatio",
    "adapter": "Quick",
    "aggregator": "SignStep",
}


@pytest.fixture
def example(tmp_path: Path) -> Path:
    """Return the page's example as a file."""
    found = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert found is not None
    code = found.group(1)
    assert len([line for line in code.splitlines() if line.strip()]) <= 30, "the page says thirty lines"
    (tmp_path / "mine.py").write_text(code)
    return tmp_path / "mine.py"


@pytest.mark.parametrize("point", sorted(CONTRACTS))
def test_the_pages_example_keeps_every_contract(point: str, example: Path) -> None:
    assert extension(point, f"{example}:{EXAMPLES[point]}").__name__ == EXAMPLES[point]


def test_the_products_own_steps_keep_the_contract() -> None:
    assert extension("aggregator", "server.optimizer:FedAvg") is FedAvg
    check("aggregator", FedAdam)


def test_the_products_own_retriever_and_metric_keep_the_contract() -> None:
    class Own:
        def __init__(self, texts: Any, encoder: Any) -> None:
            self.lexicon = Lexicon()
            for text in texts:
                self.lexicon.add(text)

        def search(self, query: str, k: int) -> list[int]:
            scores = self.lexicon.bm25(query)
            return [int(i) for i in (-scores).argsort(kind="stable")[:k] if scores[i] > 0]

    class Rouge:
        name, higher_is_better = "ROUGE-L", True

        def value(self, own: str, text: str) -> float:
            return rouge(own, text).rouge_l

    check("retriever", Own)
    check("metric", Rouge)


BROKEN = {
    "retriever": [
        "def __init__(self, texts, encoder): pass\n    def search(self, query, k): return [0, 0]",
        "def __init__(self, texts, encoder): pass\n    def search(self, query, k): return [7][:k]",
        "def __init__(self, texts, encoder): pass\n    def search(self, query, k): return [0]",
        "calls = [0]\n    def __init__(self, texts, encoder): self.n = len(texts)\n"
        "    def search(self, query, k):\n        self.calls[0] += 1\n"
        "        return [self.calls[0] % self.n] if self.n else []",
    ],
    "prompt": ["def build(self, memories, topics, style): return 3", "def build(self, memories): return ''"],
    "metric": [
        "name, higher_is_better = 'x', True\n    def value(self, own, text): return float('nan')",
        "name, higher_is_better = 'x', False\n    def value(self, own, text): return float(own == text)",
        "name, higher_is_better = '', True\n    def value(self, own, text): return 1.0",
    ],
    "adapter": ["def fit(self, model, documents, generator): return {}"],
    "aggregator": [
        "def __init__(self, learning_rate, momentum): pass\n    def step(self, w, v, m, s): return w + m, v",
    ],
}
STEPS = {
    "in place": "w += m; return w, v",
    "dim": "return w[:2], v",
    "the way of the mean": "return w - m, v",
    "moves nothing": "return w + m + 1, v",
}


@pytest.mark.parametrize(("point", "body"), [(point, body) for point, bodies in BROKEN.items() for body in bodies])
def test_what_breaks_a_contract_is_refused_in_one_line(point: str, body: str, tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text(f"class Bad:\n    {body}\n")
    with pytest.raises(ConfigError, match=f"{point} Bad breaks its contract: ") as caught:
        extension(point, f"{tmp_path / 'bad.py'}:Bad")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("said", sorted(STEPS))
def test_a_step_that_is_no_step_is_refused(said: str, tmp_path: Path) -> None:
    head = "from dataclasses import dataclass\n@dataclass(frozen=True)\nclass Bad:\n"
    fields = "    learning_rate: float\n    momentum: float\n"
    (tmp_path / "bad.py").write_text(f"{head}{fields}    def step(self, w, v, m, s=1.0):\n        {STEPS[said]}\n")
    with pytest.raises(ConfigError, match=said):
        extension("aggregator", f"{tmp_path / 'bad.py'}:Bad")


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("nothing", "name a class as module:Class"),
        ("gone.py:Class", "gone.py is no file"),
        ("no.such.module:Class", "no.such.module cannot be imported"),
        ("server.optimizer:schedule", "there is no class schedule in server.optimizer"),
    ],
)
def test_what_is_not_there_is_named(reference: str, said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        extension("aggregator", reference)


def test_a_file_that_fails_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("raise RuntimeError('broken')\n")
    with pytest.raises(ConfigError, match=r"bad.py fails when it is loaded \(RuntimeError: broken\)"):
        extension("metric", f"{tmp_path / 'bad.py'}:Bad")


def test_a_server_of_its_own_never_loads_a_class_by_name(run: Any) -> None:
    with pytest.raises(ConfigError, match=r"server\.kind must be one of adam, avg"):
        run.config('server.kind="server.optimizer:FedAvg"', "engine=flower")


@pytest.mark.slow
def test_all_points_stand_in_run_and_card(example: Path, run: Any, strangers: Path, hosts_here: Any) -> None:
    """The page's five classes at work: one steps a federation, the others stand in a card with all criteria."""
    folder = example.parent / "run"
    run(folder, "rounds=1", "compare_without_noise=false", f'server.kind="{example}:SignStep"')
    settings = CardSettings(
        own_tokens=40,
        test_documents=1,
        document_tokens=48,
        tuning_documents=0,
        passage_tokens=16,
        written_tokens=4,
        planted_people=2,
        encoder="hashed",
        retriever=f"{example}:Newest",
        prompt=f"{example}:Quoted",
        adapter=f"{example}:Quick",
        metric=f"{example}:LengthRatio",
    )
    arms = ["base", "global", "own", "hybrid@4"]
    report = scorecard(
        questions([folder], [str(strangers)]),
        arms,
        settings,
        Progress(quiet=True),
        people=2,
        criteria=True,
        open_hosts=hosts_here,
    )
    rows = {row["arm"]: row["values"] for row in report["table"]["rows"]}
    assert set(rows) == {*arms, "extended_retriever", "extended_prompt", "extended_adapter"}
    assert len({tuple(values.values()) for values in rows.values()}) == len(rows), "each does something of its own"
    found = {(row["task"], row["measure"]): row["people"] for row in report["measures"]}
    for name in ("length ratio", "facts", "disagrees with a wrong belief", criteria.PUBLIC, "ROUGE-L"):
        assert found["strangers", name] == 2
    assert found["planted", "register"] == found["planted", "newer fact wins"] == 2
    assert {row["arm"] for row in report["measures"]} <= {*PROBED, *WRITTEN, OWN_WORDS}
    assert "EGISES" in report["responsiveness"]["strangers"]["own"]
    page, text = card_html(report), card_markdown(report)
    assert "newer fact wins" in page and "| planted | register | hybrid@4 | 2 |" in text
