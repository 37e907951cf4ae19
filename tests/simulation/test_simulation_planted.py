"""Planted people: rewrites change how something is said and nothing else, and a partition is scored as it should be."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulation.datasets import jsonl
from simulation.datasets.planted import STYLES, adjusted_rand_index, mixture, styled, write
from tests.simulation.conftest import write_people

TEXT = "I am late. Do not wait, it is a very big boat! Is it good?"


def test_each_style_says_the_same_in_its_own_way() -> None:
    said = {name: rewrite(TEXT) for name, rewrite in STYLES.items()}
    assert said["hasty"] == "i'm late don't wait it's a very big boat is it good"
    assert said["loud"] == "I AM LATE!!! DO NOT WAIT, IT IS A VERY BIG BOAT!!! IS IT GOOD!!!"
    assert said["careful"] == "I am late. Do not wait, it is a very big boat. Is it good."
    assert said["learned"] == "I am late; Do not wait, it is a exceedingly substantial boat; Is it commendable."


@given(st.text(st.characters(categories=("Lu", "Ll", "Zs", "Po")), max_size=80))
def test_a_rewrite_is_a_function_and_loses_no_text(text: str) -> None:
    for rewrite in STYLES.values():
        assert rewrite(text) == rewrite(text)
        if re.search(r"\w", text):
            assert re.search(r"\w", rewrite(text))


def people(tmp_path: Path, name: str, number: int, seed: int) -> Path:
    return write_people(tmp_path / f"{name}.jsonl", number, seed)


def test_a_mixture_knows_which_file_each_person_comes_from(tmp_path: Path) -> None:
    records, truth = mixture([people(tmp_path, "a", 6, 1), people(tmp_path, "b", 9, 2)], 5, 0)
    assert Counter(truth.values()) == {0: 5, 1: 5} and {r["user"] for r in records} == set(truth)
    write(tmp_path / "out.jsonl", records, truth)
    assert len(jsonl.load(tmp_path / "out.jsonl", 1).people) == 10
    assert json.loads((tmp_path / "out.truth.json").read_text()) == truth


def test_styles_are_even_and_leave_others_words_alone(tmp_path: Path) -> None:
    path = tmp_path / "talk.jsonl"
    turns = [["you", "Do not go."], ["me", "I am here."]]
    path.write_text("".join(json.dumps({"user": f"u{i}", "i": 0, "turns": turns}) + "\n" for i in range(8)))
    records, truth = styled(path, 8, 3, ["hasty", "loud"])
    assert Counter(truth.values()) == {0: 4, 1: 4}
    for record in records:
        assert record["turns"][0] == turns[0]
        assert record["turns"][1] == ["me", ("i'm here", "I AM HERE!!!")[truth[record["user"]]]]


def test_the_index_is_one_for_the_same_and_about_zero_for_chance() -> None:
    truth = [0, 0, 0, 1, 1, 1, 2, 2]
    assert adjusted_rand_index(truth, [2, 2, 2, 0, 0, 0, 1, 1]) == 1
    assert adjusted_rand_index(truth, [0] * 8) == 0
    assert adjusted_rand_index([0, 0], [0, 0]) == 1
    rng = np.random.default_rng(1)
    by_chance = [
        adjusted_rand_index(rng.integers(3, size=60).tolist(), rng.integers(3, size=60).tolist()) for _ in range(200)
    ]
    assert abs(np.mean(by_chance)) < 0.01
    # Hubert and Arabie's own kind of table: two classes of three, one person on the wrong side.
    assert adjusted_rand_index([0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 1, 1]) == pytest.approx(0.3243, abs=1e-4)
