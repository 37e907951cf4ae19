"""The line between a server inside Flower and the simulation that made its campaign: JSON lines over two pipes.

    simulation -> server    {"home": folder}    where the campaign lies      {"ack": true}    go on
    server -> simulation    {"event": name, ...}: a stage, an answer, all answers in, an attempt lost, the end

A server of a real federation has no such line: it finds its campaign in its own environment, and nobody looks on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Final

from privacy.errors import ConfideError
from server.campaign import Asked
from server.rounds import Watch

VARIABLE = "CONFIDE_LINK"
AT_ONCE: Final = 65_536  # bytes that are read at a time


class Link:
    """One end: reads lines from one descriptor, writes to another."""

    def __init__(self, reads: int, writes: int) -> None:
        self._in, self._out = os.fdopen(reads, "rb", buffering=0), os.fdopen(writes, "w", encoding="ascii")
        self._held = b""  # of what was read, what is no whole line yet

    @classmethod
    def inherited(cls) -> Link | None:
        """Return the end that the process was started with, None if there is none."""
        value = os.environ.pop(VARIABLE, "")
        return cls(*map(int, value.split(","))) if value else None

    @staticmethod
    def pair() -> tuple[Link, tuple[int, int]]:
        """Return one end, and the two descriptors of the other for a child process."""
        (theirs_in, ours_out), (ours_in, theirs_out) = os.pipe(), os.pipe()
        for descriptor in (theirs_in, theirs_out):
            os.set_inheritable(descriptor, True)
        return Link(ours_in, ours_out), (theirs_in, theirs_out)

    def send(self, line: dict[str, Any]) -> None:
        """Write one line. Raises ConfideError if nobody reads any more."""
        try:
            self._out.write(json.dumps(line) + "\n")
            self._out.flush()
        except (OSError, ValueError):  # a pipe that nobody reads, or an end that is closed here
            raise ConfideError("the other half of this run has ended") from None

    def lines(self, helpers: Sequence[int] = ()) -> Iterator[dict[str, Any]]:
        """Yield the lines that come, until one end closes. Raises ConfideError for what is none.

        `helpers` are the sentinels of processes (multiprocessing.Process.sentinel) without which no line would come any
        more: where one of them ends while nothing is there to read, that ends the lines too.
        """
        while not self._in.closed:
            text, found, rest = self._held.partition(b"\n")
            if not found:
                if helpers and self._in.fileno() not in wait([self._in.fileno(), *helpers]):
                    return
                if not (more := self._in.read(AT_ONCE)):
                    return
                self._held += more
                continue
            self._held = rest
            try:
                line = json.loads(text)
            except ValueError:
                raise ConfideError("the other half of this run sent what is not a line") from None
            if isinstance(line, dict):
                yield line

    def receive(self) -> dict[str, Any]:
        """Return the next line; raises ConfideError if the other end has closed."""
        for line in self.lines():
            return line
        raise ConfideError("the other half of this run has ended")

    def home(self) -> Path:
        """Return the folder of the campaign, which the simulation names first."""
        line = self.receive()
        if "home" not in line:
            raise ConfideError(str(line.get("failed", "the simulation named no campaign")))
        return Path(str(line["home"]))

    def close(self) -> None:
        """Close both descriptors."""
        for end in (self._out, self._in):
            with suppress(OSError):
                end.close()


class LinkWatch(Watch):
    """Tells the simulation what happens, and waits for it before a sum counts."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def stage(self, asked: Asked, name: str, devices: int) -> None:
        """Tell that a stage begins."""
        self._tell("stage", asked, name=name, devices=devices)

    def answered(self, asked: Asked, name: str, device_id: str) -> None:
        """Tell that a device answered."""
        self._tell("answered", asked, name=name, device=device_id)

    def closed(self, asked: Asked, survivors: Sequence[str], seconds: float) -> None:
        """Tell that all answers of an attempt are in, and wait until the simulation has looked at them."""
        self._tell("closed", asked, invited=asked.invited, survivors=list(survivors), seconds=seconds)
        self._link.receive()

    def lost(self, asked: Asked, reason: str) -> None:
        """Tell that an attempt came to nothing."""
        self._tell("lost", asked, reason=reason)

    def _tell(self, event: str, asked: Asked, **facts: Any) -> None:
        self._link.send({"event": event, "round": asked.query.round, "attempt": asked.query.attempt, **facts})
