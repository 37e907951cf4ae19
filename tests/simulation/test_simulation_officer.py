"""The officer's report: units beside every epsilon, evidence behind every claim, the same bytes from the same files."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import pytest

import confide
from privacy.audit.document import Block, Chart, EvidenceList, Mark, Table, percentile
from privacy.audit.officer import ABOUT
from privacy.record import RecordCharge
from simulation.mechanism.code import code_sha256
from simulation.officer import pdf
from simulation.officer.cli import build
from simulation.officer.record_check import record_lines_by_opacus
from tests.privacy.audited_run import RECORD, Sample

MECHANISM: dict[str, Any] = {
    "layers": [
        {
            "name": "one run",
            "holds": True,
            "quantity": "epsilon",
            "lower_bound": 0.2,
            "claimed": 0.9,
            "ceiling": 3.0,
            "power": "finds nothing below half the noise",
            "checks": [{"name": "who was in the sum", "holds": True, "detail": "17 of 32"}],
        }
    ],
    "bugs": [],
    "holds": True,
    "trainer": "a plain function",
    "code_sha256": "0" * 64,
}
PEOPLE = [{"bits": {"base": 5.0, "global": 5.0 - gain}, "tokens": 100 + i} for i, gain in enumerate((0.1, -0.1, 0.2))]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    path = Sample().make(tmp_path / "RUN")
    (path / "evidence").mkdir()
    return path


def give(run: Path, name: str, value: object) -> None:
    (run / "evidence" / f"{name}.json").write_text(json.dumps(value))


def report(run: Path, *more: str) -> int:
    return confide.run(confide.confide, ["audit", "report", str(run), *more])


def tables(run: Path) -> list[Table]:
    return [block for section in build(run).sections for block in section.blocks if isinstance(block, Table)]


def test_every_epsilon_stands_in_one_cell_with_its_unit(run: Path) -> None:
    cells = [
        row[i]
        for table in tables(run)
        for row in table.rows
        for i, name in enumerate(table.head)
        if name.startswith("ε")
    ]
    assert len(cells) > 15
    assert all(re.search(r" per (user|document)$", cell) for cell in cells)


def test_the_statement_always_holds_the_sybil_floor(run: Path) -> None:
    statement = build(run).sections[0]
    table = next(block for block in statement.blocks if isinstance(block, Table))
    row = next(row for row in table.rows if "Sybil floor" in row[0])
    assert float(row[1].split()[0]) > 10
    assert row[4] == "hardly any"


def test_every_claim_names_evidence_that_is_there(run: Path) -> None:
    give(run, "mechanism", MECHANISM)
    assert report(run, "--no-pdf") == 0
    page = (run / "officer.html").read_text()
    named = set(re.findall(r'href="#(E\d+)"', page))
    assert named
    assert named <= set(re.findall(r'id="(E\d+)"', page))
    statement = next(table for table in tables(run) if table.head[0] == "against")
    assert all(row[-1] != "–" for row in statement.rows)


def test_the_same_files_give_the_same_bytes_in_all_three_formats(run: Path, tmp_path: Path) -> None:
    give(run, "mechanism", MECHANISM)
    for place in ("one", "two"):
        assert report(run, "--out", str(tmp_path / place)) == 0
    for name in ("officer.html", "officer.pdf", "officer.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert (tmp_path / "one" / "officer.pdf").read_bytes().startswith(b"%PDF-")


def test_the_pdf_holds_every_word_of_the_document(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    give(run, "mechanism", MECHANISM)
    written: list[str] = []
    real = pdf._Paper.put

    def put(paper: pdf._Paper, x: float, y: float, text: str, size: float, **style: Any) -> None:
        written.append(text)
        assert pdf.MARGIN / 2 < y < pdf.HEIGHT - pdf.MARGIN
        assert x + pdf.width_of(text, size, style.get("bold", False)) <= pdf.WIDTH - pdf.MARGIN + 1
        real(paper, x, y, text, size, **style)

    monkeypatch.setattr(pdf._Paper, "put", put)
    document = build(run)
    pdf.officer_pdf(document)
    there = "".join("".join(written).split())
    for word in strings(document.as_dict()["sections"]):
        assert all(part in there for part in word.split() if len(part) < 20), word


def strings(value: object) -> list[str]:
    """Return the text of a document as JSON, but for the names of blocks, anchors and outcomes."""
    if isinstance(value, dict):
        return [
            text
            for key, each in value.items()
            if key not in {"block", "name", "kind", "outcome"}
            for text in strings(each)
        ]
    if isinstance(value, list):
        return [text for each in value for text in strings(each)]
    return [value] if isinstance(value, str) else []


def test_every_kind_of_block_is_drawn_by_the_pdf() -> None:
    assert set(pdf._DRAW) == set(get_args(Block))


def test_a_violation_is_the_first_thing_that_is_read_and_the_exit_code(tmp_path: Path) -> None:
    run = Sample(claimed=lambda figures: figures | {"participations": 1}).make(tmp_path / "RUN")
    assert report(run) == 1
    page = (run / "officer.html").read_text()
    assert "violated" in page[page.index("<main>") : page.index("<nav")]
    assert json.loads((run / "officer.json").read_text())["holds"] is False


def test_a_layer_that_does_not_hold_makes_the_report_violated(run: Path) -> None:
    layer = MECHANISM["layers"][0] | {"holds": False}
    give(run, "mechanism", MECHANISM | {"layers": [layer]})
    assert report(run, "--no-pdf") == 1


def test_without_fresh_noise_no_figure_is_stated_anywhere(tmp_path: Path) -> None:
    run = Sample(transport="off").make(tmp_path / "RUN")
    report(run, "--no-pdf")
    document = build(run)
    assert "NOT PRIVATE" in document.stamp
    for table in tables(run):
        for row in table.rows:
            assert not any(cell.endswith("per user") for cell in row)


def test_what_only_the_controller_knows_is_a_line_until_it_is_given(run: Path) -> None:
    report(run, "--no-pdf")
    assert (run / "officer.html").read_text().count('class="open"') == len(ABOUT) + 1
    give(run, "about", {"controller": "Meadow e. V."})
    report(run, "--no-pdf")
    page = (run / "officer.html").read_text()
    assert "Meadow e. V." in page
    assert page.count('class="open"') == len(ABOUT)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("mechanism", MECHANISM | {"planted": "no-noise"}),
        ("mechanism", {"layers": []}),
        ("mechanism", []),
        ("bugs", {"rows": []}),
        ("about", {"boss": "x"}),
    ],
)
def test_evidence_that_is_not_what_its_command_writes_is_an_error(run: Path, name: str, value: object) -> None:
    give(run, name, value)
    assert report(run, "--no-pdf") == 2


def outcomes(run: Path) -> dict[str, str]:
    blocks = [block for section in build(run).sections for block in section.blocks if isinstance(block, EvidenceList)]
    return {item.title: item.outcome for block in blocks for item in block.items}


def test_what_held_for_other_code_is_not_checked_and_what_was_violated_stays_so(run: Path) -> None:
    give(run, "mechanism", MECHANISM | {"code_sha256": code_sha256()})
    assert outcomes(run)["Mechanism, one run"] == "holds"
    give(run, "mechanism", MECHANISM)
    assert outcomes(run)["Mechanism, one run"] == "unchecked"
    assert "OTHER code" in json.dumps(build(run).as_dict())
    give(run, "mechanism", MECHANISM | {"layers": [MECHANISM["layers"][0] | {"holds": False}]})
    assert outcomes(run)["Mechanism, one run"] == "violated"


def test_text_from_files_is_never_markup(run: Path) -> None:
    give(run, "about", {"controller": "<script>alert(1)</script>"})
    report(run, "--no-pdf")
    assert "<script" not in (run / "officer.html").read_text()


def test_fairness_is_told_person_by_person(run: Path) -> None:
    value = json.loads((run / "report.json").read_text())
    (run / "report.json").write_text(json.dumps(value | {"people": PEOPLE}))
    text = json.dumps(build(run).as_dict())
    assert "1 (33 %)" in text
    assert "+2.00 %" in text  # half of the people


def test_opacus_agrees_with_the_record_level_lines() -> None:
    pytest.importorskip("opacus")
    found = record_lines_by_opacus([RECORD, replace(RECORD, noise_multiplier=0.8, steps=40)])
    assert found is not None
    assert found[1] == "holds"
    assert record_lines_by_opacus([]) is None


def test_opacus_contradicts_a_line_that_is_too_small() -> None:
    pytest.importorskip("opacus")

    @dataclass(frozen=True)
    class Flattered(RecordCharge):
        def epsilon(self) -> float:
            return 0.9 * super().epsilon()

    found = record_lines_by_opacus([Flattered("own", 1.1, 0.25, 12, 1.0, 1e-5)])
    assert found is not None
    assert found[1] == "violated"


def test_percentiles_are_somebodys_own() -> None:
    values = [4.0, 1.0, 3.0, 2.0]
    assert [percentile(values, share) for share in (0.05, 0.25, 0.5, 0.75, 0.95, 1.0)] == [1, 1, 2, 3, 4, 4]


def test_a_chart_has_room_for_its_largest_figure() -> None:
    chart = Chart("c", "a", (Mark("m", 0.0, 2.0, 1.0, 5.0, "said"),))
    assert chart.end > 5.0


def test_lines_are_broken_within_the_width_and_nothing_is_lost() -> None:
    text = "one two three " + "x" * 200
    lines = pdf.broken(text, 100.0, 9.0)
    assert all(pdf.width_of(line, 9.0) <= 100.0 for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
