"""Packets of a link, and what was said in them: TCP put together, TLS 1.3 opened by a key log, HTTP taken apart.

    with Packets("bridge0") as packets: …                     an AF_PACKET socket; needs root
    for each in conversations(packets.seen, port): said(each, keys)

The server's process writes the key log (`key_log_hook`), so that what is watched, the devices, runs unchanged. Nothing
is guessed: a hole in a stream, a missing key, a record that does not open raise.
"""

from __future__ import annotations

import re
import socket
import struct
import threading
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import HashAlgorithm
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

ETH_P_ALL, ETH_P_IP, SOL_PACKET, SO_RCVBUFFORCE = 3, 0x0800, 263, 33
PACKET_ADD_MEMBERSHIP, PACKET_STATISTICS, PACKET_MR_PROMISC = 1, 6, 1
HANDSHAKE, DATA = 22, 23
SERVER_HELLO, FINISHED, KEY_UPDATE = 2, 20, 24
RETRY = bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")  # RFC 8446, 4.1.3
SUITES: dict[int, tuple[Any, int, HashAlgorithm]] = {
    0x1301: (AESGCM, 16, hashes.SHA256()),
    0x1302: (AESGCM, 32, hashes.SHA384()),
    0x1303: (ChaCha20Poly1305, 32, hashes.SHA256()),
}
KEY_LOG_HOOK = """\
import os, ssl
_load = ssl.SSLContext.load_cert_chain
def _noted(self, *words, **more):
    self.keylog_filename = os.environ["SSLKEYLOGFILE"]
    return _load(self, *words, **more)
ssl.SSLContext.load_cert_chain = _noted
"""
PACKED = re.compile(rb"\x1f\x8b\x08|\x78[\x01\x5e\x9c\xda]|PK\x03\x04")


def key_log_hook(folder: Path) -> dict[str, str]:
    """Return the environment in which a Python server writes its sessions' keys to `folder`/keys."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(KEY_LOG_HOOK)
    return {"PYTHONPATH": str(folder), "SSLKEYLOGFILE": str(folder / "keys")}


class Packets:
    """All frames on a link while the context is open. `dropped` says how many the kernel could not hand over."""

    def __init__(self, link: str) -> None:
        self.seen: list[bytes] = []
        self.dropped = 0
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 2**26)
        self._socket.bind((link, 0))
        everything = struct.pack("iHH8s", socket.if_nametoindex(link), PACKET_MR_PROMISC, 0, b"")
        self._socket.setsockopt(SOL_PACKET, PACKET_ADD_MEMBERSHIP, everything)  # what is for others on it as well
        self._socket.settimeout(0.2)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True, name="packets")

    def __enter__(self) -> Packets:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()
        counts = self._socket.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8)
        self.dropped = struct.unpack("II", counts)[1]
        self._socket.close()

    def _read(self) -> None:
        while True:
            try:
                self.seen.append(self._socket.recv(2**17))
            except TimeoutError:
                if self._over.is_set():
                    return


@dataclass
class Stream:
    """One direction of a TCP connection: segments by their place after the first byte."""

    first: int | None = None
    parts: dict[int, bytes] = field(default_factory=dict)

    def add(self, number: int, flags: int, data: bytes) -> None:
        if flags & 2:  # SYN
            self.first = (number + 1) % 2**32
        if data and self.first is not None:
            place = (number - self.first) % 2**32
            if len(data) > len(self.parts.get(place, b"")):
                self.parts[place] = data

    def together(self) -> bytes:
        """Return the bytes in order. Raises ValueError where some are missing."""
        found = bytearray()
        for place in sorted(self.parts):
            if place > len(found):
                raise ValueError(f"a hole of {place - len(found)} bytes in a stream")
            found += self.parts[place][len(found) - place :]
        return bytes(found)


@dataclass
class Conversation:
    """A TCP connection from `client` to the watched port."""

    client: tuple[str, int]
    up: Stream = field(default_factory=Stream)
    down: Stream = field(default_factory=Stream)


def conversations(frames: Iterable[bytes], port: int) -> list[Conversation]:
    """Return the connections to `port` that began in the frames (Ethernet, IPv4, TCP), in their order."""
    found: dict[tuple[str, int], list[Conversation]] = {}
    every = []
    for frame in frames:
        if len(frame) < 54 or struct.unpack("!H", frame[12:14])[0] != ETH_P_IP or frame[23] != socket.IPPROTO_TCP:
            continue
        head, size = 14 + (frame[14] & 15) * 4, struct.unpack("!H", frame[16:18])[0]
        sender, receiver, number = struct.unpack("!HHI", frame[head : head + 8])
        data = frame[head + (frame[head + 12] >> 4) * 4 : 14 + size]
        flags, source, target = frame[head + 13], frame[26:30], frame[30:34]
        if receiver == port:
            client = socket.inet_ntoa(source), sender
            begins = flags & 2 and (not found.get(client) or found[client][-1].up.first != (number + 1) % 2**32)
            if begins:  # a port may come a second time
                every.append(Conversation(client))
                found.setdefault(client, []).append(every[-1])
            if client in found:
                found[client][-1].up.add(number, flags, data)
        elif sender == port and (client := (socket.inet_ntoa(target), receiver)) in found:
            found[client][-1].down.add(number, flags, data)
    return every


def key_log(path: Path) -> dict[tuple[str, bytes], bytes]:
    """Return the secrets of a key log (NSS's form) by label and client random."""
    lines = [line.split() for line in path.read_text().splitlines() if line and line[0] != "#"]
    return {(label, bytes.fromhex(client)): bytes.fromhex(secret) for label, client, secret in lines}


class Opener:
    """The records of one direction, opened one after the other (RFC 8446, sections 5.2, 7.1 to 7.3)."""

    def __init__(self, suite: int, secret: bytes) -> None:
        self._cipher, self._key_bytes, self._hash = SUITES[suite]
        self.use(secret)

    def use(self, secret: bytes) -> None:
        self._secret, self._number = secret, 0
        self._aead = self._cipher(expanded(secret, "key", self._key_bytes, self._hash))
        self._iv = int.from_bytes(expanded(secret, "iv", 12, self._hash))

    def update(self) -> None:
        self.use(expanded(self._secret, "traffic upd", self._hash.digest_size, self._hash))

    def opened(self, record: bytes) -> tuple[int, bytes]:
        nonce = (self._iv ^ self._number).to_bytes(12)
        self._number += 1
        inner = self._aead.decrypt(nonce, record[5:], record[:5]).rstrip(b"\0")
        return inner[-1], inner[:-1]


def expanded(secret: bytes, label: str, size: int, algorithm: HashAlgorithm) -> bytes:
    """Return HKDF-Expand-Label(secret, label, "", size)."""
    name = b"tls13 " + label.encode()
    info = struct.pack("!HB", size, len(name)) + name + b"\0"
    return HKDFExpand(algorithm, size, info).derive(secret)


def records(stream: bytes) -> Iterator[bytes]:
    """Yield whole TLS records; what a connection that was torn off left at its end is no record."""
    place = 0
    while place + 5 <= len(stream):
        end = place + 5 + struct.unpack("!H", stream[place + 3 : place + 5])[0]
        if end > len(stream):
            return
        yield stream[place:end]
        place = end


def said(up: bytes, down: bytes, keys: Mapping[tuple[str, bytes], bytes]) -> tuple[bytes, bytes]:
    """Return what the two sides of a TLS connection said: application data, in the clear.

    Empty where no handshake came to its end. Raises KeyError without its keys, InvalidTag where a record does not open.
    """
    if up and up[0] != HANDSHAKE:
        raise ValueError("a connection that begins with something else than TLS")
    hello = next(records(up), b"")
    if not hello:
        return b"", b""
    client = hello[11:43]
    suite = 0
    for record in records(down):
        if record[0] == HANDSHAKE and record[5] == SERVER_HELLO and record[11:43] != RETRY:
            session = record[43]
            suite = struct.unpack("!H", record[44 + session : 46 + session])[0]
            break
    if not suite:
        return b"", b""
    if suite not in SUITES:
        raise ValueError(f"not TLS 1.3: cipher suite {suite:#06x}")
    return tuple(  # type: ignore[return-value]
        _side(
            stream,
            Opener(suite, keys[f"{who}_HANDSHAKE_TRAFFIC_SECRET", client]),
            keys[f"{who}_TRAFFIC_SECRET_0", client],
        )
        for who, stream in (("CLIENT", up), ("SERVER", down))
    )


def _side(stream: bytes, opener: Opener, secret: bytes) -> bytes:
    found, shaking, pending = bytearray(), True, b""
    for record in records(stream):
        if record[0] != DATA:
            continue
        kind, data = opener.opened(record)
        if kind == DATA:
            found += data
        elif kind == HANDSHAKE:
            pending += data
            while len(pending) >= 4 and len(pending) >= (size := 4 + int.from_bytes(pending[1:4])):
                message, pending = pending[0], pending[size:]
                if message == FINISHED and shaking:
                    shaking = False
                    opener.use(secret)
                elif message == KEY_UPDATE:
                    opener.update()
    return bytes(found)


@dataclass(frozen=True)
class Spoken:
    """One HTTP/1.1 request or response."""

    head: bytes
    body: bytes


def spoken(stream: bytes) -> list[Spoken]:
    """Return the messages of one direction; the last may be torn off. Without a length there is no body."""
    found, rest = [], stream
    while rest:
        head, blank, rest = rest.partition(b"\r\n\r\n")
        if not blank:
            found.append(Spoken(head, b""))
            break
        told = {
            k.strip().lower(): v.strip().lower() for k, _, v in (x.partition(b":") for x in head.split(b"\r\n")[1:])
        }
        if told.get(b"transfer-encoding") == b"chunked":
            body, rest = _dechunked(rest)
        else:
            size = int(told.get(b"content-length", b"0"))
            body, rest = rest[:size], rest[size:]
        found.append(Spoken(head, body))
    return found


def _dechunked(rest: bytes) -> tuple[bytes, bytes]:
    body = bytearray()
    while True:
        line, _, rest = rest.partition(b"\r\n")
        size = int(line.partition(b";")[0] or b"0", 16)
        body += rest[:size]
        rest = rest[size + 2 :]
        if not size or not rest:
            return bytes(body), rest


def unpacked(data: bytes, depth: int = 2) -> Iterator[bytes]:
    """Yield `data` and what stands compressed in it anywhere: gzip, zlib, members of a zip; and what stands in that."""
    yield data
    for sign in PACKED.finditer(data) if depth else ():
        place, bits = sign.start(), 47  # zlib's or gzip's head
        if sign[0] == b"PK\x03\x04":
            name, extra = struct.unpack("<HH", data[place + 26 : place + 30].ljust(4, b"\0"))
            place, bits = place + 30 + name + extra, -15
        opener, out = zlib.decompressobj(bits), bytearray()
        try:
            for start in range(place, len(data), 4096):
                out += opener.decompress(data[start : start + 4096])
                if opener.eof:
                    break
        except zlib.error:
            pass  # what came out before is looked at all the same
        if len(out) >= 8:
            yield from unpacked(bytes(out), depth - 1)
