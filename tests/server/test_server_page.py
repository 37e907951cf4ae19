"""The operator's page and metrics: what they show, whom they answer, and that no device can be told from them."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

import confide
from deploy.local.federation import free_ports
from server import members
from server.events import EventLog, events
from server.folder import OperatorFolder
from server.found import begin
from server.metrics import LABELS, exposition, gauges
from server.overview import lines, overview
from server.page import HEADERS, Page, view, warnings
from tests.operator_by_hand import enrolled_with, operator_in
from tests.served_by_hand import asked, served

NAMES = ("zebedee-laptop", "quillfeather-phone", "johanna-tablet")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or ""


@pytest.fixture(scope="module")
def operator(tmp_path_factory: pytest.TempPathFactory) -> OperatorFolder:
    """Return a federation of three, in the middle of a campaign."""
    made = operator_in(tmp_path_factory.mktemp("page") / "f", rounds=3)
    for name in NAMES:
        members.admit(made, enrolled_with(made, name, members.invite(made)), vetted=name != NAMES[2])
    begin(made, "spring")
    log = EventLog(made.home, "spring")
    log.note("begun", rounds=3, cohort=2)
    log.note("sum", round=0, attempt=0, survivors=2, purpose="train.global", noise_to_signal=1.5)
    log.note("lost", round=1, attempt=0, reason="1 devices are there, the query needs 2")
    log.note("sum", round=1, attempt=1, survivors=2, purpose="train.global", noise_to_signal=None)
    return made


@pytest.fixture(scope="module")
def calls() -> dict[str, int]:
    return {"passed": 12, "refused": 3}


@pytest.fixture(scope="module")
def port(operator: OperatorFolder, calls: dict[str, int]) -> Iterator[int]:
    [number] = free_ports(1)
    with served(Page(lambda: overview(operator), lambda: calls, number).app, number):
        yield number


def test_the_overview_counts_and_names_nobody(operator: OperatorFolder) -> None:
    facts = overview(operator)
    assert (facts["devices"], facts["vetted"], facts["revoked"]) == (3, 2, 0)
    assert facts["cohort"] == {"invited": 2, "least_answers": 2, "met": True}
    assert facts["campaign"]["lost_attempts"] == 1 and len(facts["campaign"]["sums"]) == 2
    told = json.dumps(facts) + "\n".join(lines(facts))
    assert not any(name in told for name in NAMES)


def test_what_is_shown_and_measured_tells_no_device_from_another(port: int) -> None:
    for path in ("/", "/metrics", "/overview.json", "/overview.css"):
        status, headers, body = asked(port, "GET", path)
        assert status == 200
        assert not any(name.encode() in body for name in NAMES)
        assert {k.lower(): v for k, v in HEADERS.items()}.items() <= headers.items()


def test_metrics_are_read_by_prometheus_and_their_labels_are_few_fixed_words(port: int) -> None:
    text = asked(port, "GET", "/metrics")[2].decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert families["confide_round_answers"].samples[0].value == 2
    assert families["confide_attempts_lost"].samples[0].value == 1
    assert "confide_round_noise_to_signal" not in families, "the last round's signal is unknown: no number is made up"
    for family in families.values():
        for sample in family.samples:
            for label, value in sample.labels.items():
                assert value in LABELS[label], f"{family.name}: {label}={value}"


def test_every_alert_is_about_a_metric_that_exists_and_has_a_line_in_the_runbook(operator: OperatorFolder) -> None:
    root = Path(confide.__file__).parent
    known = {f"confide_{name}" for name, _, _ in gauges(overview(operator))} | {
        "confide_devices",
        "confide_calls_total",
    }
    groups = yaml.safe_load((root / "deploy" / "observe" / "alerts.yml").read_text())["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    runbook = (root / "docs" / "operations.md").read_text()
    assert len(rules) >= 5
    for rule in rules:
        assert set(re.findall(r"confide_\w+", rule["expr"])) <= known, rule["alert"]
        assert f"### {rule['alert']}" in runbook
        assert set(rule) >= {"alert", "expr", "annotations"}


@pytest.mark.parametrize(
    ("method", "headers", "status"),
    [
        ("GET", {"host": "evil.example"}, 421),
        ("GET", {"origin": "http://evil.example"}, 403),
        ("GET", {"sec_fetch_site": "cross-site"}, 403),
        ("POST", {}, 405),
        ("DELETE", {}, 405),
    ],
)
def test_who_else_asks_is_refused(port: int, method: str, headers: dict[str, Any], status: int) -> None:
    assert asked(port, method, "/overview.json", None, **headers)[0] == status


def test_text_of_a_failure_is_shown_as_text(operator: OperatorFolder) -> None:
    facts = overview(operator)
    facts["campaign"]["last"] = {"event": "failed", "reason": "<script>alert(1)</script>", "stage": None}
    facts["campaign"]["last"] |= {"ts": "now", "round": 0}
    page = Page(lambda: facts, lambda: {"passed": 0, "refused": 0}, 1)
    text = page._template.render(**view(facts, {"passed": 0, "refused": 0}), again_s=10)
    assert "<script" not in text and "&lt;script&gt;" in text


def test_what_an_operator_should_look_at_is_said(operator: OperatorFolder) -> None:
    facts = overview(operator)
    assert warnings(facts) == []
    facts |= {"certificate_days": 3, "devices": 1, "cohort": facts["cohort"] | {"met": False}}
    facts["budget"] = {"share": 0.9}
    told = " ".join(warnings(facts))
    assert "Below the floor: 1 devices" in told and "ends in 3 days" in told and "90%" in told


def test_an_empty_federation_has_a_page(tmp_path: Path) -> None:
    operator = operator_in(tmp_path / "f")
    facts = overview(operator)
    page = Page(lambda: facts, lambda: {"passed": 0, "refused": 0}, 1)
    assert "No round has a sum yet" in page._template.render(**view(facts, {"passed": 0, "refused": 0}), again_s=10)
    assert b"confide_cohort_met 0.0" in exposition(lambda: facts, lambda: {"passed": 0, "refused": 0})
    assert any("TOO FEW DEVICES" in line for line in lines(facts))


def test_events_survive_a_torn_line_and_a_full_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = EventLog(tmp_path, "c")
    log.note("begun", rounds=1)
    with (tmp_path / "events.jsonl").open("ab") as file:
        file.write(b'{"event": "su')
    assert [event["event"] for event in events(tmp_path)] == ["begun"]
    monkeypatch.setattr("server.events.MAX_BYTES", 10)
    log.note("lost", reason="x")
    log.note("failed", reason="x")
    assert [event["event"] for event in events(tmp_path)][-1] == "failed"
    EventLog(tmp_path / "not there", "c").note("begun")


@pytest.fixture(scope="module")
def busy_port(operator: OperatorFolder) -> Iterator[int]:
    """Serve the page of a federation with everything on it: many rounds, a failure, releases with personas."""
    facts = overview(operator)
    sums = [
        {"ts": "2026-11-28T07:46:54.173+00:00", "round": i, "survivors": 240 - 9 * i, "noise_to_signal": 0.7 + i / 10}
        for i in range(12)
    ]
    last = {"ts": sums[-1]["ts"], "event": "failed", "round": 12, "attempt": 2, "stage": None}
    facts["campaign"] |= {"rounds": 24, "done": 12, "lost_attempts": 3, "sums": sums}
    facts["campaign"]["last"] = last | {"reason": "round 12: too few devices answered in 3 attempts"}
    facts |= {"devices": 312, "vetted": 300, "certificate_days": 21}
    facts["cohort"] = {"invited": 240, "least_answers": 161, "met": True}
    personas = {"persona-0": 61.2, "persona-1": 93.8, "persona-2": 72.0}
    released = {"campaign": "winter", "round": 24, "epsilon": 3.4567, "personas": personas, "sha256": "ab" * 32}
    facts["releases"] = [released, released | {"campaign": "autumn", "personas": {}, "epsilon": None}]
    [number] = free_ports(1)
    with served(Page(lambda: facts, lambda: {"passed": 1234567, "refused": 89}, number).app, number):
        yield number


@contextmanager
def browsing(port: int, scheme: str, width: int) -> Iterator[Any]:
    """Yield the page in Chromium; what it complains of, or asks of others, is a failure."""
    sync_api: Any = pytest.importorskip("playwright.sync_api")
    faults: list[str] = []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"] if os.getuid() == 0 else []
        )
        page = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 900})
        page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
        page.on("request", lambda r: None if r.url.startswith(f"http://127.0.0.1:{port}/") else faults.append(r.url))
        page.goto(f"http://127.0.0.1:{port}/")
        yield page
        browser.close()
    assert faults == []


# The contrast of each text with what lies behind it, WCAG 2.1, section 1.4.3: the least of all on the page.
CONTRAST = """() => {
  const rgb = c => c.match(/[\\d.]+/g).map(Number);
  const light = c => { const [r, g, b] = rgb(c).map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const behind = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
    if (rgb(c)[3] !== 0) return c; } return 'rgb(255, 255, 255)'; };
  return Math.min(...[...document.body.querySelectorAll('*')].filter(e => e.innerText).map(e => {
    const [a, b] = [light(getComputedStyle(e).color), light(behind(e))].sort((x, y) => y - x);
    return (a + 0.05) / (b + 0.05); }));
}"""


@pytest.mark.e2e
@pytest.mark.skipif(not CHROMIUM, reason="no Chromium here")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1000, 390])
def test_the_page_in_a_browser(port: int, busy_port: int, scheme: str, width: int, tmp_path: Path) -> None:
    shots = Path(os.environ.get("CONFIDE_SHOTS", str(tmp_path)))
    with browsing(port, scheme, width) as page:
        assert page.get_by_role("heading", level=1).inner_text() == "trial"
        assert "2 / 3" not in page.inner_text("main"), "no sum is on the disk of this invented campaign"
        assert page.get_by_role("row").count() == 3
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert colour != "rgba(0, 0, 0, 0)", "the style sheet was let in"
        page.screenshot(path=str(shots / f"operator-{scheme}-{width}.png"), full_page=True)
    with browsing(busy_port, scheme, width) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= width, "only a table moves sideways"
        assert page.evaluate(CONTRAST) >= 4.5
        assert "The last run failed: round 12" in page.get_by_role("status").inner_text()
        assert "the run failed, 2026-11-28 07:46:54 UTC" in page.inner_text("main")
        page.screenshot(path=str(shots / f"operator-busy-{scheme}-{width}.png"), full_page=True)


def test_noise_to_signal_follows_from_the_sum(operator: OperatorFolder) -> None:
    from dataclasses import replace

    from server.campaign import RoundSum
    from server.events import signal
    from server.home import ServerHome, open_campaign
    from tests.agents_by_hand import BASIS

    home = ServerHome.load(operator.home)
    from privacy.ledger import Ledger

    with Ledger(operator.home / "ledger" / "federation.jsonl", home.key) as ledger:
        query = open_campaign(home.plan, operator.home / "look", ledger, BASIS, home.directory()).ask().query
    noise = np.sqrt(query.dim) * query.sigma / (float(query.scale) * np.sqrt(2))
    rng = np.random.default_rng(0)
    mean = rng.normal(0, 1, query.dim)
    mean *= 2 * noise / np.linalg.norm(mean)
    told = signal(RoundSum(query, 2, mean))
    assert told["noise_norm"] == pytest.approx(noise, rel=1e-4)
    assert told["noise_to_signal"] == pytest.approx(1 / np.sqrt(3), abs=1e-3)
    assert signal(RoundSum(query, 2, 0.1 * mean))["noise_to_signal"] is None
    louder = replace(query, noise_multiplier=2 * query.noise_multiplier)
    assert signal(RoundSum(louder, 2, mean))["noise_norm"] == pytest.approx(2 * noise, rel=1e-3)
