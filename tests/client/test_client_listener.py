"""The two sockets of an agent: who may speak, in which language, how much; who leaves early harms nobody."""

from __future__ import annotations

import json
import os
import socket
import struct
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import client.listener
from client.listener import PERSON_PREAMBLE, RELAY_PREAMBLE, Listener, PersonSocket, RelaySocket
from privacy.errors import ConfigError
from privacy.wire import MAX_REQUEST_BYTES

TOKEN = bytes(range(32))
SECRET = "Zebedee-Quillfeather-7731"


def asked(path: Path, *parts: bytes, hang_up: bool = True) -> bytes:
    """Return every byte that comes back for `parts`, until the other side ends."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(10)
        connection.connect(os.fspath(path))
        try:
            for part in parts:
                connection.sendall(part)
            if hang_up:
                connection.shutdown(socket.SHUT_WR)
        except (BrokenPipeError, ConnectionResetError):
            pass  # refused before all was sent
        got = bytearray()
        try:
            while part := connection.recv(2**16):
                got += part
        except ConnectionResetError:
            pass
        return bytes(got)


def relayed(frame: bytes, place: int = 0, node: int = 7) -> bytes:
    return struct.pack("<IQI", place, node, len(frame)) + frame


def said(value: object) -> bytes:
    data = json.dumps(value).encode()
    return struct.pack("<I", len(data)) + data


class Both:
    """The relay's and the person's socket of one agent."""

    def __init__(self, folder: Path) -> None:
        self.frames: list[tuple[int, int, bytes]] = []
        self.requests: list[dict[str, Any]] = []
        self.on_frame: Callable[[bytes], bytes] = lambda frame: b"<" + frame + b">"
        self.on_request: Callable[[dict[str, Any]], dict[str, Any]] = lambda request: {"heard": request}
        self.relay = RelaySocket(folder / "relay.sock", self._reply)
        self.person = PersonSocket(folder / "person.sock", TOKEN, self._handle)

    def _reply(self, place: int, node: int, frame: bytes) -> bytes:
        self.frames.append((place, node, frame))
        return self.on_frame(frame)

    def _handle(self, request: dict[str, Any]) -> dict[str, Any]:
        self.requests.append(request)
        return self.on_request(request)

    def works(self) -> None:
        """Fail unless both sockets still serve whoever speaks properly."""
        before = len(self.frames)
        assert asked(self.relay.path, RELAY_PREAMBLE, relayed(b"x", 3, 2**64 - 1)) == b"\x03\0\0\0<x>"
        assert (3, 2**64 - 1, b"x") in self.frames[before:]  # one who left without listening may be read after it
        assert asked(self.person.path, PERSON_PREAMBLE, TOKEN, said({"a": 1})) == said({"heard": {"a": 1}})


@pytest.fixture
def both(tmp_path: Path) -> Iterator[Both]:
    sockets = Both(tmp_path)
    yield sockets
    sockets.relay.close()
    sockets.person.close()


def test_each_socket_serves_its_own_language_and_both_are_closed_to_others(both: Both) -> None:
    both.works()
    for one in (both.relay, both.person):
        assert one.path.stat().st_mode & 0o777 == 0o600


def test_neither_socket_answers_the_other_language_with_a_single_byte(both: Both) -> None:
    assert asked(both.relay.path, PERSON_PREAMBLE, TOKEN, said({"a": 1})) == b""
    assert asked(both.person.path, RELAY_PREAMBLE, relayed(b"x")) == b""
    assert asked(both.person.path, RELAY_PREAMBLE, TOKEN, said({"a": 1})) == b""
    assert both.frames == [] and both.requests == []
    both.works()


@pytest.mark.parametrize("token", [bytes(32), TOKEN[:31] + b"\xff", b"\xff" + TOKEN[1:], TOKEN[:31], b""])
def test_a_wrong_token_gets_no_byte(both: Both, token: bytes) -> None:
    assert asked(both.person.path, PERSON_PREAMBLE, token, said({"a": 1}) if len(token) == 32 else b"") == b""
    assert both.requests == []
    both.works()


def test_a_token_of_another_length_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        PersonSocket(tmp_path / "p", b"short", lambda _: {})


def as_user(user: int, work: Callable[[], bytes]) -> bytes:
    """Return what `work` returns in a forked child that runs as `user`; b"!" with the error's name if it fails."""
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(user)
            os.setuid(user)
            result = b"=" + work()
        except BaseException as error:  # noqa: BLE001
            result = b"!" + type(error).__name__.encode()
        os.write(writes, result)
        os._exit(0)
    os.close(writes)
    with os.fdopen(reads, "rb") as stream:
        data = stream.read()
    os.waitpid(child, 0)
    return data


@pytest.fixture
def in_the_open() -> Iterator[Path]:
    """Return a folder that every user of the machine may enter."""
    import shutil
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="confide-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.skipif(os.getuid() != 0, reason="another user id needs root")
def test_another_user_is_refused_by_the_file_and_by_the_kernels_word(in_the_open: Path) -> None:
    both = Both(in_the_open)

    def speak_relay() -> bytes:
        return asked(both.relay.path, RELAY_PREAMBLE, relayed(b"x"))

    def speak_person() -> bytes:
        return asked(both.person.path, PERSON_PREAMBLE, TOKEN, said({}))

    for speak in (speak_relay, speak_person):
        assert as_user(12345, speak) == b"!PermissionError"
        assert as_user(os.getuid(), speak) not in (b"=", b"!PermissionError")
    both.relay.path.chmod(0o777)  # even where the file lets everybody in, the peer's user id does not
    both.person.path.chmod(0o777)
    both.frames.clear()
    both.requests.clear()
    for speak in (speak_relay, speak_person):
        assert as_user(12345, speak) == b"="
    assert both.frames == [] and both.requests == []
    both.relay.close()
    both.person.close()


@pytest.mark.skipif(os.getuid() != 0, reason="another user id needs root")
def test_a_relay_with_an_account_of_its_own_is_served_if_it_is_named(in_the_open: Path) -> None:
    relay = RelaySocket(in_the_open / "relay.sock", lambda *_: b"hi", users=(12345,))
    relay.path.chmod(0o777)
    for user, answer in ((12345, b"=\x02\0\0\0hi"), (12346, b"=")):
        assert as_user(user, lambda: asked(relay.path, RELAY_PREAMBLE, relayed(b"x"))) == answer
    relay.close()


def test_oversize_lengths_are_refused_before_anything_of_that_size_exists(both: Both) -> None:
    tracemalloc.start()
    for size in (MAX_REQUEST_BYTES + 1, 2**32 - 1):
        head = struct.pack("<IQI", 0, 0, size)
        assert asked(both.relay.path, RELAY_PREAMBLE, head, bytes(1000), hang_up=False) == b""
    for size in (client.listener.MAX_PERSON_BYTES + 1, 2**32 - 1):
        assert asked(both.person.path, PERSON_PREAMBLE, TOKEN, struct.pack("<I", size), hang_up=False) == b""
    # A length that is allowed, of which little comes: no more is held than came.
    asked(both.relay.path, RELAY_PREAMBLE, struct.pack("<IQI", 0, 0, MAX_REQUEST_BYTES), bytes(1000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * 2**20
    assert both.frames == [] and both.requests == []
    both.works()


def test_half_messages_and_hang_ups_harm_nobody(both: Both, capfd: pytest.CaptureFixture[str]) -> None:
    whole = RELAY_PREAMBLE + relayed(b"frame")
    for end in range(len(whole)):
        assert asked(both.relay.path, whole[:end]) == b""
    person = PERSON_PREAMBLE + TOKEN + said({"a": 1})
    for end in range(len(person)):
        assert asked(both.person.path, person[:end]) == b""
    for _ in range(20):  # leaves without listening
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.connect(os.fspath(both.relay.path))
            connection.sendall(whole)
    both.works()
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b"[1]", b"[" * 2**19, b"1e999", b"{}" * 9])
def test_what_is_no_json_object_is_answered_with_nothing_or_an_empty_object(
    both: Both, body: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    answer = asked(both.person.path, PERSON_PREAMBLE, TOKEN, struct.pack("<I", len(body)) + body)
    assert answer in (b"", said({}))
    both.works()
    assert "Traceback" not in capfd.readouterr().err


def test_an_error_behind_a_socket_ends_that_connection_and_tells_its_kind_alone(
    both: Both, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> Any:
        raise RuntimeError(SECRET)

    both.on_frame = both.on_request = fail
    assert asked(both.relay.path, RELAY_PREAMBLE, relayed(b"x")) == b""
    assert asked(both.person.path, PERSON_PREAMBLE, TOKEN, said({})) == b""
    both.on_frame, both.on_request = lambda frame: b"<" + frame + b">", lambda request: {"heard": request}
    both.works()
    time.sleep(0.1)
    captured = capfd.readouterr()
    assert SECRET not in captured.out + captured.err + caplog.text
    assert "Traceback" not in captured.err
    assert caplog.text.count("RuntimeError") == 2


def test_a_relay_that_simply_ends_is_not_worth_a_warning(both: Both, caplog: pytest.LogCaptureFixture) -> None:
    both.works()
    time.sleep(0.1)
    assert caplog.text == ""


def test_two_at_once_and_one_that_hangs_hold_nobody_up(both: Both) -> None:
    here = threading.Barrier(2, timeout=10)

    def meet(frame: bytes) -> bytes:
        if frame == b"meet":
            here.wait()
        return frame

    both.on_frame = meet
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as hanging:
        hanging.connect(os.fspath(both.relay.path))
        hanging.sendall(RELAY_PREAMBLE + b"\0")
        answers: list[bytes] = []
        threads = [
            threading.Thread(target=lambda: answers.append(asked(both.relay.path, RELAY_PREAMBLE, relayed(b"meet"))))
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
    assert answers == [b"\x04\0\0\0meet"] * 2


def test_one_connection_may_ask_again(both: Both) -> None:
    answer = asked(both.relay.path, RELAY_PREAMBLE, relayed(b"a"), relayed(b"bc"), relayed(b""))
    assert answer == b"\x03\0\0\0<a>\x04\0\0\0<bc>\x02\0\0\0<>"


def test_a_stale_socket_is_replaced_and_a_living_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "relay.sock"
    child = os.fork()
    if child == 0:
        RelaySocket(path, lambda *_: b"dead")
        os.kill(os.getpid(), 9)
    os.waitpid(child, 0)
    assert path.is_socket()
    first = RelaySocket(path, lambda *_: b"first")
    with pytest.raises(ConfigError, match="listens"):
        RelaySocket(path, lambda *_: b"second")
    assert asked(path, RELAY_PREAMBLE, relayed(b"x")) == b"\x05\0\0\0first"
    first.close()
    assert not path.exists()


def test_a_file_that_is_no_socket_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "relay.sock"
    path.write_text("a person's")
    with pytest.raises(ConfigError, match=r"relay\.sock"):
        RelaySocket(path, lambda *_: b"")
    assert path.read_text() == "a person's"


def test_a_closed_listener_leaves_no_thread_and_no_socket(tmp_path: Path) -> None:
    before = threading.active_count()
    listeners = [Listener(tmp_path / f"{i}.sock") for i in range(5)]
    for one in listeners:
        one.close()
        one.close()
    until = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < until:
        time.sleep(0.01)
    assert threading.active_count() <= before
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_is_too_long_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="too long for a socket, at most 100 bytes") as error:
        RelaySocket(tmp_path / ("x" * 120) / "relay.sock", lambda *_: b"")
    assert "\n" not in str(error.value)
    assert not (tmp_path / ("x" * 120)).exists()
