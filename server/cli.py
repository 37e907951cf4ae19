"""`confide server`: found a federation, admit devices, run campaigns, for an operator."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from privacy.errors import CohortTooSmall, ConfideError, ConfigError

if TYPE_CHECKING:
    from server.folder import OperatorFolder

server = typer.Typer(
    help="A federation of real devices: found it, admit devices, run campaigns.",
    no_args_is_help=True,
    add_completion=False,
)
Folder = Annotated[Path, typer.Argument(help="The federation's folder on this server.")]
Keys = Annotated[Path | None, typer.Option(help="Where root.key and ca.key are kept, if not in FOLDER/root.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]
EVERYWHERE = "0.0.0.0"  # noqa: S104 - the fleet's door is for devices; all else is on loopback


@server.command()
def init(
    folder: Folder,
    federation: Annotated[str, typer.Option(help="Its name: letters, digits, - and _.")],
    address: Annotated[str, typer.Option(help="host:port that devices connect to.")],
    model: Annotated[Path, typer.Option(help="The base model's folder (`confide model get` prints it).")],
    basis: Annotated[Path, typer.Option(help="The basis (`confide model basis` makes it).")],
    model_name: Annotated[str, typer.Option(help="What devices call the model; the folder's name if left out.")] = "",
    layers: Annotated[int, typer.Option(min=1, help="How many layers from the top are adapted.")] = 10,
    cohort: Annotated[int, typer.Option(min=2, help="Devices invited to a round, and the least there must be.")] = 16,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of a campaign.")] = 2,
    personas: Annotated[int, typer.Option(min=0, help="Personas, trained in every second round; 0: none.")] = 0,
    persona: Annotated[list[str] | None, typer.Option(help="A persona to declare, 'name: description'.")] = None,
    noise_multiplier: Annotated[str, typer.Option(help="Noise multiplier of a round.")] = "1",
    clip: Annotated[str, typer.Option(help="Clip norm of an answer.")] = "1/10",
    own_tokens: Annotated[int, typer.Option(min=1, help="Own tokens that a device may learn from in a round.")] = 96,
    hold: Annotated[int, typer.Option(min=0, help="Seconds after which every answer is ready.")] = 60,
    stage: Annotated[int, typer.Option(min=1, help="Seconds that devices have for each message.")] = 90,
    listen: Annotated[str, typer.Option(help="Local address to listen on for devices.")] = EVERYWHERE,
    control: Annotated[int, typer.Option(help="Port of the SuperLink, on loopback.")] = 9443,
    observe: Annotated[int, typer.Option(help="Port of your page and metrics, on loopback.")] = 9444,
    name: Annotated[list[str] | None, typer.Option(help="A further host name or address of this server.")] = None,
    keys: Keys = None,
    as_json: AsJson = False,
) -> None:
    """Found a federation: root key, certificates, policy, bundle, invitation."""
    from privacy.adapter import Basis
    from privacy.enrolment import split_address, weights_sha256
    from server.folder import OperatorFolder, Settings
    from server.found import bundle_sha256, found

    with _at_work("hashing the model, building the bundle"):
        frozen = Basis.load(basis)
        settings = Settings(
            federation=federation,
            address=address,
            model=model_name or model.resolve().name,
            model_sha256=weights_sha256(model),
            basis_sha256=frozen.sha256,
            bundle_sha256=bundle_sha256(),
            layers=layers,
            dim=frozen.layout.dim,
            cohort=cohort,
            rounds=rounds,
            personas=personas or len(persona or ()),
            declared=tuple(persona or ()),
            noise_multiplier=noise_multiplier,
            clip=clip,
            own_tokens=own_tokens,
            hold_s=hold,
            stage_s=stage,
            listen=listen,
            control=control,
            observe=observe,
            names=(split_address(address)[0], *(name or ()), *([] if listen == EVERYWHERE else [listen])),
        )
        operator = OperatorFolder(folder, keys)
        found(operator, settings, frozen)
    verdict = _verdict(operator, cohort)
    facts = {
        "folder": str(folder),
        "federation": federation,
        "safety_number": operator.safety_number,
        "invitation": str(folder / "invitation.json"),
        "bundle_sha256": settings.bundle_sha256,
        "plan": verdict,
    }
    lines = [
        f"{federation} is founded in {folder}.",
        f"Safety number: {operator.safety_number}",
        f"Give {folder / 'invitation.json'} to whom you invite, and the safety number over another way.",
        f"`confide plan` for a cohort of {cohort}: {verdict['verdict']}, epsilon {verdict['epsilon']:.2f}.",
        f"Keep {operator.keys}/root.key and ca.key off this machine but to admit, revoke and rotate.",
    ]
    _say(facts, lines, as_json)


@server.command()
def invite(
    folder: Folder,
    days: Annotated[int, typer.Option(min=1, max=365, help="How long the code may be used.")] = 14,
    as_json: AsJson = False,
) -> None:
    """Make a code for one device, to be told over another way than the invitation's."""
    from server import members

    operator = _opened(folder)
    with operator.alone():
        code = members.invite(operator, days)
    facts = {"code": code, "days": days, "safety_number": operator.safety_number}
    _say(facts, [f"Code, for one device, {days} days: {code}", f"Safety number: {operator.safety_number}"], as_json)


@server.command()
def admit(
    folder: Folder,
    enrolment: Annotated[Path, typer.Argument(help="The file that `confide device join` wrote.")],
    safety_number: Annotated[str, typer.Option(help="The device's number, as its owner read it out.")] = "",
    vetted: Annotated[bool, typer.Option("--vetted", help="Somebody vouches that this is a person's device.")] = False,
    keys: Keys = None,
    as_json: AsJson = False,
) -> None:
    """Admit a device: checks its code and keys, signs the next directory, registers its SuperNode."""
    from privacy.enrolment import open_enrolment, same_number
    from server import members
    from server.superlink import SuperLink

    operator, file = _opened(folder, keys), _read(enrolment)
    number = open_enrolment(file)[0].safety_number
    if safety_number and not same_number(safety_number, number):
        raise ConfigError(f"the safety number of this enrolment is {number}, not the one that was read out")
    with operator.alone():
        admitted = members.admit(operator, file, vetted)
        running = operator.running()
        if running:
            SuperLink(operator).register(admitted)
    directory = operator.directory
    facts = {"device": admitted.device, "safety_number": number, "vetted": vetted, "registered": running}
    facts["directory"] = directory.serial if directory is not None else 0
    lines = [f"{admitted.device} is admitted. Its safety number, for you to compare: {number}"]
    if not running:
        lines.append("Its SuperNode is registered when the server starts.")
    _say(facts, lines, as_json)


@server.command()
def start(folder: Folder, as_json: AsJson = False) -> None:
    """Run the server until Ctrl-C or SIGTERM: SuperLink on loopback, one door for devices."""
    from server.serving import serve

    operator = _opened(folder)
    settings = operator.settings
    facts = {"address": settings.address, "control": settings.control, "observe": settings.observe}

    def ready() -> None:
        lines = [f"Devices connect to {settings.address}; the SuperLink is on loopback, port {settings.control}."]
        _say(facts, lines, as_json)

    serve(operator, ready)


@server.command()
def run(
    folder: Folder,
    campaign: Annotated[str, typer.Option(help="A name for a new campaign; a number if left out.")] = "",
    new: Annotated[bool, typer.Option("--new", help="Give up a campaign that failed and begin another.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run a campaign to its release, or go on with the one that was interrupted."""
    from server.found import bundle_sha256
    from server.running import finished, reason
    from server.superlink import SuperLink

    operator = _opened(folder)
    if not operator.running():
        raise ConfigError(f"the server does not run: `confide server start {folder}`")
    with operator.alone("run"):
        if bundle_sha256(folder / "bundle") != operator.settings.bundle_sha256:
            raise ConfigError(f"{folder / 'bundle'} is not what devices pinned: restore it from a backup")
        _require_floor(operator)
        link = SuperLink(operator)
        link.stop_runs()
        if not link.starts_runs():
            link.start_anew()
        name, started = _campaign(operator, campaign, new), time.time()
        run_id = link.submit()
        with _at_work(f"campaign {name}"):
            status = finished(operator, lambda: link.run_status(run_id), started)
        line = reason(operator, started)
        if status != "finished:completed":
            raise ConfideError(line or f"the run ended as {status}: see {link.folder / 'logs' / 'superlink.log'}")
    release = operator.home / "release"
    facts = {"campaign": name, "run": run_id, "release": str(release), "seconds": round(time.time() - started, 1)}
    _say(facts, [f"Campaign {name} is over: its release lies in {release}."], as_json)


@server.command()
def revoke(
    folder: Folder,
    device: Annotated[str, typer.Argument(help="Its name in the directory.")],
    keys: Keys = None,
    as_json: AsJson = False,
) -> None:
    """Take a device out: of the next round and all later ones, and its SuperNode off the SuperLink."""
    from server import members
    from server.found import floor
    from server.superlink import SuperLink

    operator = _opened(folder, keys)
    with operator.alone():
        out = members.revoke(operator, device)
        running = operator.running()
        if running:
            SuperLink(operator).unregister(out)
    inside, invited, _ = floor(operator)
    directory = operator.directory
    facts = {"device": device, "directory": directory.serial if directory else 0, "devices": inside, "cut_off": running}
    lines = [f"{device} is out. {inside} devices are left; a round invites {invited}."]
    if inside < invited:
        lines.append("That is below the floor: no round begins until more are admitted.")
    _say(facts, lines, as_json)


@server.command()
def rotate(
    folder: Folder,
    certificates: Annotated[
        bool, typer.Option("--certificates", help="A new key and certificate of the server.")
    ] = False,
    directory: Annotated[
        bool, typer.Option("--directory", help="Sign the directory anew, with the next number.")
    ] = False,
    keys: Keys = None,
    as_json: AsJson = False,
) -> None:
    """Renew what ends or may be known to others. Devices need nothing for it: they pinned authority and root key."""
    from server import members
    from server.certificates import days_left, new_server_certificate

    if not certificates and not directory:
        raise ConfigError("say what: --certificates, --directory, or both")
    operator, facts, lines = _opened(folder, keys), dict[str, Any](), list[str]()
    with operator.alone():
        if certificates:
            tls = folder / "tls"
            new_server_certificate(tls, operator.keys / "ca.key", tls / "ca.crt", operator.settings.names)
            facts["certificate_days"] = days_left(tls / "server.crt")
            lines.append(f"A new certificate for {facts['certificate_days']} days; it serves from the next start.")
        if directory:
            facts["directory"] = members.sign_again(operator).serial
            lines.append(f"The directory has number {facts['directory']}; devices get it with the next round.")
    _say(facts, lines, as_json)


@server.command()
def status(folder: Folder, as_json: AsJson = False) -> None:
    """What the federation is, who is in it, what runs, and how its campaign stands."""
    from server.overview import lines, overview

    facts = overview(_opened(folder))
    _say(facts, lines(facts), as_json)


@server.command()
def release(
    folder: Folder,
    campaign: Annotated[str, typer.Option(help="Of which campaign; the latest if left out.")] = "",
    out: Annotated[Path | None, typer.Option(help="Copy it into this new folder, verified before and after.")] = None,
    adapter: Annotated[str, typer.Option(help="Copy this adapter alone: a folder that stock PEFT loads.")] = "",
    as_json: AsJson = False,
) -> None:
    """What a signed release holds, verified; and a copy of it, whole or one adapter as a plain PEFT folder."""
    from server.released import described, lines, taken_out

    operator = _opened(folder)
    facts = described(operator, campaign)
    if adapter and out is None:
        raise ConfigError("say where the adapter goes: --out FOLDER")
    if out is not None:
        facts["copied_to"] = str(taken_out(operator, campaign, out, adapter))
    _say(facts, lines(facts), as_json)


def _campaign(operator: OperatorFolder, name: str, new: bool) -> str:
    """Return the campaign to run: the unfinished one, or a new one."""
    from server.found import begin, names_taken
    from server.home import ServerHome

    home, taken = operator.home, names_taken(operator)
    begun = (home / "checkpoints" / "campaign.json").exists()
    if begun and not new and not (home / "release" / "release.json").exists():
        going = ServerHome.load(home).plan.campaign
        if name and name != going:
            raise ConfigError(f"campaign {going} is not over: run it, or give it up with --new")
        return going
    chosen = name or next(f"campaign-{n}" for n in range(1, len(taken) + 2) if f"campaign-{n}" not in taken)
    if chosen in taken:
        raise ConfigError(f"a campaign {chosen} was run already: choose another name")
    begin(operator, chosen)
    return chosen


def _require_floor(operator: OperatorFolder) -> None:
    """Raise CohortTooSmall below the federation's floor, with the floor, the reason, and what the plan says."""
    from server.found import floor

    inside, invited, least = floor(operator)
    if inside < invited:
        verdict = _verdict(operator, max(inside, 1))
        raise CohortTooSmall(
            f"{inside} devices are admitted, a round of this federation invites {invited} and releases nothing below"
            f" {least} answers: each device's noise is made for that many, and devices refuse smaller cohorts."
            f" `confide plan --people {max(inside, 1)}` says: {verdict['verdict']}"
            f" (epsilon {verdict['epsilon']:.1f}, noise {verdict['noise_ratio']:.1f} times the signal)"
        )


def _verdict(operator: OperatorFolder, people: int) -> dict[str, Any]:
    from privacy.plan import Campaign, plan

    settings = operator.settings
    asked = Campaign(
        people=people,
        noise_multiplier=settings.noise,
        rounds=settings.rounds,
        personas=max(1, settings.personas),
        dim=settings.dim,
        transport="masked",
    )
    found = plan(asked).as_dict()
    return {name: found[name] for name in ("verdict", "epsilon", "noise_ratio")}


def _opened(folder: Path, keys: Path | None = None) -> OperatorFolder:
    from server.folder import OperatorFolder

    operator = OperatorFolder(folder, keys)
    _ = operator.settings
    return operator


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path.name} cannot be read: {error.strerror}") from None


@contextmanager
def _at_work(what: str) -> Iterator[None]:
    with Console(stderr=True).status(what, spinner="dots"):
        yield


def _say(facts: dict[str, Any], lines: list[str], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(facts))
    else:
        Console(soft_wrap=True).print("\n".join(lines), markup=False, highlight=False)
