"""The flat vector, the exact algebra of cores, and a PEFT folder that stock PEFT reads as base + B R A."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from privacy.adapter import (
    AdapterLayout,
    Basis,
    Cores,
    Site,
    cores_from_bytes,
    cores_to_bytes,
    lora_factors,
    max_core_bytes,
    merge_cores,
    write_peft,
)
from privacy.errors import EncodingError, ModelError

SHAPES = {  # module -> (rank, d_in, d_out): the linear modules of the tiny Llama below
    "model.layers.1.self_attn.q_proj": (4, 32, 32),
    "model.layers.2.mlp.down_proj": (6, 48, 32),
    "model.layers.2.self_attn.v_proj": (2, 32, 16),
    "model.layers.3.mlp.up_proj": (4, 32, 48),
}


def random_basis(seed: int, shapes: dict[str, tuple[int, int, int]] = SHAPES) -> Basis:
    rng = np.random.default_rng(seed)
    return Basis(
        {
            name: (rng.normal(size=(r, d_in)).astype(np.float32), rng.normal(size=(d_out, r)).astype(np.float32))
            for name, (r, d_in, d_out) in shapes.items()
        }
    )


def random_cores(seed: int, layout: AdapterLayout, size: float = 0.05) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return layout.unflatten(size * rng.normal(size=layout.dim))


def delta(basis: Basis, cores: Cores) -> dict[str, np.ndarray]:
    """Return B R A per module in float64, by the definition."""
    return {
        name: b.astype(float) @ cores[name].astype(float) @ a.astype(float) for name, (a, b) in basis.factors.items()
    }


@st.composite
def layouts(draw: st.DrawFn) -> AdapterLayout:
    ranks = draw(st.lists(st.integers(1, 5), min_size=1, max_size=5))
    return AdapterLayout(tuple(Site(f"m.{i}", r, r + i, r + 1) for i, r in enumerate(ranks)))


@settings(deadline=None)
@given(layouts(), st.data())
def test_flatten_and_unflatten_are_inverse(layout: AdapterLayout, data: st.DataObject) -> None:
    numbers = st.floats(width=32, allow_nan=False, allow_infinity=False)
    vector = np.array(data.draw(st.lists(numbers, min_size=layout.dim, max_size=layout.dim)))
    cores = layout.unflatten(vector)
    assert all(core.dtype == np.float32 for core in cores.values())
    assert np.array_equal(layout.flatten(cores), vector)
    assert layout.dim == sum(site.rank**2 for site in layout.sites)


def test_a_flat_sum_is_a_sum_of_weight_updates() -> None:
    basis = random_basis(0)
    one, two = random_cores(1, basis.layout), random_cores(2, basis.layout)
    mean = basis.layout.unflatten((basis.layout.flatten(one) + basis.layout.flatten(two)) / 2)
    for name, whole in delta(basis, mean).items():
        np.testing.assert_allclose(whole, (delta(basis, one)[name] + delta(basis, two)[name]) / 2, atol=1e-6)


def test_merge_is_a_weighted_sum_and_factors_multiply_to_it() -> None:
    basis = random_basis(3)
    one, two = random_cores(4, basis.layout), random_cores(5, basis.layout)
    merged = merge_cores([(1.0, one), (0.25, two)])
    for name, (a, b_r) in lora_factors(basis, merged).items():
        expected = delta(basis, one)[name] + 0.25 * delta(basis, two)[name]
        np.testing.assert_allclose(b_r.astype(float) @ a.astype(float), expected, atol=1e-5)


def test_zero_cores_change_nothing() -> None:
    basis = random_basis(6)
    assert all(not b_r.any() for _, b_r in lora_factors(basis, basis.layout.zero_cores()).values())


@pytest.mark.parametrize("change", ["missing", "unknown", "shape"])
def test_cores_that_do_not_fit_are_refused(change: str) -> None:
    basis = random_basis(7)
    cores = random_cores(8, basis.layout)
    first = next(iter(cores))
    if change == "missing":
        del cores[first]
    elif change == "unknown":
        cores["model.layers.9.self_attn.q_proj"] = np.zeros((4, 4), np.float32)
    else:
        cores[first] = np.zeros((3, 4), np.float32)
    with pytest.raises(ModelError):
        basis.layout.flatten(cores)
    with pytest.raises(ModelError):
        merge_cores([(1.0, random_cores(8, basis.layout)), (1.0, cores)])


def test_vectors_that_do_not_fit_are_refused() -> None:
    layout = random_basis(9).layout
    with pytest.raises(ModelError):
        layout.unflatten(np.zeros(layout.dim + 1))
    for bad in (np.nan, np.inf, 1e300):
        with pytest.raises(EncodingError):
            layout.unflatten(np.full(layout.dim, bad))
    with pytest.raises(ModelError):
        merge_cores([])


def test_nan_passes_flatten_but_never_a_release() -> None:
    basis = random_basis(10)
    cores = random_cores(11, basis.layout)
    cores[next(iter(cores))][0, 0] = np.nan
    assert np.isnan(basis.layout.flatten(cores)).any()
    with pytest.raises(EncodingError):
        lora_factors(basis, cores)
    with pytest.raises(ModelError):
        cores_from_bytes(cores_to_bytes(cores), basis.layout)


@pytest.mark.parametrize(
    "site",
    [
        ("", 1, 2, 2),
        ("a b", 1, 2, 2),
        ("../a", 1, 2, 2),
        ("a..b", 1, 2, 2),
        ("a", 0, 2, 2),
        ("a", 3, 2, 9),
        ("x" * 300, 1, 2, 2),
    ],
)
def test_sites_that_cannot_be_are_refused(site: tuple[str, int, int, int]) -> None:
    with pytest.raises(ModelError):
        Site(*site)


def test_basis_hash_covers_names_shapes_and_bytes() -> None:
    basis = random_basis(12)
    assert random_basis(12).sha256 == basis.sha256
    for other in (
        Basis({name + "_x": pair for name, pair in basis.factors.items()}),
        Basis({name: (a, np.nextafter(b, np.float32(9))) for name, (a, b) in basis.factors.items()}),
        Basis({name: (np.nextafter(a, np.float32(9)), b) for name, (a, b) in basis.factors.items()}),
        random_basis(13),
    ):
        assert other.sha256 != basis.sha256
    reshaped = Basis({"m": (np.ones((1, 4), np.float32), np.ones((2, 1), np.float32))})
    assert reshaped.sha256 != Basis({"m": (np.ones((1, 2), np.float32), np.ones((4, 1), np.float32))}).sha256


def test_basis_is_a_read_only_copy_in_sorted_order(tmp_path: Path) -> None:
    a, b = np.ones((1, 3), np.float32), np.ones((3, 1), np.float32)
    basis = Basis({"z": (a, b), "a": (a, b)})
    a[0, 0] = 7.0
    assert basis.factors["z"][0][0, 0] == 1.0
    assert [site.module for site in basis.layout.sites] == ["a", "z"]
    with pytest.raises(ValueError, match="read-only"):
        basis.factors["z"][0][0, 0] = 2.0
    basis.save(tmp_path / "basis.safetensors")
    assert Basis.load(tmp_path / "basis.safetensors").sha256 == basis.sha256


def test_hostile_basis_files_are_refused(tmp_path: Path) -> None:
    a, b = np.ones((2, 3), np.float32), np.ones((3, 2), np.float32)
    files = {
        "no B": save({"m.A": a}),
        "extra": save({"m.A": a, "m.B": b, "n": a}),
        "ranks differ": save({"m.A": a, "m.B": b[:, :1].copy()}),
        "float64": save({"m.A": a.astype(float), "m.B": b.astype(float)}),
        "NaN": save({"m.A": a * np.nan, "m.B": b}),
        "vector": save({"m.A": a[0].copy(), "m.B": b}),
        "name": save({"../m.A": a, "../m.B": b}),
        "torn": save({"m.A": a, "m.B": b})[:-3],
        "empty": b"",
        "no tensors": save({}),
        "header length": b"\xff" * 64,
    }
    for case, data in files.items():
        with pytest.raises(ModelError):
            pytest.fail(f"{case} was read: {Basis.from_bytes(data)}")
    with pytest.raises(ModelError, match="cannot read"):
        Basis.load(tmp_path / "none")


def test_core_files_fill_the_layout_exactly() -> None:
    layout = random_basis(14).layout
    cores = random_cores(15, layout)
    data = cores_to_bytes(cores)
    assert len(data) <= max_core_bytes(layout)
    assert np.array_equal(layout.flatten(cores_from_bytes(data, layout)), layout.flatten(cores))
    smaller = AdapterLayout(layout.sites[1:])
    for wrong in (data[:-1], data + b"\0" * max_core_bytes(layout), cores_to_bytes(random_cores(1, smaller))):
        with pytest.raises(ModelError):
            cores_from_bytes(wrong, layout)


def test_peft_folder_is_the_same_bytes_every_time_and_replaces(tmp_path: Path) -> None:
    basis = random_basis(16)
    cores = random_cores(17, basis.layout)
    write_peft(tmp_path / "one", basis, cores, "base")
    write_peft(tmp_path / "two", basis, basis.layout.zero_cores(), "base")
    write_peft(tmp_path / "two", basis, cores, "base")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one", "two"]
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    config = json.loads((tmp_path / "one" / "adapter_config.json").read_text())
    assert config["lora_alpha"] == config["r"] == 4
    assert config["rank_pattern"] == config["alpha_pattern"]
    assert sorted(config["rank_pattern"].values()) == [2, 6]


def test_a_failed_write_leaves_the_old_folder(tmp_path: Path) -> None:
    basis = random_basis(18)
    write_peft(tmp_path / "a", basis, basis.layout.zero_cores(), "base")
    before = (tmp_path / "a" / "adapter_model.safetensors").read_bytes()
    cores = random_cores(19, basis.layout)
    cores[next(iter(cores))][:] = np.inf
    with pytest.raises(EncodingError):
        write_peft(tmp_path / "a", basis, cores, "base")
    assert (tmp_path / "a" / "adapter_model.safetensors").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


WIDE = {  # more modules than PEFT's threshold for shortening target lists, all of one rank
    f"model.layers.{layer}.{module}": (3, d_in, d_out)
    for layer in range(4)
    for module, d_in, d_out in (
        ("self_attn.q_proj", 32, 32),
        ("self_attn.k_proj", 32, 16),
        ("self_attn.v_proj", 32, 16),
        ("self_attn.o_proj", 32, 32),
        ("mlp.gate_proj", 32, 48),
        ("mlp.down_proj", 48, 32),
    )
    if (layer, module) != (0, "self_attn.q_proj")
}


@pytest.mark.parametrize("shapes", [SHAPES, WIDE], ids=["different ranks", "23 modules"])
def test_stock_peft_computes_base_plus_b_r_a(tmp_path: Path, shapes: dict[str, tuple[int, int, int]]) -> None:
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.1,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        base = transformers.LlamaForCausalLM(config).to(torch.float32).eval()
    base.save_pretrained(tmp_path / "base")
    basis = random_basis(20, shapes)
    cores = merge_cores([(1.0, random_cores(21, basis.layout)), (0.5, random_cores(22, basis.layout))])
    write_peft(tmp_path / "composed", basis, cores, str(tmp_path / "base"))
    tokens = torch.arange(24).reshape(2, 12)
    with torch.no_grad():
        before = base(tokens).logits
        loaded = peft.PeftModel.from_pretrained(
            transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32),
            tmp_path / "composed",
        ).eval()  # fmt: skip
        by_peft = loaded(tokens).logits
        for name, change in delta(basis, cores).items():
            base.get_submodule(name).weight += torch.from_numpy(change.astype(np.float32))
        by_hand = base(tokens).logits
    adapted = {
        name.removesuffix(".lora_A.default")
        for name, _ in loaded.base_model.model.named_modules()
        if name.endswith("lora_A.default")
    }
    assert adapted == set(shapes)
    assert (by_hand - before).abs().max() > 0.01
    torch.testing.assert_close(by_peft, by_hand, atol=1e-5, rtol=1e-5)
