"""What looks into TLS finds what was said there: the control of every search that finds nothing."""

from __future__ import annotations

import base64
import gzip
import os
import random
import socket
import ssl
import struct
import threading
import zipfile
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidTag

from server.certificates import new_authority, new_server_certificate
from tests.capture import Packets, Spoken, Stream, conversations, key_log, said, spoken, unpacked
from tests.simulation.planted import forms_of, found

SECRET = "quillfeather zebedee-7731"
Talk = tuple[bytes, bytes]


def ids_of(text: str) -> list[int]:
    return [3 * byte + 200 for byte in text.encode()]


@pytest.fixture(scope="module")
def contexts(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, ssl.SSLContext, Path]:
    folder = tmp_path_factory.mktemp("tls")
    new_authority(folder / "ca.key", folder / "ca.crt", "capture")
    new_server_certificate(folder, folder / "ca.key", folder / "ca.crt", ["127.0.0.1"])
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.keylog_filename = str(folder / "keys")
    server.load_cert_chain(folder / "server.crt", folder / "server.key")
    return server, ssl.create_default_context(cafile=str(folder / "ca.crt")), folder / "keys"


def talked(contexts: tuple[ssl.SSLContext, ssl.SSLContext, Path], asked: bytes, answered: bytes) -> Talk:
    """Return the bytes on the wire, up and down, of a connection in which the two say this."""
    up, down, wire = ssl.MemoryBIO(), ssl.MemoryBIO(), [b"", b""]
    inward, outward = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = contexts[1].wrap_bio(down, up, server_hostname="127.0.0.1")
    server = contexts[0].wrap_bio(inward, outward, server_side=True)

    def carry() -> None:
        for which, (source, target) in enumerate(((up, inward), (outward, down))):
            data = source.read()
            wire[which] += data
            target.write(data)

    def shake(side: ssl.SSLObject) -> bool:
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    while not all([shake(client), shake(server)]):
        carry()
    carry()
    client.write(asked)
    carry()
    assert server.read(len(asked)) and (server.write(answered) or True)
    carry()
    return wire[0], wire[1]


def test_what_was_said_in_tls_is_read_and_nothing_where_a_byte_or_a_key_is_missing(
    contexts: tuple[ssl.SSLContext, ssl.SSLContext, Path],
) -> None:
    asked, answered = random.Random(0).randbytes(40_000), b"so be it" * 4000
    up, down = talked(contexts, asked, answered)
    keys = key_log(contexts[2])
    assert said(up, down, keys) == (asked, answered)
    assert asked[:32] not in up and answered[:32] not in down, "the wire itself tells nothing"
    with pytest.raises(InvalidTag):
        said(up[:-1] + bytes([up[-1] ^ 1]), down, keys)
    with pytest.raises(KeyError):
        said(up, down, {})
    with pytest.raises(ValueError, match="something else than TLS"):
        said(b"GET / HTTP/1.1\r\n\r\n", down, keys)
    assert said(up[:20], b"", keys) == (b"", b"")


def segment(up: bool, number: int, flags: int, data: bytes = b"") -> bytes:
    ends = (bytes([10, 0, 0, 2]), 5000), (bytes([10, 0, 0, 1]), 9092)
    (source, out), (target, into) = ends if up else ends[::-1]
    head = struct.pack("!HHIIBBHHH", out, into, number % 2**32, 0, 5 << 4, flags, 0, 0, 0)
    size = 20 + len(head) + len(data)
    packet = struct.pack("!BBHHHBBH", 0x45, 0, size, 0, 0, 64, 6, 0) + source + target
    return bytes(12) + b"\x08\x00" + packet + head + data + bytes(3)  # a frame may be padded


def test_segments_out_of_order_and_sent_twice_are_one_stream_and_a_hole_is_an_error() -> None:
    first = 2**32 - 3  # numbers wrap
    frames = [segment(True, first, 2), segment(False, 77, 18)]
    frames += [segment(True, first + 1 + at, 16, b"abcdefghij"[at:to]) for at, to in ((4, 8), (0, 4), (2, 6), (8, 10))]
    frames += [segment(False, 78, 16, b"yes"), segment(True, first + 1, 16, b"abcd"), b"short", bytes(80)]
    [one] = conversations(frames, 9092)
    assert (one.up.together(), one.down.together(), one.client) == (b"abcdefghij", b"yes", ("10.0.0.2", 5000))
    again = [*frames, segment(True, 10, 2), segment(True, 11, 16, b"new")]
    assert [each.up.together() for each in conversations(again, 9092)] == [b"abcdefghij", b"new"]
    with pytest.raises(ValueError, match="a hole of 2 bytes"):
        conversations([*frames, segment(True, first + 13, 16, b"m")], 9092)[0].up.together()
    assert Stream().together() == b""


def test_bodies_are_put_together_before_anything_is_searched() -> None:
    chunks = b"POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nquil\r\n8;x=y\r\nlfeather\r\n0\r\n\r\n"
    plain = b"POST /b HTTP/1.1\r\ncontent-length: 3\r\n\r\nabc"
    found_there = spoken(chunks + plain + b"POST /torn HT")
    assert [each.body for each in found_there] == [b"quillfeather", b"abc", b""]
    assert found_there[1].head.startswith(b"POST /b") and found_there[2] == Spoken(b"POST /torn HT", b"")


def zipped(data: bytes) -> bytes:
    with zipfile.ZipFile(out := BytesIO(), "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a name", data)
    return out.getvalue()


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress, zipped, lambda data: gzip.compress(zipped(data))])
def test_a_text_is_found_in_every_form_and_compressed_as_well(pack: Callable[[bytes], bytes]) -> None:
    noise = random.Random(1).randbytes(997)
    forms = forms_of(SECRET, ids_of)
    assert len(forms) >= 25
    for name, form in forms.items():
        packed = noise + pack(b"before it " * 20 + form + b" and after") + noise
        hits = [hit for part in unpacked(packed) for hit in found(part, [SECRET], ids_of)]
        assert f"{SECRET}: {name}" in hits
    assert form not in packed or pack is zipped
    assert [hit for part in unpacked(noise * 40) for hit in found(part, [SECRET], ids_of)] == []


def test_a_real_connection_is_captured_and_opened(contexts: tuple[ssl.SSLContext, ssl.SSLContext, Path]) -> None:
    if os.geteuid():
        pytest.skip("a packet socket needs root")
    listener = socket.create_server(("127.0.0.1", 0))
    port, sent = listener.getsockname()[1], base64.b64encode(b"x" + SECRET.encode()) * 3000

    def serve() -> None:
        with contexts[0].wrap_socket(listener.accept()[0], server_side=True) as connection:
            left = len(sent)
            while left:
                left -= len(connection.recv(left))
            connection.sendall(b"thanks")

    thread = threading.Thread(target=serve)
    with Packets("lo") as packets:
        thread.start()
        with contexts[1].wrap_socket(
            socket.create_connection(("127.0.0.1", port)), server_hostname="127.0.0.1"
        ) as connection:
            connection.sendall(sent)
            assert connection.recv(6) == b"thanks"
        thread.join()
    listener.close()
    assert packets.dropped == 0
    [one] = conversations(packets.seen, port)
    up, down = said(one.up.together(), one.down.together(), key_log(contexts[2]))
    assert (up, down) == (sent, b"thanks")
    assert found(up, [SECRET], ids_of) and not found(one.up.together(), [SECRET], ids_of)
