"""What stands beside a peer is measured from outside and fails out loud; a peer that cannot be had is said."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from transformers import AutoTokenizer

import confide
from client.basis import BasisSettings, own_samples, whitened_basis
from client.encoder import HashedEncoder
from client.model import LanguageModel
from privacy.errors import ConfideError
from simulation.bench import generation
from simulation.bench.environments import SCRIPTS, Peer, PeerMissing, interpreter, peer_environment
from simulation.bench.invented import DOCUMENT_TOKENS, write_people, write_small_model
from simulation.bench.limits import Limits, machine_limits
from simulation.bench.message import message_row
from simulation.bench.process import BenchFailed, measured
from simulation.bench.record_dp import dp_row
from simulation.bench.retrieval import Corpus, RetrievalSizes, retrieval_rows
from simulation.bench.row import Row, less_is_better
from simulation.bench.simulate import SimulationSizes, simulation_rows
from simulation.bench.start import start_row
from simulation.bench.suite import PARTS, BenchSizes, Missing, Parts, run_parts
from simulation.population import load_people
from simulation.progress import Progress

RATES = Limits(1e10, 1e11, 1e9, 1e10)
WORK = """
import subprocess, sys, time
if len(sys.argv) < 2:
    subprocess.run([sys.executable, __file__, "below"], check=True)
    print("done")
else:
    held = bytearray(b"x") * 2**26
    begun = time.process_time()
    while time.process_time() - begun < 0.6:
        pass
    time.sleep(0.5)
"""


def check(row: Row) -> None:
    assert set(row) == set(Row.__annotations__)
    assert row["ours"] > 0 and row["peer"] > 0 and row["ratio"] > 0 and len(row["same"]) > 20
    assert (row["limit"] is None) == (row["limit_ratio"] is None)


# -- measured from outside ------------------------------------------------------------------------------------------


def test_what_a_process_starts_is_measured_with_it(tmp_path: Path) -> None:
    (tmp_path / "work.py").write_text(WORK)
    cost = measured([sys.executable, str(tmp_path / "work.py")], peer_environment())
    assert cost.output.strip() == "done"
    assert 0.5 < cost.cpu_s < 5 and cost.peak_mb > 64 and cost.seconds > 1.0


def test_a_command_that_fails_is_no_figure() -> None:
    with pytest.raises(BenchFailed, match="failed: ValueError: no such people"):
        measured([sys.executable, "-c", "raise ValueError('no such people')"], peer_environment())


def test_a_command_that_does_not_end_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys, pathlib\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(child.pid))\n"
        "child.wait()\n"
    )
    with pytest.raises(BenchFailed, match="longer than 1 s"):
        measured([sys.executable, "-c", code], peer_environment(), timeout_s=1.0)
    pid = int((tmp_path / "pid").read_text())
    state, end = Path(f"/proc/{pid}/stat"), time.monotonic() + 10.0
    while running(state) and time.monotonic() < end:
        time.sleep(0.05)
    assert not running(state)


def running(state: Path) -> bool:
    """Return whether a process is there and no corpse, by its file of the kernel's."""
    try:
        return state.read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_of_costs_the_smaller_is_better() -> None:
    row = less_is_better("w", "seconds", 2.0, ("peer", 6.0), "as much as can be the same", 1.0)
    check(row)
    assert row["ratio"] == 3.0 and row["limit_ratio"] == 2.0


def test_the_limits_are_rates_of_this_machine() -> None:
    limits = machine_limits()
    assert all(rate > 1e7 for rate in limits.as_json().values())


# -- peers' environments --------------------------------------------------------------------------------------------


def test_a_peer_that_cannot_be_fetched_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(PeerMissing, match="rank-bm25 cannot be installed here") as refused:
        interpreter("rank-bm25", tmp_path)
    assert "\n" not in str(refused.value)
    assert not list(tmp_path.glob("peers/*/ready")), "half an environment is not taken for a whole one"


def test_every_peer_has_a_script_and_pinned_requirements() -> None:
    from simulation.bench.retrieval import DENSE_PEER, SPARSE
    from simulation.bench.simulate import PEERS

    for peer in (DENSE_PEER, SPARSE, *(peer for _, peer in PEERS)):
        assert (SCRIPTS / peer.script).is_file()
        if peer.environment:
            first = (SCRIPTS / "requirements" / f"{peer.environment}.txt").read_text().splitlines()[0]
            assert "==" in first and peer.environment.startswith(first.partition("==")[0])


def test_a_peers_script_leans_on_nothing_of_ours() -> None:
    """It runs where none of our packages is; only the one that plays our own relay may import it."""
    for script in SCRIPTS.glob("*.py"):
        lines = [line.strip() for line in script.read_text().splitlines()]
        ours = [x for x in lines if x.startswith(tuple(f"from {p}" for p in ("privacy", "client", "simulation")))]
        assert ours == (["from client.app import app as relay"] if script.name == "flower_message.py" else [])


# -- rows -----------------------------------------------------------------------------------------------------------


def test_help_comes_before_flowers() -> None:
    row = start_row(tries=1)
    check(row)
    assert row["work"] == "start.help" and row["ratio"] > 1 and row["limit"] is not None and row["limit"] < row["ours"]


def test_adapters_are_the_same_on_both_sides(tiny_model_dir: Path) -> None:
    check(generation.adapters_row(tiny_model_dir, RATES, rank=4, tokens=6, tries=1))


def test_a_side_without_its_adapters_is_found_out(tiny_model_dir: Path) -> None:
    model, peer = LanguageModel.load(tiny_model_dir), LanguageModel.load(tiny_model_dir)
    model.first = 0
    linears = dict(model.linear_modules())
    parts = [generation._factors(linears, 8, seed) for seed in (1, 2, 3)]
    large = [{name: (30 * a, b) for name, (a, b) in part.items()} for part in parts]
    generation._activate(peer, large, 8)
    with pytest.raises(ConfideError, match="do not carry the same adapters"):
        generation._compare(model, None, peer, torch.arange(40))


def test_what_record_level_privacy_costs_is_at_least_nothing(tiny_model_dir: Path) -> None:
    model = LanguageModel.load(tiny_model_dir, top_layers=2)
    texts = own_samples(model, 4, 24, seed=0)
    basis = whitened_basis(model, texts, BasisSettings(rank=2))
    row = dp_row(tiny_model_dir, basis, texts, 2, steps=2, tries=1)
    check(row)
    assert row["work"] == "train.dp" and row["limit"] == 1.0 and row["ours"] > 0.5 and row["peer"] > 0.5


def test_recall_counts_the_document_that_a_query_is_made_of() -> None:
    sizes = RetrievalSizes(documents=40, queries=4, query_words=3)
    corpus = Corpus.invented([f"word{i}" for i in range(200)], sizes)
    assert len(corpus.texts) == 40 and len(set(corpus.wanted)) == 4
    assert all(
        set(q.split()) <= set(corpus.texts[i].split()) for q, i in zip(corpus.queries, corpus.wanted, strict=True)
    )
    found = [[i, 99] for i in corpus.wanted]
    assert corpus.recall(found) == 1.0
    assert corpus.recall([[99], *found[1:]]) == 0.75


def test_retrieval_without_its_peers_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("CONFIDE_CACHE", str(tmp_path / "cache"))
    lines: list[str] = []
    sizes = RetrievalSizes(documents=60, queries=5)
    assert retrieval_rows(tmp_path, RATES, lines.append, sizes, HashedEncoder()) == []
    assert len(lines) == 1 and "not run: rank-bm25 cannot be installed here" in lines[0]
    assert np.load(tmp_path / "embeddings.npy").shape == (60, 64)


def test_both_sides_read_the_same_tokens_of_everybody(tmp_path: Path) -> None:
    """60 characters are as many tokens and the one that begins a text; a peer's script asks the bare tokenizer."""
    model = LanguageModel.load(write_small_model(tmp_path / "model"))
    people = load_people(str(write_people(tmp_path / "people.jsonl", 5)), None).people
    assert len(people) == 5
    for document in (d for person in people for d in person.documents):
        encoded = model.encode(document, 256)
        assert encoded.ids.tolist() == AutoTokenizer.from_pretrained(tmp_path / "model")(document.text)["input_ids"]
        assert len(encoded.ids) == DOCUMENT_TOKENS + 1 and encoded.own_tokens == DOCUMENT_TOKENS


def test_one_part_that_cannot_run_does_not_stop_the_others() -> None:
    def broken(*_: object) -> list[Row]:
        raise ConfideError("no model here")

    def missing(_sizes: BenchSizes, _limits: Limits, say: Missing) -> list[Row]:
        say("a peer: not run: no network")
        return [less_is_better("one", "s", 1.0, ("p", 2.0), "everything but what is not")]

    parts: Parts = {"broken": broken, "missing": missing}
    found = run_parts(["broken", "missing"], BenchSizes(), Progress(quiet=True), parts)
    assert [row["work"] for row in found["rows"]] == ["one"]
    assert found["not_run"] == ["broken: no model here", "a peer: not run: no network"]
    assert set(found) == {"rows", "limits", "machine", "not_run"} and "cores" in found["machine"]


def test_an_unknown_part_is_refused_with_those_that_exist() -> None:
    done = CliRunner().invoke(confide.confide, ["bench", "all", "--only", "start,speed"])
    assert isinstance(done.exception, ConfideError) and ", ".join(PARTS) in str(done.exception)


# -- with the real peers --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_small_simulation_beside_both_peers(tmp_path: Path) -> None:
    lines: list[str] = []
    rows = simulation_rows(tmp_path, SimulationSizes(people=24, rounds=3), RATES, lines.append)
    assert lines == []
    assert [row["work"] for row in rows] == 2 * ["simulate.24", "simulate.24.cpu", "simulate.24.memory"]
    for row in rows:
        check(row)
    assert "1792 numbers" in rows[0]["same"] and "1792 numbers" in rows[3]["same"]


@pytest.mark.slow
def test_a_small_search_beside_both_peers(tmp_path: Path) -> None:
    lines: list[str] = []
    rows = retrieval_rows(tmp_path, RATES, lines.append, RetrievalSizes(documents=200, queries=8, encoded=16))
    assert lines == []
    works = ["retrieve.sparse", "retrieve.dense", "retrieve.hybrid", "retrieve.encode"]
    assert [row["work"] for row in rows] == works
    for row in rows:
        check(row)


@pytest.mark.slow
def test_a_message_beside_a_client_that_loads_its_model(tiny_model_dir: Path) -> None:
    row = message_row(tiny_model_dir, dtype="float32", tries=1)
    check(row)
    assert row["work"] == "relay.message" and row["ratio"] > 1


@pytest.mark.slow
def test_the_command_writes_one_object(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "confide", "bench", "all", "--only", "start", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(confide.__file__).parent)
    found = json.loads(done.stdout)
    assert [row["work"] for row in found["rows"]] == ["start.help"] and not found["not_run"]


def test_a_script_that_prints_no_answer_is_a_failure(tmp_path: Path) -> None:
    with pytest.raises(BenchFailed):
        Peer("small_text.py").run({}, tmp_path)
