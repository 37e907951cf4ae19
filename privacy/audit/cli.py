"""`confide audit ledger|run|release|witness PATH`: 0 = what was checked holds, 1 = violated, 2 = cannot be read."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from privacy.accounting import statement
from privacy.audit.evidence import check_cosignatures
from privacy.audit.html import write_page
from privacy.audit.replay import audit_run
from privacy.audit.spread import over_cores
from privacy.audit.verdict import Outcome, Verdict, judged, unchecked
from privacy.audit.witness import witness as seen_by_witness
from privacy.audit.witness import witness_key
from privacy.errors import ConfigError, LedgerError, ReleaseInvalid
from privacy.ledger import public_key_of, read_ledger
from privacy.release import signer_of, verify_release

audit = typer.Typer(no_args_is_help=True, help="Verify a run, a ledger or a release, and recompute its epsilon.")

Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]
Key = Annotated[str | None, typer.Option("--key", help="Public key, 64 hexadecimal digits, or a file that holds it.")]
Witnessed = Annotated[
    str | None, typer.Option("--witness", help="Public key of a witness, or its file: its cosignature must be there.")
]
MARKS = {Outcome.HOLDS: "✓", Outcome.VIOLATED: "✗", Outcome.UNCHECKED: "–"}


@audit.command()
def run(
    path: Annotated[Path, typer.Argument(help="A RUN folder.")],
    key: Key = None,
    html: Annotated[Path | None, typer.Option(help="Where the officer’s page goes. Default: RUN/audit.html.")] = None,
    witness_: Witnessed = None,
    as_json: Json = False,
) -> None:
    """Check ledgers, releases and claims of a RUN against each other; write audit.html."""
    verdict = audit_run(path, _optional(key), _optional(witness_, "--witness"), over_cores)
    write_page(html or path / "audit.html", verdict)
    conclude(verdict, as_json)


@audit.command()
def ledger(
    path: Annotated[Path, typer.Argument(help="A ledger, *.jsonl.")],
    key: Key = None,
    witness_: Witnessed = None,
    as_json: Json = False,
) -> None:
    """Verify one ledger to its last byte and recompute what it spent."""
    conclude(audit_ledger(path, _optional(key), _optional(witness_, "--witness")), as_json)


@audit.command()
def release(
    path: Annotated[Path, typer.Argument(help="A release folder.")], key: Key = None, as_json: Json = False
) -> None:
    """Verify one release: signature, files, shapes, PEFT folders."""
    conclude(audit_release(path, _optional(key)), as_json)


@audit.command()
def witness(
    path: Annotated[Path, typer.Argument(help="A RUN folder, or a ledger, *.jsonl.")],
    state: Annotated[Path, typer.Option(help="Folder of what this witness remembers; made if it is not there.")],
    key: Annotated[
        Path | None, typer.Option(help="File of the witness’s own private key, made on first use. Default: in STATE.")
    ] = None,
    owner: Annotated[
        str | None, typer.Option(help="Public key of the ledger’s owner. Default: as lies beside.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check that ledgers continue what was seen before, remember them, and countersign their checkpoints."""
    own = witness_key(key or state / "witness.key")
    conclude(seen_by_witness(path, state, own, int(time.time()), _optional(owner, "--owner")), as_json)


def audit_ledger(path: Path, key: Ed25519PublicKey | None, witness_key_: Ed25519PublicKey | None = None) -> Verdict:
    """Return the verdict on one ledger; raises ConfigError where it or its key cannot be read."""
    if not path.is_file():
        raise ConfigError(f"cannot read {path}: there is no such ledger")
    try:
        owner = key or public_key_of(path)
    except LedgerError as error:
        raise ConfigError(f"{error}; name the key with --key") from error
    check = "ledger.federation" if path.stem == "federation" else "ledger.devices"
    try:
        view = read_ledger(path, owner)
    except LedgerError as error:
        return Verdict(path.name, (judged(check, [str(error)], ""),))
    figures = statement(view.account.busiest(), adopted=view.account.adopted)
    torn = view.chain.torn_bytes
    facts = {
        "head": view.head,
        "size": len(view.entries),
        "torn_bytes": torn,
        "statement": figures,
        "private": not view.account.unprotected(),
    }
    checked = f"{len(view.entries)} entries, head {view.head[:16]}" + (f"; {torn} unfinished bytes" if torn else "")
    witnessed = check_cosignatures([(path.with_suffix(".checkpoint"), view)], witness_key_)
    return Verdict(path.name, (judged(check, (), checked), witnessed), facts)


def audit_release(path: Path, key: Ed25519PublicKey | None) -> Verdict:
    """Return the verdict on one release; without a key, signed by whom it names: then whose that is stays unchecked."""
    if not path.is_dir():
        raise ConfigError(f"cannot read {path}: there is no such folder")
    try:
        signer = key or Ed25519PublicKey.from_public_bytes(bytes.fromhex(signer_of(path)))
        found = verify_release(path, signer)
    except (ReleaseInvalid, ValueError) as error:
        return Verdict(path.name, (judged("release.files", [str(error)], ""),))
    names = ", ".join(found.adapters)
    checked = f"{names}: {found.basis.layout.dim:,} numbers each" + (
        "" if key else "; signed by the key that it names itself, give --key to know whose"
    )
    alone = unchecked("claims.release", "its claim needs the ledger: confide audit run")
    facts = {"sha256": found.sha256, "private": found.facts.private, "claim": dict(found.facts.privacy)}
    return Verdict(path.name, (judged("release.files", (), checked), alone), facts)


def public_key(text: str, option: str = "--key") -> Ed25519PublicKey:
    """Return the key that `text` is or that the file of this name holds; raises ConfigError that names `option`."""
    try:
        path = Path(text)
        digits = path.read_text().strip() if path.is_file() else text
        return Ed25519PublicKey.from_public_bytes(bytes.fromhex(digits))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{option}: neither 64 hexadecimal digits nor a file that holds them") from error


def _optional(text: str | None, option: str = "--key") -> Ed25519PublicKey | None:
    return None if text is None else public_key(text, option)


def conclude(verdict: Verdict, as_json: bool) -> NoReturn:
    """Print the verdict and exit: 0 if it holds; 1 if not, with one line on standard error."""
    if as_json:
        typer.echo(json.dumps(verdict.as_dict(), indent=2))
    else:
        for finding in verdict.findings:
            typer.echo(f"{MARKS[finding.outcome]} {finding.title}: {finding.detail}")
        if verdict.holds:
            typer.echo(verdict.line)
    if not verdict.holds:
        typer.echo(f"confide: {' '.join(verdict.line.split())}", err=True)
    raise typer.Exit(verdict.exit_code)
