"""The device's page and model: how long a person waits, and what their adapters cost.

    face.first_word      s    from a question over HTTP to the first piece of the reply, over a vault of notes
    face.page            s    from the address to a page that answers keys, in Chromium
    face.generation      1    tokens a second with all adapters over those of the bare base model, in turns
    face.switch_person   ms   another own adapter, and face.switch_release: another release, both ready in memory
    face.together        1    share of requests that are sent at once and answered whole
    face.idle            MB   memory of the serving program; 0 once it ended by itself for want of requests

Each is the median of its tries; the worst one stands beside. What concerns the program is by the clock; generation and
switching are seconds of processor on one thread, which another's load disturbs less. Notes
are invented from a list of words.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch

from client.decode import drawn
from client.model import LanguageModel
from client.serving import Factors, Layers, core_factors, fold, in_place
from privacy.adapter import Basis
from privacy.errors import ConfigError

PASSPHRASE = "bench"  # noqa: S105 - of a vault of invented notes
_TEXT = (
    "boat heron mill ferry lamp bread rye cellar hive queen barn orchard ladder paint kitchen letter train platform"
    " window winter garden fence rain market cousin doctor ticket bicycle harbour rope engine battery invoice meeting"
    " report budget draft chapter margin violin lesson river bridge candle oven recipe salt pepper onion walk hill"
    " valley forest map compass tent stove coffee morning evening Sunday Monday April October early late slowly again"
    " bought sold moved repaired forgot remembered promised asked answered painted carried opened closed counted"
)
WORDS = tuple(_TEXT.split())
QUESTIONS = ("When did I repair the engine?", "What did I promise the doctor?", "Who sold the boat?")


class FaceRow(TypedDict):
    """One line of `bench face --json`: the value and its aim, whether it is met, the worst try, how it was measured."""

    work: str
    unit: str
    value: float
    aim: float
    holds: bool
    worst: float
    how: str


@dataclass(frozen=True)
class FaceSizes:
    """How much is measured: notes in the vault, tries of each figure, tokens of a reply, requests at once."""

    notes: int = 2000
    tries: int = 7
    tokens: int = 48
    together: int = 100
    idle_minutes: int = 1


def notes(count: int, seed: int = 0) -> Iterator[str]:
    """Yield invented notes of forty to two hundred words."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        words = rng.choice(WORDS, int(rng.integers(40, 200))).tolist()
        lines = [" ".join(words[i : i + 12]).capitalize() + "." for i in range(0, len(words), 12)]
        yield f"Note {number}. " + " ".join(lines)


def model_rows(model: LanguageModel, sizes: FaceSizes) -> list[FaceRow]:
    """Return the rows of generation and switching, with random adapters of the usual shapes."""
    from client.personal import MODULES, RANK

    torch.set_num_threads(1)
    names = [name for name in model.linear_modules() if name.rsplit(".", 1)[-1] in MODULES]
    everywhere = model.first
    try:
        model.first = 0  # shared cores reach all layers
        basis = _random_basis(model, RANK)
    finally:
        model.first = everywhere
    releases = [core_factors(basis, _random_cores(basis, seed)) for seed in (1, 2)]
    people = [_random_own(model, names, RANK, seed) for seed in (3, 4)]
    ways = {(r, p): fold(model, [releases[r], people[p]]) for r, p in ((0, 0), (0, 1), (1, 0))}
    return [
        _generation(model, ways[0, 0], sizes),
        _switching("face.switch_person", model, ways[0, 0], ways[0, 1], sizes),
        _switching("face.switch_release", model, ways[0, 0], ways[1, 0], sizes),
    ]


def served_rows(folder: Path, model: str, sizes: FaceSizes) -> list[FaceRow]:
    """Return the rows of the real program over a fresh vault in `folder`. Raises ConfigError where it does not start.

    The page's row is missing where there is no Chromium with Playwright.
    """
    environment = os.environ | {"CONFIDE_HOME": str(folder / "home"), "CONFIDE_PASSPHRASE": PASSPHRASE}
    (folder / "notes").mkdir(parents=True)
    for number, text in enumerate(notes(sizes.notes)):
        (folder / "notes" / f"{number:05}.txt").write_text(text)
    _confide(environment, "init")
    _confide(environment, "add", str(folder / "notes"))
    from client.assistant import MODEL_SETTING
    from client.vault import Vault
    from client.vault_key import Opener

    with Vault.open(folder / "home", Opener(passphrase=PASSPHRASE)) as vault:
        vault.set_setting(MODEL_SETTING, model)
    with _serving(environment, sizes.idle_minutes) as (process, facts):
        rows = [_first_word(facts, sizes), _together(facts, sizes)]
        if (page := _page(facts, sizes)) is not None:
            rows.append(page)
        rows.append(_idle(process, sizes))
    return rows


def _row(work: str, unit: str, tries: list[float], aim: float, how: str, more: bool = False) -> FaceRow:
    """Return a row; `more`: the aim is a least, not a most."""
    value = statistics.median(tries)
    return FaceRow(
        work=work, unit=unit, value=value, aim=aim, holds=value >= aim if more else value <= aim,
        worst=min(tries) if more else max(tries), how=how,
    )  # fmt: skip


def _generation(model: LanguageModel, layers: Layers, sizes: FaceSizes) -> FaceRow:
    ids = model.tokenizer(" ".join(WORDS[:64]), return_tensors="pt")["input_ids"][0]

    def seconds(place: Layers | None) -> float:
        with in_place(model, place):
            made = drawn(model, ids, sizes.tokens)
            next(made)  # the prompt is read
            begun, count = time.process_time(), sum(1 for _ in made)
            return (time.process_time() - begun) / max(1, count)

    seconds(None), seconds(layers)
    ratios = []
    for number in range(sizes.tries):
        took = {place is None: seconds(place) for place in ((None, layers) if number % 2 else (layers, None))}
        ratios.append(took[True] / took[False])
    kind = " and ".join(sorted({type(layer).__name__.lower() for layer in layers.values()}))
    how = f"{sizes.tokens} tokens, {len(layers)} layers {kind}"
    return _row("face.generation", "ratio", ratios, 0.95, how, more=True)


def _switching(work: str, model: LanguageModel, one: Layers, other: Layers, sizes: FaceSizes) -> FaceRow:
    took = []
    for number in range(20 * sizes.tries):
        place = in_place(model, one if number % 2 else other)
        begun = time.process_time()
        with place:
            took.append(1000 * (time.process_time() - begun))
    return _row(work, "ms", took, 5.0, f"{len(one)} layers, both ready, changed by reference")


def _first_word(facts: dict[str, str], sizes: FaceSizes) -> FaceRow:
    _asked(facts, QUESTIONS[0])  # the index and the folded layers are made at the first question
    took = [_asked(facts, QUESTIONS[number % len(QUESTIONS)]) for number in range(sizes.tries)]
    return _row("face.first_word", "s", took, 1.0, f"Find's reply over {sizes.notes} notes, prompt read anew each time")


def _asked(facts: dict[str, str], question: str) -> float:
    """Return the seconds from a question to the first piece of its reply."""
    begun = time.perf_counter()
    connection, answer = _post(facts, "/page/answer", {"question": question, "most_tokens": 8})
    try:
        for line in answer:
            if b'"piece"' in line:
                return time.perf_counter() - begun
    finally:
        connection.close()
    return time.perf_counter() - begun


def _together(facts: dict[str, str], sizes: FaceSizes) -> FaceRow:
    whole: list[bool] = []

    def one(number: int) -> None:
        messages = [{"role": "user", "content": QUESTIONS[number % len(QUESTIONS)]}]
        connection, answer = _post(
            facts, "/v1/chat/completions", {"model": "base", "messages": messages, "max_tokens": 2}
        )
        whole.append(answer.status == 200 and bool(json.loads(answer.read())["choices"]))
        connection.close()

    threads = [threading.Thread(target=one, args=(number,)) for number in range(sizes.together)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    share = sum(whole) / sizes.together
    return _row("face.together", "share", [share], 1.0, f"{sizes.together} requests at once", more=True)


def _page(facts: dict[str, str], sizes: FaceSizes) -> FaceRow | None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return None
    if chromium is None:
        return None
    took = []
    with sync_playwright() as playwright:
        sandbox = ["--no-sandbox"] if os.getuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=chromium, args=sandbox)
        for _ in range(sizes.tries):
            context = browser.new_context()  # nothing is cached from the try before
            page = context.new_page()
            begun = time.perf_counter()
            page.goto(f"{facts['url']}#token={facts['token']}", wait_until="commit")
            page.wait_for_selector("html[data-ready]")
            took.append(time.perf_counter() - begun)
            context.close()
        browser.close()
    return _row("face.page", "s", took, 1.0, "Chromium, empty cache, until the page's script is ready")


def _idle(process: subprocess.Popen[str], sizes: FaceSizes) -> FaceRow:
    """Wait until the program ends for want of requests; the row's worst is what it held while it served."""
    held = _memory_mb(process.pid)
    try:
        process.wait(60.0 * sizes.idle_minutes + 60.0)
        after = 0.0
    except subprocess.TimeoutExpired:
        after = _memory_mb(process.pid)
    row = _row("face.idle", "MB", [after], 0.0, f"after {sizes.idle_minutes} min without a request; worst: serving")
    row["worst"] = held
    return row


@contextmanager
def _serving(environment: dict[str, str], idle_minutes: int) -> Iterator[tuple[subprocess.Popen[str], dict[str, str]]]:
    command = [sys.executable, "-m", "confide", "device", "serve", "--port", "0", "--json"]
    process = subprocess.Popen(
        [*command, "--idle-minutes", str(idle_minutes)], env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.startswith("{"):
            raise ConfigError("the device's program did not start")
        yield process, json.loads(line)
    finally:
        process.terminate()
        process.wait()


def _confide(environment: dict[str, str], *arguments: str) -> None:
    command = [sys.executable, "-m", "confide", "device", *arguments, "--json"]
    made = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if made.returncode:
        raise ConfigError(f"confide device {arguments[0]} failed: {made.stderr.strip().splitlines()[-1]}")


def _post(
    facts: dict[str, str], path: str, body: dict[str, Any]
) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
    host = facts["url"].removeprefix("http://").rstrip("/")
    connection = http.client.HTTPConnection(host, timeout=600)
    connection.request("POST", path, json.dumps(body), {"Authorization": f"Bearer {facts['token']}"})
    return connection, connection.getresponse()


def _memory_mb(process: int) -> float:
    """Return the resident memory of a process in MB of 2^20 bytes; 0 where it is gone or the system does not say."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS:")), 0.0)


def _random_basis(model: LanguageModel, rank: int) -> Basis:
    rng = np.random.default_rng(0)
    return Basis(
        {
            name: (
                rng.standard_normal((rank, linear.in_features)).astype(np.float32) / np.sqrt(linear.in_features),
                rng.standard_normal((linear.out_features, rank)).astype(np.float32) / np.sqrt(rank),
            )
            for name, linear in model.linear_modules().items()
        }
    )


def _random_cores(basis: Basis, seed: int) -> Any:
    return basis.layout.unflatten(0.01 * np.random.default_rng(seed).standard_normal(basis.layout.dim))


def _random_own(model: LanguageModel, names: list[str], rank: int, seed: int) -> Factors:
    generator = torch.Generator().manual_seed(seed)
    linears = model.linear_modules()
    made = {}
    for name in names:
        a = torch.randn((rank, linears[name].in_features), generator=generator) * 0.01
        b = torch.randn((linears[name].out_features, rank), generator=generator) * 0.01
        made[name] = (a.numpy(), b.numpy())
    return made
