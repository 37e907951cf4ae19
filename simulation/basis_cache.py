"""The basis of a base model, made once and kept in the user's cache under the hash of all that it depends on."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from client.base_model import cache_folder
from privacy.adapter import Basis
from privacy.canonical import canonical_json, sha256_hex
from privacy.errors import ConfideError
from privacy.files import write_atomic
from privacy.tensors import tensors_to_bytes
from simulation.config import AdapterConfig
from simulation.progress import Progress

RECIPE = "whitened/1"
CURVATURE_RECIPE = "fisher/2"
Arrays = dict[str, NDArray[np.float64]]


def cached_basis(
    model_path: Path, adapter: AdapterConfig, seed: int, progress: Progress, quantize: str = "none"
) -> Basis:
    """Return the basis for a model and adapter settings, from the cache or made now from the model's own samples.

    The same model, settings, seed and recipe give the same file on one machine type; what a federation uses is the
    file, by its hash, never the recipe.
    """
    parts = _parts(adapter, "curvature", "curvature_damping") | _held(quantize)
    key = sha256_hex(canonical_json({"model": model_sha256(model_path), "seed": seed, "recipe": RECIPE, **parts}))
    path = cache_folder() / "bases" / f"{key[:32]}.safetensors"
    if path.exists():
        try:
            return Basis.load(path)
        except ConfideError:
            progress.note("the cached basis is damaged; making it again")
    basis = make_basis(model_path, adapter, seed, progress, quantize)
    basis.save(path)
    return basis


def cached_curvature(
    model_path: Path, basis: Basis, adapter: AdapterConfig, seed: int, progress: Progress, quantize: str = "none"
) -> Arrays:
    """Return the arrays of the curvature of cores over `basis` (`server.curvature`), from the cache or made now.

    Empty where `adapter.curvature` is 0. A server alone needs them.
    """
    if not adapter.curvature:
        return {}
    parts = _parts(adapter, "curvature_damping") | _held(quantize)
    key = sha256_hex(canonical_json({"basis": basis.sha256, "seed": seed, "recipe": CURVATURE_RECIPE, **parts}))
    path = cache_folder() / "bases" / f"{key[:32]}.curvature.safetensors"
    if path.exists():
        try:
            return {name: array.astype(np.float64) for name, array in load_file(path).items()}
        except (OSError, ValueError, SafetensorError):
            progress.note("the cached curvature is damaged; making it again")
    kept = {
        name: array.astype(np.float32)
        for name, array in make_curvature(model_path, basis, adapter, seed, progress, quantize).items()
    }
    write_atomic(path, tensors_to_bytes(kept))
    return {name: array.astype(np.float64) for name, array in kept.items()}


def make_curvature(
    model_path: Path, basis: Basis, adapter: AdapterConfig, seed: int, progress: Progress, quantize: str = "none"
) -> Arrays:
    """Return the curvature of cores over `basis`, from the base model's own samples."""
    from client.basis import own_samples
    from client.curvature import steep_directions
    from client.model import LanguageModel
    from server.curvature import Curvature

    model = LanguageModel.load(model_path, top_layers=adapter.layers, quantize=quantize)
    with progress.task("curvature: samples of the base model itself", adapter.sample_tokens - 1) as step:
        texts = own_samples(model, adapter.samples, adapter.sample_tokens, seed + 1, progress=lambda *_: step())
    model.attach(basis)
    with progress.task("curvature: where the loss is steep", len(texts)) as step:
        found = steep_directions(model, texts, adapter.curvature, progress=lambda *_: step())
    return Curvature(*found).arrays()


def make_basis(
    model_path: Path, adapter: AdapterConfig, seed: int, progress: Progress, quantize: str = "none"
) -> Basis:
    """Return a new basis of kind `core` (whitened, from own samples) or `svd` (from the weights)."""
    from client.basis import BasisSettings, own_samples, svd_basis, whitened_basis
    from client.model import LanguageModel

    model = LanguageModel.load(model_path, top_layers=adapter.layers, quantize=quantize)
    settings = BasisSettings(rank=adapter.rank, damping=adapter.damping)
    if adapter.kind == "svd":
        return svd_basis(model, settings)
    with progress.task("basis: samples of the base model itself", adapter.sample_tokens - 1) as step:
        texts = own_samples(model, adapter.samples, adapter.sample_tokens, seed, progress=lambda _done, _all: step())
    with progress.task("basis: where gradients and activations lie", 1):
        return whitened_basis(model, texts, settings)


def _parts(adapter: AdapterConfig, *without: str) -> dict[str, str]:
    return {key: str(value) for key, value in dataclasses.asdict(adapter).items() if key not in without}


def _held(quantize: str) -> dict[str, str]:
    return {} if quantize == "none" else {"quantize": quantize}


def model_sha256(model_path: Path) -> str:
    """Return the hash over the weight files of a model folder, in order of their names."""
    digest = hashlib.sha256()
    for file in sorted(model_path.glob("*.safetensors")):
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()
