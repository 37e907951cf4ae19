"""Bugs that real systems had, each put into the real code at the place where it would be made.

For `confide audit mechanism --plant` and its tests alone: `plant` wants an open permit of `simulation.mechanism`. Each
bug replaces a name where the code looks it up, and asserts first that it is there: code that moved makes the plant
fail, not the audit pass.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from typing import Any

import numpy as np

import client.agent
import client.contribution
import privacy.answer
import privacy.fixedpoint
import privacy.query
import privacy.secagg.keys
import simulation.run_folder
from client.agent import Device
from client.agent_home import AgentHome
from privacy.canonical import canonical_json, sha256_hex
from privacy.ledger import Ledger
from privacy.noise import KeyStream
from privacy.query import Query
from privacy.wire import Answer

# Names of other modules are looked up in these by the code itself, so that is where a bug has to sit.
_agent: Any = client.agent
_contribution: Any = client.contribution
_answer: Any = privacy.answer
BATCHES = 4
DOCUMENTS = 3
Change = tuple[Any, str, Any]


@contextmanager
def plant(name: str, permit: object) -> Iterator[None]:
    """Run the block with the bug `name` in the code."""
    kind = type(permit)
    if (kind.__module__, kind.__name__) != ("simulation.mechanism.planting", "Permit") or not permit.open:  # type: ignore[attr-defined]
        raise PermissionError("bugs are planted by the audit of the mechanism alone")
    with ExitStack() as stack:
        for owner, attribute, replacement in BUGS[name]():
            assert attribute in vars(owner), f"{owner} has no {attribute} any more"
            stack.callback(setattr, owner, attribute, vars(owner)[attribute])
            setattr(owner, attribute, replacement)
        yield


# -- noise ------------------------------------------------------------------------------------------------------------


def _noise(of: Callable[[Any, float, int, KeyStream], Any]) -> list[Change]:
    real = _answer.discrete_gaussian
    return [(_answer, "discrete_gaussian", lambda sigma, size, stream: of(real, sigma, size, stream))]


def no_noise() -> list[Change]:
    """Nobody adds noise."""
    return _noise(lambda real, sigma, size, stream: np.zeros(size, np.int64))


def half_noise() -> list[Change]:
    """Half the deviation."""
    return _noise(lambda real, sigma, size, stream: real(sigma / 2, size, stream))


def noise_for_the_invited() -> list[Change]:
    """Each device's share is that of all who were asked, not of the fewest honest who answer."""

    def sigma(query: Query) -> float:
        return float(math.ceil(float(query.noise_multiplier) * query.integer_clip / query.cohort.invited**0.5))

    return [(Query, "sigma", property(sigma))]


def half_the_devices_without_noise() -> list[Change]:
    """Every second device adds none."""
    real = _agent.make_answer

    def make(update: Any, query: Query, device_id: str, noise_key: bytes) -> Answer:
        if int(device_id.rpartition("-")[2]) % 2:
            made: Answer = real(update, query, device_id, noise_key)
            return made
        integers = _answer.encode(update, query.clip_norm, query.integer_clip)
        return Answer(query.sha256, device_id, _answer.to_ring(integers))

    return [(_agent, "make_answer", make)]


def mean_instead_of_sum() -> list[Change]:
    """Each device takes the noise of the mean for that of the sum: a share too small by the cohort."""
    shares: dict[str, float] = {}

    def sigma(query: Query) -> float:
        whole = float(query.noise_multiplier) * query.integer_clip / query.cohort.honest**0.5
        return shares.setdefault(query.sha256, float(max(10, round(whole / query.cohort.invited))))

    return [(Query, "sigma", property(sigma))]


def same_noise_every_round() -> list[Change]:
    """The stream of noise is named by the device alone."""
    return [(_answer, "answer_stream", lambda key, event, integers: KeyStream(key, bytes(32)))]


def seed_from_the_clock() -> list[Change]:
    """The stream of noise is seeded with the second that it is drawn in."""

    def stream(key: bytes, event: bytes, integers: Any) -> KeyStream:
        return KeyStream(hashlib.sha256(str(int(time.time())).encode()).digest(), event)

    return [(_answer, "answer_stream", stream)]


def noise_key_from_the_seed() -> list[Change]:
    """Noise keys are derived from the run's public seed, so that a run can be repeated."""
    root = hashlib.sha256(b"seed 0").digest()
    return [
        (simulation.run_folder, "_noise_root", lambda replayed: root),
        (AgentHome, "noise_key", property(lambda home: hashlib.sha256(home.settings.device.encode()).digest())),
    ]


def event_without_the_attempt() -> list[Change]:
    """The name of an event leaves the attempt out, so that two attempts are one event."""

    def event_id(query: Query, device_id: str) -> bytes:
        place = [query.federation, query.campaign, query.round, query.purpose, device_id]
        return bytes.fromhex(sha256_hex(canonical_json(place)))

    return [(Query, "event_id", event_id)]


def persona_slot_unmasked() -> list[Change]:
    """Only the slot that a person chose carries noise: which one that is, everybody sees."""
    real = _answer.discrete_gaussian
    chosen: list[Any] = []

    def encode(update: Any, clip: Fraction, integer_clip: int) -> Any:
        chosen[:] = [privacy.fixedpoint.encode(update, clip, integer_clip)]
        return chosen[0].copy()

    def noise(sigma: float, size: int, stream: KeyStream) -> Any:
        whole, slot_dim, slots = real(sigma, size, stream), (size - 3) // 3, 3
        if size % 3 or not chosen:  # one slot: nothing to give away
            return whole
        for slot in range(slots):
            part = slice(slot * slot_dim, (slot + 1) * slot_dim)
            whole[part] *= bool(chosen[0][part].any())
        return whole

    return [(_answer, "encode", encode), (_answer, "discrete_gaussian", noise)]


def short_mask_seed() -> list[Change]:
    """Masks grow from 32 bits of what two devices share."""

    def short(real: Callable[..., bytes]) -> Callable[..., bytes]:
        return lambda *arguments: hashlib.sha256(real(*arguments)[:4]).digest()

    keys = privacy.secagg.keys
    return [(keys, name, short(getattr(keys, name))) for name in ("pair_mask_key", "self_mask_key")]


# -- clip -------------------------------------------------------------------------------------------------------------


def _without_clip(update: Any, clip: Fraction, integer_clip: int) -> Any:
    return np.rint(np.asarray(update) * float(integer_clip / clip)).astype(np.int64)


def _placed(update: Any, query: Query, slot: int) -> Any:
    """Return what `slotted_update` returns, without its clip: the first of the two that an answer goes through."""
    vector = np.zeros(query.dim)
    vector[slot * query.slot_dim : (slot + 1) * query.slot_dim] = update
    if query.weighted:
        vector[query.slots * query.slot_dim + slot] = float(query.weight)
    return vector


def _unit(vector: Any, length: float) -> Any:
    largest = float(np.abs(vector).max())
    if largest == 0:
        return vector
    direction = vector / largest
    norm = float(np.linalg.norm(direction)) * largest
    return vector if norm <= length else direction / np.linalg.norm(direction) * length


def clip_per_batch() -> list[Change]:
    """Every batch's update is clipped, their sum is not."""

    def slotted(update: Any, query: Query, slot: int) -> Any:
        batches = sum(_unit(update / BATCHES, float(query.clip_norm)) for _ in range(BATCHES))
        return _placed(batches, query, slot)

    return [(_contribution, "slotted_update", slotted), (_answer, "encode", _without_clip)]


def clip_per_layer() -> list[Change]:
    """Every core is clipped to the clip, all together are not."""

    def encode(update: Any, clip: Fraction, integer_clip: int) -> Any:
        parts = np.array_split(privacy.fixedpoint._finite(update), BATCHES)
        return _without_clip(np.concatenate([_unit(part, float(clip)) for part in parts]), clip, integer_clip)

    return [(_contribution, "slotted_update", _placed), (_answer, "encode", encode)]


def nan_passes() -> list[Change]:
    """What is not a number is not looked for, and becomes some integer."""
    real = privacy.fixedpoint.encode

    def encode(update: Any, clip: Fraction, integer_clip: int) -> Any:
        return real(np.nan_to_num(update, posinf=1.0, neginf=-1.0), clip, integer_clip)

    return [(_contribution, "slotted_update", _placed), (_answer, "encode", encode)]


def weights_outside_the_clip() -> list[Change]:
    """An update is clipped, and then counts as many times as there are documents behind it."""

    def encode(update: Any, clip: Fraction, integer_clip: int) -> Any:
        return privacy.fixedpoint.encode(update, clip, integer_clip) * DOCUMENTS

    return [(_answer, "encode", encode)]


# -- charges ----------------------------------------------------------------------------------------------------------


def copies_for_one_charge() -> list[Change]:
    """A round is charged once; its further attempts are answered, with new noise, for nothing."""
    real_reserve, real_commit, real_spent = Ledger.reserve, Ledger.commit, Ledger.spent

    def reserve(ledger: Ledger, query: Query, device: str, invited: Any = ()) -> Any:
        return real_reserve(ledger, query, device, invited) if not query.attempt else None

    def commit(ledger: Ledger, event: bytes, **facts: object) -> None:
        if event.hex() in ledger.account.reservations:
            real_commit(ledger, event, **facts)

    return [(Ledger, "reserve", reserve), (Ledger, "commit", commit), (Ledger, "spent", real_spent)]


def redrawn_on_retry() -> list[Change]:
    """An answer is not kept: who asks again has training and noise anew."""
    number = itertools.count()
    return [(Device, "_stored", lambda device, event: device.home / f"{event.hex()}.{next(number)}.answer")]


def budget_after_noise() -> list[Change]:
    """Training and noise come first, the books are looked at when the answer is there."""
    real = Device._answer

    def answer(device: Device, query: Query, rows: Any) -> bytes:
        if query.transport != "masked" and not device._stored(query.event_id(device.device_id)).exists():
            _answer.make_answer(
                device._local_update(query, query.event_id(device.device_id), rows), query, device.device_id, bytes(32)
            )
        return real(device, query, rows)

    return [(Device, "_answer", answer)]


# -- text and what else leaves ----------------------------------------------------------------------------------------


def metric_outside_the_query() -> list[Change]:
    """The length of the local update goes along with the answer, for a curve on the server."""
    real = Device.answer

    def answer(device: Device, query_bytes: bytes, rows: Any) -> bytes:
        data = real(device, query_bytes, rows)
        query = Query.from_bytes(query_bytes)
        assert device.learner is not None
        norm = float(np.linalg.norm(device.learner.update(device.device_id, {}, query, 0)))
        return data + struct.pack("<d", norm) if np.isfinite(norm) else data

    return [(Device, "answer", answer)]


def scrub_skipped() -> list[Change]:
    """Text reaches training as it is."""
    import client.scrub  # loads a tagger, which the base install has not

    return [(client.scrub, "scrub_person", lambda person, *rest, **more: (person, None))]


BUGS: dict[str, Callable[[], list[Change]]] = {
    bug.__name__.replace("_", "-"): bug
    for bug in (
        *(no_noise, half_noise, noise_for_the_invited, half_the_devices_without_noise, mean_instead_of_sum),
        *(same_noise_every_round, seed_from_the_clock, noise_key_from_the_seed, event_without_the_attempt),
        *(persona_slot_unmasked, short_mask_seed, clip_per_batch, clip_per_layer, nan_passes),
        *(weights_outside_the_clip, copies_for_one_charge, redrawn_on_retry, budget_after_noise),
        *(metric_outside_the_query, scrub_skipped),
    )
}
