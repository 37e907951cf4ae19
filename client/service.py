"""The agent's side of the relay: frames in, frames out, for the people of one process.

Training is accepted at once and done by one worker thread, because a process has one model; what it gives is asked for
later. Whatever comes in, what goes out is a wire message or nothing: no text, no exception, no sign of how long the
training took before `hold_s` has passed.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from client.agent import Device, Part
from client.contribution import Rows
from client.deliveries import Deliveries
from privacy.canonical import sha256_hex
from privacy.errors import ConfideError, WireError
from privacy.query import Query
from privacy.secagg.messages import FromServer
from privacy.session import Accepted, Delivery, Greeting, Received, Training, digest_of
from privacy.wire import RefusalCode, Request, decode_request

logger = logging.getLogger(__name__)
NOTHING = b""
KEPT_JOBS = 64


@dataclass
class Job:
    """One accepted query of one device: what to run, and what answers the stages of the sum once it has run."""

    run: Callable[[], Part]
    accepted_s: float
    failed: Part
    done: threading.Event = field(default_factory=threading.Event)
    _part: Part | None = None
    _one: threading.Lock = field(default_factory=threading.Lock)

    def finish(self) -> None:
        """Run it, once. `Device.part` does not raise; if it did, the answer is `failed`."""
        with self._one:
            if self._part is None:
                try:
                    self._part = self.run()
                except Exception as error:  # noqa: BLE001 - an error of a thread goes to stderr with all its text
                    logger.warning("a training failed: %s", type(error).__name__)
                    self._part = self.failed
                self.done.set()

    def answer(self, frame: bytes) -> bytes:
        """Return the answer to a stage, one frame after the other.

        A server may ask through two relays at once. A device that checked both requests before it moved on would sign
        two sets of survivors.
        """
        with self._one:
            assert self._part is not None
            return self._part(frame)


class Worker:
    """Runs jobs one after the other in a thread of its own, the oldest first. `lock` is held while one runs."""

    def __init__(self, lock: threading.RLock) -> None:
        self._lock, self._jobs, self._some = lock, deque[Job](), threading.Condition()
        threading.Thread(target=self._run, daemon=True, name="training").start()

    def put(self, job: Job) -> None:
        """Take a job."""
        with self._some:
            self._jobs.append(job)
            self._some.notify()

    def clear(self) -> None:
        """Drop the jobs that wait; one that runs goes on."""
        with self._some:
            self._jobs.clear()

    def _run(self) -> None:
        while True:
            with self._some:
                while not self._jobs:
                    self._some.wait()
                job = self._jobs.popleft()
            with self._lock:
                job.finish()


class Lazy:
    """Runs a job when its answer is asked for: for an engine that makes one call after the other."""

    def put(self, job: Job) -> None:
        """Leave the job for later."""


@dataclass(frozen=True)
class Pace:
    """When answers are ready for a relay.

    `hold_s`: an answer is not handed over before that many seconds after its training was accepted, so that a fast
    training looks like a slow one. `patience_s`: how long a collection waits for an answer that is not ready. A device
    waits not at all; simulated people, whose training times are nobody's secret, are waited for.
    """

    hold_s: float = 0.0
    patience_s: float = 0.0


class AgentService:
    """Answers the relay for `devices`, which are known to it by their place in the sequence."""

    def __init__(
        self,
        devices: Sequence[Device],
        deliveries: Deliveries,
        worker: Worker | Lazy,
        pace: Pace = Pace(),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.devices, self.deliveries = devices, deliveries
        self._worker, self._pace, self._clock = worker, pace, clock
        self._jobs: dict[int, dict[str, Job]] = {}  # by place, and there by the query's hash
        self._lock = threading.Lock()
        self._heard: tuple[bytes, Request] | None = None  # the last frame, and what it says
        self._taken: tuple[Delivery, str] | None = None  # the last delivery, and its hash

    def reply(self, place: int, node_id: int, data: bytes) -> bytes:
        """Return the frame that answers `data` for the device at `place`, or nothing for what is not a request."""
        try:
            if not 0 <= place < len(self.devices):
                raise WireError("no such device")
            request = self._read(data)
            if isinstance(request, Greeting):
                held = self.deliveries.held(request.offered)
                return self.devices[place].hello(held, node_id, request.nonce)
            if isinstance(request, Delivery):
                return self._delivered(place, request)
            if isinstance(request, Training):
                return self._training(place, request)
            return self._stage(place, request, data)
        except ConfideError as error:
            logger.warning("a request was dropped: %s", type(error).__name__)
        except Exception as error:  # noqa: BLE001 - an error's text may hold a person's; its kind is all that is kept
            logger.warning("a request failed: %s", type(error).__name__)
        return NOTHING

    def forget_jobs(self) -> None:
        """Drop every accepted query with what its training gave: whoever asks for a stage of it is refused."""
        with self._lock:
            self._jobs.clear()

    def _read(self, data: bytes) -> Request:
        """Return the request in a frame; where one call comes after the other, the same one often comes for many."""
        if self._heard is None or self._heard[0] != data:
            heard = data, decode_request(data)
            if not isinstance(self._worker, Lazy):
                return heard[1]
            self._heard = heard
        return self._heard[1]

    def _delivered(self, place: int, delivery: Delivery) -> bytes:
        """Take what was delivered; what was delivered last, to another of these people, is here already."""
        taken = self._taken
        if taken is None or taken[0] is not delivery:
            self.deliveries.take(delivery.items)
            taken = delivery, digest_of(delivery.items)
            self._taken = taken if isinstance(self._worker, Lazy) else None
        return Received(self.devices[place].device_id, taken[1]).encode()

    def _training(self, place: int, request: Training) -> bytes:
        """Accept at once what the policy grants; the same query again is the same one job."""
        device, query_bytes = self.devices[place], request.query_bytes
        query_sha256 = sha256_hex(query_bytes)
        rows = self._rows(query_bytes)
        with self._lock:
            jobs = self._jobs.setdefault(place, {})
            if query_sha256 not in jobs:
                refused = device.refusal(query_bytes, rows, self.deliveries.history)
                if refused is not None:
                    return refused
                failed = device.refuse(query_sha256, RefusalCode.UNABLE)
                job = Job(lambda: self.devices[place].part(query_bytes, rows), self._clock(), lambda _frame: failed)
                jobs[query_sha256] = job
                for old in list(jobs)[:-KEPT_JOBS]:
                    del jobs[old]
                self._worker.put(job)
        return Accepted(query_sha256, device.device_id).encode()

    def _stage(self, place: int, request: FromServer, data: bytes) -> bytes:
        """Return the answer to a stage of the sum, or a refusal: not ready, or a query this process never accepted."""
        job = self._jobs.get(place, {}).get(request.query_sha256)
        if job is None:
            return self.devices[place].refuse(request.query_sha256, RefusalCode.STALE)
        if isinstance(self._worker, Lazy):
            job.finish()
        if self._clock() < job.accepted_s + self._pace.hold_s or not job.done.wait(self._pace.patience_s):
            return self.devices[place].refuse(request.query_sha256, RefusalCode.BUSY)
        return job.answer(data)

    def _rows(self, query_bytes: bytes) -> Rows | None:
        try:
            return self.deliveries.start(Query.from_bytes(query_bytes).release_sha256)
        except ConfideError:
            return None  # `Device.refusal` will say what is wrong with the query
