"""How a device comes into a federation: what it is invited with, what it hands in, and the numbers that people compare.

    operator                                                 person
    invitation, signed by the root key it names     ->       pins root key, policy, bundle, authority
    a code, over another way (a call, a letter)     ->       proves with it whose enrolment this is
    admits, after comparing the safety number       <-       enrolment: the device's two public keys

    safety number = the first 8 groups of 5 digits of SHA-512 over a kind and what it stands for: 132 bits
    proof         = HMAC-SHA256(SHA-256("confide/code/1" || 0x00 || code), domain || body)
    signature     = Ed25519(device key, domain || body),   domain = "confide/enrolment/1" || 0x00

An invitation names its own root key, so its signature alone proves nothing to somebody new: the safety number, read
out over a way that the network does not control, does. A code is for one enrolment; it proves that the device is the
one that the operator spoke to, and a server that does not know it cannot put another key in its place.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from cryptography.x509 import load_pem_x509_certificate

from privacy.canonical import canonical_json, exact_fields, is_digest, is_name, parse_canonical, sha256_hex
from privacy.errors import ConfigError, SignatureInvalid, WireError
from privacy.policy import Policy, open_policy
from privacy.signed import signed_body, signed_file

PROTOCOL: Final = "confide-invitation/1"
MAX_BYTES: Final = 65536
DOMAIN: Final = b"confide/enrolment/1\x00"
ALPHABET: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # Crockford: no letter that is read for another
MAX_PERSONAS: Final = 64
CODE_LETTERS: Final = 20  # 100 bits
GROUP: Final = 5


@dataclass(frozen=True)
class Invitation:
    """What a device needs to take part, the same for everybody. Raises ConfigError.

    `address` is where SuperNodes connect, `authority` the PEM certificate that vouches for it, `policy` the signed
    file. `model` is a name for people, `model_sha256` is over its weights (`weights_sha256`). `layers`
    and `hold_s` are the same on all devices: which layers are adapted, and the seconds after which an answer is ready.
    `personas` are those that people may count themselves to, "name: description" each in the order of their slots;
    a file without them is that of a federation that declares none.
    """

    federation: str
    address: str
    root_key: str
    authority: str
    bundle_sha256: str
    policy: str
    model: str
    model_sha256: str
    layers: int
    hold_s: int
    personas: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _require(is_name(self.federation), "federation")
        split_address(self.address)
        for name in ("root_key", "bundle_sha256", "model_sha256"):
            _require(is_digest(getattr(self, name)), name)
        _require(isinstance(self.model, str) and 0 < len(self.model) <= 256, "model")
        _require(type(self.layers) is int and 1 <= self.layers <= 10_000, "layers")
        _require(type(self.hold_s) is int and 0 <= self.hold_s <= 86_400, "hold_s")
        require_personas(self.personas)
        try:
            load_pem_x509_certificate(self.authority.encode())
        except (ValueError, AttributeError):
            raise ConfigError("invitation: authority is no certificate") from None
        _require(self.opened_policy.federation == self.federation, "the policy is another federation's")

    @property
    def root(self) -> Ed25519PublicKey:
        """Return the root key that signs policy and directory."""
        return Ed25519PublicKey.from_public_bytes(bytes.fromhex(self.root_key))

    @property
    def opened_policy(self) -> Policy:
        """Return the policy, checked against the root key."""
        return open_policy(self.policy.encode(), self.root)

    @property
    def safety_number(self) -> str:
        """Return the number that operator and person compare before anything is pinned: of the root key."""
        return federation_number(self.federation, self.root_key)

    def signed(self, key: Ed25519PrivateKey) -> bytes:
        """Return the file, signed by the root key."""
        fields = asdict(self) | {"protocol": PROTOCOL, "personas": list(self.personas)}
        if not self.personas:
            del fields["personas"]  # as before there were any
        return signed_file("invitation", canonical_json(fields), key)


def open_invitation(data: bytes) -> Invitation:
    """Return the invitation in a file that the root key named in it signed.

    Raises WireError, SignatureInvalid, ConfigError. Whether it is the right root key only the safety number tells.
    """
    if len(data) > MAX_BYTES:
        raise WireError(f"an invitation longer than {MAX_BYTES} bytes")
    inside = exact_fields(parse_canonical(data), {"invitation", "signature"}, "invitation file")["invitation"]
    names = {"protocol", *Invitation.__dataclass_fields__}
    if isinstance(inside, dict) and "personas" not in inside:
        names.remove("personas")
    fields = exact_fields(inside, names, "invitation")
    if fields.pop("protocol") != PROTOCOL:
        raise WireError(f"an invitation of another protocol than {PROTOCOL}")
    personas = fields.pop("personas", [])
    if not isinstance(personas, list):
        raise WireError("an invitation whose personas are no list")
    found = Invitation(**fields, personas=tuple(personas))
    signed_body("invitation", data, found.root, MAX_BYTES)
    return found


def persona_name(declared: str) -> str:
    """Return the name in "name: description"."""
    return declared.partition(":")[0].strip()


def require_personas(declared: tuple[str, ...]) -> None:
    """Raise ConfigError unless these are no personas, or two and more with a short, printable text and a name each."""
    texts = all(isinstance(text, str) and 0 < len(text) <= 200 and text.isprintable() for text in declared)
    _require(texts, "a persona is a text of at most 200 letters")
    names = {persona_name(text).casefold() for text in declared}
    _require(len(declared) != 1 and len(declared) <= MAX_PERSONAS, f"personas are two at least, {MAX_PERSONAS} at most")
    _require(len(names) == len(declared) and "" not in names, "each persona has a name of its own")


@dataclass(frozen=True)
class Enrolment:
    """A device that wants to take part: its name, its Ed25519 key, and its SuperNode's key in OpenSSH's form.

    `nonce`, 64 hexadecimal digits, makes each enrolment another. Raises ConfigError.
    """

    federation: str
    root_key: str
    device: str
    organisation: str
    public_key: str
    node_key: str
    nonce: str

    def __post_init__(self) -> None:
        for name in ("federation", "device", "organisation"):
            _require(is_name(getattr(self, name)), f"enrolment: {name} is not a name")
        for name in ("root_key", "public_key", "nonce"):
            _require(is_digest(getattr(self, name)), f"enrolment: {name} is not 64 hexadecimal digits")
        _require(isinstance(self.node_key, str) and is_node_key(self.node_key), "enrolment: no key of a SuperNode")

    @property
    def safety_number(self) -> str:
        """Return the number that operator and person compare before the device is admitted: of its keys."""
        parts = (self.federation, self.root_key, self.device, self.public_key, self.node_key)
        return _number("device", "\n".join(parts))

    @property
    def sha256(self) -> str:
        """Return the hash of the enrolment's canonical bytes."""
        return sha256_hex(self.to_bytes())

    def to_bytes(self) -> bytes:
        """Return the canonical bytes."""
        return canonical_json(asdict(self))

    def signed(self, key: Ed25519PrivateKey, code: str) -> bytes:
        """Return the file: the enrolment, signed by the device's key and proven with the operator's code."""
        body = self.to_bytes()
        fields = {"proof": proof_of(code_key(code), body).hex(), "signature": key.sign(DOMAIN + body).hex()}
        return canonical_json({"enrolment": asdict(self)} | fields)


def open_enrolment(data: bytes) -> tuple[Enrolment, bytes]:
    """Return the enrolment of a file that its own device key signed, and its proof, 32 bytes, still to be checked.

    Raises WireError, SignatureInvalid, ConfigError.
    """
    if len(data) > MAX_BYTES:
        raise WireError(f"an enrolment longer than {MAX_BYTES} bytes")
    fields = exact_fields(parse_canonical(data), {"enrolment", "proof", "signature"}, "enrolment file")
    found = Enrolment(**exact_fields(fields["enrolment"], set(Enrolment.__dataclass_fields__), "enrolment"))
    try:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(found.public_key))
        key.verify(bytes.fromhex(fields["signature"]), DOMAIN + found.to_bytes())
        proof = bytes.fromhex(fields["proof"])
    except (InvalidSignature, ValueError, TypeError):
        raise SignatureInvalid("enrolment") from None
    return found, proof


def new_code() -> str:
    """Return a fresh code for one enrolment: 100 bits of the operating system in four groups of five letters."""
    letters = [ALPHABET[secrets.randbelow(len(ALPHABET))] for _ in range(CODE_LETTERS)]
    return "-".join("".join(letters[i : i + GROUP]) for i in range(0, CODE_LETTERS, GROUP))


def code_key(code: str) -> bytes:
    """Return the key, 32 bytes, that a code stands for, however it is typed. Raises ConfigError for what is no code."""
    letters = "".join(code.upper().split()).replace("-", "").translate(str.maketrans("OIL", "011"))
    if len(letters) != CODE_LETTERS or set(letters) - set(ALPHABET):
        raise ConfigError(f"a code has {CODE_LETTERS} letters and digits: ask your operator for it")
    return hashlib.sha256(b"confide/code/1\x00" + letters.encode()).digest()


def proof_of(key: bytes, body: bytes) -> bytes:
    """Return the proof, 32 bytes, that whoever made an enrolment knew the code."""
    return hmac.digest(key, DOMAIN + body, "sha256")


def federation_number(federation: str, root_key: str) -> str:
    """Return the safety number of a federation's root key, 64 hexadecimal digits."""
    return _number("federation", f"{federation}\n{root_key}")


def same_number(typed: str, number: str) -> bool:
    """Return whether what was typed is the safety number, whatever stands between its digits."""
    return "".join(c for c in typed if c.isdigit()) == "".join(number.split())


def split_address(address: str) -> tuple[str, int]:
    """Return host and port of `host:port`. Raises ConfigError."""
    host, _, port = address.rpartition(":")
    good = host and port.isdigit() and 0 < int(port) < 65536 and not set(host) & set("/@ \t\n\"'")
    _require(good, "an address is host:port")
    return host.strip("[]"), int(port)


def is_node_key(text: str) -> bool:
    """Return whether `text` is a public key as Flower's SuperNodes use them: NIST P-384, OpenSSH's form, one line."""
    try:
        key = load_ssh_public_key(text.encode("ascii"))
    except (ValueError, UnicodeError):
        return False
    return isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name == "secp384r1" and "\n" not in text.strip()


def weights_sha256(folder: Path) -> str:
    """Return the hash over the weight files of a model's folder, in order of their names. Raises ConfigError for none.

    What releases name as their base model, and what devices compare with their own copy before they take part.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ConfigError(f"{folder.name} holds no weights (*.safetensors)")
    parts = []
    for file in files:
        with file.open("rb") as stream:
            parts.append(hashlib.file_digest(stream, "sha256").digest())
    return hashlib.sha256(b"".join(parts)).hexdigest()


def _number(kind: str, text: str) -> str:
    digest = hashlib.sha512(f"confide/safety-number/1/{kind}\x00{text}".encode()).digest()
    digits = f"{int.from_bytes(digest, 'big') % 10**40:040d}"
    return " ".join(digits[i : i + GROUP] for i in range(0, len(digits), GROUP))


def _require(holds: object, problem: str) -> None:
    if not holds:
        raise ConfigError(f"invitation: {problem}" if "enrolment" not in problem else problem)
