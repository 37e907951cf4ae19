"""One round of a campaign: who is there, what they lack, training, then the stages of the private sum.

    hello -> release -> fit (accepted at once) -> the training window -> one stage of the sum after the other -> total

Every stage has a deadline. Who does not answer a stage in time is not asked at the next; what comes late or twice is
dropped. How frames travel is the courier's business: Flower in `server.courier`, pipes in the local engine. Which
stages there are is the sum's (`privacy.secagg`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from privacy.canonical import sha256_hex
from privacy.directory import read_directory
from privacy.errors import CohortTooSmall, ConfideError, SumInvalid, WireError
from privacy.query import Query
from privacy.secagg.clear import ClearSum
from privacy.secagg.server import SumServer
from privacy.session import (
    Accepted,
    Delivery,
    Received,
    Start,
    Training,
    basis_item,
    digest_of,
    directory_item,
    history_item,
)
from privacy.wire import Message, Refusal, RefusalCode, decode
from server.campaign import Asked, Campaign, RoundSum

SPENT = " (an attempt that was lost is spent all the same: fewer devices must drop out)"
HINTS: Mapping[str, str] = {
    RefusalCode.UNABLE: " (it could not write, or read, its own files: is the disk full?)",
    RefusalCode.PARTICIPATIONS: SPENT,
    RefusalCode.BUDGET: SPENT,
}


Done = Callable[[str, bytes], None]


HANDED_OVER = ("answer", "mask")  # the stage at which a device's vector leaves it


class Courier(Protocol):
    """Brings frames to devices and answers back."""

    def greet(self, offered: Sequence[str], invited: Sequence[str]) -> Mapping[str, int]:
        """Return the devices that are there, each with the bits of the `offered` hashes that it holds.

        Only the `invited` matter; a courier that cannot tell who is where asks everybody.
        """

    def exchange(self, action: str, frames: Mapping[str, bytes], deadline_s: float, done: Done) -> None:
        """Send each device its frame; `done(device, answer)` as the answers come, until all are here or time is up."""


class PrivateSum(Protocol):
    """A sum in stages; see `privacy.secagg.clear` for the methods' meaning."""

    @property
    def stage(self) -> str:
        """Return the stage that waits for answers."""

    @property
    def finished(self) -> bool:
        """Return whether the sum is there."""

    @property
    def total(self) -> NDArray[np.int64]:
        """Return the lifted sum, int64 [dim]."""

    @property
    def survivors(self) -> tuple[str, ...]:
        """Return whose answers are in the sum."""

    @property
    def heads(self) -> Mapping[str, str]:
        """Return the ledger head that each survivor signed."""

    def requests(self) -> Mapping[str, bytes]:
        """Return the frames to send now, by device."""

    def receive(self, device_id: str, frame: bytes) -> bool:
        """Take a device's answer to this stage; False if it is not one."""

    def advance(self) -> None:
        """Close the stage; raises CohortTooSmall where too few are left."""


@dataclass(frozen=True)
class Deadlines:
    """Seconds: `greeting` for who is there, `stage` for each exchange after it, `window` between the word to train and
    the first question for its result, `training` for how long a device that is not ready is asked again, every `again`
    seconds."""

    stage: float = 90.0
    window: float = 0.0
    training: float = 3600.0
    again: float = 0.5
    greeting: float = 30.0


class Watch:
    """What may look on: a person at a terminal, a test, the researcher of a simulation. Here: nobody."""

    def stage(self, asked: Asked, name: str, devices: int) -> None:
        """A stage begins for so many devices."""

    def answered(self, asked: Asked, name: str, device_id: str) -> None:
        """A device answered it."""

    def closed(self, asked: Asked, survivors: Sequence[str], seconds: float) -> None:
        """All answers of an attempt are in; called before the sum is flushed and counts."""

    def lost(self, asked: Asked, reason: str) -> None:
        """An attempt came to nothing; another one follows."""

    def summed(self, asked: Asked, result: RoundSum) -> None:
        """A sum is flushed and counts."""


@dataclass(frozen=True)
class Rounds:
    """What all rounds of one campaign share. `basis` is its file's bytes, `sign` signs what a round starts from.

    `dropped` is for simulation: the devices whose answers are lost on the way, by the schedule and not by the clock.
    `directory` returns the file of the directory as it stands now, looked at before each attempt; b"" where there is
    none, and the devices are those that the federation began with.
    """

    campaign: Campaign
    courier: Courier
    basis: bytes
    sign: Callable[[Start], Start]
    deadlines: Deadlines = Deadlines()
    watch: Watch = field(default_factory=Watch)
    dropped: Callable[[Asked], frozenset[str]] = lambda _: frozenset()
    directory: Callable[[], bytes] = lambda: b""

    def run(self) -> None:
        """Run what is left of the campaign. Raises CohortTooSmall when a round failed in all its attempts."""
        while not self.campaign.finished:
            self.one()

    def one(self) -> RoundSum:
        """Run the next round, in as many attempts as it takes, and return it."""
        while True:
            file = self.directory()
            if file:
                self.campaign.renew(read_directory(file))
            asked, started = self.campaign.ask(), time.monotonic()
            try:
                result = self._sum(asked, started, (directory_item(file),) if file else ())
            except (CohortTooSmall, SumInvalid) as error:
                self.campaign.lose(asked)
                self.watch.lost(asked, str(error))
            else:
                taken = self.campaign.take_sum(asked, result.total, result.heads)
                self.watch.summed(asked, taken)
                return taken

    def _sum(self, asked: Asked, started: float, members: tuple[bytes, ...]) -> PrivateSum:
        accepted = self._train(asked, members)
        machine = sum_for(asked, self.campaign)
        time.sleep(max(0.0, self.deadlines.window))
        answering = accepted
        while not machine.finished:
            answering = self._stage(asked, machine, answering)
            if machine.stage in HANDED_OVER:
                self.watch.closed(asked, sorted(answering), time.monotonic() - started)
            machine.advance()
        return machine

    def _train(self, asked: Asked, members: tuple[bytes, ...]) -> set[str]:
        """Bring everybody what they lack, ask for training, and return who accepted."""
        slots = asked.slots.astype(np.float32)
        query = asked.query
        start = self.sign(Start(query.federation, query.campaign, query.round, slots))
        items = (*members, basis_item(self.basis), start.item(), history_item(*self.campaign.ledger.shown(query)))
        present = self._present(asked, [sha256_hex(item) for item in items])
        lacking = {d: tuple(item for i, item in enumerate(items) if not held >> i & 1) for d, held in present.items()}
        parcels = {parts: Delivery(parts).encode() for parts in set(lacking.values()) if parts}
        ready = {device for device, parts in lacking.items() if not parts}
        deliveries = {device: parcels[parts] for device, parts in lacking.items() if parts}

        def received(device: str, message: Message) -> bool:
            if not isinstance(message, Received) or message.digest != digest_of(lacking[device]):
                return False
            ready.add(device)
            return True

        self._exchange(asked, "release", deliveries, received)
        if len(ready) < query.cohort.min_survivors:  # before anybody trains, and pays, for a sum that cannot be
            raise CohortTooSmall(f"{len(ready)} devices are there, the query needs {query.cohort.min_survivors}")
        accepted: set[str] = set()
        refused: dict[str, str] = {}

        def answered(device: str, message: Message) -> bool:
            if not isinstance(message, Accepted | Refusal) or message.query_sha256 != query.sha256:
                return False
            if isinstance(message, Accepted):
                accepted.add(device)
            else:
                refused[device] = message.code
            return True

        word = Training(asked.query_bytes).encode()
        self._exchange(asked, "fit", dict.fromkeys(sorted(ready), word), answered)
        _require_somebody(ready, accepted, refused)
        return accepted

    def _present(self, asked: Asked, offered: Sequence[str]) -> dict[str, int]:
        """Return the invited devices that are there with what they hold, once they are enough or the time is up."""
        until = time.monotonic() + self.deadlines.greeting
        while True:
            there = self.courier.greet(offered, asked.invited)
            present = {device: there[device] for device in asked.invited if device in there}
            if len(present) >= asked.query.cohort.min_survivors or time.monotonic() > until:
                return present
            time.sleep(self.deadlines.again)

    def _stage(self, asked: Asked, machine: PrivateSum, answering: set[str]) -> set[str]:
        """Ask those of `answering` whom the sum asks at this stage; return who gave a genuine answer."""
        name, arrived, refused, heard = machine.stage, set[str](), dict[str, str](), set[str]()
        requests = {device: frame for device, frame in machine.requests().items() if device in answering}
        waiting = requests
        lost = self.dropped(asked) if name in HANDED_OVER else frozenset()
        until = time.monotonic() + self.deadlines.training
        self.watch.stage(asked, name, len(waiting))
        while waiting:
            busy: dict[str, bytes] = {}

            def done(device: str, frame: bytes, busy: dict[str, bytes] = busy) -> None:
                if device not in requests or device in arrived:
                    return
                code = _code(frame, device, asked.query)
                if code == RefusalCode.BUSY:
                    busy[device] = requests[device]
                    return
                if code:
                    refused[device] = code
                elif device not in lost:
                    if not machine.receive(device, frame):
                        return
                    arrived.add(device)
                busy.pop(device, None)
                if device not in heard:
                    heard.add(device)
                    self.watch.answered(asked, name, device)

            self.courier.exchange(name, waiting, self.deadlines.stage, done)
            waiting = busy if time.monotonic() < until else {}
            if waiting:
                time.sleep(self.deadlines.again)
        if not lost:
            _require_somebody(requests, arrived, refused)
        return arrived

    def _exchange(
        self, asked: Asked, action: str, frames: Mapping[str, bytes], take: Callable[[str, Message], bool]
    ) -> None:
        heard: set[str] = set()

        def done(device: str, frame: bytes) -> None:
            with suppress(WireError):
                message = decode(frame)
                if device not in frames or device in heard or message.device_id != device:
                    return
                if take(device, message):
                    heard.add(device)
                    self.watch.answered(asked, action, device)

        if frames:
            self.watch.stage(asked, action, len(frames))
            self.courier.exchange(action, frames, self.deadlines.stage, done)


def sum_for(asked: Asked, campaign: Campaign) -> PrivateSum:
    """Return the sum of a round's transport, ready for its first stage."""
    if asked.query.transport == "masked":
        return SumServer(asked.query, asked.invited, campaign.keys, threads=os.cpu_count() or 1)
    return ClearSum(asked.query, asked.invited, campaign.keys)


def scheduled_dropouts(seed: int, share: float, asked: Asked) -> frozenset[str]:
    """Return whose answers a simulation loses: floor(share x invited) of them, drawn by the public `seed`.

    Such a device has trained, paid its budget and sent.
    """
    query: Query = asked.query
    rng = np.random.default_rng([seed, 3, query.round, query.attempt])
    return frozenset(rng.permutation(sorted(asked.invited))[: int(share * len(asked.invited))].tolist())


def _require_somebody(asked: Collection[str], answered: set[str], refused: Mapping[str, str]) -> None:
    """Raise ConfideError where every device refused: another attempt would be refused too.

    But for an attempt that devices took part in before, with a server whose backup knows nothing of it: that is lost.
    """
    if asked and not answered and set(refused) == set(asked) and set(refused.values()) != {RefusalCode.STALE}:
        codes = sorted(set(refused.values()))
        hint = next((HINTS[code] for code in codes if code in HINTS), "")
        raise ConfideError(f"every device refused: {', '.join(codes)}{hint}")


def _code(frame: bytes, device: str, query: Query) -> str:
    """Return the code of the device's refusal of this query, "" for any other frame."""
    try:
        message = decode(frame)
    except WireError:
        return ""
    if not isinstance(message, Refusal) or (message.device_id, message.query_sha256) != (device, query.sha256):
        return ""
    return message.code
