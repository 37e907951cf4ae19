"""What a federation released, verified against its own signer and ledger, and copies of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from privacy.errors import ConfigError, ReleaseInvalid
from privacy.files import fsync_folder, new_folder, write_flushed
from privacy.ledger import read_ledger
from privacy.release import Release, verify_release
from server.folder import OperatorFolder
from server.home import ServerHome

DELTA = 1e-6
PEFT_FILES = ("adapter_config.json", "adapter_model.safetensors")


def found_release(operator: OperatorFolder, campaign: str = "") -> tuple[Path, Release]:
    """Return the folder and the verified release of a campaign, the latest released for "".

    The signer must be the one that the federation's policy names, and the federation's ledger must hold the release.
    Raises ConfigError where there is none, ReleaseInvalid where it is not what it says.
    """
    folder = _folder(operator, campaign)
    signer = Ed25519PublicKey.from_public_bytes(bytes.fromhex(operator.policy.release_signer))
    release = verify_release(folder, signer)
    noted = read_ledger(operator.home / "ledger" / "federation.jsonl").entries
    if release.sha256 not in {entry.body["release_sha256"] for entry in noted if entry.kind == "RELEASE"}:
        raise ReleaseInvalid("the federation's ledger has no entry of this release")
    return folder, release


def described(operator: OperatorFolder, campaign: str = "") -> dict[str, Any]:
    """Return what a verified release holds: adapters, personas with noisy counts, claim, hashes. Raises as above."""
    folder, release = found_release(operator, campaign)
    facts = release.facts
    claim: Any = facts.privacy.get("epsilon") or {}
    return {
        "campaign": facts.campaign,
        "rounds": facts.round,
        "folder": str(folder),
        "sha256": release.sha256,
        "signer": operator.policy.release_signer,
        "base_model": facts.base_model,
        "base_model_sha256": facts.base_model_sha256,
        "adapters": sorted(release.adapters),
        "numbers": release.basis.layout.dim,
        "personas": {
            name: {"noisy_count": each.noisy_count, "description": each.description}
            for name, each in sorted(release.learned.personas.items())
        },
        "private": facts.private,
        "epsilon": claim.get(repr(DELTA)),
        "delta": DELTA,
    }


def lines(facts: dict[str, Any]) -> list[str]:
    """Return the description for people; every name in it is of the release, none of a device."""
    claim = f"epsilon {float(facts['epsilon']):.2f} at delta {facts['delta']:g}" if facts["epsilon"] else "no figure"
    told = [
        f"campaign {facts['campaign']}, {facts['rounds']} rounds, verified: {facts['folder']}",
        f"sha256 {facts['sha256']}",
        f"for {facts['base_model']}, {facts['numbers']} numbers an adapter: {', '.join(facts['adapters'])}",
        f"{claim} per device" if facts["private"] else "NOT PRIVATE: noise was replayed or left out",
    ]
    for name, each in facts["personas"].items():
        told.append(f"  {name}: noisy count {each['noisy_count']} {each['description']}".rstrip())
    if copied := facts.get("copied_to"):
        told.append(f"copied to {copied}")
    return told


def taken_out(operator: OperatorFolder, campaign: str, out: Path, adapter: str = "") -> Path:
    """Copy a release into the new folder `out`, or one adapter's two files that stock PEFT loads, and return `out`.

    A whole copy is verified as it lies there, so that a full disk or a change on the way is an error and leaves
    nothing. A single adapter carries no signature: whoever gets it has to trust whom it came from. Raises ConfigError
    for a folder that is there, ReleaseInvalid for an adapter that is not.
    """
    folder, release = found_release(operator, campaign)
    if out.exists():
        raise ConfigError(f"{out} is there already: a copy goes into a new folder")
    if adapter and adapter not in release.adapters:
        raise ReleaseInvalid(f"the release holds {', '.join(sorted(release.adapters))}, no {adapter[:40]!r}")
    source = folder / adapter if adapter else folder
    names = (
        PEFT_FILES if adapter else sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    with new_folder(out) as beside:
        for name in names:
            (beside / name).parent.mkdir(parents=True, exist_ok=True)
            write_flushed(beside / name, (source / name).read_bytes())
        for each in {(beside / name).parent for name in names}:
            fsync_folder(each)
        if not adapter:
            signer = Ed25519PublicKey.from_public_bytes(bytes.fromhex(operator.policy.release_signer))
            verify_release(beside, signer)
    return out


def _folder(operator: OperatorFolder, campaign: str) -> Path:
    """Return where the release of a campaign lies; of the present one, or of an earlier one in archive/."""
    home = operator.home
    places: dict[str, Path] = {}
    if (home / "checkpoints" / "campaign.json").exists():
        places[ServerHome.load(home).plan.campaign] = home / "release"
    earlier = sorted((home / "archive").glob("*/release"), key=lambda path: path.stat().st_mtime, reverse=True)
    places |= {path.parent.name: path for path in earlier}
    whole = {name: path for name, path in places.items() if (path / "release.json").exists()}
    if not whole:
        raise ConfigError("nothing was released yet: `confide server run`")
    if campaign and campaign not in whole:
        raise ConfigError(f"no release of {campaign[:40]!r}; there is: {', '.join(whole)}")
    return whole[campaign] if campaign else next(iter(whole.values()))
