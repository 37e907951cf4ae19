"""`confide audit report RUN`: 0 = what was checked holds, 1 = violated, 2 = cannot be read."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from privacy.audit.cli import Json, Key, Witnessed, public_key
from privacy.audit.document import Document
from privacy.audit.evidence import json_object, read_evidence
from privacy.audit.officer import ABOUT, Given, officer_document
from privacy.audit.officer_page import officer_page
from privacy.audit.replay import audit_run
from privacy.errors import ConfigError, LedgerError
from privacy.files import write_atomic
from privacy.record import RecordCharge
from simulation.mechanism.code import code_sha256
from simulation.officer.record_check import record_lines_by_opacus

KINDS: Final = ("mechanism", "bugs", "attacks", "scrub")
MAX_BYTES: Final = 64 * 2**20
NEEDED: Final = {
    "mechanism": ("layers", "holds"),
    "bugs": ("rows", "holds", "clean"),
    "attacks": ("attacks",),
    "scrub": (),
}


def report(
    path: Annotated[Path, typer.Argument(help="A RUN folder; evidence/*.json and evidence/about.json in it are used.")],
    out: Annotated[Path | None, typer.Option(help="Where officer.html, .pdf and .json go. Default: RUN.")] = None,
    key: Key = None,
    witness_: Witnessed = None,
    pdf: Annotated[bool, typer.Option(help="Write the PDF; needs matplotlib, of the extra simulation.")] = True,
    as_json: Json = False,
) -> None:
    """Build the privacy officer’s report on a RUN: officer.html, officer.pdf, officer.json."""
    document = build(path, key, witness_)
    folder = out or path
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(document.as_dict(), indent=1, ensure_ascii=False) + "\n"
    write_atomic(folder / "officer.json", text.encode())
    write_atomic(folder / "officer.html", officer_page(document).encode())
    if pdf:
        from simulation.officer.pdf import officer_pdf  # takes a second to load, and its library may be missing

        write_atomic(folder / "officer.pdf", officer_pdf(document))
    typer.echo(text if as_json else f"{folder / 'officer.html'}: {document.line}")
    if not document.holds:
        typer.echo(f"confide: {document.line}", err=True)
        raise typer.Exit(1)


def build(path: Path, key: str | None = None, witness: str | None = None) -> Document:
    """Return the report on a RUN; raises ConfigError where the RUN or a file of evidence cannot be read."""
    keys = (public_key(key) if key else None, public_key(witness, "--witness") if witness else None)
    verdict = audit_run(path, *keys)
    folder = path / "evidence"
    evidence = {kind: found for kind in KINDS if (found := _json(folder / f"{kind}.json")) is not None}
    for kind, found in evidence.items():
        if missing := [name for name in NEEDED[kind] if name not in found]:
            raise ConfigError(f"evidence/{kind}.json: not what its command writes, {', '.join(missing)} is missing")
        if found.get("planted"):
            raise ConfigError(f"evidence/{kind}.json: an audit with a planted bug says nothing about this code")
    second = record_lines_by_opacus(_record_charges(path, *keys))
    given = Given(
        report=_json(path / "report.json") or {},
        manifest=_json(path / "run.json") or {},
        evidence=evidence,
        about=_about(folder / "about.json"),
        files=tuple(_hashes(path)),
        code_sha256=code_sha256(),
        extra=() if second is None else (second,),
    )
    return officer_document(verdict, given)


def _record_charges(path: Path, key: Any, witness: Any) -> list[RecordCharge]:
    charges = []
    for view in read_evidence(path, key, witness).devices.values():
        for entry in view.entries:
            if entry.kind == "RECORD_DP":
                try:
                    charges.append(RecordCharge.from_body(entry.body))
                except LedgerError:
                    continue  # the check `record` says which line cannot be read
    return charges


def _json(path: Path) -> dict[str, Any] | None:
    return json_object(path, MAX_BYTES)


def _about(path: Path) -> dict[str, str]:
    found = _json(path) or {}
    if unknown := set(found) - set(ABOUT):
        raise ConfigError(f"about.json: unknown {', '.join(sorted(unknown))}; it may hold {', '.join(ABOUT)}")
    return {name: str(value) for name, value in found.items()}


def _hashes(path: Path) -> list[tuple[str, str]]:
    """Return name and SHA-256 of every file of the RUN that a figure rests on; the devices' ledgers as one line."""
    names = [path / name for name in ("run.json", "report.json", "ledger/federation.jsonl", "ledger/policy.json")]
    names += sorted((path / "evidence").glob("*.json")) + sorted((path / "release").glob("release.*"))
    rows = [(each.relative_to(path).as_posix(), _sha256(each.read_bytes())) for each in names if each.is_file()]
    devices = sorted((path / "ledger" / "devices").glob("*.jsonl"))
    if devices:
        lines = "".join(f"{_sha256(each.read_bytes())}  {each.name}\n" for each in devices)
        rows.append((f"{len(devices)} ledgers of devices, as a list of sums", _sha256(lines.encode())))
    return rows


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
