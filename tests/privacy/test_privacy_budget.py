"""The budget of a device over years, wrong clocks, new policies and restored backups: never refunded, never passed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.account import FEDERATION, Spent, Unsent, remembered
from privacy.checkpoint import Checkpoint, Standing, cosigned, is_fork
from privacy.errors import BudgetExhausted, LedgerError, PolicyRefused, SignatureInvalid, WireError
from privacy.history import MAX_VISITS, Figures, History, Visit, open_history, thinned
from privacy.ledger import Ledger, read_ledger
from privacy.meter import YEAR_MS, Meter
from privacy.policy import Policy, signed_policy
from privacy.query import Query
from privacy.wire import RefusalCode

Ask = Callable[..., Query]
Grant = Callable[..., Policy]
ROOT = Ed25519PrivateKey.from_private_bytes(bytes(32))
DEVICE = Ed25519PrivateKey.from_private_bytes(b"\x01" * 32)
SERVER = Ed25519PrivateKey.from_private_bytes(b"\x02" * 32)
WITNESS = Ed25519PrivateKey.from_private_bytes(b"\x03" * 32)
WITNESS_KEY = WITNESS.public_key().public_bytes_raw().hex()
START = 1_760_000_000_000
HALF = Fraction(1, 2)  # rho of one answer at z = 1


@dataclass
class Clock:
    """A clock that a test sets."""

    now: int = START

    def __call__(self) -> int:
        return self.now


@dataclass
class Home:
    """A device's ledger under a policy, with a clock to set."""

    ledger: Ledger
    policy: Policy
    clock: Clock
    asked: Ask

    def answer(self, round_: int) -> bytes:
        """Charge one more answer as an agent does, policy first."""
        query = self.asked(round=round_, policy_sha256=self.policy.sha256)
        self.policy.check(query, *self.ledger.spent(query.event_id("d")))
        return bytes.fromhex(self.ledger.reserve(query, "d").event)


def genesis() -> dict[str, object]:
    return {"federation": "test", "owner": "d", "root_key": ROOT.public_key().public_bytes_raw().hex()}


@pytest.fixture
def home(tmp_path: Path, asked: Ask, granted: Grant) -> Home:
    policy = granted(max_participations=100, budget_rho=Fraction(3), yearly_rho=Fraction(1))
    clock = Clock()
    return Home(Ledger(tmp_path / "d.jsonl", DEVICE, genesis(), clock=clock), policy, clock, asked)


def code_of(home: Home, round_: int) -> str:
    with pytest.raises(BudgetExhausted) as refusal:
        home.answer(round_)
    return refusal.value.code


# -- the year --------------------------------------------------------------------------------------------------------


def test_a_year_allows_its_share_and_a_lifetime_its_sum(home: Home) -> None:
    for year in range(3):
        home.clock.now = START + year * YEAR_MS
        home.answer(10 * year)
        home.clock.now += YEAR_MS // 2
        home.answer(10 * year + 1)
        assert code_of(home, 10 * year + 2) == (RefusalCode.YEARLY if year < 2 else RefusalCode.BUDGET)
        home.clock.now = START + (year + 1) * YEAR_MS - 1  # any 365 days, not the turn of a year
        assert code_of(home, 10 * year + 2) == (RefusalCode.YEARLY if year < 2 else RefusalCode.BUDGET)
    home.clock.now = START + 50 * YEAR_MS
    assert code_of(home, 99) == RefusalCode.BUDGET
    assert home.ledger.spent() == Spent(Fraction(3), 6, Fraction(0))


def test_a_charge_counts_for_exactly_365_days(home: Home) -> None:
    home.answer(0)
    home.answer(1)
    home.clock.now = START + YEAR_MS - 1
    assert home.ledger.spent().year_rho == 1
    home.clock.now += 1
    assert home.ledger.spent().year_rho == 0
    home.clock.now -= 1  # asking wrote nothing, so nothing is forgotten
    assert home.ledger.spent().year_rho == 1


def test_a_clock_set_back_wins_nothing(home: Home) -> None:
    home.answer(0)
    home.answer(1)
    for back in (1, YEAR_MS, START):
        home.clock.now = START - back
        assert code_of(home, 2) == RefusalCode.YEARLY
    home.clock.now = START + YEAR_MS - 1
    assert code_of(home, 2) == RefusalCode.YEARLY


def test_a_clock_set_forward_wins_one_allowance_a_year_and_is_not_taken_back(home: Home) -> None:
    home.answer(0)
    home.answer(1)
    home.clock.now = START + YEAR_MS
    home.answer(2)
    home.answer(3)
    home.clock.now = START  # back to the truth: the ledger stays in its future
    assert code_of(home, 4) == RefusalCode.YEARLY
    home.clock.now = START + 2 * YEAR_MS - 1
    assert code_of(home, 4) == RefusalCode.YEARLY
    home.clock.now = START + 40 * YEAR_MS
    home.answer(4)
    home.answer(5)
    assert code_of(home, 6) == RefusalCode.BUDGET  # the lifetime bounds all of it
    assert home.ledger.spent_rho() == 3


def test_without_its_own_figure_the_year_counts_everything(asked: Ask, granted: Grant) -> None:
    policy = granted(yearly_rho=Fraction(1))
    query = asked(policy_sha256=policy.sha256)
    policy.check(query, HALF, 1)
    with pytest.raises(BudgetExhausted) as refusal:
        policy.check(query, Fraction(1), 2)
    assert refusal.value.code == RefusalCode.YEARLY
    policy.check(query, Fraction(1), 2, HALF)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, YEAR_MS), st.integers(1, 9), st.booleans()), max_size=30))
def test_the_meter_is_the_sum_over_a_window(charges: list[tuple[int, int, bool]]) -> None:
    meter, now, kept = Meter(), START, []
    for number, (wait, rho, void) in enumerate(charges):
        now += wait
        meter.charge(str(number), Fraction(rho, 7), now)
        if void:
            meter.void(str(number))
        else:
            kept.append((now, Fraction(rho, 7)))
        for later in (0, YEAR_MS // 3, YEAR_MS):
            assert meter.year_rho(now + later) == sum(r for date, r in kept if date > now + later - YEAR_MS)


# -- signed time -----------------------------------------------------------------------------------------------------


def note_of(federation: Ledger, seconds: int | None = None, key: Ed25519PrivateKey = WITNESS) -> bytes:
    note = federation.checkpoint().signed(SERVER)
    return note if seconds is None else cosigned(note, key, seconds)


@pytest.fixture
def federation(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "federation.jsonl", SERVER, {"federation": "test", "owner": FEDERATION})


def test_with_signed_time_the_own_clock_wins_nothing(home: Home, federation: Ledger) -> None:
    home.policy = replace(home.policy, witness_key=WITNESS_KEY)
    home.ledger.grant(signed_policy(home.policy, ROOT))
    key, start = SERVER.public_key(), START // 1000
    home.clock.now = 1  # a clock at 1970 would date the charges so that they are forgotten at once
    home.answer(0)
    home.clock.now = START + 90 * YEAR_MS
    home.answer(1)
    assert code_of(home, 2) == RefusalCode.YEARLY
    home.ledger.see(note_of(federation), key)  # no signed time on it
    home.ledger.see(note_of(federation, start + 10 * YEAR_MS // 1000, DEVICE), key)  # not by the witness
    assert code_of(home, 2) == RefusalCode.YEARLY
    home.ledger.see(note_of(federation, start), key)  # from here a year runs
    home.ledger.see(note_of(federation, start + YEAR_MS // 1000 - 1), key)
    assert code_of(home, 2) == RefusalCode.YEARLY
    home.ledger.see(note_of(federation, start + YEAR_MS // 1000 + 3600), key)
    home.answer(2)
    home.ledger.see(note_of(federation, start), key)  # an old note again: no way back
    assert home.ledger.spent().year_rho == HALF
    with Ledger(home.ledger.path.with_name("copy.jsonl"), DEVICE, genesis()) as copy:
        assert copy.account.policy is None
    view = read_ledger(home.ledger.path)
    assert view.account.meter.year_rho(0) == HALF


def test_a_state_seen_before_is_noted_again_at_most_once_an_hour(home: Home, federation: Ledger) -> None:
    home.ledger.grant(signed_policy(replace(home.policy, witness_key=WITNESS_KEY), ROOT))
    for seconds in (1000, 1001, 4599, 4600, 4601):
        home.ledger.see(note_of(federation, seconds), SERVER.public_key())
    assert [entry.kind for entry in home.ledger.entries()].count("SEEN") == 2


# -- the policy in the ledger ----------------------------------------------------------------------------------------


def test_a_granted_policy_binds_the_ledger_itself(home: Home, tmp_path: Path) -> None:
    home.ledger.grant(signed_policy(home.policy, ROOT))
    home.ledger.grant(signed_policy(home.policy, ROOT))
    assert [entry.kind for entry in home.ledger.entries()] == ["GENESIS", "GRANT"]
    for number in range(2):
        home.ledger.reserve(home.asked(round=number, policy_sha256=home.policy.sha256), "d")
    before = home.ledger.path.read_bytes()
    for changes, code in (
        ({}, RefusalCode.YEARLY),
        ({"noise_multiplier": Fraction(1, 3)}, RefusalCode.NOISE),
        ({"policy_sha256": "0" * 64}, RefusalCode.POLICY),
    ):
        with pytest.raises(PolicyRefused) as refusal:  # an agent that forgot to ask its policy
            home.ledger.reserve(home.asked(round=9, **{"policy_sha256": home.policy.sha256, **changes}), "d")
        assert refusal.value.code == code
    assert home.ledger.path.read_bytes() == before


def test_a_ledger_past_its_granted_policy_cannot_be_read(home: Home, tmp_path: Path, asked: Ask) -> None:
    """Written by a device whose code was changed, with its own key: every reader refuses the line."""
    from privacy.account import reserve_body
    from privacy.chain import sign_entry

    home.ledger.grant(signed_policy(home.policy, ROOT))
    home.answer(0)
    home.answer(1)
    last = home.ledger.entries()[-1]
    body = reserve_body(asked(round=2, policy_sha256=home.policy.sha256), "d", ())
    _, line = sign_entry(DEVICE, seq=4, prev=last.sha256, ts_ms=last.ts_ms, kind="RESERVE", body=body)
    home.ledger.path.write_bytes(home.ledger.path.read_bytes() + line)
    with pytest.raises(LedgerError, match=r"^line 5: budget\.yearly"):
        read_ledger(home.ledger.path)


def test_only_a_new_policy_of_the_root_key_gives_more(home: Home) -> None:
    home.ledger.grant(signed_policy(home.policy, ROOT))
    home.answer(0)
    home.answer(1)
    more = replace(home.policy, yearly_rho=Fraction(2), serial=1)
    with pytest.raises(LedgerError, match="root key did not sign"):
        home.ledger.grant(signed_policy(more, SERVER))
    with pytest.raises(LedgerError, match="serial"):
        home.ledger.grant(signed_policy(replace(more, serial=0), ROOT))
    with pytest.raises(LedgerError, match="another federation"):
        home.ledger.grant(signed_policy(replace(more, federation="other"), ROOT))
    home.ledger.grant(signed_policy(more, ROOT))
    less = replace(home.policy, serial=2)
    home.policy = more
    home.answer(2)
    home.ledger.grant(signed_policy(less, ROOT))
    home.policy = less
    assert code_of(home, 3) == RefusalCode.YEARLY  # what was spent under the larger one stays spent
    with pytest.raises(LedgerError, match="serial"):
        home.ledger.grant(signed_policy(more, ROOT))  # the generous one does not come back


def test_no_policy_is_held_without_a_root_key(tmp_path: Path, home: Home) -> None:
    with Ledger(tmp_path / "e.jsonl", DEVICE, {"federation": "test", "owner": "e"}) as ledger:
        with pytest.raises(LedgerError, match="root key"):
            ledger.grant(signed_policy(home.policy, ROOT))
        with pytest.raises(WireError):
            ledger.grant(b"{}}")
        with pytest.raises(LedgerError):
            ledger.grant(b"[]")


# -- ABORT -----------------------------------------------------------------------------------------------------------


def test_only_the_process_that_reserved_may_abort(home: Home) -> None:
    event = home.answer(0)
    home.ledger.close()
    with Ledger(home.ledger.path, DEVICE, clock=home.clock) as later:
        for reason in Unsent:
            with pytest.raises(LedgerError, match="not reserved by this process"):
                later.abort(event, reason)
        assert later.spent_rho() == HALF
        home.ledger = later
        again = home.answer(1)
        with pytest.raises(ValueError, match="arrived too late"):
            later.abort(again, "arrived too late")  # type: ignore[arg-type]
        with pytest.raises(LedgerError, match="one of these reasons"):
            later.append("ABORT", {"event": again.hex(), "reason": "arrived too late"})
        later.abort(again, Unsent.NOT_TRAINED)
        assert later.spent() == Spent(HALF, 1, HALF)
        assert later.account.figures() == Figures(2, 0, Fraction(1), 2 * HALF * 57)  # others remember the gross figure


# -- restored from a backup ------------------------------------------------------------------------------------------


def visit(ledger: Ledger) -> Visit:
    return Visit(ledger.head, ledger.account.figures())


def told(*visits: Visit, key: Ed25519PrivateKey = WITNESS) -> bytes:
    return History("test", "d", tuple(visits), visits[-1].figures).signed(key)


TRUSTED = [WITNESS.public_key(), SERVER.public_key()]


def restored(home: Home, after: int) -> list[Visit]:
    """Answer four rounds with a visit after each, then go back to the backup made `after` so many; return visits."""
    visits, backup = [], home.ledger.path.with_suffix(".backup")
    for number in range(4):
        if number == after:
            shutil.copy(home.ledger.path, backup)
        home.ledger.reserve(home.asked(round=number), "d")
        visits.append(visit(home.ledger))
    home.ledger.close()
    shutil.copy(backup, home.ledger.path)
    home.ledger = Ledger(home.ledger.path, DEVICE, clock=home.clock)
    return visits


@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_restored_device_ends_at_what_the_witness_saw(home: Home, after: int) -> None:
    visits = restored(home, after)
    assert home.ledger.spent_rho() == after * HALF
    lost = home.ledger.adopt(told(*visits), TRUSTED)
    assert lost.rho == (4 - after) * HALF
    assert home.ledger.spent() == Spent(Fraction(2), 4, Fraction(2))
    assert home.ledger.account.figures() == visits[-1].figures
    assert home.ledger.adopt(told(*visits), TRUSTED) == Figures()  # twice is once
    with Ledger(home.ledger.path.with_name("x.jsonl"), DEVICE, genesis()):
        pass
    assert read_ledger(home.ledger.path).account.spent_rho() == 2


def test_a_restored_device_that_answered_since_counts_both_pasts(home: Home) -> None:
    visits = restored(home, 1)
    home.ledger.reserve(home.asked(round=50), "d")
    home.ledger.adopt(told(*visits), TRUSTED)
    assert home.ledger.spent_rho() == 5 * HALF  # max(own, witness) would say 4
    home.ledger.reserve(home.asked(round=51), "d")
    assert home.ledger.adopt(told(*visits, visit(home.ledger)), TRUSTED) == Figures()
    assert home.ledger.spent_rho() == 6 * HALF


def test_the_servers_own_ledger_is_a_memory_too(home: Home, federation: Ledger) -> None:
    backup = home.ledger.path.with_suffix(".backup")
    for number in range(4):
        query = home.asked(round=number)
        federation.reserve(query, FEDERATION, ["d", "e"])
        if number < 3:  # to the last round its answer never came; it may have left all the same
            home.ledger.reserve(query, "d")
            federation.commit(query.event_id(FEDERATION), survivors=["d", "e"], heads={"d": home.ledger.head})
        if number == 0:
            shutil.copy(home.ledger.path, backup)
    home.ledger.close()
    shutil.copy(backup, home.ledger.path)
    home.ledger = Ledger(home.ledger.path, DEVICE, clock=home.clock)
    told_by_server = remembered(read_ledger(federation.path).account, "d")
    assert [visit.figures.rho for visit in told_by_server.visits] == [HALF, 2 * HALF, 3 * HALF]
    home.ledger.adopt(told_by_server.signed(SERVER), TRUSTED)
    assert home.ledger.spent_rho() == 4 * HALF
    federation.reserve(home.asked(round=9), FEDERATION, ["d"])  # and later only what came since
    again = remembered(read_ledger(federation.path).account, "d")
    assert home.ledger.adopt(again.signed(SERVER), TRUSTED).rho == HALF
    assert remembered(federation.account, "stranger").total == Figures()


def test_adopting_never_lowers_and_a_sound_ledger_loses_nothing(home: Home) -> None:
    home.answer(0)
    seen = visit(home.ledger)
    home.answer(1)
    size = len(home.ledger.entries())
    assert home.ledger.adopt(told(seen), TRUSTED) == Figures()
    assert home.ledger.adopt(told(Visit("f" * 64, Figures())), TRUSTED) == Figures()
    assert (len(home.ledger.entries()), home.ledger.spent_rho()) == (size, Fraction(1))


@settings(max_examples=60, deadline=None)
@given(backup=st.integers(0, 5), lost=st.integers(0, 5), since=st.integers(0, 4), seen=st.sets(st.integers(0, 9)))
def test_whatever_was_seen_no_charge_is_undercounted(
    tmp_path_factory: pytest.TempPathFactory, asked: Ask, backup: int, lost: int, since: int, seen: set[int]
) -> None:
    """Trunk, lost branch and new branch; the witness came by after some of the charges of trunk and lost branch."""
    folder = tmp_path_factory.mktemp("fork")
    visits, copy = [], folder / "copy"
    with Ledger(folder / "d.jsonl", DEVICE, genesis()) as ledger:
        for number in range(backup + lost):
            if number == backup:
                shutil.copy(ledger.path, copy)
            ledger.reserve(asked(round=number), "d")
            visits += [visit(ledger)] if number in seen else []
        if lost == 0:
            shutil.copy(ledger.path, copy)
    shutil.copy(copy, folder / "d.jsonl")
    with Ledger(folder / "d.jsonl", DEVICE) as ledger:
        for number in range(since):
            ledger.reserve(asked(round=100 + number), "d")
        own = ledger.spent_rho()
        if visits:
            ledger.adopt(told(*visits), TRUSTED)
            known_lost = max(0, max(seen & set(range(backup + lost))) + 1 - backup)
            assert ledger.spent_rho() >= max(own + known_lost * HALF, visits[-1].figures.rho)
        assert ledger.spent_rho() <= (2 * backup + lost + since) * HALF


def test_adopted_spend_counts_against_every_bound(home: Home) -> None:
    visits = restored(home, 0)
    home.ledger.grant(signed_policy(home.policy, ROOT))
    home.ledger.adopt(told(*visits, key=SERVER), TRUSTED)
    assert code_of(home, 60) == RefusalCode.YEARLY
    home.clock.now += YEAR_MS  # as if all of it had been spent when it was adopted
    home.answer(60)
    home.answer(61)
    assert code_of(home, 62) == RefusalCode.BUDGET
    home.policy = replace(home.policy, max_participations=6)
    with pytest.raises(PolicyRefused, match="participations"):
        home.answer(63)


def test_what_is_not_adopted(home: Home, federation: Ledger) -> None:
    visits = restored(home, 1)
    good = told(*visits)
    with pytest.raises(LedgerError, match="not trusted"):
        home.ledger.adopt(told(*visits, key=DEVICE), TRUSTED)
    with pytest.raises(LedgerError, match="another ledger"):
        home.ledger.adopt(History("test", "e", tuple(visits), visits[-1].figures).signed(WITNESS), TRUSTED)
    for offset in range(0, len(good), 7):
        with pytest.raises((WireError, SignatureInvalid, LedgerError)):
            home.ledger.adopt(good[:offset] + bytes([good[offset] ^ 1]) + good[offset + 1 :], TRUSTED)
    with pytest.raises(LedgerError, match="must not be restored"):
        federation.adopt(History("test", FEDERATION, (), Figures(1)).signed(WITNESS), TRUSTED)
    with pytest.raises(LedgerError, match="cannot be read"):
        home.ledger.append("ADOPT", {"history": {}, "signature": "0" * 128, "signer": "0" * 64})
    assert home.ledger.spent_rho() == HALF


def test_histories_are_whole_and_rising() -> None:
    rising = [Visit(f"{n:064x}", Figures(n, 0, n * HALF, n * HALF)) for n in range(200)]
    kept = thinned(tuple(rising))
    assert len(kept) <= MAX_VISITS and kept[-1] == rising[-1] and list(kept) == sorted(kept, key=lambda v: v.head)
    history = History("test", "d", kept, Figures(300, 1, Fraction(10**30, 7), Fraction(10**30)))
    assert open_history(history.signed(WITNESS)) == (history, WITNESS_KEY)
    with pytest.raises(WireError, match="fall"):
        History("test", "d", (rising[3], rising[2]), rising[5].figures)
    with pytest.raises(WireError, match="fall"):
        History("test", "d", (rising[3],), rising[2].figures)
    with pytest.raises(WireError, match="too many"):
        History("test", "d", tuple(rising[: MAX_VISITS + 1]), rising[-1].figures)
    with pytest.raises(WireError):
        History("test", "d", (Visit("zz", Figures()),), Figures())


# -- what a device saw of the federation -----------------------------------------------------------------------------


def test_a_device_follows_a_federation_that_continues_and_refuses_one_that_does_not(
    home: Home, federation: Ledger
) -> None:
    key, first = SERVER.public_key(), federation.checkpoint()
    assert home.ledger.see(note_of(federation), key) is Standing.FIRST
    assert home.ledger.see(note_of(federation), key) is Standing.SAME
    for number in range(6):
        federation.append("EVAL", {"n": number})
    proof = federation.consistency_proof(first.size)
    for wrong in ((), proof[:-1], federation.consistency_proof(2)):
        with pytest.raises(PolicyRefused) as refusal:
            home.ledger.see(note_of(federation), key, wrong)
        assert refusal.value.code == RefusalCode.HISTORY
    assert home.ledger.see(note_of(federation), key, proof) is Standing.EXTENDS
    with pytest.raises(PolicyRefused, match="rolled back"):
        home.ledger.see(first.signed(SERVER), key)
    with pytest.raises(SignatureInvalid):
        home.ledger.see(federation.checkpoint().signed(WITNESS), key)
    assert [entry.kind for entry in home.ledger.entries()] == ["GENESIS", "SEEN", "SEEN"]
    home.answer(0)


def test_two_histories_are_kept_as_evidence_and_end_it_also_after_a_restart(home: Home, federation: Ledger) -> None:
    key = SERVER.public_key()
    home.ledger.see(note_of(federation), key)
    other = Checkpoint("test/federation", 1, "a" * 64).signed(SERVER)
    with pytest.raises(PolicyRefused, match="forked"):
        home.ledger.see(other, key)
    home.ledger.close()
    fork = read_ledger(home.ledger.path).entries[-1]
    assert fork.kind == "FORK"
    assert is_fork(str(fork.body["first"]).encode(), str(fork.body["second"]).encode(), key)
    with Ledger(home.ledger.path, DEVICE) as again:
        for action in (lambda: again.see(note_of(federation), key), lambda: again.reserve(home.asked(), "d")):
            with pytest.raises(PolicyRefused) as refusal:
                action()
            assert refusal.value.code == RefusalCode.HISTORY


def test_entries_that_contradict_what_was_seen_are_not_written(home: Home, federation: Ledger) -> None:
    home.ledger.see(note_of(federation), SERVER.public_key())
    good = note_of(federation).decode()
    for kind, body in (
        ("SEEN", {"note": Checkpoint("test/federation", 1, "a" * 64).signed(SERVER).decode()}),
        ("SEEN", {"note": Checkpoint("test/other", 9, "a" * 64).signed(SERVER).decode()}),
        ("SEEN", {"note": "x"}),
        ("SEEN", {"note": good, "more": 1}),
        ("FORK", {"first": good, "second": good}),
        ("FORK", {"first": good}),
    ):
        with pytest.raises(LedgerError):
            home.ledger.append(kind, body)
    assert len(home.ledger.entries()) == 2


@pytest.fixture(autouse=True)
def _closed(home: Home, federation: Ledger) -> object:
    yield
    home.ledger.close()
    federation.close()
