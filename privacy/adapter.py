"""Shared adapters are linear: one frozen basis, small trained cores, one flat vector between them.

    delta W = B R A        A [r, d_in] and B [d_out, r] frozen and the same for all, R [r, r] trained

A sum of flat vectors is a sum of cores is a sum of weight updates, exactly; averaging LoRA factors apart is not
(mean(B) mean(A) != mean(B A)). See LoRA-XS, arXiv:2405.17604, and Fed-SB, arXiv:2502.15436, section 3.
The cores leave a device only as the private sum of many; the basis is made from text that no participant wrote.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors

from privacy.canonical import canonical_json, sha256_hex
from privacy.errors import EncodingError, ModelError
from privacy.files import new_folder, write_atomic, write_flushed
from privacy.tensors import tensors_to_bytes

Matrix: TypeAlias = NDArray[np.float32]
Cores: TypeAlias = Mapping[str, Matrix]

MAX_BASIS_BYTES = 512 * 2**20
MAX_MODULE_NAME = 256
MODULE_NAME = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")


@dataclass(frozen=True)
class Site:
    """One linear module of the base model that carries a core: its name and the shapes of A, B and R."""

    module: str
    rank: int
    d_in: int
    d_out: int

    def __post_init__(self) -> None:
        if len(self.module) > MAX_MODULE_NAME or not MODULE_NAME.fullmatch(self.module):
            raise ModelError(f"not a module name: {self.module[:80]!r}")
        if not 1 <= self.rank <= min(self.d_in, self.d_out):
            raise ModelError(f"{self.module}: rank {self.rank} does not fit [{self.d_out}, {self.d_in}]")


@dataclass(frozen=True)
class AdapterLayout:
    """The order of all cores in one flat vector: sites sorted by module name, each core row by row."""

    sites: tuple[Site, ...]

    def __post_init__(self) -> None:
        names = [site.module for site in self.sites]
        if not names or names != sorted(set(names)):
            raise ModelError("a layout needs at least one module, each once, sorted by name")

    @property
    def dim(self) -> int:
        """Return the length of the flat vector, sum over sites of r^2."""
        return sum(site.rank**2 for site in self.sites)

    def flatten(self, cores: Cores) -> NDArray[np.float64]:
        """Return the cores as one vector, float64 [dim].

        Raises ModelError for a missing, unknown or misshapen core. NaN passes: whoever clips must see and refuse it.
        """
        self._check_names(cores)
        return np.concatenate([self._core(site, cores[site.module]).reshape(-1) for site in self.sites])

    def unflatten(self, vector: NDArray[np.float64]) -> dict[str, Matrix]:
        """Return the cores, module -> float32 [r, r]; `flatten` of them is `vector` rounded to float32.

        Raises ModelError for another shape, EncodingError for a number that float32 cannot hold.
        """
        if vector.shape != (self.dim,):
            raise ModelError(f"a vector of shape {vector.shape} does not fill a layout of {self.dim} numbers")
        with np.errstate(over="ignore"):
            narrow = np.asarray(vector, dtype=np.float32)
        if not np.isfinite(narrow).all():
            raise EncodingError("a core would hold NaN or infinity")
        ends = np.cumsum([site.rank**2 for site in self.sites])
        parts = zip(self.sites, np.split(narrow, ends[:-1]), strict=True)
        return {site.module: part.reshape(site.rank, site.rank).copy() for site, part in parts}

    def zero_cores(self) -> dict[str, Matrix]:
        """Return cores of zeros: the base model unchanged."""
        return self.unflatten(np.zeros(self.dim))

    def _check_names(self, cores: Cores) -> None:
        wrong = {site.module for site in self.sites} ^ set(cores)
        if wrong:
            raise ModelError(f"cores and layout differ in {len(wrong)} modules, first {min(wrong)[:80]!r}")

    @staticmethod
    def _core(site: Site, core: Matrix) -> NDArray[np.float64]:
        if core.shape != (site.rank, site.rank):
            raise ModelError(f"{site.module}: a core of shape {core.shape}, not {(site.rank, site.rank)}")
        return np.asarray(core, dtype=np.float64)


@dataclass(frozen=True, eq=False)
class Basis:
    """The frozen factors of every core: module -> (A float32 [r, d_in], B float32 [d_out, r]), sorted by module.

    Made once per federation, shipped in the release, hashed into policy and query: eigenvectors are not bit-stable
    across machines, so devices compare `sha256` and never recompute. The arrays are read-only copies.
    """

    factors: Mapping[str, tuple[Matrix, Matrix]]

    def __post_init__(self) -> None:
        frozen = {name: (_frozen(name, a), _frozen(name, b)) for name, (a, b) in sorted(self.factors.items())}
        for name, (a, b) in frozen.items():
            if a.shape[0] != b.shape[1]:
                raise ModelError(f"{name}: A {a.shape} and B {b.shape} have different ranks")
        object.__setattr__(self, "factors", frozen)
        _ = self.layout  # refuses names and ranks that cannot be

    @cached_property
    def layout(self) -> AdapterLayout:
        """Return where each core of this basis stands in the flat vector."""
        return _layout(self.factors)

    @cached_property
    def sha256(self) -> str:
        """Return the SHA-256 over the names, shapes and bytes of all factors, 64 hexadecimal digits."""
        rows = [[s.module, s.rank, s.d_in, s.d_out] for s in self.layout.sites]
        digest = hashlib.sha256(b"confide/basis/1\x00" + canonical_json(rows))
        for a, b in self.factors.values():
            digest.update(a.astype("<f4").tobytes())
            digest.update(b.astype("<f4").tobytes())
        return digest.hexdigest()

    def to_bytes(self) -> bytes:
        """Return the basis as one safetensors file: `<module>.A` and `<module>.B`."""
        tensors = {f"{name}.{part}": pair[i] for name, pair in self.factors.items() for i, part in enumerate("AB")}
        return tensors_to_bytes(tensors, {"format": "confide-basis/1"})

    @classmethod
    def from_bytes(cls, data: bytes) -> Basis:
        """Return the basis in the bytes of a safetensors file; raises ModelError for anything else."""
        tensors = read_tensors(data, MAX_BASIS_BYTES)
        names = {key[:-2] for key in tensors if key.endswith((".A", ".B"))}
        if set(tensors) != {f"{name}.{part}" for name in names for part in "AB"}:
            raise ModelError("a basis holds exactly one A and one B per module")
        return cls({name: (tensors[f"{name}.A"], tensors[f"{name}.B"]) for name in names})

    def save(self, path: Path) -> None:
        """Write the basis to `path`, atomically."""
        write_atomic(path, self.to_bytes())

    @classmethod
    def load(cls, path: Path) -> Basis:
        """Return the basis in the file `path`; raises ModelError for anything else."""
        return cls.from_bytes(_bounded_bytes(path, MAX_BASIS_BYTES))


def state_sha256(basis_sha256: str, layout: AdapterLayout, slots: Iterable[Cores]) -> str:
    """Return the hash by which a query names the adapters it starts from: the basis and every slot's cores, in order.

    Over the numbers themselves, so that a device recomputes it from what it is about to train, and a server that hands
    out other adapters than it names gets a refusal.
    """
    return rows_sha256(basis_sha256, [layout.flatten(cores) for cores in slots])


def rows_sha256(basis_sha256: str, rows: Iterable[NDArray[np.floating[Any]]]) -> str:
    """Return the hash by which a query names what it starts from, any rows of numbers; of cores it is `state_sha256`.

    Each row is hashed as little-endian float32, in order.
    """
    parts = [sha256_hex(np.asarray(row).astype("<f4").tobytes()) for row in rows]
    return sha256_hex("/".join(["confide-state/1", basis_sha256, *parts]).encode("ascii"))


def merge_cores(weighted: Iterable[tuple[float, Cores]]) -> dict[str, Matrix]:
    """Return sum_k w_k R_k per module, float32, summed in float64.

    Exact as a weight update, because delta W = B R A is linear in R. All cores must name the same modules with the
    same shapes (ModelError); an empty sum has no shapes (ModelError).
    """
    terms = list(weighted)
    if not terms:
        raise ModelError("a sum of no cores has no shape")
    shapes = {name: core.shape for name, core in terms[0][1].items()}
    if any({name: core.shape for name, core in cores.items()} != shapes for _, cores in terms):
        raise ModelError("cores of different layouts cannot be summed")
    sums = {name: sum(w * np.asarray(cores[name], dtype=np.float64) for w, cores in terms) for name in shapes}
    return {name: np.asarray(total, dtype=np.float32) for name, total in sums.items()}


def lora_factors(basis: Basis, cores: Cores) -> dict[str, tuple[Matrix, Matrix]]:
    """Return the ordinary LoRA factors of one core set: module -> (A [r, d_in], B R [d_out, r]).

    Raises ModelError where cores and basis do not fit, EncodingError for NaN or infinity.
    """
    checked = basis.layout.unflatten(basis.layout.flatten(cores))
    return {name: (a, _product(b, checked[name])) for name, (a, b) in basis.factors.items()}


def cores_to_bytes(cores: Cores) -> bytes:
    """Return the cores as one safetensors file, `<module>` -> R."""
    tensors = {name: np.asarray(cores[name], dtype=np.float32) for name in sorted(cores)}
    return tensors_to_bytes(tensors, {"format": "confide-core/1"})


def cores_from_bytes(data: bytes, layout: AdapterLayout) -> dict[str, Matrix]:
    """Return the cores in a safetensors file; raises ModelError unless they fill `layout` with finite numbers."""
    cores = {name: _frozen(name, core) for name, core in read_tensors(data, max_core_bytes(layout)).items()}
    layout.flatten(cores)
    return {site.module: cores[site.module] for site in layout.sites}


def max_core_bytes(layout: AdapterLayout) -> int:
    """Return the largest size that an honest core file of this layout can have: numbers, names and header."""
    return 4 * layout.dim + (MAX_MODULE_NAME + 128) * len(layout.sites) + 1024


def peft_files(basis: Basis, cores: Cores, base_model_name: str) -> dict[str, bytes]:
    """Return the two files of a PEFT LoRA folder that holds the cores: `lora_A` is A, `lora_B` is B R."""
    return lora_files(lora_factors(basis, cores), base_model_name)


def lora_files(factors: Mapping[str, tuple[Matrix, Matrix]], base_model_name: str) -> dict[str, bytes]:
    """Return the two files of a PEFT LoRA folder that stock `PeftModel.from_pretrained` loads (causal LM).

    `factors` maps modules, sorted by name, to `lora_A` [r, d_in] and `lora_B` [d_out, r]; `lora_alpha` equals the rank
    everywhere, so that PEFT's scaling is 1. Modules are named in full: PEFT also matches a name as the end of a longer
    one, which no module of one model has. Same input, same bytes.
    """
    tensors = {}
    for name, (a, b) in factors.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = a
        tensors[f"base_model.model.{name}.lora_B.weight"] = b
    config = json.dumps(_peft_config(_layout(factors), base_model_name), indent=2, sort_keys=True) + "\n"
    return {
        "adapter_config.json": config.encode(),
        "adapter_model.safetensors": tensors_to_bytes(tensors, {"format": "pt"}),
    }


def write_peft(folder: Path, basis: Basis, cores: Cores, base_model_name: str) -> None:
    """Write `peft_files` as `folder`, replacing what was there: whole or not at all."""
    files = peft_files(basis, cores, base_model_name)
    with new_folder(folder) as beside:
        for name, data in files.items():
            write_flushed(beside / name, data)


def read_tensors(data: bytes, limit: int) -> dict[str, Matrix]:
    """Return the tensors of a safetensors file of at most `limit` bytes; raises ModelError unless all are float32."""
    if len(data) > limit:
        raise ModelError(f"tensor file of {len(data)} bytes or more, at most {limit} are allowed")
    try:
        tensors = load_tensors(data)
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise ModelError("not a safetensors file that can be read") from error
    if any(tensor.dtype != np.float32 for tensor in tensors.values()):
        raise ModelError("tensors must be float32")
    return tensors


def _layout(factors: Mapping[str, tuple[Matrix, Matrix]]) -> AdapterLayout:
    return AdapterLayout(tuple(Site(name, a.shape[0], a.shape[1], b.shape[0]) for name, (a, b) in factors.items()))


def _peft_config(layout: AdapterLayout, base_model_name: str) -> dict[str, object]:
    rank = Counter(site.rank for site in layout.sites).most_common(1)[0][0]
    others = {re.escape(site.module): site.rank for site in layout.sites if site.rank != rank}
    return {
        "alpha_pattern": others,  # PEFT reads the keys as regular expressions
        "base_model_name_or_path": base_model_name,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": rank,
        "rank_pattern": others,
        "target_modules": [site.module for site in layout.sites],
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }


def _product(b: Matrix, core: Matrix) -> Matrix:
    return np.asarray(b.astype(np.float64) @ core.astype(np.float64), dtype=np.float32)


def _frozen(name: str, array: NDArray[np.floating]) -> Matrix:
    copy = np.array(array, dtype=np.float32, order="C")
    if copy.ndim != 2 or not np.isfinite(copy).all():
        raise ModelError(f"{name[:80]}: a factor must be a finite matrix")
    copy.flags.writeable = False
    return copy


def _bounded_bytes(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(limit + 1)
    except OSError as error:
        raise ModelError(f"cannot read {path.name}: {error.strerror}") from error
