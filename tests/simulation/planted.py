"""Finds a planted text in bytes in every form in which it could leave: encodings, base64, hex, token numbers …"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from urllib.parse import quote, quote_plus

import numpy as np


def base64_forms(text: bytes) -> Mapping[str, bytes]:
    """Return what stands in a base64 of anything that holds `text`, for its three alignments; whole characters only."""
    forms = {}
    for before in range(3):
        first, last = -(-before * 8 // 6), (before + len(text)) * 8 // 6
        for name, encode in (("standard", base64.b64encode), ("urlsafe", base64.urlsafe_b64encode)):
            forms[f"base64 {name} {before}"] = encode(bytes(before) + text + bytes(3))[first:last]
    return forms


def varint(number: int) -> bytes:
    """Return a number as protobuf packs it into a repeated field."""
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])


def forms_of(text: str, ids_of: Callable[[str], Sequence[int]]) -> Mapping[str, bytes]:
    """Return the bytes of each form of `text`; `ids_of` gives its token numbers."""
    raw, ids = text.encode(), np.array(ids_of(text))
    forms = {"utf-8": raw, "utf-16-le": text.encode("utf-16-le"), "utf-16-be": text.encode("utf-16-be")}
    forms |= {f"utf-32-{order}": text.encode(f"utf-32-{order}") for order in ("le", "be")}
    forms |= {"hex": raw.hex().encode(), "HEX": raw.hex().upper().encode(), **base64_forms(raw)}
    forms |= {"url": quote(text).encode(), "url+": quote_plus(text).encode(), "json": json.dumps(text)[1:-1].encode()}
    forms["json \\u"] = "".join(f"\\u{unit:04x}" for unit in np.frombuffer(text.encode("utf-16-le"), "<u2")).encode()
    forms["url %"] = "".join(f"%{byte:02X}" for byte in raw).encode()
    kinds = ("<i4", "<i8", "<u2", ">i4", ">i8", ">u2", "<f4", "<f8")
    forms |= {f"tokens {kind}": ids.astype(kind).tobytes() for kind in kinds}
    forms["tokens packed"] = b"".join(map(varint, ids.tolist()))
    forms["tokens text"] = ", ".join(map(str, ids.tolist())).encode()
    forms["tokens json"] = ",".join(map(str, ids.tolist())).encode()
    return forms


def found(data: bytes, texts: Sequence[str], ids_of: Callable[[str], Sequence[int]]) -> list[str]:
    """Return which forms of which texts stand in `data`."""
    return [f"{text}: {name}" for text in texts for name, form in forms_of(text, ids_of).items() if form in data]


def patterns_of(texts: Sequence[str], ids_of: Callable[[str], Sequence[int]]) -> Mapping[bytes, str]:
    """Return every form of every text by its bytes, for many searches."""
    return {form: f"{text}: {name}" for text in texts for name, form in forms_of(text, ids_of).items()}


def pieces(text: str, size: int = 12) -> list[str]:
    """Return parts of `text`, each half over the next: whatever leaves of it in one and a half `size` holds one."""
    return [text[at : at + size] for at in range(0, len(text) - size + 1, size // 2)]
