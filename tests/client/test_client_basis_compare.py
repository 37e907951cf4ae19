"""The comparison of bases measures what it says; the command writes a basis, or a table, and says no in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import confide
from client.basis import BasisSettings, own_samples, whitened_basis
from client.basis_compare import best_length, candidates, mean_gradient, measured_text, one_step_score
from client.documents import Document
from client.model import Cached, LanguageModel
from client.records import read_documents
from privacy.adapter import Basis
from privacy.errors import DataError

NewModel = Callable[..., LanguageModel]
CachedDialogues = Callable[..., list[Cached]]
SETTINGS = BasisSettings(rank=4, damping=0.01)


# -- the measure --------------------------------------------------------------------------------------------------


@given(st.floats(-6, 4), st.floats(0.1, 10))
def test_the_best_length_of_a_parabola_is_found_within_a_fifth(log2_best: float, depth: float) -> None:
    best = 2.0**log2_best

    def nats(length: float) -> float:
        return 100.0 + depth * (float(length / best - 1) ** 2 - 1)

    length, least = best_length(nats, nats(0.0))
    assert best / 1.25 < length < best * 1.25
    assert least == nats(length) <= 100 - 0.95 * depth


def test_where_no_step_wins_the_length_is_zero() -> None:
    assert best_length(lambda length: 5.0 + length, 5.0) == (0.0, 5.0)


def test_no_length_is_measured_twice_and_a_fall_without_end_ends() -> None:
    seen: list[float] = []

    def nats(length: float) -> float:
        seen.append(length)
        return -length

    length, _ = best_length(nats, 0.0)
    assert length > 1e3 and len(seen) == len(set(seen)) < 30


def nats_at(model: LanguageModel, documents: list[Cached], core: NDArray[np.float64]) -> float:
    assert model.layout is not None
    model.set_cores(model.layout.unflatten(core))
    return float(torch.cat(model.document_nats(documents)).double().mean())


def model_at_zero(model: LanguageModel) -> LanguageModel:
    assert model.layout is not None
    model.set_cores(model.layout.zero_cores())
    return model


def test_the_mean_gradient_is_that_of_all_own_tokens(cored: LanguageModel, cached: CachedDialogues) -> None:
    assert cored.layout is not None
    documents = cached(cored, 5)
    gradient = mean_gradient(cored, documents)
    norm = float(np.linalg.norm(gradient))
    nats = [nats_at(cored, documents, side * 1e-2 * gradient / norm) for side in (-1, 1)]
    assert norm == pytest.approx((nats[1] - nats[0]) / 2e-2, rel=0.01)
    assert not any(p.requires_grad or p.grad is not None for p in cored.net.parameters())


def test_a_score_is_what_the_step_wins_on_the_other_text(
    new_model: NewModel, cached: CachedDialogues, tiny_basis: Basis
) -> None:
    model = new_model()
    history, test = cached(model, 4), cached(model, 4, first=4)
    score = one_step_score(model, tiny_basis, history, test)
    gradient = mean_gradient(model_at_zero(model), history)
    step = -score.length * gradient / np.linalg.norm(gradient)
    before, after = nats_at(model, test, 0 * step), nats_at(model, test, step)
    assert score.length > 0 and score.gain == pytest.approx(1 - after / before, abs=1e-6) and score.gain > 0.005
    for other in (0.5, 2.0):
        assert nats_at(model, test, other * step) > after, "it is the best length"


def test_every_source_is_tried_in_four_ways_beside_the_svd(new_model: NewModel) -> None:
    model = new_model()
    sources = {"a": own_samples(model, 4, 20, 0), "b": own_samples(model, 4, 20, 1)}
    found = list(candidates(model, sources, SETTINGS))
    ways = {(c.source, c.centred, c.skip_first) for c in found}
    both = (False, True)
    assert ways == {(s, c, f) for s in "ab" for c in both for f in both} | {("SVD of the weights", None, None)}
    assert len({c.basis.sha256 for c in found}) == 9
    chosen = replace(SETTINGS, centred=True, skip_first=True)
    [same] = [c for c in found if (c.source, c.centred, c.skip_first) == ("a", True, True)]
    assert same.basis.sha256 == whitened_basis(model, sources["a"], chosen).sha256


def test_measured_text_keeps_history_and_test_apart_and_to_its_size(
    new_model: NewModel, dialogues: Callable[..., list[Document]]
) -> None:
    model = new_model()
    documents = [replace(d, split="test" if i % 2 else "history") for i, d in enumerate(dialogues(8))]
    history, test = measured_text(model, documents, 60, 160, seed=0)
    splits = {d.id: d.split for d in documents}
    assert {splits[c.encoded.document] for c in history} == {"history"}
    assert {splits[c.encoded.document] for c in test} == {"test"}
    assert sum(c.encoded.own_tokens for c in history[:-1]) < 60
    with pytest.raises(DataError, match="no test documents"):
        measured_text(model, dialogues(3), 60, 160, seed=0)


# -- public text --------------------------------------------------------------------------------------------------


def write_lines(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_documents_are_read_whoever_wrote_them(tmp_path: Path) -> None:
    records = [{"text": "Plain."}, {"user": "u", "turns": [["me", "Mine."], ["you", "Yours."]], "split": "test"}]
    plain, talk = read_documents(write_lines(tmp_path / "some.jsonl", *records))
    assert (plain.text, plain.split, talk.text, talk.split) == (
        "Plain.\n",
        "history",
        "Me: Mine.\nYou: Yours.\n",
        "test",
    )
    assert talk.own_text == "Mine.\n"


def test_without_splits_the_last_quarter_is_test(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "some.jsonl", *({"text": f"Text {n}."} for n in range(8)))
    assert [d.split for d in read_documents(path)] == ["history"] * 6 + ["test"] * 2


@pytest.mark.parametrize(
    ("line", "fault"),
    [(b"{", "not JSON"), (b'{"text": 3}', "text is not text"), (b'{"split": "x"}', "split is neither")],
)
def test_a_broken_line_is_named_and_not_quoted(tmp_path: Path, line: bytes, fault: str) -> None:
    path = tmp_path / "some.jsonl"
    path.write_bytes(b'{"text": "Fine."}\n\n' + line + b"\n")
    with pytest.raises(DataError, match=rf"some\.jsonl:3: {fault}"):
        read_documents(path)


def test_a_file_that_is_not_there_is_said_to_be() -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_documents(Path("nowhere.jsonl"))


# -- the command --------------------------------------------------------------------------------------------------


def command(*arguments: object) -> int:
    return confide.run(confide.confide, ["model", "basis", *map(str, arguments)])


SMALL = ("--rank", 2, "--layers", 1, "--samples", 4, "--tokens", 16)


def test_the_command_writes_a_basis(tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "b.safetensors"
    assert command("--model", tiny_model_dir, *SMALL, "--out", out, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    made = Basis.load(out)
    assert facts["sha256"] == made.sha256 and facts["dim"] == made.layout.dim == 7 * 4
    assert facts["source"] == "own samples" and facts["bytes"] == out.stat().st_size


def test_the_command_makes_the_basis_that_the_library_makes(
    tiny_model_dir: Path, new_model: NewModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    public = write_lines(tmp_path / "public.jsonl", {"text": "Ships pass."}, {"output": "A quiet harbour at noon."})
    out = tmp_path / "b.safetensors"
    assert command("--model", tiny_model_dir, *SMALL, "--public", public, "--centred", "--out", out) == 0
    said, model = capsys.readouterr().out, new_model(1)
    texts = [model.encode_text(t, [(0, len(t))], "t", 16) for t in ("Ships pass.\n", "A quiet harbour at noon.\n")]
    wanted = whitened_basis(model, texts, BasisSettings(rank=2, centred=True))
    assert Basis.load(out).sha256 == wanted.sha256
    assert wanted.sha256 in said and "from public.jsonl" in said and "28 numbers to train" in said


def test_the_command_compares(tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    people = write_lines(
        tmp_path / "people.jsonl",
        *(
            {"user": f"u{n}", "text": f"I keep {n} bees and a boat.", "split": s}
            for n in range(3)
            for s in ("history", "test")
        ),
    )
    public = write_lines(tmp_path / "public.jsonl", {"text": "Ships pass in the night, and bees sleep."})
    arguments = ("--model", tiny_model_dir, *SMALL, "--compare", "--people", people, "--public", public)
    assert command(*arguments, "--json") == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert len(rows) == 9 and {row["source"] for row in rows} == {"own samples", "public.jsonl", "SVD of the weights"}
    assert [row["gain"] for row in rows] == sorted((row["gain"] for row in rows), reverse=True)
    assert rows[0]["gain"] > 0 and set(rows[0]) == {"source", "centred", "skip_first", "gain", "step", "dim"}
    assert command(*arguments) == 0
    assert "gain of one step" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--compare",), "--compare needs --people"),
        (("--people", "p.jsonl"), "--people is for --compare only"),
        (("--compare", "--people", "p.jsonl", "--out", "b"), "writes no basis"),
        (("--compare", "--people", "p.jsonl", "--public", "./p.jsonl"), "one file"),
        (("--model", "no/such/folder"), "no model"),
    ],
)
def test_what_cannot_be_meant_is_one_line(
    arguments: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(*arguments) == confide.EXIT_ERROR
    said = capsys.readouterr()
    assert says in said.err and len(said.err.strip().splitlines()) == 1 and said.out == ""


def test_asking_for_help_loads_no_torch() -> None:
    code = "import sys, client.basis_cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=Path(confide.__file__).parent).returncode == 0
