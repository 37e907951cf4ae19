"""Who may take part: codes, admission, revocation, and the directory that follows from them.

    members.json = [{device, organisation, public_key, node_key, vetted, revoked, enrolment}]    enrolment: its hash
    codes.json   = [{key, until}]                                                              0600, each for one device

Every change signs a directory with the next number. Running devices get it with the next round; those who are not in it
are out of that round and of all later ones.
"""

from __future__ import annotations

import hmac
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from privacy.directory import Directory, Member, signed_directory
from privacy.enrolment import Enrolment, code_key, new_code, open_enrolment, proof_of
from privacy.errors import ConfigError
from privacy.files import write_atomic
from server.folder import OperatorFolder

CODE_DAYS = 14
DAY_S = 86_400


@dataclass(frozen=True)
class Admitted:
    """One line of members.json. `enrolment` is the hash of the enrolment it came with, `revoked` says it is out."""

    device: str
    organisation: str
    public_key: str
    node_key: str
    vetted: bool
    enrolment: str
    revoked: bool = False

    @property
    def member(self) -> Member:
        """Return the line of the directory."""
        return Member(self.device, self.public_key, self.organisation, self.vetted)


def members(operator: OperatorFolder) -> list[Admitted]:
    """Return everybody who was ever admitted, in that order. Raises ConfigError for a file that cannot be read."""
    path = operator.folder / "members.json"
    if not path.exists():
        return []
    try:
        return [Admitted(**row) for row in json.loads(path.read_bytes())]
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"members.json cannot be read ({type(error).__name__}): restore it from a backup") from None


def invite(operator: OperatorFolder, days: int = CODE_DAYS, clock: Callable[[], float] = time.time) -> str:
    """Return a new code for one device; its key is kept until it is used or `days` have passed."""
    code = new_code()
    kept = [*_codes(operator, clock()), {"key": code_key(code).hex(), "until": int(clock() + days * DAY_S)}]
    _keep_codes(operator, kept)
    return code


def admit(
    operator: OperatorFolder,
    file: bytes,
    vetted: bool = False,
    number: str | None = None,
    clock: Callable[[], float] = time.time,
) -> Admitted:
    """Admit the device of an enrolment, sign the next directory, and return its line.

    `number`, where given, is the safety number that the person read out. Raises SignatureInvalid, WireError;
    ConfigError for an enrolment that was used, a code that is not out, a name or key that is taken, another
    federation's; nothing is changed then.
    """
    found, proof = open_enrolment(file)
    key, known = operator.root_key, members(operator)
    if (found.federation, found.root_key) != (operator.settings.federation, operator.root_hex):
        raise ConfigError("this enrolment is for another federation")
    if any(each.enrolment == found.sha256 for each in known):
        raise ConfigError("this enrolment was used already: a device enrols anew, with a new code")
    codes = _codes(operator, clock())
    left = [row for row in codes if not _proves(row, proof, found)]
    if len(left) == len(codes):
        raise ConfigError("no code that is out proves this enrolment: it was used, has ended, or was never given")
    if number is not None and number != found.safety_number:
        raise ConfigError(
            f"the safety number of this enrolment is {found.safety_number}, not the one that was read out"
        )
    taken = [each for each in known if found.device == each.device or _same_key(found, each)]
    if taken:
        raise ConfigError(f"{taken[0].device} has this name or one of these keys already, or had it: enrol anew")
    new = Admitted(found.device, found.organisation, found.public_key, found.node_key, vetted, found.sha256)
    _sign(operator, key, [*known, new])
    _keep_codes(operator, left)
    return new


def revoke(operator: OperatorFolder, device: str) -> Admitted:
    """Take a device out, sign the next directory, and return its line. Raises ConfigError for one that is not in."""
    known = members(operator)
    found = next((each for each in known if each.device == device), None)
    if found is None or found.revoked:
        raise ConfigError(f"{device} is not in the directory" + (": it was revoked already" if found else ""))
    if sum(not each.revoked for each in known) == 1:
        raise ConfigError(f"{device} is the only device: a directory names one at least")
    out = replace(found, revoked=True)
    _sign(operator, operator.root_key, [out if each.device == device else each for each in known])
    return out


def sign_again(operator: OperatorFolder) -> Directory:
    """Sign the directory of the same devices with the next number, and return it. Raises ConfigError where none is."""
    known = members(operator)
    if not any(not each.revoked for each in known):
        raise ConfigError("nobody was admitted yet: there is no directory")
    return _sign(operator, operator.root_key, known)


def _sign(operator: OperatorFolder, key: Ed25519PrivateKey, rows: Sequence[Admitted]) -> Directory:
    """Write members, then the directory: what a crash leaves between the two, the next change or start puts right."""
    held = operator.directory
    inside = [each.member for each in rows if not each.revoked]
    directory = Directory.of(operator.settings.federation, inside, held.serial + 1 if held is not None else 1)
    data: list[dict[str, Any]] = [asdict(each) for each in rows]
    write_atomic(operator.folder / "members.json", json.dumps(data, indent=1).encode())
    write_atomic(operator.home / "ledger" / "directory.json", signed_directory(directory, key))
    return directory


def _codes(operator: OperatorFolder, now: float) -> list[dict[str, Any]]:
    path = operator.folder / "codes.json"
    rows: list[dict[str, Any]] = json.loads(path.read_bytes()) if path.exists() else []
    return [row for row in rows if row["until"] > now]


def _keep_codes(operator: OperatorFolder, rows: list[dict[str, Any]]) -> None:
    write_atomic(operator.folder / "codes.json", json.dumps(rows).encode(), mode=0o600)


def _proves(row: dict[str, Any], proof: bytes, found: Enrolment) -> bool:
    return hmac.compare_digest(proof_of(bytes.fromhex(row["key"]), found.to_bytes()), proof)


def _same_key(found: Enrolment, other: Admitted) -> bool:
    return found.public_key == other.public_key or found.node_key == other.node_key
