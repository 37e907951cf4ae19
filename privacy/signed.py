"""A document that a federation's root key signs: canonical JSON with its signature beside it, one form and one reader.

file      = {"<what>": document, "signature": 128 hexadecimal digits}
signature = Ed25519("confide/<what>/1" || 0x00 || the document's canonical bytes)
"""

from __future__ import annotations

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from privacy.canonical import canonical_json, exact_fields, parse_canonical
from privacy.errors import SignatureInvalid, WireError


def signed_file(what: str, body: bytes, key: Ed25519PrivateKey) -> bytes:
    """Return the file of the document `what` whose canonical bytes are `body`."""
    return canonical_json({what: parse_canonical(body), "signature": key.sign(_domain(what) + body).hex()})


def signed_body(what: str, data: bytes, root_key: Ed25519PublicKey, limit: int) -> bytes:
    """Return the canonical bytes of the document in a file of at most `limit` bytes that `root_key` signed.

    Raises WireError for another form, SignatureInvalid whatever is wrong with the signature. What the document means is
    its reader's to check.
    """
    if len(data) > limit:
        raise WireError(f"{what} longer than {limit} bytes")
    fields = exact_fields(parse_canonical(data), {what, "signature"}, f"{what} file")
    signature = fields["signature"]
    if not isinstance(signature, str) or len(signature) != 128 or set(signature) - set("0123456789abcdef"):
        raise WireError(f"{what}: a signature is 128 hexadecimal digits")
    body = canonical_json(fields[what])
    try:
        root_key.verify(bytes.fromhex(signature), _domain(what) + body)
    except InvalidSignature:
        raise SignatureInvalid(what) from None
    return body


def _domain(what: str) -> bytes:
    return f"confide/{what}/1".encode("ascii") + b"\x00"
