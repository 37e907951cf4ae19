"""A device charges before it works, answers an event once, and tells the server nothing but a code when it does not."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

import client.agent
from client.agent import Device, open_devices
from client.contribution import Rows
from client.dial import STOPS, allowed
from privacy.adapter import AdapterLayout, Cores, Site, rows_sha256, state_sha256
from privacy.answer import make_answer
from privacy.errors import BudgetExhausted, LedgerError, PolicyRefused
from privacy.fixedpoint import decode_mean, from_ring
from privacy.ledger import Ledger, LedgerView, read_ledger
from privacy.noise import device_noise_key
from privacy.policy import Policy
from privacy.query import Cohort, Limits, Query
from privacy.record import RecordCharge
from privacy.wire import Answer, Refusal, RefusalCode, decode

LAYOUT = AdapterLayout((Site("model.layers.0.q_proj", 4, 8, 8), Site("model.layers.1.q_proj", 3, 8, 8)))
POLICY = Policy(
    federation="test",
    purposes=("train.global",),
    min_noise_multiplier=Fraction(1, 2),
    max_clip_norm=Fraction(1),
    min_invited=10,
    min_survivor_fraction=Fraction(2, 3),
    max_participations=3,
    budget_rho=Fraction(2),
    max_dim=100,
    limits=Limits(own_tokens=512, local_steps=8),
    basis_sha256="b" * 64,
    release_signer="e" * 64,
)
QUERY = Query(
    federation="test",
    campaign="first",
    round=0,
    attempt=0,
    purpose="train.global",
    slots=1,
    slot_dim=LAYOUT.dim,
    clip_norm=Fraction(1, 10),
    noise_multiplier=Fraction(1),
    cohort=Cohort(100),
    transport="ideal",
    release_sha256=state_sha256("b" * 64, LAYOUT, [LAYOUT.zero_cores()]),
    basis_sha256="b" * 64,
    policy_sha256=POLICY.sha256,
    ledger_head="c" * 64,
    objective="next-token",
    limits=Limits(own_tokens=512, local_steps=2),
)
RELEASE: Rows = np.zeros((1, LAYOUT.dim), dtype=np.float32)
SECRET = "Anna's diary"


class FakeLearner:
    """Trains nothing: does what a test plants in `on_update`, returns `direction`, notes how it was called."""

    layout = LAYOUT

    def __init__(self) -> None:
        self.direction = np.linspace(-1, 1, LAYOUT.dim)
        self.losses: Sequence[float] = ()
        self.named: int | None = None
        self.public_sha256: str | None = None
        self.seeds: list[int] = []
        self.starts: list[Cores] = []
        self.on_update: Callable[[], object] = lambda: None

    def update(self, user: str, start: Cores, query: Query, seed: int) -> NDArray[np.float64]:
        self.seeds.append(seed)
        self.starts.append(start)
        self.on_update()
        return self.direction

    def loss(self, user: str, cores: Cores, query: Query) -> float:
        return self.losses[int(cores[LAYOUT.sites[0].module][0, 0])]

    def distance(self, user: str, row: Rows, query: Query) -> float:
        return self.losses[int(row[LAYOUT.dim])]

    def declared(self, user: str) -> int | None:
        return self.named

    def figures(self, user: str, rows: Rows, query: Query, slot: int, seed: int) -> NDArray[np.float64]:
        self.on_update()
        return np.full(query.slot_dim, query.figure / query.slot_dim**0.5)


class Home:
    """A device's folder and keys, from which the device can be opened again after a crash."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.key = folder, Ed25519PrivateKey.generate()
        self.path = folder / "ann.jsonl"
        self.learner = FakeLearner()
        self.device = self.opened()

    def opened(self, policy: Policy = POLICY, **ledger: Any) -> Device:
        self.answers.mkdir(parents=True, exist_ok=True)
        book = Ledger(self.path, self.key, {"federation": "test", "owner": "ann"}, **ledger)
        return Device("ann", self.answers, policy, book, self.key, device_noise_key(bytes(32), "ann"), self.learner)

    def reopen(self, policy: Policy = POLICY, **ledger: Any) -> None:
        """Do what a crash and a new start do: nothing is kept but what is on the disk."""
        self.device.ledger.close()
        self.device = self.opened(policy, **ledger)

    @property
    def answers(self) -> Path:
        return self.folder / "answers"

    def ledger(self) -> LedgerView:
        """Return the ledger as it is on the disk at this moment."""
        return read_ledger(self.path, self.key.public_key())

    def kinds(self) -> list[str]:
        return [entry.kind for entry in self.ledger().entries]

    def ask(self, query: Query = QUERY, release: Rows = RELEASE) -> bytes:
        return self.device.answer(query.to_bytes(), release)

    def code(self, query: Query = QUERY, release: Rows = RELEASE) -> str:
        """Return the code of a refusal, after checking that it says nothing more."""
        message = decode(self.ask(query, release))
        assert isinstance(message, Refusal) and message.query_sha256 == query.sha256 and message.device_id == "ann"
        return str(message.code)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


# -- an answer ----------------------------------------------------------------------------------------------------


def test_an_answer_is_signed_charged_and_the_noisy_update(home: Home) -> None:
    answer = decode(home.ask())
    assert isinstance(answer, Answer) and answer.query_sha256 == QUERY.sha256 and answer.device_id == "ann"
    answer.verify(home.key.public_key())
    update = home.learner.direction * (0.1 / np.linalg.norm(home.learner.direction))
    noise = decode_mean(from_ring(answer.vector), QUERY.clip_norm, QUERY.integer_clip, 1) - update
    deviation = QUERY.sigma / QUERY.scale
    assert 0.5 * deviation < np.std(noise) < 2 * deviation
    assert home.kinds() == ["GENESIS", "RESERVE", "COMMIT"]
    assert home.ledger().account.spent_rho() == QUERY.rho == Fraction(1, 2)


def test_the_answer_names_the_state_that_charged_it(home: Home) -> None:
    answer = decode(home.ask())
    assert isinstance(answer, Answer)
    assert answer.ledger_head == home.ledger().entries[1].sha256, "the RESERVE"


def test_training_starts_from_the_release(home: Home) -> None:
    row = np.arange(LAYOUT.dim, dtype=np.float32)
    cores = LAYOUT.unflatten(row.astype(np.float64))
    home.ask(replace(QUERY, release_sha256=state_sha256("b" * 64, LAYOUT, [cores])), row[None])
    [begun] = home.learner.starts
    assert np.array_equal(LAYOUT.flatten(begun), row)


def test_batches_are_drawn_anew_for_each_event_and_again_for_the_same(home: Home, tmp_path: Path) -> None:
    home.ask()
    home.ask(replace(QUERY, round=1))
    other = Home(tmp_path / "other")
    other.ask()
    assert home.learner.seeds[0] == other.learner.seeds[0] != home.learner.seeds[1]
    assert all(0 <= seed < 2**63 for seed in home.learner.seeds)


def test_the_update_goes_into_the_slot_that_fits_best(home: Home) -> None:
    open_to_all = replace(POLICY, allow_unprotected=True, purposes=("train.persona",))
    home.reopen(open_to_all)
    rows = np.repeat(np.arange(3, dtype=np.float32)[:, None], LAYOUT.dim, axis=1)
    cores = [LAYOUT.unflatten(row.astype(np.float64)) for row in rows]
    start = state_sha256("b" * 64, LAYOUT, cores)
    query = replace(QUERY, slots=3, transport="off", purpose="train.persona", policy_sha256=open_to_all.sha256)
    query = replace(query, release_sha256=start)
    home.learner.losses = [2.0, 1.5, 1.75]
    answer = decode(home.ask(query, rows))
    assert isinstance(answer, Answer)
    slots, weights = query.split(decode_mean(from_ring(answer.vector), query.clip_norm, query.integer_clip, 1))
    assert not slots[[0, 2]].any() and slots[1].any() and weights is not None
    np.testing.assert_allclose(weights * 4, [0, 0.1, 0], atol=1e-6)
    [begun] = home.learner.starts
    assert np.array_equal(LAYOUT.flatten(begun), LAYOUT.flatten(cores[1]))


CHOSEN = replace(
    POLICY,
    allow_unprotected=True,
    purposes=("cluster.persona", "train.persona"),
    objectives=("centroid-sums", "next-token"),
    public_sha256="f" * 64,
)


def asked_of_three(choice: str, **changes: Any) -> tuple[Query, Rows]:
    """Return a noiseless query of three slots and its rows: cores of 0, 1, 2, with `nearest` a centroid behind each."""
    rows = np.repeat(np.arange(3, dtype=np.float32)[:, None], LAYOUT.dim + (choice == "nearest"), axis=1)
    asked = {"purpose": "train.persona", "transport": "off", "policy_sha256": CHOSEN.sha256, **changes}
    query = replace(QUERY, slots=3, choice=choice, **asked)
    return replace(query, release_sha256=rows_sha256("b" * 64, rows)), rows


def slots_of(answer: bytes, query: Query) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    message = decode(answer)
    assert isinstance(message, Answer), message
    slots, weights = query.split(decode_mean(from_ring(message.vector), query.clip_norm, query.integer_clip, 1))
    assert weights is not None
    return slots, weights


def test_the_nearest_centroid_or_the_owners_word_chooses_the_slot(home: Home) -> None:
    home.reopen(CHOSEN)
    home.learner.losses, home.learner.named = [2.0, 1.5, 1.0], 0
    for number, (choice, chosen) in enumerate((("least-loss", 2), ("nearest", 2), ("declared", 0))):
        query, rows = asked_of_three(choice, round=number)
        if choice == "nearest":
            assert home.code(query, rows) == RefusalCode.BASIS, "a centroid of another encoder's is no centroid"
            home.learner.public_sha256 = CHOSEN.public_sha256
        slots, weights = slots_of(home.ask(query, rows), query)
        assert np.flatnonzero(np.abs(slots).sum(axis=1)).tolist() == [chosen] == np.flatnonzero(weights).tolist()


@pytest.mark.parametrize("named", [None, 3, -1])
def test_who_declared_no_persona_trains_all_the_same_and_answers_zeros(home: Home, named: int | None) -> None:
    home.reopen(CHOSEN)
    home.learner.named = named
    query, rows = asked_of_three("declared")
    slots, weights = slots_of(home.ask(query, rows), query)
    assert not slots.any() and not weights.any()
    assert len(home.learner.starts) == 1, "the same work as for everybody else"


def test_figures_are_answered_by_devices_whose_public_tables_are_the_policys(home: Home) -> None:
    home.reopen(CHOSEN)
    home.learner.losses = [1.0, 0.5, 2.0]
    query, rows = asked_of_three("nearest", purpose="cluster.persona", objective="centroid-sums")
    for held in (None, "e" * 64):
        home.learner.public_sha256 = held
        assert home.code(query, rows) == RefusalCode.BASIS
    home.learner.public_sha256 = CHOSEN.public_sha256
    slots, weights = slots_of(home.ask(query, rows), query)
    assert np.linalg.norm(slots[1]) == pytest.approx(query.figure, rel=1e-6), "a figure of 1 is not clipped"
    assert weights[1] == pytest.approx(float(query.weight), rel=1e-6) and not home.learner.starts


@pytest.mark.parametrize("width", [LAYOUT.dim - 1, LAYOUT.dim + 1])
def test_rows_of_another_width_than_the_adapters_are_refused(home: Home, width: int) -> None:
    rows = np.zeros((1, width), dtype=np.float32)
    assert home.code(replace(QUERY, release_sha256=rows_sha256("b" * 64, rows)), rows) == RefusalCode.RELEASE


def test_an_objective_that_the_policy_does_not_grant_is_refused(home: Home) -> None:
    assert home.code(replace(QUERY, objective="reply-only")) == RefusalCode.OBJECTIVE
    assert home.kinds() == ["GENESIS"]


@pytest.mark.parametrize("stop", STOPS)
def test_what_is_beyond_the_owners_dial_is_refused_and_costs_nothing(home: Home, stop: str) -> None:
    home.device.allowed = lambda: allowed(stop)
    if stop == "all":
        assert isinstance(decode(home.ask()), Answer)
        return
    assert home.code() == RefusalCode.PURPOSE
    assert home.kinds() == ["GENESIS"] and not list(home.answers.iterdir())


# -- charged before anything is computed --------------------------------------------------------------------------


def test_the_charge_is_on_the_disk_before_training_and_noise(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    states: list[tuple[str, str]] = []

    def look(where: str) -> None:
        [charged] = home.ledger().account.charged()
        assert charged.event == QUERY.event_id("ann").hex() and not list(home.answers.iterdir())
        states.append((where, charged.state))

    def noisy(*arguments: Any) -> Answer:
        look("noise")
        return make_answer(*arguments)

    home.learner.on_update = lambda: look("training")
    monkeypatch.setattr(client.agent, "make_answer", noisy)
    assert isinstance(decode(home.ask()), Answer)
    assert states == [("training", "reserved"), ("noise", "reserved")]


class FullDisk:
    """A disk on which nothing more can be written."""

    def write(self, descriptor: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    def fsync(self, descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    truncate = fsync_folder = fsync


def test_what_cannot_be_charged_is_not_computed(home: Home) -> None:
    home.reopen(disk=FullDisk())
    assert home.code() == RefusalCode.UNABLE
    assert home.learner.seeds == []


# -- one event, one answer ----------------------------------------------------------------------------------------


def test_the_same_question_again_has_the_same_bytes_and_one_charge(home: Home) -> None:
    first = home.ask()
    home.learner.direction = -home.learner.direction
    home.reopen()
    assert home.ask() == first and len(home.learner.seeds) == 1
    assert home.kinds() == ["GENESIS", "RESERVE", "COMMIT"]


class Crash(BaseException):
    """Stands for the end of the process: no handler of the device may catch it."""


def test_a_crash_while_training_costs_one_charge(home: Home, tmp_path: Path) -> None:
    undisturbed = Home(tmp_path / "undisturbed")

    def crash() -> None:
        raise Crash

    home.learner.on_update = crash
    with pytest.raises(Crash):
        home.ask()
    assert home.kinds() == ["GENESIS", "RESERVE"] and home.device.ledger.spent_rho() == Fraction(1, 2)
    home.reopen()
    home.learner.on_update = lambda: None
    answer, wanted = decode(home.ask()), decode(undisturbed.ask())
    assert isinstance(answer, Answer) and isinstance(wanted, Answer)
    np.testing.assert_array_equal(answer.vector, wanted.vector)
    assert answer.ledger_head == home.ledger().entries[1].sha256
    assert home.kinds() == ["GENESIS", "RESERVE", "COMMIT"] and home.device.ledger.spent_rho() == Fraction(1, 2)


def test_a_crash_before_commit_hands_over_the_stored_answer(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: Any) -> None:
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(home.device.ledger, "commit", crash)
        with pytest.raises(Crash):
            home.ask()
    [stored] = home.answers.iterdir()
    kept = stored.read_bytes()
    home.reopen()
    home.learner.direction = -home.learner.direction
    assert home.ask() == kept and len(home.learner.seeds) == 1
    assert home.kinds() == ["GENESIS", "RESERVE", "COMMIT"] and home.device.ledger.spent_rho() == Fraction(1, 2)


def test_the_last_participation_survives_a_crash(home: Home) -> None:
    """An event that was charged is not counted against itself when it is taken up again."""
    tight = replace(POLICY, max_participations=1, budget_rho=Fraction(1, 2))
    home.reopen(tight)
    query = replace(QUERY, policy_sha256=tight.sha256)

    def crash() -> None:
        raise Crash

    home.learner.on_update = crash
    with pytest.raises(Crash):
        home.ask(query)
    home.reopen(tight)
    home.learner.on_update = lambda: None
    assert isinstance(decode(home.ask(query)), Answer)
    assert home.code(replace(query, round=1)) == RefusalCode.PARTICIPATIONS


def test_another_question_under_an_answered_event_is_refused(home: Home) -> None:
    home.ask()
    before = home.path.read_bytes()
    assert home.code(replace(QUERY, ledger_head="d" * 64)) == RefusalCode.STALE
    assert home.code(replace(QUERY, clip_norm=Fraction(1, 5))) == RefusalCode.UNABLE, "the ledger refuses it"
    assert home.path.read_bytes() == before and len(home.learner.seeds) == 1


def test_a_damaged_stored_answer_is_not_made_anew(home: Home) -> None:
    home.ask()
    [stored] = home.answers.iterdir()
    stored.write_bytes(stored.read_bytes()[:-1])
    assert home.code() == RefusalCode.UNABLE and len(home.learner.seeds) == 1


# -- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"federation": "other"}, RefusalCode.FEDERATION),
        ({"policy_sha256": "d" * 64}, RefusalCode.POLICY),
        ({"basis_sha256": "d" * 64}, RefusalCode.BASIS),
        ({"purpose": "train.persona"}, RefusalCode.PURPOSE),
        ({"transport": "off"}, RefusalCode.UNPROTECTED),
        ({"replayed_noise": True}, RefusalCode.REPLAYED_NOISE),
        ({"cohort": Cohort(9)}, RefusalCode.COHORT),
        ({"noise_multiplier": Fraction(2, 5)}, RefusalCode.NOISE),
        ({"clip_norm": Fraction(11, 10)}, RefusalCode.CLIP),
        ({"slot_dim": 101}, RefusalCode.DIM),
        ({"limits": Limits(own_tokens=513, local_steps=2)}, RefusalCode.WORK),
        ({"limits": Limits(own_tokens=512, local_steps=9)}, RefusalCode.WORK),
        ({"release_sha256": "d" * 64}, RefusalCode.RELEASE),
        ({"slots": 2}, RefusalCode.RELEASE),
    ],
)
def test_every_bound_of_the_policy_is_kept(home: Home, changes: dict[str, Any], code: RefusalCode) -> None:
    assert home.code(replace(QUERY, **changes)) == code
    assert home.learner.seeds == [] and home.kinds() == ["GENESIS"], "nothing computed, nothing charged"
    assert isinstance(decode(home.ask()), Answer), "the query without the change is fine"


def test_the_survivors_floor_is_kept(home: Home) -> None:
    strict = replace(POLICY, min_survivor_fraction=Fraction(9, 10))
    home.reopen(strict)
    assert home.code(replace(QUERY, policy_sha256=strict.sha256)) == RefusalCode.SURVIVORS


def test_participations_are_counted(home: Home) -> None:
    answers = [decode(home.ask(replace(QUERY, round=n))) for n in range(3)]
    assert all(isinstance(answer, Answer) for answer in answers)
    assert home.code(replace(QUERY, round=3)) == RefusalCode.PARTICIPATIONS
    assert isinstance(decode(home.ask(replace(QUERY, round=1))), Answer), "what was answered stays answered"


def test_past_the_budget_nothing_is_answered(home: Home) -> None:
    many = replace(POLICY, max_participations=100, budget_rho=Fraction(9, 8))
    home.reopen(many)
    query = replace(QUERY, policy_sha256=many.sha256)
    assert isinstance(decode(home.ask(query)), Answer) and isinstance(decode(home.ask(replace(query, round=1))), Answer)
    assert home.code(replace(query, round=2)) == RefusalCode.BUDGET
    home.reopen(many)
    assert home.code(replace(query, round=2)) == RefusalCode.BUDGET
    cheaper = replace(query, round=2, noise_multiplier=Fraction(2))  # 1/8 is left, and 1/8 it costs
    assert isinstance(decode(home.ask(cheaper)), Answer)
    assert home.device.ledger.spent_rho() == Fraction(9, 8) and len(home.learner.seeds) == 3


# -- whatever fails inside ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(SECRET),
        ValueError(SECRET),
        KeyError(SECRET),
        MemoryError(SECRET),
        OSError(5, SECRET),
        LedgerError(SECRET),
        ZeroDivisionError(),
    ],
)
def test_an_error_inside_is_one_code_and_no_text(
    home: Home, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], error: Exception
) -> None:
    def fail() -> None:
        raise error

    home.learner.on_update = fail
    with caplog.at_level(logging.DEBUG):
        answer = home.ask()
    message = decode(answer)
    assert isinstance(message, Refusal) and message.code is RefusalCode.UNABLE
    assert SECRET.encode() not in answer and SECRET not in caplog.text and type(error).__name__ in caplog.text
    assert SECRET not in "".join(capfd.readouterr())
    assert home.kinds() == ["GENESIS", "RESERVE"], "the charge stays: nobody can check that nothing left"


@pytest.mark.parametrize("refusal", [PolicyRefused(RefusalCode.RELEASE, SECRET), BudgetExhausted(RefusalCode.BUDGET)])
def test_the_detail_of_a_refusal_stays(home: Home, refusal: PolicyRefused) -> None:
    def fail() -> None:
        raise refusal

    home.learner.on_update = fail
    answer = home.ask()
    message = decode(answer)
    assert isinstance(message, Refusal) and message.code == refusal.code and SECRET.encode() not in answer


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_update_of_nan_is_not_answered(home: Home, bad: float) -> None:
    home.learner.direction = np.full(LAYOUT.dim, bad)
    assert home.code() == RefusalCode.UNABLE


def test_an_update_of_another_shape_is_not_answered(home: Home) -> None:
    home.learner.direction = np.ones(LAYOUT.dim + 1)
    assert home.code() == RefusalCode.UNABLE


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"\xff\xfe", QUERY.to_bytes()[:-1], b" " + QUERY.to_bytes(), b"x" * 10**5]
)
def test_bytes_that_are_no_query_are_refused(home: Home, data: bytes) -> None:
    message = decode(home.device.answer(data, RELEASE))
    assert isinstance(message, Refusal) and message.code is RefusalCode.UNABLE
    assert home.kinds() == ["GENESIS"]


def test_devices_of_one_folder_have_ledgers_and_answers_of_their_own(tmp_path: Path) -> None:
    keys = {user: Ed25519PrivateKey.generate() for user in ("ann", "ben")}
    devices = open_devices(
        tmp_path / "devices",
        POLICY,
        list(keys),
        keys,
        lambda user: device_noise_key(bytes(32), user),
        FakeLearner(),
        tmp_path / "answers",
    )
    answers = {user: decode(device.answer(QUERY.to_bytes(), RELEASE)) for user, device in devices.items()}
    vectors = [answer.vector for answer in answers.values() if isinstance(answer, Answer)]
    assert len(vectors) == 2 and not np.array_equal(vectors[0], vectors[1]), "the same update under noise of its own"
    for user, key in keys.items():
        view = read_ledger(tmp_path / "devices" / f"{user}.jsonl", key.public_key())
        assert view.genesis["owner"] == user and view.account.spent_rho() == Fraction(1, 2)
        assert len(list((tmp_path / "answers" / user).iterdir())) == 1
        devices[user].ledger.close()


def test_adapters_other_than_those_the_query_names_are_refused(home: Home) -> None:
    """The device hashes what it is about to train from; it does not take the server's word for it."""
    other = np.full((1, LAYOUT.dim), 1e-3, dtype=np.float32)
    message = decode(home.ask(QUERY, other))
    assert isinstance(message, Refusal) and message.code == RefusalCode.RELEASE
    assert not home.learner.starts and home.ledger().account.spent_rho() == 0


def test_an_answer_to_a_masked_query_never_goes_in_the_clear(home: Home) -> None:
    """The noise of one device alone is not what the query promises; nothing is trained or charged for the asking."""
    masked = replace(QUERY, transport="masked", directory_sha256="d" * 64)
    message = decode(home.device.answer(masked.to_bytes(), RELEASE))
    assert isinstance(message, Refusal) and message.code == RefusalCode.SUM
    assert home.learner.seeds == [] and home.device.ledger.account.participations() == 0


RECORD = RecordCharge("shared_core", 1.0, 0.25, 40, 1.0, 1e-5)


def test_an_organisation_notes_its_record_level_line_before_it_trains(home: Home) -> None:
    home.reopen(POLICY)
    home.device.record = RECORD
    for number in range(2):
        assert isinstance(decode(home.ask(replace(QUERY, round=number))), Answer)
    kinds = [entry.kind for entry in home.device.ledger.entries()]
    assert kinds.count("RECORD_DP") == 1 and kinds.index("RESERVE") < kinds.index("RECORD_DP") < kinds.index("COMMIT")


def test_an_organisation_refuses_what_its_noise_does_not_cover(home: Home) -> None:
    home.reopen(CHOSEN)
    home.device.record = RECORD
    home.learner.losses = [1.0, 0.5, 2.0]
    home.learner.public_sha256 = CHOSEN.public_sha256
    for choice, more in (("least-loss", {}), ("nearest", {"purpose": "cluster.persona", "objective": "centroid-sums"})):
        assert home.code(*asked_of_three(choice, **more)) == RefusalCode.OBJECTIVE
