"""What lies in a RUN, read and verified piece by piece; a piece that fails becomes a finding, not an exception."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from privacy.audit.spread import Spread, in_turn
from privacy.audit.verdict import Finding, judged, unchecked
from privacy.canonical import Json
from privacy.chain import read_chain
from privacy.checkpoint import cosignatures, verify_checkpoint, verify_cosignature
from privacy.errors import ConfideError, ConfigError, LedgerError, ReleaseInvalid
from privacy.ledger import LedgerView, public_key_of, read_ledger
from privacy.policy import Policy, open_policy
from privacy.release import Release, verify_release

MAX_REPORT_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Evidence:
    """A RUN as far as it could be read; `devices_given` is false where the device ledgers are elsewhere."""

    run: Path
    federation: LedgerView | None
    devices: Mapping[str, LedgerView]
    devices_given: bool
    policy: Policy | None
    release: Release | None
    report: Mapping[str, Any] | None
    findings: tuple[Finding, ...] = field(default=())


def read_evidence(
    run: Path,
    federation_key: Ed25519PublicKey | None = None,
    witness: Ed25519PublicKey | None = None,
    spread: Spread = in_turn,
) -> Evidence:
    """Return what lies in `run`. Without `federation_key` the key beside the ledger is used: a claim, not a proof.

    With `witness` the federation's checkpoint must carry that witness's cosignature; without, that of the policy's.
    `spread` calls what reads one device's ledger for all of them.

    Raises ConfigError if there is no ledger to audit or a file cannot be read at all; what can be read and is wrong is
    a finding.
    """
    path = run / "ledger" / "federation.jsonl"
    if not path.is_file():
        raise ConfigError(f"cannot read {run}: there is no ledger/federation.jsonl")
    key = federation_key or _key(path)
    federation, first = _ledger("ledger.federation", path, key)
    devices, second = _devices(run, federation, spread)
    policy, third = _policy(run, key, federation)
    release, fourth = _release(run, policy, federation)
    notes = [(path, federation)] if federation is not None else []
    notes += [(run / "ledger" / "devices" / name, view) for name, view in devices.items()]
    beside = [(where.with_suffix(".checkpoint"), view) for where, view in notes]
    fifth = check_cosignatures(beside, witness or _witness_of(policy), required=witness is not None)
    findings = (first, second, third, fourth, _checkpoints(run, key), fifth)
    given = (run / "ledger" / "devices").is_dir()
    return Evidence(run, federation, devices, given, policy, release, _report(run), findings)


def _key(path: Path) -> Ed25519PublicKey:
    try:
        return public_key_of(path)
    except LedgerError as error:
        raise ConfigError(f"{error}; name the key with --key") from error


def _ledger(check: str, path: Path, key: Ed25519PublicKey) -> tuple[LedgerView | None, Finding]:
    try:
        view = read_ledger(path, key)
    except LedgerError as error:
        return None, judged(check, [f"{path.name}: {error}"], "")
    return view, judged(check, (), f"{_size(view)}, head {view.head[:16]}")


def _size(view: LedgerView) -> str:
    torn = (
        f"; {view.chain.torn_bytes} bytes of an unfinished last line are not counted" if view.chain.torn_bytes else ""
    )
    return f"{len(view.entries)} entries, every hash and signature verified{torn}"


def _devices(run: Path, federation: LedgerView | None, spread: Spread) -> tuple[dict[str, LedgerView], Finding]:
    folder = run / "ledger" / "devices"
    if not folder.is_dir():
        return {}, unchecked("ledger.devices", "the devices’ own ledgers are not in this folder; they stay on devices")
    known = _known_keys(federation)
    views, problems = {}, []
    belongs = None if federation is None else federation.genesis.get("federation")
    paths = sorted(folder.glob("*.jsonl"))
    for path, found in zip(paths, spread(partial(_device_or_why, known, belongs), paths), strict=True):
        if isinstance(found, str):
            problems.append(f"{path.stem}: {found}")
        else:
            views[path.stem] = found
    entries = sum(len(view.entries) for view in views.values())
    pinned = "keys as the federation’s GENESIS lists them" if known else "keys as they lie beside the ledgers"
    return views, judged("ledger.devices", problems, f"{len(views)} ledgers, {entries} entries, all verified; {pinned}")


def _device_or_why(known: Mapping[str, str], federation: Json, path: Path) -> LedgerView | str:
    """Return a device's ledger, or what is wrong with it; `federation` None: of any."""
    try:
        return _device(path, known, federation)
    except LedgerError as error:
        return str(error)


def _device(path: Path, known: Mapping[str, str], federation: Json) -> LedgerView:
    key = public_key_of(path)
    if known and known.get(path.stem) != key.public_bytes_raw().hex():
        raise LedgerError("its key is not the one in the federation’s GENESIS")
    view = read_ledger(path, key)
    if view.genesis.get("owner") != path.stem:
        raise LedgerError("line 1: it belongs to another device")
    if federation is not None and view.genesis.get("federation") != federation:
        raise LedgerError("line 1: it belongs to another federation")
    return view


def _known_keys(federation: LedgerView | None) -> dict[str, str]:
    """Return the key of every device that was ever in the directory: GENESIS, and POLICY for those that came later."""
    bodies = [entry.body for entry in federation.entries if entry.kind in ("GENESIS", "POLICY")] if federation else []
    found = [each for body in bodies if isinstance(each := body.get("devices"), dict)]
    return {name: str(key) for devices in found for name, key in devices.items()}


def _policy(run: Path, key: Ed25519PublicKey, federation: LedgerView | None) -> tuple[Policy | None, Finding]:
    path = run / "ledger" / "policy.json"
    try:
        policy = open_policy(path.read_bytes(), key)
    except FileNotFoundError:
        return None, judged("policy.signature", ["ledger/policy.json is missing"], "")
    except (ConfideError, OSError) as error:
        return None, judged("policy.signature", [f"ledger/policy.json: {error}"], "")
    if federation is None:
        return policy, unchecked("policy.signature", "signed, but there is no ledger to compare it with")
    queries = [each.query for each in federation.account.reservations.values()]
    problems = [
        f"round {query.round} was asked under another policy"
        for query in queries
        if query.policy_sha256 != policy.sha256
    ]
    checked = f"policy {policy.sha256[:16]}, signed with the federation’s key, named by all {len(queries)} queries"
    return policy, judged("policy.signature", problems, checked)


def _release(run: Path, policy: Policy | None, federation: LedgerView | None) -> tuple[Release | None, Finding]:
    folder = run / "release"
    said = federation is not None and any(entry.kind == "RELEASE" for entry in federation.entries)
    if not folder.exists():
        if said:
            return None, judged("release.files", ["the ledger shows a release, the folder has none"], "")
        return None, unchecked("release.files", "nothing was released")
    if policy is None:
        return None, unchecked("release.files", "without a valid policy it is unknown who may sign releases")
    try:
        signer = Ed25519PublicKey.from_public_bytes(bytes.fromhex(policy.release_signer))
        release = verify_release(folder, signer)
    except (ReleaseInvalid, ValueError) as error:
        return None, judged("release.files", [str(error)], "")
    names = ", ".join(release.adapters)
    numbers = release.basis.layout.dim
    return release, judged("release.files", (), f"{names}: {numbers:,} numbers each, signed by the policy’s signer")


def _checkpoints(run: Path, key: Ed25519PublicKey) -> Finding:
    notes = sorted((run / "ledger").glob("*.checkpoint"))
    if not notes:
        why = "no checkpoint lies here; whoever kept one can compare it, without one a rewritten ledger looks whole"
        return unchecked("ledger.checkpoints", why)
    problems: list[str] = []
    for path in notes:
        try:
            checkpoint = verify_checkpoint(path.read_bytes(), key)
            chain = read_chain((run / "ledger" / "federation.jsonl").read_bytes(), key, every_signature=False)
            if not checkpoint.is_kept_by(chain):
                problems.append(f"{path.name}: the ledger no longer contains the {checkpoint.size} entries it saw")
        except (ConfideError, OSError) as error:
            problems.append(f"{path.name}: {error}")
    return judged("ledger.checkpoints", problems, f"the ledger still begins with what each of them saw ({len(notes)})")


def check_cosignatures(
    notes: Sequence[tuple[Path, LedgerView]], witness: Ed25519PublicKey | None, *, required: bool = True
) -> Finding:
    """Return whether the witness countersigned states that the ledgers still hold; the first note must be there.

    `notes` are the places of checkpoints, each with its ledger. Without a `witness` nothing can be verified, and a
    cosignature of somebody else shows nothing. With `required` false a first note without cosignature is no fault.
    """
    check, problems, good = "ledger.witness", [], []
    there = [(path, view) for path, view in notes if path.is_file()]
    if witness is None:
        lines = sum(_counted(path) for path, _ in there)
        return unchecked(check, f"{lines} cosignatures lie here; name a witness’s key with --witness to verify them")
    for path, view in notes:
        try:
            if not path.is_file() or not _counted(path):
                if path == notes[0][0] and required:
                    problems.append(f"{path.name}: no cosignature lies here")
                continue
            seen, seconds = verify_cosignature(path.read_bytes(), witness)
            if seen.origin != view.origin or not seen.is_kept_by(view.chain):
                problems.append(
                    f"{path.name}: the ledger no longer contains the {seen.size} entries that were witnessed"
                )
            good.append(f"{seen.size} of {len(view.entries)} entries of {path.stem} at {seconds}")
        except (ConfideError, OSError) as error:
            problems.append(f"{path.name}: {error}")
    if not good and not problems:
        return unchecked(check, "the policy names a witness, no cosignature of it lies here")
    return judged(
        check, problems, f"{len(good)} cosignatures hold: {', '.join(good[:3])}{' …' if len(good) > 3 else ''}"
    )


def _counted(path: Path) -> int:
    try:
        return cosignatures(path.read_bytes())
    except (ConfideError, OSError):
        return 0  # what is no note is found by the check of checkpoints


def _witness_of(policy: Policy | None) -> Ed25519PublicKey | None:
    if policy is None or policy.witness_key is None:
        return None
    try:
        return Ed25519PublicKey.from_public_bytes(bytes.fromhex(policy.witness_key))
    except ValueError:
        return None


def _report(run: Path) -> Mapping[str, Any] | None:
    return json_object(run / "report.json", MAX_REPORT_BYTES)


def json_object(path: Path, most_bytes: int) -> dict[str, Any] | None:
    """Return the object in the JSON file `path`, None where there is none; ConfigError for anything else or larger."""
    if not path.is_file():
        return None
    try:
        if path.stat().st_size > most_bytes:
            raise ConfigError(f"cannot read {path}: too large")
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"cannot read {path}: not JSON") from error
    if not isinstance(value, dict):
        raise ConfigError(f"cannot read {path}: not an object")
    return value
