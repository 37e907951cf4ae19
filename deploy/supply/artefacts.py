# Run in the end-to-end test (tests/deploy).
"""Signed artefacts: `python artefacts.py sign FOLDER KEY` and `python artefacts.py verify FOLDER PUBLIC`.

    SHA256SUMS       "<digest>  <name>" for every file of FOLDER, sorted, as sha256sum writes it
    SHA256SUMS.sig   Ed25519("confide/artefacts/1" || 0x00 || SHA256SUMS), 128 hexadecimal digits

KEY is a file of 32 bytes, mode 0600, made on first use; its public half lies beside it as KEY.pub and is what verifiers
pin. `verify` fails for a changed, a missing and a further file.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import sys
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

DOMAIN = b"confide/artefacts/1\x00"
SUMS, SIGNATURE = "SHA256SUMS", "SHA256SUMS.sig"


def sums(folder: Path) -> bytes:
    """Return the lines of SHA256SUMS for what lies in `folder`."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name not in (SUMS, SIGNATURE)]
    rows = sorted(
        (path.relative_to(folder).as_posix(), hashlib.sha256(path.read_bytes()).hexdigest()) for path in files
    )
    return "".join(f"{digest}  {name}\n" for name, digest in rows).encode()


def signing_key(path: Path) -> Ed25519PrivateKey:
    """Return the key kept at `path`, made there on first use."""
    if not path.exists():
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(secrets.token_bytes(32))
        public = Ed25519PrivateKey.from_private_bytes(path.read_bytes()).public_key().public_bytes_raw()
        path.with_name(f"{path.name}.pub").write_text(f"{public.hex()}\n")
    return Ed25519PrivateKey.from_private_bytes(path.read_bytes())


def sign(folder: Path, key: Ed25519PrivateKey) -> None:
    """Write SHA256SUMS and its signature."""
    text = sums(folder)
    (folder / SUMS).write_bytes(text)
    (folder / SIGNATURE).write_text(f"{key.sign(DOMAIN + text).hex()}\n")


def verify(folder: Path, public: str) -> str:
    """Return "" if everything in `folder` is as `public` signed it, 64 hexadecimal digits; else what is wrong."""
    try:
        text, signature = (folder / SUMS).read_bytes(), bytes.fromhex((folder / SIGNATURE).read_text().strip())
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public.strip())).verify(signature, DOMAIN + text)
    except (OSError, ValueError, InvalidSignature):
        return "the signature does not verify"
    signed, there = set(text.decode().splitlines()), set(sums(folder).decode().splitlines())
    return "" if signed == there else f"not as signed: {', '.join(sorted(line[66:] for line in signed ^ there))}"


def main(words: list[str]) -> int:
    """Sign or verify; return the exit status."""
    if len(words) != 3 or words[0] not in ("sign", "verify"):
        sys.stderr.write("usage: artefacts.py sign FOLDER KEY | verify FOLDER PUBLIC\n")
        return 2
    folder, key = Path(words[1]), Path(words[2])
    if words[0] == "sign":
        sign(folder, signing_key(key))
        return 0
    fault = verify(folder, key.read_text())
    if fault:
        sys.stderr.write(f"{fault}\n")
    return 1 if fault else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
