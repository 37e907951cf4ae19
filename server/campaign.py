"""A campaign: a plan of queries, the sums that came back, and the adapters that follow from them.

The adapters are a pure function of the plan and of the flushed sums, in order. So the only state is a folder of sums:
a round counts from the moment its sum is on the disk, and a server killed at any moment starts again from the last one.

    query stored -> RESERVE -> devices answer -> sum flushed (commit point) -> COMMIT -> next round
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from numpy.typing import NDArray
from safetensors.numpy import load as load_tensors

from privacy.account import FEDERATION
from privacy.answer import sum_answers
from privacy.canonical import Json, canonical_json, parse_canonical, sha256_hex
from privacy.directory import Directory
from privacy.errors import CohortTooSmall, ConfigError, LedgerError, SignatureInvalid
from privacy.files import write_atomic
from privacy.fixedpoint import decode_mean
from privacy.ledger import Ledger
from privacy.query import Cohort, Query
from privacy.tensors import tensors_to_bytes
from privacy.wire import Answer
from server.personas import collapsed, published
from server.plan import CampaignPlan as CampaignPlan
from server.public import Public
from server.state import RoundSum as RoundSum
from server.state import State, advanced, first_state

MAX_ATTEMPTS = 3
ReleaseHash = Callable[[NDArray[np.float64]], str]


@dataclass(frozen=True)
class Asked:
    """One round that waits for answers: the query, whom it invites, what they start from, float64 [rows, numbers]."""

    query: Query
    query_bytes: bytes
    invited: tuple[str, ...]
    slots: NDArray[np.float64]


@dataclass(frozen=True)
class Unlisted:
    """Devices too many to be listed: their names in order, and the key of each, made when it is looked up."""

    names: Sequence[str]
    keys: Mapping[str, Ed25519PublicKey]


class Campaign:
    """Drives one plan over a folder and a ledger; `device_ids` is the directory, `release_hash` hashes a round's start.

    What the plan rests on besides lies beside `folder`, see `server.public`.

    With `keys`, an answer counts only if its device signed it; without (a comparison in one process) none is checked.

    With `listed` false the devices are more than anybody lists: `device_ids` are sorted, `keys` looked up one by one,
    neither is copied, and the ledger gets a device's key when the device is first asked.

    Raises LedgerError where the folder holds another campaign's sums.
    """

    def __init__(
        self,
        plan: CampaignPlan,
        folder: Path,
        ledger: Ledger,
        device_ids: Sequence[str],
        release_hash: ReleaseHash,
        keys: Mapping[str, Ed25519PublicKey] | None = None,
        listed: bool = True,
    ) -> None:
        self.plan, self.folder, self.ledger = plan, folder, ledger
        self.directory: Sequence[str] = sorted(device_ids) if listed else device_ids
        self.keys: Mapping[str, Ed25519PublicKey] = dict(keys or {}) if listed else keys or {}
        self._noted = None if listed else set(noted_devices(ledger))
        self._release_hash = release_hash
        self._require_cohort()
        folder.mkdir(parents=True, exist_ok=True)
        self.public = Public.load(folder.parent)
        self.state = first_state(plan, self.public)
        self.sums: list[RoundSum] = []
        for result in self._flushed():
            self._take(result)

    @property
    def finished(self) -> bool:
        """Return whether every round has its sum."""
        return len(self.sums) == len(self.plan.steps)

    @property
    def released(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the global core [d] and the personas' offsets [K, d] that are released: the last, or the best."""
        best = self.state.best
        return (best.core, best.personas) if best is not None else (self.state.core, self.state.personas)

    def published_personas(self) -> list[int]:
        """Return the personas whose noisy count is at least four of its deviations and at least the plan's floor."""
        state = self.state
        if not any(sum_.query.purpose == "train.persona" for sum_ in self.sums):
            return []
        return published(state.persona_counts, state.count_deviation, self.plan.persona_floor)

    @property
    def collapsed(self) -> bool:
        """Return whether one persona holds nearly everybody that was counted, see `server.personas.collapsed`."""
        return collapsed(self.state.persona_counts, self.state.count_deviation, self.plan.persona_floor)

    def renew(self, directory: Directory) -> None:
        """Ask the devices of `directory` from the next attempt on: who was revoked is out, who was admitted is in.

        The mapping `keys` stays the same object, for whoever brings the frames. Raises ConfigError where a cohort can
        no longer be drawn.
        """
        if directory.sha256 == self.plan.directory_sha256:
            return
        note_directory(self.ledger, directory)
        self.plan = replace(self.plan, directory_sha256=directory.sha256)
        self.directory = sorted(directory)
        if not isinstance(self.keys, dict):
            raise ConfigError("a directory came to a federation that keeps none")
        self.keys.clear()
        self.keys.update(directory)
        self._require_cohort()

    def ask(self) -> Asked:
        """Return the next round's question, reserved in the ledger; after a crash the very one that was stored."""
        number = len(self.sums)
        attempt = self._attempt(number)
        path = self._path(number, attempt, "query")
        invited = self._invited(number, attempt)
        slots = self.state.rows(self.plan.steps[number])
        self._note(invited)
        if not path.exists():
            write_atomic(path, self._query(number, attempt, slots).to_bytes())
        query = self._stored(number, attempt)
        self.ledger.reserve(query, FEDERATION, invited)
        return Asked(query, query.to_bytes(), invited, slots)

    def take(self, asked: Asked, answers: Iterable[Answer]) -> RoundSum:
        """Sum the answers in the clear and take the sum, see `take_sum`; answers that are not genuine do not count.

        Raises CohortTooSmall if too few answered; the attempt is then lost, see `lose`.
        """
        genuine = sorted(filter(self._genuine, answers), key=lambda answer: answer.device_id)
        try:
            total, _ = sum_answers(asked.query, genuine)
        except CohortTooSmall:
            self.lose(asked)
            raise
        return self.take_sum(asked, total, {answer.device_id: answer.ledger_head for answer in genuine})

    def take_sum(self, asked: Asked, total: NDArray[np.int64], heads: Mapping[str, str]) -> RoundSum:
        """Flush a sum, int64 [dim], of the devices in `heads` (each with the ledger head it signed); advance; return.

        Raises CohortTooSmall for fewer devices than the query promised: such a sum never counts.
        """
        query = asked.query
        if len(heads) < query.cohort.min_survivors or not set(heads) <= set(asked.invited):
            raise CohortTooSmall(f"a sum of {len(heads)} answers, the query needs {query.cohort.min_survivors}")
        facts = {"sum": tensors_to_bytes({"total": total}).hex(), "heads": dict(heads)}
        write_atomic(self._path(query.round, query.attempt, "sum"), canonical_json(facts))
        result = self._committed(query, total, heads)
        self._take(result)
        return result

    def lose(self, asked: Asked) -> None:
        """Mark an attempt as lost: `ask` begins another with new noise, until MAX_ATTEMPTS.

        What devices have spent stays spent.
        """
        write_atomic(self._path(asked.query.round, asked.query.attempt, "lost"), b"")

    def lose_begun(self) -> None:
        """Mark as lost the attempt that an earlier process of this server asked for and has no sum of, if there is one.

        Where a masked vector may have left its device, the same question is never asked again: the devices that
        answered are out of that sum, and the keys that would open it died with the process. The next attempt has new
        noise. An attempt lost so counts towards MAX_ATTEMPTS like any other.
        """
        number = len(self.sums)
        if self.finished:
            return
        attempt = self._attempt(number)
        if self._path(number, attempt, "query").exists():
            write_atomic(self._path(number, attempt, "lost"), b"")

    def _genuine(self, answer: Answer) -> bool:
        """Return whether the device's key in the directory signed the answer; without keys, nothing is checked."""
        key = self.keys.get(answer.device_id)
        if key is None:
            return not len(self.keys)
        try:
            answer.verify(key)
        except SignatureInvalid:
            return False
        return True

    # -- inside ---------------------------------------------------------------------------------------------------

    def _note(self, invited: Sequence[str]) -> None:
        """Put the keys of those who were never asked before into the ledger, where it did not begin with them."""
        if self._noted is None or not self.keys:
            return
        came = {name: self.keys[name].public_bytes_raw().hex() for name in invited if name not in self._noted}
        if came:
            self.ledger.append("POLICY", {"devices": came, "directory_sha256": self.plan.directory_sha256, "left": []})
            self._noted |= came.keys()

    def _require_cohort(self) -> None:
        cohort, there = self.plan.cohort, len(self.directory)
        if cohort > there:
            raise ConfigError(f"a cohort of {cohort} cannot be drawn from {there} devices")

    def _flushed(self) -> Iterator[RoundSum]:
        """Yield the rounds whose sums are on the disk, and note in the ledger what a crash left unnoted."""
        for number in range(len(self.plan.steps)):
            attempt = self._attempt(number)
            path = self._path(number, attempt, "sum")
            if not path.exists():
                return
            yield self._committed(self._stored(number, attempt), *_stored_sum(path))

    def _take(self, result: RoundSum) -> None:
        self.state = advanced(self.plan, self.state, result)
        self.sums.append(result)

    def _query(self, number: int, attempt: int, slots: NDArray[np.float64]) -> Query:
        plan, step = self.plan, self.plan.steps[number]
        return Query(
            federation=plan.federation,
            campaign=plan.campaign,
            round=number,
            attempt=attempt,
            purpose=step.purpose,
            slots=step.slots,
            slot_dim=step.slot_dim,
            clip_norm=plan.clip_norm,
            noise_multiplier=step.noise_multiplier,
            cohort=Cohort(plan.cohort),
            transport=plan.transport,
            release_sha256=self._release_hash(slots),
            basis_sha256=plan.basis_sha256,
            policy_sha256=plan.policy_sha256,
            directory_sha256=plan.directory_sha256,
            ledger_head=self.ledger.head,
            objective=step.objective,
            choice=step.choice,
            limits=plan.limits,
            replayed_noise=plan.replayed_noise,
        )

    def _stored(self, number: int, attempt: int) -> Query:
        """Return the query on the disk. The plan and the adapters so far must ask the very same, or LedgerError.

        But for the directory: who may take part changes while a campaign goes on.
        """
        path = self._path(number, attempt, "query")
        query = Query.from_bytes(path.read_bytes())
        expected = self._query(number, attempt, self.state.rows(self.plan.steps[number]))
        if query != replace(expected, ledger_head=query.ledger_head, directory_sha256=query.directory_sha256):
            raise LedgerError(f"{path.name} is not what this plan asks: the folder belongs to another campaign")
        return query

    def _invited(self, number: int, attempt: int) -> tuple[str, ...]:
        rng = np.random.default_rng([self.plan.seed, 2, number, attempt])
        chosen = rng.choice(len(self.directory), self.plan.cohort, replace=False)
        return tuple(self.directory[i] for i in sorted(chosen))

    def _attempt(self, number: int) -> int:
        for attempt in range(MAX_ATTEMPTS):
            if not self._path(number, attempt, "lost").exists():
                return attempt
        raise CohortTooSmall(f"round {number}: too few devices answered in {MAX_ATTEMPTS} attempts")

    def _path(self, number: int, attempt: int, kind: str) -> Path:
        return self.folder / f"round-{number:05d}-{attempt}.{kind}"

    def _committed(self, query: Query, total: NDArray[np.int64], heads: Mapping[str, str]) -> RoundSum:
        """Note a flushed sum in the ledger, once, with who is in it and which head of its own ledger each signed."""
        digest = sha256_hex(total.astype("<i8").tobytes())
        self.ledger.commit(query.event_id(FEDERATION), survivors=sorted(heads), heads=dict(heads), sum_sha256=digest)
        return _round_sum(query, total, heads)


def note_directory(ledger: Ledger, directory: Directory) -> None:
    """Note in the federation's ledger who came and who went since it was last noted, once, for whoever audits it.

    The first entry holds whom it began with; devices that came later stand in a POLICY entry, with their keys.
    """
    there = noted_devices(ledger)
    now = {member.device_id: member.public_key for member in directory.members}
    came, left = {n: key for n, key in now.items() if there.get(n) != key}, sorted(set(there) - set(now))
    if came or left:
        ledger.append("POLICY", {"devices": came, "directory_sha256": directory.sha256, "left": left})


def noted_devices(ledger: Ledger) -> dict[str, Json]:
    """Return the devices that the federation's ledger names, with their keys: who came, without those who left."""
    there: dict[str, Json] = {}
    for entry in ledger.entries():
        if entry.kind in ("GENESIS", "POLICY"):
            there |= cast("dict[str, Json]", entry.body.get("devices") or {})
            for name in cast("list[str]", entry.body.get("left") or []):
                there.pop(name, None)
    return there


def replayed(plan: CampaignPlan, folder: Path) -> State:
    """Return what follows from the sums in `folder`; reads only, for whoever looks on."""
    state = first_state(plan, Public.load(folder.parent))
    for number in range(len(plan.steps)):
        found = sorted(folder.glob(f"round-{number:05d}-*.sum"))
        if not found:
            break
        query = Query.from_bytes(found[-1].with_suffix(".query").read_bytes())
        state = advanced(plan, state, _round_sum(query, *_stored_sum(found[-1])))
    return state


def _stored_sum(path: Path) -> tuple[NDArray[np.int64], Mapping[str, str]]:
    facts: Any = parse_canonical(path.read_bytes())
    return load_tensors(bytes.fromhex(facts["sum"]))["total"], facts["heads"]


def _round_sum(query: Query, total: NDArray[np.int64], heads: Mapping[str, str]) -> RoundSum:
    return RoundSum(query, len(heads), decode_mean(total, query.clip_norm, query.integer_clip, len(heads)))
