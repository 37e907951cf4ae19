"""Frozen known answers: made by scripts that do not import `privacy`, see tests/vectors/generate_*.py."""

from __future__ import annotations

import hashlib
import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from privacy.answer import make_answer
from privacy.fixedpoint import encode
from privacy.noise import KeyStream, device_noise_key, discrete_gaussian
from privacy.query import Query
from privacy.wire import decode

VECTORS = Path(__file__).parents[1] / "vectors"


def cases(name: str) -> list[Any]:
    return list(json.loads((VECTORS / name).read_text())["cases"])


@pytest.mark.parametrize("case", cases("noise.json"), ids=lambda case: case["sigma"])
def test_noise_is_the_frozen_one_in_keys_words_and_draws(case: Any) -> None:
    noise_key = device_noise_key(bytes.fromhex(case["root"]), case["device_id"])
    assert noise_key.hex() == case["noise_key"]
    stream = KeyStream(noise_key, bytes.fromhex(case["stream"]))
    assert stream.candidates(7, 1)[0].tolist() == [int(word) for word in case["words"]]
    draws = discrete_gaussian(float(Fraction(case["sigma"])), case["size"], stream)
    assert draws[:32].tolist() == case["draws"]
    assert hashlib.sha256(draws.astype("<i8").tobytes()).hexdigest() == case["sha256_int64_le"]


@pytest.mark.parametrize("case", cases("encoding.json"), ids=lambda case: case["name"])
def test_encoding_is_the_frozen_one(case: Any) -> None:
    update = np.array([float.fromhex(text) for text in case["update"]])
    integers = encode(update, Fraction(case["clip_norm"]), case["integer_clip"])
    assert integers.tolist() == case["integers"]


@pytest.mark.parametrize("case", cases("answers.json"), ids=lambda case: case["name"])
def test_a_whole_answer_is_the_frozen_one(case: Any) -> None:
    query = Query.from_bytes(case["query"].encode())
    assert query.to_bytes() == case["query"].encode()
    assert query.sha256 == case["query_sha256"]
    assert (query.dim, query.integer_clip, query.sigma) == (case["dim"], case["integer_clip"], case["sigma"])
    assert query.event_id(case["device_id"]).hex() == case["event_id"]
    update = np.array([float.fromhex(text) for text in case["update"]])
    answer = make_answer(update, query, case["device_id"], bytes.fromhex(case["noise_key"]))
    assert answer.encode().hex() == case["answer"]
    assert decode(bytes.fromhex(case["answer"])) == answer


@pytest.mark.parametrize("generator", ["generate_noise.py", "generate_answers.py"])
def test_the_generators_do_not_import_what_they_test(generator: str) -> None:
    source = (VECTORS / generator).read_text()
    assert "import privacy" not in source and "from privacy" not in source
