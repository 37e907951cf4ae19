"""A campaign is a function of its plan and its flushed sums, through crashes, lost attempts and personas."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from privacy.account import FEDERATION
from privacy.answer import make_answer, slotted_update
from privacy.canonical import sha256_hex
from privacy.errors import CohortTooSmall, ConfigError, LedgerError
from privacy.ledger import Ledger
from privacy.noise import device_noise_key
from privacy.query import Limits, Query
from privacy.wire import Answer
from server.campaign import MAX_ATTEMPTS, Asked, Campaign, CampaignPlan
from server.optimizer import FedAvg

DEVICES = [f"d{i:02d}" for i in range(24)]
KEYS = {name: Ed25519PrivateKey.from_private_bytes(sha256_hex(name.encode()).encode()[:32]) for name in DEVICES}
PUBLIC = {name: key.public_key() for name, key in KEYS.items()}
FEDERATION_KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
ROOT = bytes(32)
DIM = 6
PLAN = CampaignPlan(
    federation="test",
    campaign="spring",
    rounds=2,
    cohort=18,
    personas=0,
    slot_dim=DIM,
    clip_norm=Fraction(1, 2),
    noise_multiplier=Fraction(1),
    transport="ideal",
    limits=Limits(64, 2),
    optimizer=FedAvg(),
    basis_sha256="b" * 64,
    policy_sha256="a" * 64,
    seed=7,
)
PERSONAS = replace(PLAN, personas=2)
QUIET = replace(PLAN, transport="off")


def release_hash(slots: NDArray[np.float64]) -> str:
    return sha256_hex(np.ascontiguousarray(slots, "<f8").tobytes())


def ledger_at(folder: Path) -> Ledger:
    clock = iter(range(1, 10**6)).__next__
    return Ledger(
        folder / "federation.jsonl", FEDERATION_KEY, {"federation": "test", "owner": "federation"}, clock=clock
    )


class Server:
    """A server over a folder that can be closed, as a killed process is, and opened again."""

    def __init__(self, folder: Path, plan: CampaignPlan = PLAN, devices: Sequence[str] = DEVICES) -> None:
        self.ledger = ledger_at(folder)
        try:
            self.campaign = Campaign(plan, folder / "rounds", self.ledger, devices, release_hash, PUBLIC)
        except BaseException:
            self.ledger.close()
            raise

    def __enter__(self) -> Campaign:
        return self.campaign

    def __exit__(self, *_: object) -> None:
        self.ledger.close()


def update_of(device: str, query: Query) -> NDArray[np.float64]:
    """Return what a device would learn: the same for the same question, another for every device and round."""
    rng = np.random.default_rng([DEVICES.index(device), query.round, query.attempt])
    slot = DEVICES.index(device) % query.slots
    return slotted_update(rng.normal(0.1, 0.05, query.slot_dim), query, slot)


def answer_of(device: str, asked: Asked) -> Answer:
    query = asked.query
    answer = make_answer(update_of(device, query), query, device, device_noise_key(ROOT, device))
    return answer.signed(KEYS[device], "e" * 64)


def answers(asked: Asked, number: int | None = None) -> list[Answer]:
    return [answer_of(device, asked) for device in asked.invited[:number]]


def finish(campaign: Campaign) -> None:
    while not campaign.finished:
        asked = campaign.ask()
        campaign.take(asked, answers(asked))


def charges(campaign: Campaign) -> list[tuple[int, int]]:
    return [(r.query.round, r.query.attempt) for r in campaign.ledger.account.charged()]


def bits(campaign: Campaign) -> list[bytes]:
    state = campaign.state
    return [
        np.ascontiguousarray(a).tobytes() for a in (state.core, state.velocity, state.personas, state.persona_counts)
    ]


@pytest.fixture(params=[PLAN, PERSONAS], ids=["global", "personas"])
def plan(request: pytest.FixtureRequest) -> CampaignPlan:
    chosen: CampaignPlan = request.param
    return chosen


def test_the_state_is_a_function_of_the_flushed_sums(tmp_path: Path, plan: CampaignPlan) -> None:
    with Server(tmp_path, plan) as campaign:
        finish(campaign)
        wanted = bits(campaign)
    with Server(tmp_path, plan) as again:
        assert again.finished
        assert bits(again) == wanted
    for path in (tmp_path / "rounds").iterdir():
        if path.suffix != ".sum":
            assert path.suffix == ".query"
    with Server(tmp_path, plan) as once_more:
        assert [s.survivors for s in once_more.sums] == [plan.cohort] * plan.rounds


class Killed(Exception):
    """The process ends here."""


def killed(*_: Any, **__: Any) -> Any:
    raise Killed


def kill_before_reserve(campaign: Campaign, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(campaign.ledger, "reserve", killed)
    campaign.ask()


def kill_after_reserve(campaign: Campaign, patch: pytest.MonkeyPatch) -> None:
    campaign.ask()
    raise Killed


def kill_before_the_sum_is_flushed(campaign: Campaign, patch: pytest.MonkeyPatch) -> None:
    asked = campaign.ask()
    patch.setattr("server.campaign.write_atomic", killed)
    campaign.take(asked, answers(asked))


def kill_before_commit(campaign: Campaign, patch: pytest.MonkeyPatch) -> None:
    asked = campaign.ask()
    patch.setattr(campaign.ledger, "commit", killed)
    campaign.take(asked, answers(asked))


def kill_after_commit(campaign: Campaign, patch: pytest.MonkeyPatch) -> None:
    asked = campaign.ask()
    patch.setattr(campaign, "_take", killed)
    campaign.take(asked, answers(asked))


MOMENTS: list[Callable[[Campaign, pytest.MonkeyPatch], None]] = [
    kill_before_reserve,
    kill_after_reserve,
    kill_before_the_sum_is_flushed,
    kill_before_commit,
    kill_after_commit,
]


@pytest.mark.parametrize("moment", MOMENTS, ids=lambda moment: moment.__name__)
@pytest.mark.parametrize("rounds_before", [0, 1])
def test_a_server_killed_at_any_moment_goes_on_to_the_same_state_and_one_charge(
    tmp_path: Path, plan: CampaignPlan, moment: Callable[..., None], rounds_before: int
) -> None:
    with Server(tmp_path / "whole", plan) as whole:
        finish(whole)
        wanted = bits(whole)
    with Server(tmp_path / "cut", plan) as cut, pytest.MonkeyPatch.context() as patch:
        for _ in range(rounds_before):
            asked = cut.ask()
            cut.take(asked, answers(asked))
        with pytest.raises(Killed):
            moment(cut, patch)
    with Server(tmp_path / "cut", plan) as resumed:
        finish(resumed)
        assert bits(resumed) == wanted
        assert charges(resumed) == [(number, 0) for number in range(plan.rounds)]
        states = [r.state for r in resumed.ledger.account.reservations.values()]
        assert states == ["committed"] * plan.rounds


def test_a_flushed_sum_counts_even_if_nobody_noted_it(tmp_path: Path) -> None:
    """The commit point is the flush: the restarted server must not ask the same people for the same round again."""
    with Server(tmp_path) as cut, pytest.MonkeyPatch.context() as patch:
        with pytest.raises(Killed):
            kill_before_commit(cut, patch)
        assert cut.ledger.account.pending()
    with Server(tmp_path) as resumed:
        assert len(resumed.sums) == 1
        assert not resumed.ledger.account.pending()
        assert resumed.ask().query.round == 1


def test_the_stored_question_is_asked_again_byte_for_byte(tmp_path: Path) -> None:
    with Server(tmp_path) as first:
        asked = first.ask()
    with Server(tmp_path) as second:
        second.ledger.append("EVAL", {})  # the ledger's head has moved on since
        again = second.ask()
    assert (again.query_bytes, again.invited) == (asked.query_bytes, asked.invited)


def test_too_few_answers_lose_the_attempt_and_what_was_spent_stays_spent(tmp_path: Path) -> None:
    with Server(tmp_path) as campaign:
        first = campaign.ask()
        floor = first.query.cohort.min_survivors
        with pytest.raises(CohortTooSmall):
            campaign.take(first, answers(first, floor - 1))
        second = campaign.ask()
        assert (second.query.round, second.query.attempt) == (0, 1)
        assert second.query.event_id("d00") != first.query.event_id("d00")
        both = sorted(set(first.invited) & set(second.invited))
        assert campaign.ledger.spent_rho(both[0]) == 2 * Fraction(1, 2)
        campaign.take(second, answers(second, floor))
        assert campaign.sums[0].survivors == floor
    with Server(tmp_path) as resumed:
        assert charges(resumed) == [(0, 0), (0, 1)]
        assert len(resumed.sums) == 1


def test_a_lost_attempt_is_lost_after_a_crash_too(tmp_path: Path) -> None:
    with Server(tmp_path) as campaign:
        asked = campaign.ask()
        with pytest.raises(CohortTooSmall):
            campaign.take(asked, [])
    with Server(tmp_path) as resumed:
        assert resumed.ask().query.attempt == 1


def test_after_the_last_attempt_the_round_is_given_up(tmp_path: Path) -> None:
    with Server(tmp_path) as campaign:
        for attempt in range(MAX_ATTEMPTS):
            asked = campaign.ask()
            assert asked.query.attempt == attempt
            with pytest.raises(CohortTooSmall):
                campaign.take(asked, answers(asked, 1))
        with pytest.raises(CohortTooSmall, match="round 0"):
            campaign.ask()
    with pytest.raises(CohortTooSmall), Server(tmp_path):
        pass


def test_each_attempt_draws_a_new_cohort_by_seed_from_the_sorted_directory(tmp_path: Path) -> None:
    with Server(tmp_path / "a") as campaign:
        first = campaign.ask()
        with pytest.raises(CohortTooSmall):
            campaign.take(first, [])
        second = campaign.ask()
    with Server(tmp_path / "b", devices=DEVICES[::-1]) as shuffled:
        assert shuffled.ask().invited == first.invited
    with Server(tmp_path / "c", replace(PLAN, seed=8)) as other:
        assert other.ask().invited != first.invited
    assert first.invited == tuple(sorted(set(first.invited)))
    assert len(first.invited) == PLAN.cohort
    assert set(first.invited) <= set(DEVICES)
    assert second.invited != first.invited


def test_everybody_is_invited_about_equally_often(tmp_path: Path) -> None:
    """40 rounds of 18 out of 24: each device is drawn Binomial(40, 3/4); beyond 5 deviations once in 70,000 runs."""
    with Server(tmp_path, replace(QUIET, rounds=40)) as campaign:
        counts = dict.fromkeys(DEVICES, 0)
        while not campaign.finished:
            asked = campaign.ask()
            for device in asked.invited:
                counts[device] += 1
            campaign.take(asked, answers(asked))
    assert max(abs(count - 30) for count in counts.values()) < 5 * math.sqrt(40 * 3 / 16)


@pytest.mark.parametrize(
    "change",
    [{"campaign": "autumn"}, {"slot_dim": DIM + 1}, {"clip_norm": Fraction(1, 3)}, {"noise_multiplier": Fraction(2)}],
    ids=lambda change: next(iter(change)),
)
def test_the_folder_of_another_campaign_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    with Server(tmp_path) as campaign:
        asked = campaign.ask()
        campaign.take(asked, answers(asked))
    with pytest.raises(LedgerError, match="another campaign"), Server(tmp_path, replace(PLAN, **change)):
        pass


def test_a_question_stored_by_another_campaign_is_refused(tmp_path: Path) -> None:
    with Server(tmp_path) as campaign:
        campaign.ask()
    with (
        Server(tmp_path, replace(PLAN, campaign="autumn")) as other,
        pytest.raises(LedgerError, match="another campaign"),
    ):
        other.ask()


def test_an_answer_that_its_device_did_not_sign_does_not_count(tmp_path: Path) -> None:
    with Server(tmp_path) as campaign:
        asked = campaign.ask()
        real = answers(asked)
        unsigned = replace(real[0], signature=b"")
        forged = replace(real[1], signature=b"").signed(KEYS[real[2].device_id])
        stranger = replace(real[3], device_id="nobody").signed(KEYS["d00"])
        result = campaign.take(asked, [unsigned, forged, stranger, *real[4:]])
        assert result.survivors == len(real) - 4
        noted = next(iter(campaign.ledger.account.reservations.values())).facts
        assert noted["survivors"] == sorted(answer.device_id for answer in real[4:])


def test_the_ledger_names_who_is_in_a_sum_and_the_state_each_signed(tmp_path: Path) -> None:
    with Server(tmp_path) as campaign:
        asked = campaign.ask()
        campaign.take(asked, answers(asked))
        (reserved,) = campaign.ledger.account.reservations.values()
    assert reserved.device == FEDERATION
    assert reserved.invited == asked.invited
    assert reserved.facts["heads"] == dict.fromkeys(asked.invited, "e" * 64)


def test_the_mean_is_that_of_the_updates_without_noise_and_near_it_with(tmp_path: Path) -> None:
    with Server(tmp_path / "off", QUIET) as quiet:
        asked = quiet.ask()
        mean = quiet.take(asked, answers(asked)).mean
        exact = np.mean([update_of(device, asked.query) for device in asked.invited], axis=0)
        np.testing.assert_allclose(mean, exact, atol=1e-6)
    with Server(tmp_path / "ideal") as noisy:
        asked = noisy.ask()
        drawn = noisy.take(asked, answers(asked)).mean
        deviation = float(PLAN.clip_norm) / math.sqrt(asked.query.cohort.honest * PLAN.cohort)
        assert 0 < np.abs(drawn - mean).max() < 6 * deviation


def test_fedavg_adds_the_mean_and_fedavgm_remembers_it() -> None:
    zero, one = np.zeros(2), np.array([1.0, -2.0])
    weights, velocity = FedAvg(0.5).step(zero, zero, one)
    np.testing.assert_array_equal(weights, [0.5, -1.0])
    weights, velocity = FedAvg(0.5).step(weights, velocity, one)
    np.testing.assert_array_equal(weights, [1.0, -2.0])
    step = FedAvg(learning_rate=2.0, momentum=0.5)
    weights, velocity = step.step(zero, zero, one)
    weights, velocity = step.step(weights, velocity, one)  # v = 1.5, w = 2 + 3
    np.testing.assert_array_equal(velocity, [1.5, -3.0])
    np.testing.assert_array_equal(weights, [5.0, -10.0])
    assert not zero.any()


@pytest.mark.parametrize("bad", [{"learning_rate": 0.0}, {"momentum": 1.0}, {"learning_rate": float("nan")}])
def test_an_optimiser_that_cannot_work_is_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        FedAvg(**bad)


@pytest.mark.parametrize("bad", [{"rounds": 0}, {"cohort": 0}, {"personas": 1}, {"personas": -1}])
def test_a_plan_that_cannot_work_is_refused(bad: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        replace(PLAN, **bad)  # type: ignore[arg-type]


def test_a_cohort_larger_than_the_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="25"), Server(tmp_path, replace(PLAN, cohort=25)):
        pass


def test_personas_and_global_alternate(tmp_path: Path) -> None:
    with Server(tmp_path, replace(PERSONAS, rounds=4)) as campaign:
        purposes = []
        start = campaign.state.personas.copy()
        while not campaign.finished:
            asked = campaign.ask()
            purposes.append((asked.query.purpose, asked.query.slots, len(asked.slots)))
            campaign.take(asked, answers(asked))
        assert purposes == [("train.global", 1, 1), ("train.persona", 2, 2)] * 2
        assert np.linalg.norm(start[0] - start[1]) > 0
        np.testing.assert_allclose(np.linalg.norm(start, axis=1), PERSONAS.persona_start)
        assert np.abs(campaign.state.personas - start).max() > 0


def test_a_persona_moves_by_the_mean_of_its_own_members_and_less_if_they_are_few(tmp_path: Path) -> None:
    """Below a share of 1/K the step shrinks with the share: under noise a tiny slot must not be blown up."""
    quiet = replace(PERSONAS, transport="off")
    with Server(tmp_path, quiet) as campaign:
        asked = campaign.ask()
        campaign.take(asked, answers(asked))
        before, asked = campaign.state.personas.copy(), campaign.ask()
        campaign.take(asked, answers(asked))
        for slot in (0, 1):
            members = [d for d in asked.invited if DEVICES.index(d) % 2 == slot]
            mean = np.mean([asked.query.split(update_of(d, asked.query))[0][slot] for d in members], axis=0)
            step = mean * min(1.0, 2 * len(members) / len(asked.invited))
            np.testing.assert_allclose(campaign.state.personas[slot] - before[slot], step, atol=1e-5)
            assert campaign.state.persona_counts[slot] == pytest.approx(len(members), abs=1e-3)


def test_a_persona_is_published_only_with_members_enough(tmp_path: Path) -> None:
    """Without noise the counts are exact: 18 invited of 24, so each of two personas has 6 to 12 members."""
    quiet = replace(PERSONAS, transport="off")
    for floor, published in ((3, [0, 1]), (13, [])):
        with Server(tmp_path / str(floor), replace(quiet, persona_floor=floor)) as campaign:
            assert campaign.published_personas() == []
            finish(campaign)
            assert campaign.published_personas() == published
    with Server(tmp_path / "3", replace(quiet, persona_floor=3)) as campaign:
        few = float(campaign.state.persona_counts.min())
    with Server(tmp_path / "3", replace(quiet, persona_floor=math.floor(few) + 1)) as between:
        assert len(between.published_personas()) == int(campaign.state.persona_counts.max() > few)


def test_under_noise_a_count_must_stand_out_of_it(tmp_path: Path) -> None:
    """The count's noise has deviation 4 z sqrt(n / honest) = 5 here, so 9 of 18 do not stand out by four deviations."""
    with Server(tmp_path, replace(PERSONAS, persona_floor=1)) as campaign:
        finish(campaign)
        counts = campaign.state.persona_counts
        assert campaign.published_personas() == [k for k, n in enumerate(counts) if n >= 4 * 4 * math.sqrt(18 / 12)]


def test_the_counts_noise_has_the_deviation_that_the_threshold_uses(tmp_path: Path) -> None:
    """30 persona rounds, 60 counts: outside 0.7 to 1.3 of the predicted deviation once in 10^3."""
    errors = []
    with Server(tmp_path, replace(PERSONAS, rounds=60)) as campaign:
        while not campaign.finished:
            asked = campaign.ask()
            campaign.take(asked, answers(asked))
            if asked.query.weighted:
                for slot in (0, 1):
                    members = sum(DEVICES.index(d) % 2 == slot for d in asked.invited)
                    errors.append(campaign.state.persona_counts[slot] - members)
    predicted = 4 * math.sqrt(18 / 12)
    assert 0.7 < np.std(errors) / predicted < 1.3


def test_a_server_that_starts_again_loses_what_was_begun_and_has_no_sum(tmp_path: Path) -> None:
    with Server(tmp_path) as campaign:
        first = campaign.ask()
    with Server(tmp_path) as campaign:
        campaign.lose_begun()
        second = campaign.ask()
        assert (second.query.round, second.query.attempt) == (0, 1)
        assert second.query.event_id("d00") != first.query.event_id("d00"), "new noise"
        campaign.take(second, answers(second))
    with Server(tmp_path) as campaign:
        campaign.lose_begun()  # between rounds nothing was begun
        third = campaign.ask()
        assert (third.query.round, third.query.attempt) == (1, 0)
        assert charges(campaign) == [(0, 0), (0, 1), (1, 0)], "what was lost stays spent"


def test_a_server_that_dies_in_every_attempt_ends_its_round(tmp_path: Path) -> None:
    for _ in range(MAX_ATTEMPTS):
        with Server(tmp_path) as campaign:
            campaign.lose_begun()
            campaign.ask()
    with Server(tmp_path) as campaign:
        campaign.lose_begun()
        with pytest.raises(CohortTooSmall, match=f"{MAX_ATTEMPTS} attempts"):
            campaign.ask()


def test_a_finished_campaign_has_begun_nothing(tmp_path: Path) -> None:
    with Server(tmp_path) as campaign:
        finish(campaign)
        campaign.lose_begun()
    assert not list((tmp_path / "rounds").glob("*.lost"))
