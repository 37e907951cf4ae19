"""A signed release: what a federation publishes, and how a device or an auditor checks it before using a byte of it.

    release.json   canonical JSON: facts, layout, the SHA-256 and size of every other file      release.sig   hex
    basis.safetensors        <name>/core.safetensors   <name>/adapter_config.json   <name>/adapter_model.safetensors
    tables.safetensors       where the campaign learned more than adapters, see `privacy.learned`

The names of all files follow from the adapters' names, so that nothing in a release says where to read or write. The
PEFT folder beside each core is recomputed from basis and core on reading: what stock tools load is what was signed for.
"""

from __future__ import annotations

import hashlib
import re
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from privacy.adapter import (
    MAX_BASIS_BYTES,
    AdapterLayout,
    Basis,
    Cores,
    Matrix,
    cores_from_bytes,
    cores_to_bytes,
    lora_factors,
    max_core_bytes,
    merge_cores,
    peft_files,
    read_tensors,
)
from privacy.canonical import Json, canonical_json, is_digest, is_name, parse_canonical, sha256_hex
from privacy.errors import ConfideError, ReleaseInvalid
from privacy.learned import NOTHING, Learned

FORMAT: Final = "confide-release/2"
FIRST_FORMAT: Final = "confide-release/1"  # adapters alone; still read
TABLES_FILE: Final = "tables.safetensors"
STAMP: Final = "NOT PRIVATE"
NO_PARENT: Final = "0" * 64
MAX_DOCUMENT_BYTES: Final = 4 * 2**20
MAX_ADAPTERS: Final = 256
ADAPTER_NAME: Final = re.compile(r"[a-z][a-z0-9]{0,19}(-[a-z0-9]{1,19}){0,3}")
PARTS: Final = ("adapter_config.json", "adapter_model.safetensors", "core.safetensors")
SIGNED: Final = b"confide/release/1\x00"
LORA_B_TOLERANCE: Final = 1e-5  # B R is a sum of r products: machines may round its last bits differently


@dataclass(frozen=True)
class ReleaseFacts:
    """What a release says about itself: whose it is, what it was made from, and what it claims about privacy.

    `privacy` is `privacy_claim` of the accountant's statement; an auditor recomputes it. `ledger_head` is the head of
    the federation's ledger just before the RELEASE entry, `parent_sha256` the release that it continues.
    """

    federation: str
    campaign: str
    round: int
    base_model: str
    base_model_sha256: str
    policy_sha256: str
    ledger_head: str
    private: bool
    privacy: Mapping[str, Json]
    parent_sha256: str = NO_PARENT

    def __post_init__(self) -> None:
        names = is_name(self.federation) and is_name(self.campaign) and 0 < len(self.base_model) <= 512
        hashes = (self.base_model_sha256, self.policy_sha256, self.ledger_head, self.parent_sha256)
        if not names or not all(map(is_digest, hashes)) or type(self.round) is not int or self.round < 0:
            raise ReleaseInvalid("release: a name, hash or round is not one")
        if type(self.private) is not bool or not isinstance(self.privacy, Mapping):
            raise ReleaseInvalid("release: its privacy claim is malformed")


@dataclass(frozen=True, eq=False)
class Release:
    """A verified release in memory: facts, basis and the cores of each adapter, all finite and of the signed layout."""

    facts: ReleaseFacts
    basis: Basis
    adapters: Mapping[str, Cores]
    document: bytes
    learned: Learned = NOTHING

    @cached_property
    def sha256(self) -> str:
        """Return the SHA-256 of release.json, by which queries and ledgers name this release."""
        return sha256_hex(self.document)

    def composed(self, weights: Mapping[str, float]) -> dict[str, Matrix]:
        """Return sum_k w_k R_k over adapters of this release, for example {"global": 1, "persona-1": 0.5}."""
        unknown = set(weights) - set(self.adapters)
        if unknown:
            raise ReleaseInvalid(f"this release has no adapter named {min(unknown)[:40]!r}")
        return merge_cores([(weight, self.adapters[name]) for name, weight in weights.items()])


def privacy_claim(statement: Mapping[str, object]) -> dict[str, Json]:
    """Return the accountant's statement with every float written as its shortest decimal, so that it can be signed."""
    return {key: _claimed(value) for key, value in statement.items()}


def release_files(
    basis: Basis,
    adapters: Mapping[str, Cores],
    facts: ReleaseFacts,
    signing_key: Ed25519PrivateKey,
    learned: Learned = NOTHING,
) -> dict[str, bytes]:
    """Return every file of a release by its path; raises ReleaseInvalid, ModelError or EncodingError."""
    if not 1 <= len(adapters) <= MAX_ADAPTERS or not all(ADAPTER_NAME.fullmatch(name) for name in adapters):
        raise ReleaseInvalid("release: needs adapters named like global or persona-1")
    files = {"basis.safetensors": basis.to_bytes()}
    for name, cores in sorted(adapters.items()):
        parts = {**peft_files(basis, cores, facts.base_model), "core.safetensors": cores_to_bytes(cores)}
        files |= {f"{name}/{part}": parts[part] for part in PARTS}
    _check_described(learned, adapters)
    if learned.tables:
        files[TABLES_FILE] = learned.to_bytes()
    document = canonical_json(
        {
            **asdict(facts),
            "adapters": sorted(adapters),
            "basis_sha256": basis.sha256,
            "files": {path: {"sha256": sha256_hex(data), "size": len(data)} for path, data in files.items()},
            "format": FORMAT,
            "layout": _layout_rows(basis.layout),
            "learned": learned.document(),
            "signer": signing_key.public_key().public_bytes_raw().hex(),
            "stamp": None if facts.private else STAMP,
        }
    )
    signature = signing_key.sign(SIGNED + document).hex().encode() + b"\n"
    return {**files, "release.json": document, "release.sig": signature}


def verify_release(folder: Path, public_key: Ed25519PublicKey) -> Release:
    """Return the release in `folder`, signed by `public_key` and whole; raises ReleaseInvalid for anything else.

    Checked, in this order: the signature over release.json, before it is parsed; that exactly its files are there,
    plain files and no more, each of its size and SHA-256; basis, layout and cores (shapes, finite); that each PEFT
    folder is B R and A of the same. Every file is read once: what was checked is what is returned.
    """
    document = _read(folder / "release.json", MAX_DOCUMENT_BYTES)
    _check_signature(document, _read(folder / "release.sig", 256), public_key)
    value = _document(document)
    try:
        if value["signer"] != public_key.public_bytes_raw().hex():
            raise ReleaseInvalid("release: it names another signer")
        facts = ReleaseFacts(**{name: value[name] for name in ReleaseFacts.__dataclass_fields__})
        files = _files(folder, value)
        basis = Basis.from_bytes(files["basis.safetensors"])
        if basis.sha256 != value["basis_sha256"] or _layout_rows(basis.layout) != value["layout"]:
            raise ReleaseInvalid("release: its basis is not the one it names")
        adapters = {name: _adapter(name, files, basis, facts.base_model) for name in value["adapters"]}
        learned = Learned.of(value["learned"], files.get(TABLES_FILE)) if "learned" in value else NOTHING
        _check_described(learned, adapters)
    except ReleaseInvalid:
        raise
    except (ConfideError, TypeError, KeyError, ValueError) as error:
        raise ReleaseInvalid(f"release: {error}") from error
    return Release(facts, basis, adapters, document, learned)


def signer_of(folder: Path) -> str:
    """Return the public key that a release names as its signer, 64 hexadecimal digits: a name, not yet a proof."""
    return str(_document(_read(folder / "release.json", MAX_DOCUMENT_BYTES))["signer"])


def _document(data: bytes) -> dict[str, Any]:
    try:
        value = parse_canonical(data)
    except ConfideError as error:
        raise ReleaseInvalid("release.json is not canonical JSON") from error
    names = {"adapters", "basis_sha256", "files", "format", "layout", "signer", "stamp"}
    more = {"learned"} if isinstance(value, dict) and value.get("format") == FORMAT else set()
    if not isinstance(value, dict) or set(value) != names | more | set(ReleaseFacts.__dataclass_fields__):
        raise ReleaseInvalid("release.json has not exactly the fields of its version")
    if value["format"] not in (FORMAT, FIRST_FORMAT) or not is_digest(value["signer"]):
        raise ReleaseInvalid(f"release.json is not of format {FORMAT}")
    if more and not isinstance(value["learned"], dict):
        raise ReleaseInvalid("release.json: what was learned is no object")
    if value["stamp"] != (None if value["private"] is True else STAMP):
        raise ReleaseInvalid("release: it is not private and does not say so")
    adapters = value["adapters"] if isinstance(value["adapters"], list) else []
    named = [name for name in adapters if isinstance(name, str) and ADAPTER_NAME.fullmatch(name)]
    if named != adapters or named != sorted(set(named)) or not 1 <= len(named) <= MAX_ADAPTERS:
        raise ReleaseInvalid("release: an adapter's name is not one")
    return value


def _files(folder: Path, value: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the bytes of all files but release.json and its signature, each of its declared size and hash."""
    expected = {"basis.safetensors", *(f"{name}/{part}" for name in value["adapters"] for part in PARTS)}
    if value.get("learned", {}).get("tables"):
        expected.add(TABLES_FILE)
    declared = value["files"]
    if not isinstance(declared, dict) or set(declared) != expected:
        raise ReleaseInvalid("release.json does not list exactly the files of its adapters")
    found = _paths(folder)
    if found != expected | {"release.json", "release.sig"}:
        odd = min(found ^ (expected | {"release.json", "release.sig"}))
        raise ReleaseInvalid(f"release: {odd[:80]!r} is missing or does not belong there")
    return {path: _declared(folder / path, path, declared[path]) for path in sorted(expected)}


def _check_described(learned: Learned, adapters: Mapping[str, Cores]) -> None:
    if not set(learned.personas) <= set(adapters):
        raise ReleaseInvalid("release: it describes a persona that it does not hold")


def _declared(path: Path, name: str, declared: object) -> bytes:
    if not isinstance(declared, dict) or set(declared) != {"sha256", "size"} or type(declared["size"]) is not int:
        raise ReleaseInvalid(f"release.json: {name} needs a size and a hash")
    if not 0 < declared["size"] <= MAX_BASIS_BYTES:
        raise ReleaseInvalid(f"release: {name} is larger than any file of a release may be")
    data = _read(path, declared["size"])
    if len(data) != declared["size"] or hashlib.sha256(data).hexdigest() != declared["sha256"]:
        raise ReleaseInvalid(f"release: {name} is not the file that was signed")
    return data


def _paths(folder: Path) -> set[str]:
    """Return the paths of all plain files in `folder`, two levels deep; whatever else is there is refused."""
    found = set()
    for path in folder.iterdir():
        mode = path.lstat().st_mode
        inner = list(path.iterdir()) if stat.S_ISDIR(mode) else [path]
        if not inner or not all(stat.S_ISREG(each.lstat().st_mode) for each in inner):
            raise ReleaseInvalid(f"release: {path.name[:80]!r} is not a plain file or a folder of plain files")
        found |= {str(each.relative_to(folder)) for each in inner}
    return found


def _adapter(name: str, files: Mapping[str, bytes], basis: Basis, base_model: str) -> Cores:
    core = files[f"{name}/core.safetensors"]
    if len(core) > max_core_bytes(basis.layout):
        raise ReleaseInvalid(f"release: the core of {name} is too large for its layout")
    cores = cores_from_bytes(core, basis.layout)
    config = peft_files(basis, basis.layout.zero_cores(), base_model)["adapter_config.json"]
    if files[f"{name}/adapter_config.json"] != config:
        raise ReleaseInvalid(f"release: the PEFT configuration of {name} is not that of its basis")
    _check_factors(name, read_tensors(files[f"{name}/adapter_model.safetensors"], MAX_BASIS_BYTES), basis, cores)
    return cores


def _check_factors(name: str, found: Mapping[str, Matrix], basis: Basis, cores: Cores) -> None:
    wanted = {}
    for module, (a, b_r) in lora_factors(basis, cores).items():
        wanted[f"base_model.model.{module}.lora_A.weight"] = (a, 0.0)
        wanted[f"base_model.model.{module}.lora_B.weight"] = (b_r, LORA_B_TOLERANCE * float(np.abs(b_r).max()))
    if set(found) != set(wanted):
        raise ReleaseInvalid(f"release: the PEFT tensors of {name} are not those of its basis")
    for key, (matrix, tolerance) in wanted.items():
        same = found[key].shape == matrix.shape and found[key].dtype == np.float32
        if not same or not np.all(np.abs(found[key] - matrix) <= tolerance):  # a NaN is never within a tolerance
            raise ReleaseInvalid(f"release: {name} holds PEFT factors that are not B R and A")


def _check_signature(document: bytes, signature: bytes, key: Ed25519PublicKey) -> None:
    try:
        text = signature.decode("ascii")
        if not re.fullmatch(r"[0-9a-f]{128}\n", text):
            raise ValueError("not a signature")
        key.verify(bytes.fromhex(text), SIGNED + document)
    except (InvalidSignature, ValueError) as error:
        raise ReleaseInvalid("release: its signature does not verify with this key") from error


def _read(path: Path, limit: int) -> bytes:
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            raise ReleaseInvalid(f"release: {path.name} is not a plain file")
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise ReleaseInvalid(f"release: cannot read {path.name}: {error.strerror}") from error
    if len(data) > limit:
        raise ReleaseInvalid(f"release: {path.name} is longer than {limit} bytes")
    return data


def _layout_rows(layout: AdapterLayout) -> list[Json]:
    return [[site.module, site.rank, site.d_in, site.d_out] for site in layout.sites]


def _claimed(value: object) -> Json:
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, Mapping):
        return {str(key): _claimed(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_claimed(each) for each in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    raise ReleaseInvalid(f"a privacy claim holds no {type(value).__name__}")
