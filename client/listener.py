"""The two Unix sockets of an agent: one for the relay, one for the person; neither speaks the other's language.

    relay.sock    "confide-relay/1\\n" | place u32 | node u64 | n u32 | frame [n]      ->  n u32 | frame [n]
    person.sock   "confide-person/1\\n" | token [32] | n u32 | JSON [n]                ->  n u32 | JSON [n]

Whoever connects must run as the same user as the agent, or as one of `users` (a relay with an account of its own). The
relay's socket takes queries and nothing else, in bounded size; an answer leaves it only at a multiple of `tick_s` after
its question, so that the time of an answer tells nothing of the work behind it.
"""

from __future__ import annotations

import hmac
import json
import logging
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from privacy.errors import ConfigError
from privacy.wire import MAX_REQUEST_BYTES

logger = logging.getLogger(__name__)
RELAY_PREAMBLE = b"confide-relay/1\n"
PERSON_PREAMBLE = b"confide-person/1\n"
TOKEN_BYTES = 32
MAX_PERSON_BYTES = 2**20
MAX_PATH_BYTES = 100  # the kernel takes 107
IDLE_S = 30.0

Reply = Callable[[int, int, bytes], bytes]
Handler = Callable[[dict[str, Any]], dict[str, Any]]


class Listener:
    """A Unix socket, mode 0600, served by threads until `close`; a stale one from a dead process is replaced.

    Raises ConfigError for a path that is too long, is no socket, or at which another process listens.
    """

    def __init__(self, path: Path, users: Collection[int] = ()) -> None:
        if len(os.fsencode(path)) > MAX_PATH_BYTES:
            raise ConfigError(f"{path}: too long for a socket, at most {MAX_PATH_BYTES} bytes")
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path, self._users = path, {os.getuid(), *users}
        _remove_stale(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        before = os.umask(0o177 if not users else 0o117)
        try:
            self._socket.bind(os.fspath(path))
        finally:
            os.umask(before)
        self._socket.listen(128)
        threading.Thread(target=self._accept, daemon=True, name=path.name).start()

    def serve(self, connection: socket.socket) -> None:
        """Answer one connection until it closes."""
        raise AssertionError("a listener says whom it serves")

    def close(self) -> None:
        """Stop listening. Whoever is being served is served to the end."""
        if self._socket.fileno() < 0:
            return
        self.path.unlink(missing_ok=True)
        self._socket.shutdown(socket.SHUT_RDWR)  # a thread in `accept` is not woken by `close` alone
        self._socket.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._one, args=(connection,), daemon=True).start()

    def _one(self, connection: socket.socket) -> None:
        with connection:
            connection.settimeout(IDLE_S)
            try:
                if peer_user(connection) in self._users:
                    self.serve(connection)
            except Exception as error:  # noqa: BLE001 - a thread's error would go to stderr, and its text may be a person's
                logger.warning("%s: a connection ended: %s", self.path.name, type(error).__name__)


class RelaySocket(Listener):
    """Passes frames to `reply(place, node, frame)` and its answers back, each at a tick."""

    def __init__(self, path: Path, reply: Reply, tick_s: float = 0.0, users: Collection[int] = ()) -> None:
        self._reply, self._tick_s = reply, tick_s
        super().__init__(path, users)

    def serve(self, connection: socket.socket) -> None:
        """Answer the requests of one relay."""
        if received(connection, len(RELAY_PREAMBLE)) != RELAY_PREAMBLE:
            return
        while head := received(connection, 16, may_end=True):
            started = time.monotonic()
            place, node_id, size = struct.unpack("<IQI", head)
            if size > MAX_REQUEST_BYTES:
                return
            answer = self._reply(place, node_id, received(connection, size))
            wait_for_tick(started, self._tick_s)
            connection.sendall(struct.pack("<I", len(answer)) + answer)


class PersonSocket(Listener):
    """Passes JSON objects of whoever knows the token to `handle`, and what it returns back."""

    def __init__(self, path: Path, token: bytes, handle: Handler) -> None:
        if len(token) != TOKEN_BYTES:
            raise ConfigError(f"a token has {TOKEN_BYTES} bytes")
        self._token, self._handle = token, handle
        super().__init__(path)

    def serve(self, connection: socket.socket) -> None:
        """Answer the person's requests."""
        if received(connection, len(PERSON_PREAMBLE)) != PERSON_PREAMBLE:
            return
        if not hmac.compare_digest(received(connection, TOKEN_BYTES), self._token):
            return
        while head := received(connection, 4, may_end=True):
            (size,) = struct.unpack("<I", head)
            if size > MAX_PERSON_BYTES:
                return
            request = json.loads(received(connection, size))
            answer = json.dumps(self._handle(request) if isinstance(request, dict) else {}).encode()
            connection.sendall(struct.pack("<I", len(answer)) + answer)


def is_alive(path: Path) -> bool:
    """Return whether somebody listens on the socket at `path`."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        other.settimeout(1.0)
        try:
            other.connect(os.fspath(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:  # no room in its queue, or not ours to ask: somebody is there
            return True
    return True


def _remove_stale(path: Path) -> None:
    """Remove the socket of a process that is gone; raises ConfigError for anything else that is there."""
    if not path.is_socket():
        if path.exists():
            raise ConfigError(f"{path} is there and is no socket")
        return
    if not is_alive(path):
        path.unlink(missing_ok=True)
        return
    raise ConfigError(f"{path}: another process listens there; is the agent running already?")


def ask(folder: Path, request: dict[str, Any], patience_s: float = IDLE_S) -> dict[str, Any]:
    """Return what the agent in `folder` answers its person, who can read its token. Raises OSError if none runs."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as agent:
        agent.settimeout(patience_s)
        agent.connect(os.fspath(folder / "person.sock"))
        data = json.dumps(request).encode()
        agent.sendall(PERSON_PREAMBLE + (folder / "person.token").read_bytes() + struct.pack("<I", len(data)) + data)
        (size,) = struct.unpack("<I", received(agent, 4))
        answer: dict[str, Any] = json.loads(received(agent, size))
    return answer


def received(connection: socket.socket, size: int, may_end: bool = False) -> bytes:
    """Return exactly `size` bytes; raises EOFError if the other side ends before.

    With `may_end`, b"" if it ends before the first of them.
    """
    parts = bytearray()
    while len(parts) < size:
        part = connection.recv(min(size - len(parts), 2**20))
        if not part:
            if may_end and not parts:
                return b""
            raise EOFError("the connection ended")
        parts += part
    return bytes(parts)


def peer_user(connection: socket.socket) -> int:
    """Return the user id of the process at the other end, as the kernel knows it."""
    _, user, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return int(user)


def wait_for_tick(started: float, tick_s: float) -> None:
    """Sleep to the next multiple of `tick_s` after `started`, by the monotonic clock; at once if there is no tick."""
    if tick_s > 0:
        passed = time.monotonic() - started
        time.sleep(tick_s - passed % tick_s)
