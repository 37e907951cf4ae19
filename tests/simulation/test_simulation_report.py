"""The page and the JSON say the same, fetch nothing, run nothing, and say NOT PRIVATE exactly when they must."""

from __future__ import annotations

import copy
import io
import json
import math
import re
from collections.abc import Iterator
from fractions import Fraction
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from privacy.accounting import DELTAS, epsilon_zcdp, statement
from privacy.errors import DataError
from privacy.query import Cohort, Limits, Query
from simulation import figures, wording
from simulation.metrics import Score, comparisons, person_rows, summarise
from simulation.privacy_section import privacy_section
from simulation.report import (
    byte_size,
    fixed,
    power_of_ten,
    render_html,
    report_json,
    rounded_up,
    significant,
    write_report,
)
from simulation.report_schema import Privacy, Report
from simulation.terminal import print_report

VOID = {"meta", "link", "br", "hr", "img", "input", "path", "use", "rect"}


def sample_report(people: int = 24, personal: int = 16) -> Report:
    """A whole report of made-up people, its arms computed by the real metrics."""
    rng = np.random.default_rng(5)
    gains = {"base": 0.0, "global_noiseless": 0.06, "global": 0.052, "own": 0.074, "own_record_dp": 0.06}
    gains |= {"retrieval": 0.058, "all": 0.079, "wrong_person": 0.043}
    users = [f"p{index:02d}-{rng.integers(4096):03x}" for index in range(people)]
    hard = {user: rng.normal(4.6, 0.35) for user in users}
    taste = {user: rng.normal(0.0, 0.03) for user in users}
    tokens = {user: int(rng.integers(150, 900)) for user in users}
    arms: dict[str, list[Score]] = {}
    for name, gain in gains.items():
        scored = users if name in ("base", "global", "global_noiseless") else users[:personal]
        arms[name] = [
            Score(
                user,
                "d",
                tokens[user]
                * np.log(2)
                * hard[user]
                * (1 - (gain > 0) * (gain + taste[user] * 10 * gain + rng.normal(0, 0.004))),
                tokens[user],
            )
            for user in scored
        ]
    return {
        "what": {
            "name": "demo",
            "created": "2026-11-23",
            "data": "chitchat-dataset (test conversations held back)",
            "people": 118,
            "people_scored": people,
            "model": "SmolLM2-135M-Instruct",
            "engine": "in-process",
            "rounds": 3,
            "shared_numbers": 4480,
            "training_tokens": 52310,
            "test_tokens": sum(tokens.values()),
            "seed": 7,
        },
        "lines": [
            "global without noise (not private): 6.0 % fewer bits per token than base",
            "global, epsilon 5.6 per person at delta 1e-6 (released): 5.2 % fewer bits per token than base",
            "against the server itself: epsilon 88.2 of a single device's update until secure aggregation exists; "
            "Sybil floor 88.2",
        ],
        "not_private": [],
        "arms": summarise(arms, rng, resamples=400),
        "comparisons": comparisons(arms, rng, resamples=400),
        "people": person_rows(arms, {user: 3 * tokens[user] for user in users}),
        "rounds": [
            {
                "round": number,
                "purpose": "train.global",
                "invited": 100,
                "survivors": 93 - number,
                "clip_fraction": 0.97,
                "snr": 1.37,
                "noise_ratio": 0.73,
                "alpha": 0.51,
                "seconds": 61.25,
                "bits_per_token": {"noiseless": 4.6 - 0.09 * number, "released": 4.6 - 0.075 * number},
                "objective": "next-token",
                "noise_multiplier": 1.0,
                "rho": 0.5,
            }
            for number in (1, 2, 3)
        ],
        "privacy": sample_privacy(),
        "personas": {
            "k": 2,
            "rows": [
                {"name": "persona-0", "noisy_count": 61.3, "published": True, "description": "short, playful"},
                {"name": "persona-1", "noisy_count": -2.4, "published": False},
            ],
            "count_deviation": 5.31,
            "floor": 16,
            "collapsed": True,
            "events": ["round 3: persona-1 begun anew as a half of persona-0"],
            "without_persona": 11.7,
        },
        "measured": [
            {
                "name": f"persona-{k}",
                "noisy_count": 61.3 - 63.7 * k,
                "bits_base": 4.61 + k,
                "bits_global": 4.33 + k,
                "bits_chosen": 4.29 + k,
                "accuracy": 0.391 + 0.01 * k,
                "gains": {"under -5 %": -0.013 + 0.001 * k, "-5 % to 0 %": 0.21 + 0.1 * k, "over 0 %": 0.79},
                "without_persona": 0.19 + 0.2 * k,
                "compared": 0.5 + 0.1 * k,
                "preferred": 0.62 + 0.1 * k,
            }
            for k in (0, 1)
        ],
        "scrub": {
            "entities": {"PERSON": 212, "EMAIL_ADDRESS": 3, "SECRET": 1},
            "documents": 1904,
            "raw_bits_per_token": 4.352,
            "scrubbed_bits_per_token": 4.361,
        },
        "basis": {
            "name": "the base model's own samples",
            "numbers": 4480,
            "comparison": [
                {
                    "name": "own samples, centred",
                    "bits_per_token": 4.33,
                    "relative_gain": {"value": 0.058, "low": 0.05, "high": 0.066},
                },
                {
                    "name": "SVD of the weights",
                    "bits_per_token": 4.57,
                    "relative_gain": {"value": 0.007, "low": None, "high": None},
                },
            ],
        },
        "cost": {
            "seconds": 388.4,
            "phases": {"basis": 31.0, "train": 210.2, "evaluate": 141.0},
            "tokens_per_second": 812.5,
            "peak_memory_bytes": 2_113_929_216,
            "bytes_up_per_device": 35_902,
            "bytes_down_per_device": 2_912_004,
        },
        "config": {"people": "chitchat", "privacy.noise_multiplier": 1, "cohort": 100, "adapter.rank": 8},
        "versions": {"confide": "0.1.0", "torch": "2.13.0", "python": "3.11.7"},
        "hashes": {"release": "9f2c" * 16, "basis": "41aa" * 16, "policy": "77be" * 16},
    }


def sample_query(transport: str = "ideal") -> Query:
    return Query(
        federation="demo", campaign="c", round=1, attempt=0, purpose="train.global", slots=1, slot_dim=4480,
        clip_norm=Fraction(1, 10), noise_multiplier=Fraction(1), cohort=Cohort(100), transport=transport,
        release_sha256="a" * 64, basis_sha256="b" * 64, policy_sha256="c" * 64, ledger_head="d" * 64,
        objective="next-token", limits=Limits(own_tokens=512, local_steps=2),
    )  # fmt: skip


def sample_privacy(transport: str = "ideal") -> Privacy:
    return privacy_section(
        statement([sample_query(transport)] * 3),
        DELTAS,
        clip_fraction=0.97,
        snr=1.37,
        noise_ratio=0.73,
        record={"unit": "document", "people": 16, "epsilon": 8.0, "delta": 1e-3, "noise_multiplier": 0.71,
                "clip_norm": 0.4},
    )  # fmt: skip


class Page(HTMLParser):
    """Checks that tags nest, and collects what a test asks about."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[tuple[str, dict[str, str | None]]] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.values: list[tuple[str, str]] = []
        self.prose: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs)
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append((tag, dict(attrs)))
        if tag == "data":
            self.values.append((dict(attrs)["value"] or "", ""))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        inside = {tag for tag, _ in self.open}
        verbatim = any("verbatim" in (attrs.get("class") or "").split() for _, attrs in self.open)
        if "data" in inside:
            self.values[-1] = (self.values[-1][0], self.values[-1][1] + data)
        elif not inside & {"svg", "style", "title", "h1"} and not verbatim:
            self.prose.append(data)


def leaves(value: Any) -> Iterator[float]:
    """Every number in a JSON document, numeric keys (deltas) included."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if re.fullmatch(r"[\d.]+(e-?\d+)?", key):
                yield float(key)
            yield from leaves(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from leaves(inner)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield float(value)


@pytest.fixture(scope="module")
def report() -> Report:
    return sample_report()


@pytest.fixture(scope="module")
def page(report: Report) -> str:
    return render_html(report)


def test_every_figure_on_the_page_is_a_leaf_of_the_json(report: Report, page: str) -> None:
    known = set(leaves(json.loads(report_json(report))))
    shown = Page(page).values
    assert len(shown) > 200
    assert [value for value, _ in shown if float(value) not in known] == []


def test_what_is_shown_rounds_to_the_exact_value_beside_it(page: str) -> None:
    factors = {"": 1.0, "%": 100.0, "kB": 1e-3, "MB": 1e-6, "GB": 1e-9, "B": 1.0}
    checked = 0
    for value, text in Page(page).values:
        plain = text.replace("\N{NARROW NO-BREAK SPACE}", " ").replace("\N{MINUS SIGN}", "-")
        found = re.fullmatch(r"(-?[\d ]+(?:\.(\d+))?)\s?(%|[kMG]?B)?", plain)
        if found is None:
            assert plain == f"10{fixed(round(np.log10(float(value))), 0)}".replace("\N{MINUS SIGN}", "-"), plain
            continue
        want = float(value) * factors[found.group(3) or ""]
        step = 1.0 * 10.0 ** -len(found.group(2) or "")
        assert abs(float(found.group(1).replace(" ", "")) - want) <= max(step, 0.005 * abs(want)) + 1e-9, (value, text)
        checked += 1
    assert checked > 200


def test_prose_holds_no_figure_of_its_own(page: str) -> None:
    digits = {found for text in Page(page).prose for found in re.findall(r"\d+", text)}
    assert digits <= {"95"}


@pytest.mark.parametrize("not_private", [[], ["noise was replayed from a key file"]])
def test_the_page_fetches_nothing_and_runs_nothing(report: Report, not_private: list[str]) -> None:
    text = render_html({**report, "not_private": not_private})
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)", text)
    fetching = {"src", "srcset", "action", "data", "poster"}
    for tag, attrs in Page(text).tags:
        assert tag not in {"script", "link", "iframe", "object", "embed", "img", "form", "base"}
        assert not [name for name in attrs if name.startswith("on") or name in fetching]
        assert (attrs.get("href") or "#").startswith("#")


def test_not_private_is_stamped_exactly_when_a_reason_is_listed(report: Report, page: str) -> None:
    assert "NOT PRIVATE" not in page
    stamped = render_html({**report, "not_private": ["transport off: no noise was added"]})
    assert "<strong>NOT PRIVATE</strong>" in stamped
    assert "transport off: no noise was added" in stamped
    assert wording.ARM_LABELS["global"] not in stamped, "what may not be released must not be called released"


def test_a_run_without_privacy_shows_no_epsilon(report: Report, page: str) -> None:
    stamped = render_html({**report, "not_private": ["replayed noise"]})
    claims = {repr(value) for value in report["privacy"]["epsilon"].values()}
    assert claims <= {value for value, _ in Page(page).values}
    assert not claims & {value for value, _ in Page(stamped).values}
    assert "not claimed" in stamped
    assert "second, separate statement" in page
    assert "second, separate statement" not in stamped


def test_the_three_lines_stand_verbatim(report: Report, page: str) -> None:
    for line in report["lines"]:
        assert f">{line.replace(chr(39), '&#39;')}</li>" in page


def test_planted_markup_is_shown_not_run(report: Report) -> None:
    planted = "<script>alert(1)</script>\"'&<b onmouseover=x> $\\x$"
    hostile = copy.deepcopy(report)
    hostile["people"][0]["user"] = hostile["lines"][0] = hostile["what"]["name"] = planted
    hostile["what"]["model"] = hostile["privacy"]["unit"] = planted
    hostile["config"][planted] = [planted]
    hostile["versions"][planted] = hostile["hashes"][planted] = planted
    hostile["not_private"] = [planted]
    hostile["arms"][planted] = hostile["arms"]["own"]
    hostile["scrub"]["entities"][planted] = 2
    hostile["cost"]["phases"][planted] = 1.0
    text = render_html(hostile)
    assert "<script" not in text
    assert "<b " not in text
    tags = Page(text).tags
    assert not [name for _, attrs in tags for name in attrs if name.startswith("on")]
    assert "&lt;script&gt;" in text


def test_tables_and_figures_can_be_read_without_seeing(page: str) -> None:
    tags = Page(page).tags
    assert sum(tag == "table" for tag, _ in tags) == sum(tag == "caption" for tag, _ in tags) > 8
    assert all(attrs.get("scope") in {"row", "col"} for tag, attrs in tags if tag == "th")
    drawings = [attrs for tag, attrs in tags if tag == "svg"]
    assert len(drawings) == 3
    assert all(attrs["role"] == "img" and len(attrs["aria-label"] or "") > 30 for attrs in drawings)


def test_ids_are_unique_and_references_land(page: str) -> None:
    tags = Page(page).tags
    ids = [attrs["id"] for _, attrs in tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    asked = re.findall(r"url\(#([^)]+)\)", page) + re.findall(r'href="#([^"]+)"', page)
    assert asked
    assert set(asked) <= set(ids)


def test_drawings_take_the_colours_of_the_page(page: str) -> None:
    drawings = "".join(re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL))
    assert "var(--accent)" in drawings
    assert "currentColor" in drawings
    assert not re.search(r"(fill|stroke): #", drawings)
    assert ">people, sorted by gain</text>" in drawings


def test_optional_parts_may_be_missing(report: Report) -> None:
    bare = copy.deepcopy(report)
    for part in ("personas", "measured", "scrub", "basis"):
        del bare[part]  # type: ignore[misc]
    del bare["privacy"]["record"]
    bare["comparisons"], bare["people"], bare["rounds"] = [], [], []
    bare["arms"] = {"base": bare["arms"]["base"]}
    text = render_html(bare)
    Page(text)
    assert "<svg" not in text
    assert 'id="scrub"' not in text


def test_what_the_federation_measured_and_a_collapse_are_said(page: str) -> None:
    assert "Collapsed:" in page and "begun anew as a half of" in page
    assert 'id="measured"' in page and "blind choices won" in page


def test_the_privacy_section_says_what_the_accountant_says(report: Report) -> None:
    privacy = report["privacy"]
    released, server, sybils = privacy["adversaries"]
    assert (privacy["rho"], privacy["rho_exact"], privacy["noise_multiplier"]) == (1.5, "3/2", 1.0)
    assert released["epsilon"] == privacy["epsilon"]
    assert released["epsilon"]["1e-06"] == pytest.approx(epsilon_zcdp(1.5, 1e-6))
    assert released["noise_multiplier"] == pytest.approx(1.0)
    assert server["noise_multiplier"] == pytest.approx(1 / math.sqrt(Cohort(100).honest))
    assert server["epsilon"] == sybils["epsilon"]
    assert (server["epsilon"]["1e-06"] or 0) > 10 * (released["epsilon"]["1e-06"] or 0)


def test_without_noise_every_claim_is_none() -> None:
    privacy = sample_privacy("off")
    assert privacy["private"] is False
    assert privacy["rho"] is None
    assert set(privacy["epsilon"]) == {"1e-05", "1e-06", "1e-09"}
    rows = [privacy["epsilon"], privacy["epsilon_pld"], *(row["epsilon"] for row in privacy["adversaries"])]
    assert {value for row in rows for value in row.values()} == {None}


def test_no_bound_is_never_a_number(report: Report) -> None:
    off = copy.deepcopy(report)
    off["privacy"]["rho"] = None
    off["privacy"]["epsilon"] = dict.fromkeys(off["privacy"]["epsilon"])
    text = render_html(off)
    assert "no bound" in text
    assert "None" not in text
    assert "inf" not in re.findall(r"[a-z]+", text)


def test_json_is_canonical_and_refuses_infinity(report: Report) -> None:
    data = report_json(report)
    backwards = dict(reversed(list(report.items())))
    assert report_json(backwards) == data
    assert data.endswith(b"}\n")
    assert json.loads(data) == report
    with pytest.raises(DataError):
        report_json({**report, "cost": {**report["cost"], "seconds": float("inf")}})


def test_writing_is_whole_or_not_at_all(report: Report, tmp_path: Path) -> None:
    write_report(tmp_path, report)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(before) == {"report.json", "report.html"}
    with pytest.raises(DataError):
        write_report(tmp_path, {**report, "cost": {**report["cost"], "seconds": float("nan")}})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    write_report(tmp_path, report)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before, "same report, same bytes"


def printed(report: Report) -> str:
    console = Console(file=io.StringIO(), width=80, color_system=None, force_terminal=False)
    print_report(report, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_terminal_fits_eighty_columns_and_marks_the_best(report: Report) -> None:
    text = printed(report)
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "\x1b" not in text
    assert "…" not in text, "a heading or a figure was cut"
    assert text.count("*") == 1 + 16
    assert "8 more people" in text
    assert report["lines"][0] in text


def test_the_terminal_prints_names_not_markup(report: Report) -> None:
    hostile = copy.deepcopy(report)
    hostile["people"][0]["user"] = "[red]x[/red]"
    hostile["not_private"] = ["[bold]why[/bold]"]
    text = printed(hostile)
    assert "[red]x[/red]" in text
    assert "NOT PRIVATE: [bold]why[/bold]" in text


@pytest.mark.parametrize(
    ("made", "want"),
    [
        (fixed(-0.0004, 2), "0.00"),
        (fixed(-1.25, 1), "\N{MINUS SIGN}1.2"),
        (significant(0.0), "0.00"),
        (significant(0.00042), "4.2e\N{MINUS SIGN}04"),
        (significant(152.44), "152.4"),
        (rounded_up(9.351), "9.36"),
        (rounded_up(10.11), "10.2"),
        (rounded_up(9.35), "9.35"),
        (byte_size(35_902), "35.9\N{NARROW NO-BREAK SPACE}kB"),
        (byte_size(999), "999\N{NARROW NO-BREAK SPACE}B"),
        (power_of_ten(1e-6), "10<sup>\N{MINUS SIGN}6</sup>"),
        (power_of_ten(2.5e-6), "2.5·10<sup>\N{MINUS SIGN}6</sup>"),
    ],
)
def test_figures_read_as_expected(made: str, want: str) -> None:
    assert made == want


def test_the_control_cannot_win_and_words_follow_the_bounds() -> None:
    assert wording.best_arm({"base": 4.0, "own": 3.9, "wrong_person": 3.0}) == "own"
    assert wording.best_arm({"wrong_person": 3.0}) is None
    assert wording.arms_in_order(["zeta", "own", "base"]) == ["base", "own", "zeta"]
    assert wording.noise_meaning([]).startswith("not measured")
    noisy: Any = [{"purpose": "train.global", "alpha": 0.4, "noise_ratio": ratio} for ratio in (10.0, 0.5)]
    assert "less than half of the gain" in wording.noise_meaning(noisy[:1])
    assert "nearly all of the gain" in wording.noise_meaning(noisy[1:])
    assert [wording.epsilon_meaning(e) for e in (1.0, 10.0, 10.1, 88.0, None)] == [
        "strong", "reasonable", "weak", "hardly any", "no bound",
    ]  # fmt: skip


def test_empty_drawings_are_empty() -> None:
    assert figures.gain_plot([]) == figures.spread_plot([0.1]) == figures.rounds_plot([1], [None], [None]) == ""
