"""`confide scrub`: what would be removed from a text, and how well that works on labelled texts."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from client.scrub_strength import STANDARD, require_strength
from privacy.errors import ConfigError, DataError

FILE_HELP = "A UTF-8 text file, or - for standard input."
EVALUATE_HELP = 'JSON lines {"text", "spans": [{"start", "end", "label"}]}: score the scrubber instead.'


def scrub(
    file: Annotated[str | None, typer.Argument(help=FILE_HELP, metavar="FILE|-", show_default=False)] = None,
    evaluate: Annotated[Path | None, typer.Option(help=EVALUATE_HELP, metavar="LABELLED.jsonl")] = None,
    strength: Annotated[str, typer.Option(help="identifiers, standard or strict, as on a device's dial.")] = STANDARD,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Print the text with placeholders, or precision and recall by entity.

    Scrubbing removes what its recognizers find. It is never a guarantee, and no privacy claim counts on it.
    """
    if (file is None) == (evaluate is None):
        raise ConfigError("give a FILE (or - for standard input), or --evaluate LABELLED.jsonl, not both")
    require_strength(strength)
    if evaluate is not None:
        _print_scores(_scores(evaluate, strength), as_json)
    elif file is not None:
        _print_scrubbed(_text(file), strength, as_json)


def _text(file: str) -> str:
    try:
        data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        return data.decode()
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not valid UTF-8 at byte {error.start}") from None


def _print_scrubbed(text: str, strength: str, as_json: bool) -> None:
    from client.documents import Document, Span
    from client.scrub import Scrubber, find

    scrubber = Scrubber(strength=strength)
    document = scrubber.scrub_document(Document("text", (Span(text, own=True),), "history", 0))
    if not as_json:
        typer.echo(document.text, nl=not document.text.endswith("\n"))
        found = ", ".join(f"{entity} {count}" for entity, count in sorted(scrubber.report.replaced.items()))
        Console(stderr=True, soft_wrap=True).print(f"removed: {found or 'nothing'}", markup=False, highlight=False)
        return
    findings = [{"start": f.start, "end": f.end, "entity": f.entity} for f in find([text], strength=strength)[0]]
    typer.echo(json.dumps({"text": document.text, "findings": findings, "report": scrubber.report.to_json()}))


def _scores(path: Path, strength: str) -> dict[str, Any]:
    from client.scrub import find
    from client.scrub_score import read_labelled, scores, tally

    examples = read_labelled(path)
    if not examples:
        raise DataError(f"{path.name}: holds no labelled texts")
    with Console(stderr=True).status(f"scrubbing {len(examples)} texts", spinner="dots"):
        return scores(tally(examples, find([example.text for example in examples], strength=strength)))


def _print_scores(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(result))
        return
    table = Table(box=SIMPLE)
    for heading in ("entity", "recall", "precision", "F2", "labelled", "found"):
        table.add_column(heading, no_wrap=True)
    for name, row in [*result["entities"].items(), ("overall", result["overall"])]:
        shares = [_share(row, "recall"), _share(row, "precision")]
        table.add_row(name, *shares, f"{row['f2']:.2f}", str(row["support"]), str(row["predicted"]))
    console = Console()
    console.print(table)
    console.print("In brackets: 95 % Wilson intervals. A miss stays in the text.", highlight=False)
    if others := result["not_labelled"]:
        counts = ", ".join(f"{name} {count}" for name, count in others.items())
        console.print(f"Found but never labelled in this file, so not scored: {counts}", highlight=False)


def _share(row: dict[str, Any], name: str) -> str:
    low, high = row[f"{name}_interval"]
    return f"{row[name]:.2f} [{low:.2f}, {high:.2f}]"
