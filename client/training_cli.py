"""`confide device train`, `adopt`, `export`: a person's own adapter, made within their limits."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]
Model = Annotated[str, typer.Option(help="An embedded name, a folder, or a hub id.")]
Epsilon = Annotated[
    float | None, typer.Option(help="Train with document-level differential privacy of this epsilon.", min=0.01)
]


def train(
    kind: Annotated[str, typer.Option(help="lora, ia3 or prompt: the kind of your own adapter.")] = "lora",
    model: Model = "",
    record_epsilon: Epsilon = None,
    seconds: Annotated[float | None, typer.Option(help="The longest training; kept for later ones.", min=1)] = None,
    hours: Annotated[
        tuple[int, int] | None, typer.Option(help="The hours of the day in which it may run; kept for later ones.")
    ] = None,
    memory_mb: Annotated[
        int | None,
        typer.Option(help="The most memory while training, model included; 0: no limit. Kept for later ones.", min=0),
    ] = None,
    background: Annotated[bool, typer.Option("--background", help="Train in a process of its own.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train your own adapter, measure it on text of yours held back, and choose what serves you best."""
    from client.background import start, training_alone
    from client.device_shell import open_vault, say
    from client.limits import keep_limits, kept_limits

    given: dict[str, Any] = {"seconds": seconds, "memory_mb": memory_mb}
    if hours is not None:
        given |= {"first_hour": hours[0], "last_hour": hours[1]}
    with open_vault() as vault:
        limits = dataclasses.replace(kept_limits(vault), **{k: v for k, v in given.items() if v is not None})
        keep_limits(vault, limits)
        if background:
            asked = {"kind": kind, "model": model, "record_epsilon": record_epsilon}
            process = start(vault.folder, vault.opener, asked)
            say({"process": process}, f"Training in process {process}; `confide device status` says how far.", as_json)
            return
        from client.adopt import train_and_settle
        from client.assistant import open_assistant

        with training_alone(vault.folder), _bars() as bars:
            assistant = open_assistant(vault, model)
            task = bars.add_task("training", total=None)
            made, settled = train_and_settle(
                vault,
                assistant.model,
                kind,
                record_epsilon,
                limits,
                lambda done, steps: bars.update(task, completed=done, total=steps),
            )
            bars.update(task, description="measuring", completed=0, total=None)
            choice = assistant.personalize(lambda arm: bars.update(task, description=f"measuring {arm}"))
    facts = {"adapter": made.number, "kind": made.kind, "documents": made.documents, "tokens": made.tokens}
    facts |= {"seconds": made.seconds, "record_epsilon": made.privacy.epsilon if made.privacy else None}
    facts |= {"release": made.release, "resumed_at_step": made.resumed_at, "settled": settled}
    bits = [f"  {name}: {value:.3f} bits a token" for name, value in choice.bits.items()]
    went_on = f", gone on from step {made.resumed_at}" if made.resumed_at else ""
    text = (
        f"Adapter {made.number}: {made.documents} texts, {made.tokens} tokens of yours, {made.seconds:.0f} s{went_on}."
    )
    say(facts | {"choice": choice.to_json()}, "\n".join([text, settled, choice.words, *bits]), as_json)


def adopt(
    release: Annotated[Path, typer.Argument(help="The folder of a signed release.")],
    signer: Annotated[str, typer.Option(help="The key that signs this federation's releases; asked for once.")] = "",
    model: Model = "",
    retrain: Annotated[bool, typer.Option(help="Train on it in the background afterwards.")] = True,
    as_json: AsJson = False,
) -> None:
    """Take a federation's release over: measure it with your own adapter, keep the best, retrain in the background."""
    from client.adopt import adopt as adopt_in
    from client.assistant import open_assistant
    from client.background import start, training_alone
    from client.device_shell import open_vault, say
    from client.personal import LORA, active

    with open_vault() as vault:
        with training_alone(vault.folder), Console(stderr=True).status("measuring", spinner="dots"):
            now = active(vault)
            found = adopt_in(vault, open_assistant(vault, model).model, release, signer)
        process = None
        if retrain and now is not None:
            asked = {"kind": LORA, "model": model, "record_epsilon": None}
            process = start(vault.folder, vault.opener, asked)
    lines = [found.words, *(f"  {name}: {nats:.3f} nats a token" for name, nats in found.nats.items())]
    if process is not None:
        lines.append(f"Your own adapter is trained anew on it in process {process}.")
    say(found.to_json() | {"process": process}, "\n".join(lines), as_json)


def export(
    folder: Annotated[Path, typer.Argument(help="Where the adapter goes: a new PEFT folder.")],
    record_epsilon: Epsilon = None,
    adapter: Annotated[int, typer.Option(help="The number of the adapter; 0: the one that serves.", min=0)] = 0,
    model: Model = "",
    as_json: AsJson = False,
) -> None:
    """Write your own adapter out of the vault: only one trained with record-level differential privacy may leave."""
    from client.assistant import MODEL_SETTING, open_assistant
    from client.background import training_alone
    from client.base_model import DEFAULT_MODEL
    from client.device_shell import open_vault, say
    from client.export import export as export_from
    from client.limits import kept_limits
    from client.personal import LORA, SERVING, active, serve, train
    from client.releases import LATEST, kept, put_under
    from privacy.errors import ConfigError

    with open_vault() as vault:
        name, number = model or vault.setting(MODEL_SETTING, DEFAULT_MODEL), adapter or None
        if record_epsilon is not None and adapter:
            raise ConfigError("say which adapter leaves, or train one with --record-epsilon: not both")
        if record_epsilon is not None and not folder.exists():
            with training_alone(vault.folder), _bars() as bars:
                task = bars.add_task("training", total=None)
                loaded, latest = open_assistant(vault, model).model, vault.setting(LATEST)
                now, under = active(vault), vault.setting(SERVING)
                put_under(loaded, kept(vault, latest))
                number = train(
                    *(vault, loaded, LORA, record_epsilon, kept_limits(vault), latest),
                    lambda done, steps: bars.update(task, completed=done, total=steps),
                ).number
                if now is not None:  # the one without noise goes on serving
                    serve(vault, now[0], under)
        made = export_from(vault, folder, name, number)
    text = (
        f"{folder}: epsilon {made.epsilon:.2f} (delta {made.delta:g}) for each {made.unit}. With all exports so far "
        f"somebody who has them all learns of a {made.unit} at most epsilon {made.total_epsilon:.2f}."
    )
    say(made.to_json(), text, as_json)


def _bars() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True)
