"""`confide device`: a person's own model over their own text, which stays on this device."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from client import face_cli, federation_cli, owner_cli, training_cli
from client.device_shell import AsJson, asked_of_agent, open_vault, say, typed
from client.spoken import spoken
from client.vault import Vault, home_folder
from client.vault_key import Opener, opener_from, opens_by
from privacy.errors import ConfigError, VaultError

device = typer.Typer(
    help="Your own model over your own text, which stays on this device.", no_args_is_help=True, add_completion=False
)
for _command in (
    *(training_cli.train, training_cli.adopt, training_cli.export),
    *(owner_cli.agent, owner_cli.dial, owner_cli.consent, owner_cli.attributes),
    *(federation_cli.join, federation_cli.take_part, federation_cli.leave),
    *(federation_cli.persona, federation_cli.relay_user, federation_cli.relay),
):
    device.command()(_command)
face_cli.mount(device)
FLASH = "Flash storage may keep old blocks of what was overwritten; they are encrypted under the vault's key."


@device.command()
def init(as_json: AsJson = False) -> None:
    """Make an empty vault. Its key is in your keyring, or under a passphrase."""
    folder, opener = home_folder(), opener_from()
    if not opener.passphrase and opener.keyring is None:
        first = typed("No keyring here. Choose a passphrase: ")
        if first != typed("Once more: "):
            raise VaultError("the two passphrases differ; nothing was made")
        opener = Opener(passphrase=first)
    Vault.create(folder, opener).close()
    by = opens_by(folder)
    words = spoken("An empty vault in {folder}; what opens it: {by}.", folder=folder, by=by)
    say({"home": str(folder), "opens_by": by}, words, as_json)


@device.command()
def add(
    place: Annotated[Path, typer.Argument(help="A folder of notes, a git repository, mail, an exported chat, …")],
    me: Annotated[list[str] | None, typer.Option("--me", help="An address, name or user of yours there.")] = None,
    again: Annotated[bool, typer.Option("--again", help="Take back what you had forgotten one by one.")] = False,
    as_json: AsJson = False,
) -> None:
    """Import text; again, to take in what is new."""
    from client.importers import add as add_place

    console = Console(stderr=True)
    with open_vault() as vault, console.status(f"reading {place.name}", spinner="dots") as status:

        def read(done: int) -> None:
            status.update(f"reading {place.name}: {done}")

        counts = add_place(vault, place, me or (), read, again)
    lines = [
        spoken("source {source}, {kind}: {new} new, {changed} changed, {same} as before", **vars(counts))
        + (spoken(", {ratings} ratings", ratings=counts.ratings) if counts.ratings else "")
        + (spoken("; {others} hold other people's words alone", others=counts.others) if counts.others else "")
    ]
    if counts.foreign:
        lines.append(
            spoken(
                "{foreign} look like another language than English: they are found by words as well as any, by meaning"
                " less well, and scrubbing misses more names in them, so look at them before you share their source.",
                foreign=counts.foreign,
            )
        )
    lines += [spoken("skipped {count}: {reason}", count=n, reason=reason) for reason, n in counts.skipped.most_common()]
    lines += [f"  {line}" for line in counts.shown[:5]]
    say(counts.to_json(), "\n".join(lines), as_json)


@device.command()
def status(as_json: AsJson = False) -> None:
    """What the vault holds, source by source, and what it is used for."""
    from client.background import go_on, state

    with open_vault() as vault:
        facts = vault_facts(vault) | {"training": state(vault)}
        go_on(vault)
    lines = [spoken("{documents} documents, {ratings} ratings, {own_words} words of yours", **facts)]
    lines += [
        spoken(
            "source {source}: {kind} {place}: {documents} documents, for: {purposes}",
            **s,
            purposes=", ".join(s["for"]) or "-",
        )
        for s in facts["sources"]
    ]
    if facts["training"]:
        lines.append(spoken("training in the background: {state} {words}", **facts["training"]))
    say(facts, "\n".join(lines), as_json)


@device.command()
def ask(
    question: Annotated[str, typer.Argument(help="What you want to know.")],
    model: Annotated[str, typer.Option(help="An embedded name, a folder, or a hub id.")] = "",
    most_tokens: Annotated[int, typer.Option(help="The longest reply.", min=1, max=2048)] = 128,
    pseudonyms: Annotated[bool, typer.Option("--pseudonyms", help="The model sees no names; the reply does.")] = False,
    steer: Annotated[
        float | None, typer.Option(help="How much your texts weigh: -1 not at all, 0 as they are, 1 twice.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Ask the model that knows your text. Nothing leaves this device."""
    with Console(stderr=True).status("thinking", spinner="dots"):
        wish: dict[str, Any] = {"do": "ask", "question": question, "most_tokens": most_tokens, "steer": steer}
        wish["pseudonyms"] = pseudonyms
        told = None if model else asked_of_agent(home_folder(), wish)
        if told is None:
            from client.assistant import open_assistant

            with open_vault() as vault:
                assistant = open_assistant(vault, model)
                told = assistant.ask(question, most_tokens, steer=steer, pseudonyms=pseudonyms).to_json()
    shown = [f"  [{n}] document {s['document']}, {s['title']}" for n, s in enumerate(told["sources"], 1)]
    say(told, "\n".join([told["reply"], "", told["used"], *shown]), as_json)


@device.command()
def forget(
    document: Annotated[list[int] | None, typer.Option(help="A document, by its number.")] = None,
    source: Annotated[list[int] | None, typer.Option(help="A source with all its documents.")] = None,
    before: Annotated[datetime | None, typer.Option(help="Everything written before a day.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Destroy the vault's key and file.")] = False,
    as_json: AsJson = False,
) -> None:
    """Forget text, and all that was made of it."""
    from client.budget import given, releases_hold
    from client.forget import Wanted
    from client.forget import forget as forget_in
    from client.kept_answers import forget_answers

    day = before.replace(tzinfo=UTC).timestamp() if before else None
    wanted = Wanted(tuple(document or ()), tuple(source or ()), day)
    if everything == (wanted != Wanted()):
        raise ConfigError("say what: --document N, --source N, --before DAY, or --all alone")
    with open_vault() as vault:
        if everything:
            asked_of_agent(vault.folder, {"do": "end"})
            vault.destroy()
            forget_answers(vault.folder)
            words = spoken("The key is destroyed and the vault deleted.")
            say({"destroyed": True}, f"{words} {spoken(FLASH)}", as_json)
            return
        made = forget_in(vault, wanted, releases_hold(given(vault.folder)))
        if asked_of_agent(vault.folder, {"do": "forgot"}) is None:
            forget_answers(vault.folder)
    facts = made.to_json()
    counts = spoken(
        "Forgotten: {count} documents with {vectors} embeddings, {profile_lines} profile lines,"
        " {pseudonyms} pseudonyms, {chats} chats, {ratings} ratings, {adapters} own adapters.",
        **{**facts, "count": len(made.documents)},
    )
    say(facts, f"{counts}\n{made.releases}\n{spoken(FLASH)}", as_json)


def vault_facts(vault: Vault) -> dict[str, Any]:
    """Return what a vault holds, in numbers, source by source."""
    rows = vault.select(
        "SELECT s.id, s.kind, s.place, (SELECT count(*) FROM document d WHERE d.source = s.id),"
        " (SELECT group_concat(purpose) FROM consent c WHERE c.source = s.id AND c.granted) FROM source s ORDER BY s.id"
    )
    sources = [
        {"source": n, "kind": kind, "place": place, "documents": count, "for": granted.split(",") if granted else []}
        for n, kind, place, count, granted in rows
    ]
    return {
        "home": str(vault.folder),
        "documents": vault.one("SELECT count(*) FROM document"),
        "own_words": vault.one("SELECT coalesce(sum(own_words), 0) FROM document"),
        "ratings": vault.one("SELECT count(*) FROM interaction"),
        "adapters": vault.one(
            "SELECT count(*) FROM adapter WHERE NOT coalesce(json_extract(facts, '$.unfinished'), 0)"
        ),
        "sources": sources,
    }
