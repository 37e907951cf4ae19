"""Metrics for Prometheus: what the server learns anyway, in counts; no label names a device.

A label takes one of a handful of fixed words (`state`, `outcome`). So whoever reads the metrics learns less than
whoever reads the ledger, and a dashboard's owner cannot follow a person.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

PREFIX: Final = "confide_"
LABELS: Final[Mapping[str, frozenset[str]]] = {
    "state": frozenset(["admitted", "vetted", "revoked"]),
    "outcome": frozenset(["passed", "refused"]),
}


class Overview(Collector):
    """Collects from `look`, which returns `server.overview.overview`, and `calls`, the door's counts by outcome."""

    def __init__(self, look: Callable[[], Mapping[str, Any]], calls: Callable[[], Mapping[str, int]]) -> None:
        self._look, self._calls = look, calls

    def collect(self) -> Iterable[Metric]:
        """Return all metrics as they stand now."""
        facts = self._look()
        devices = GaugeMetricFamily(f"{PREFIX}devices", "Devices in the directory.", labels=["state"])
        for state, name in (("admitted", "devices"), ("vetted", "vetted"), ("revoked", "revoked")):
            devices.add_metric([state], facts[name])
        calls = CounterMetricFamily(f"{PREFIX}calls", "Calls at the door for devices.", labels=["outcome"])
        for outcome, count in sorted(self._calls().items()):
            calls.add_metric([outcome], count)
        yield devices
        yield calls
        for name, text, value in gauges(facts):
            if value is not None:
                yield GaugeMetricFamily(f"{PREFIX}{name}", text, value=float(value))


def gauges(facts: Mapping[str, Any]) -> list[tuple[str, str, float | None]]:
    """Return name, help and value of each gauge; None where there is nothing to say yet."""
    going, spent = facts["campaign"] or {}, facts["budget"] or {}
    last = (going.get("sums") or [{}])[-1]
    failed = (going.get("last") or {}).get("event") == "failed"
    return [
        ("cohort_invited", "Devices that a round invites.", facts["cohort"]["invited"]),
        ("cohort_least_answers", "Answers below which nothing is released.", facts["cohort"]["least_answers"]),
        ("cohort_met", "1 if enough devices are admitted.", facts["cohort"]["met"]),
        ("certificate_days", "Days until the server's certificate ends.", facts["certificate_days"]),
        ("rounds_planned", "Rounds of the present campaign.", going.get("rounds")),
        ("rounds_done", "Rounds of it that have their sum.", going.get("done")),
        ("attempts_lost", "Attempts of it that came to nothing.", going.get("lost_attempts")),
        ("campaign_failed", "1 if its last run failed.", failed if going else None),
        ("campaign_released", "1 if its release is there.", going.get("released")),
        ("round_answers", "Answers in the last sum.", last.get("survivors")),
        ("round_noise_to_signal", "Noise against signal in the last sum.", last.get("noise_to_signal")),
        ("budget_share", "Share of the lifetime budget that the busiest device may have spent.", spent.get("share")),
        ("epsilon_spent", "The same as epsilon.", spent.get("epsilon")),
        ("epsilon_cap", "The lifetime budget as epsilon.", spent.get("epsilon_cap")),
        ("ledger_readable", "0 if the federation's ledger cannot be read.", "error" not in spent),
    ]


def exposition(look: Callable[[], Mapping[str, Any]], calls: Callable[[], Mapping[str, int]]) -> bytes:
    """Return the metrics in Prometheus's text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Overview(look, calls))
    return generate_latest(registry)
