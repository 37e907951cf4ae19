"""A release is read whole and as signed, or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from safetensors.numpy import save

from privacy.adapter import Basis, Cores, cores_to_bytes, lora_factors, merge_cores, peft_files
from privacy.canonical import Json, canonical_json, parse_canonical, sha256_hex
from privacy.errors import EncodingError, ReleaseInvalid
from privacy.learned import NOTHING, Learned, PersonaFacts
from privacy.release import SIGNED, ReleaseFacts, privacy_claim
from server.registry import latest_release, verify_release, write_release

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER = Ed25519PrivateKey.from_private_bytes(bytes(32))
FACTS = ReleaseFacts(
    federation="fed",
    campaign="spring",
    round=2,
    base_model="smollm2-135m-instruct",
    base_model_sha256="0" * 64,
    policy_sha256="1" * 64,
    ledger_head="2" * 64,
    private=True,
    privacy=privacy_claim({"rho": 0.5, "epsilon": {"1e-06": 4.9}, "noise_multiplier": [1.0], "stamp": None}),
)


def basis() -> Basis:
    rng = np.random.default_rng(0)
    return Basis(
        {
            f"model.layers.{i}.q_proj": (
                rng.normal(size=(r, 6)).astype(np.float32),
                rng.normal(size=(5, r)).astype(np.float32),
            )
            for i, r in ((1, 2), (10, 3), (2, 2))
        }
    )


def cores(seed: int) -> Cores:
    layout = basis().layout
    return layout.unflatten(np.random.default_rng(seed).normal(size=layout.dim))


ADAPTERS = {"global": cores(1), "persona-1": cores(2)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_release(tmp_path / "release", basis(), ADAPTERS, FACTS, KEY)
    return tmp_path / "release"


def test_a_release_is_read_as_it_was_written(folder: Path) -> None:
    release = verify_release(folder, KEY.public_key())
    assert release.facts == FACTS
    assert release.basis.sha256 == basis().sha256
    assert list(release.adapters) == ["global", "persona-1"]
    for name, written in ADAPTERS.items():
        for module, core in written.items():
            assert np.array_equal(release.adapters[name][module], core)
    assert release.sha256 == sha256_hex((folder / "release.json").read_bytes())
    assert {p.name for p in folder.parent.iterdir()} == {"release"}


def test_a_composition_is_a_weighted_sum_of_cores(folder: Path) -> None:
    release = verify_release(folder, KEY.public_key())
    both = release.composed({"global": 1.0, "persona-1": 0.5})
    expected = merge_cores([(1.0, ADAPTERS["global"]), (0.5, ADAPTERS["persona-1"])])
    assert all(np.array_equal(both[module], core) for module, core in expected.items())
    with pytest.raises(ReleaseInvalid, match="no adapter"):
        release.composed({"persona-2": 1.0})


def test_the_same_release_is_the_same_bytes_and_replaces_the_old(folder: Path) -> None:
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    write_release(folder, basis(), {"global": cores(9)}, replace(FACTS, round=3), KEY)
    assert not (folder / "persona-1").exists()
    write_release(folder, basis(), ADAPTERS, FACTS, KEY)
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


def test_a_failed_write_leaves_the_old_release(folder: Path) -> None:
    broken = {"global": {module: core * np.float32("nan") for module, core in cores(1).items()}}
    with pytest.raises(EncodingError):
        write_release(folder, basis(), broken, FACTS, KEY)
    with pytest.raises(ReleaseInvalid):
        write_release(folder, basis(), {"../global": cores(1)}, FACTS, KEY)
    assert verify_release(folder, KEY.public_key()).facts == FACTS
    assert {p.name for p in folder.parent.iterdir()} == {"release"}


def test_what_is_not_private_says_so(tmp_path: Path) -> None:
    write_release(tmp_path / "r", basis(), ADAPTERS, replace(FACTS, private=False), KEY)
    assert b'"stamp":"NOT PRIVATE"' in (tmp_path / "r" / "release.json").read_bytes()
    assert not verify_release(tmp_path / "r", KEY.public_key()).facts.private


def test_latest_release(folder: Path, tmp_path: Path) -> None:
    assert latest_release(tmp_path / "none", KEY.public_key()) is None
    found = latest_release(folder, KEY.public_key())
    assert found is not None
    assert found.facts.round == 2
    with pytest.raises(ReleaseInvalid):
        latest_release(folder / "release.json", KEY.public_key())


def forged(folder: Path, change: Callable[[dict[str, Json]], None], key: Ed25519PrivateKey = KEY) -> None:
    """Sign `release.json` anew after a change: what a hostile server that holds the key can do."""
    value = parse_canonical((folder / "release.json").read_bytes())
    assert isinstance(value, dict)
    change(value)
    document = canonical_json(value)
    (folder / "release.json").write_bytes(document)
    (folder / "release.sig").write_bytes(key.sign(SIGNED + document).hex().encode() + b"\n")


def swapped(folder: Path, path: str, data: bytes) -> None:
    """Put another file in, with its right hash and a right signature."""
    (folder / path).write_bytes(data)

    def declare(value: dict[str, Json]) -> None:
        files = value["files"]
        assert isinstance(files, dict)
        files[path] = {"sha256": sha256_hex(data), "size": len(data)}

    forged(folder, declare)


def refused(folder: Path, because: str) -> None:
    with pytest.raises(ReleaseInvalid, match=because):
        verify_release(folder, KEY.public_key())


def test_every_changed_byte_of_every_file_is_refused(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        data = path.read_bytes()
        for offset in rng.integers(0, len(data), size=40):
            changed = bytearray(data)
            changed[offset] ^= 1 << int(rng.integers(8))
            path.write_bytes(changed)
            refused(folder, "release")
        path.write_bytes(data)
    verify_release(folder, KEY.public_key())


def test_another_key_is_refused(folder: Path) -> None:
    with pytest.raises(ReleaseInvalid, match="signature"):
        verify_release(folder, OTHER.public_key())
    forged(folder, lambda value: None, OTHER)
    refused(folder, "signature")
    forged(folder, lambda value: value.update(signer=OTHER.public_key().public_bytes_raw().hex()))
    refused(folder, "another signer")


@pytest.mark.parametrize("name", ["extra.py", "global/extra.bin", ".hidden", "persona-2/core.safetensors"])
def test_extra_files_are_refused(folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"x")
    refused(folder, "belong")


def test_missing_files_links_and_folders_are_refused(folder: Path, tmp_path: Path) -> None:
    core = folder / "global" / "core.safetensors"
    data = core.read_bytes()
    core.unlink()
    refused(folder, "missing")
    (tmp_path / "elsewhere").write_bytes(data)
    core.symlink_to(tmp_path / "elsewhere")
    refused(folder, "plain file")
    core.unlink()
    os.mkfifo(core)
    refused(folder, "plain file")
    core.unlink()
    core.write_bytes(data)
    (folder / "empty").mkdir()
    refused(folder, "plain file")
    (folder / "empty").rmdir()
    verify_release(folder, KEY.public_key())
    (folder / "release.sig").unlink()
    refused(folder, "cannot read")
    shutil.rmtree(folder)
    refused(folder, "cannot read")


@pytest.mark.parametrize("name", ["../global", "/etc/passwd", "global/../../x", "GLOBAL", "", "a" * 60, 7, None])
def test_names_that_lead_elsewhere_are_refused(folder: Path, name: Json) -> None:
    forged(folder, lambda value: value.update(adapters=[name]))
    refused(folder, "adapter")
    forged(folder, lambda value: value.update(adapters=["global", "persona-1"]))

    def list_it(value: dict[str, Json]) -> None:
        files = value["files"]
        assert isinstance(files, dict)
        files[str(name)] = {"sha256": "0" * 64, "size": 1}

    forged(folder, list_it)
    refused(folder, "list exactly")


def test_documents_of_another_shape_are_refused(folder: Path) -> None:
    original = (folder / "release.json").read_bytes()
    changes: list[Callable[[dict[str, Json]], None]] = [
        lambda value: value.update(format="confide-release/3"),
        lambda value: value.update(extra=1),
        lambda value: value.__delitem__("layout"),
        lambda value: value.update(stamp=None, private=False),
        lambda value: value.update(stamp="NOT PRIVATE"),
        lambda value: value.update(private="yes"),
        lambda value: value.update(round=-1),
        lambda value: value.update(round=True),
        lambda value: value.update(basis_sha256="0" * 64),
        lambda value: value.update(layout=[]),
        lambda value: value.update(ledger_head="z"),
        lambda value: value.update(adapters=["persona-1", "global"]),
        lambda value: value.update(adapters=["global"]),
        lambda value: value.update(base_model="another"),
        lambda value: value.update(privacy=[]),
    ]
    for change in changes:
        (folder / "release.json").write_bytes(original)
        forged(folder, change)
        refused(folder, "release")
    for data in (b"", b"{}", b"[]", original + b" ", b"\xff" * 100, b" " * (5 * 2**20)):
        (folder / "release.json").write_bytes(data)
        (folder / "release.sig").write_bytes(KEY.sign(SIGNED + data).hex().encode() + b"\n")
        refused(folder, "release")


def test_declared_sizes_are_bounds(folder: Path) -> None:
    def declare(size: Json) -> Callable[[dict[str, Json]], None]:
        def change(value: dict[str, Json]) -> None:
            files = value["files"]
            assert isinstance(files, dict)
            files["global/core.safetensors"] = {"sha256": "0" * 64, "size": size}

        return change

    for size, because in ((2**62 // 2**10, "larger"), (0, "larger"), (-1, "larger"), ("9", "size"), (10, "longer")):
        forged(folder, declare(size))
        refused(folder, because)


def test_signed_but_hostile_tensors_are_refused(folder: Path, tmp_path: Path) -> None:
    good, small = cores(1), {module: core[:1, :1].copy() for module, core in cores(1).items()}
    first = next(iter(good))
    huge = save({**good, "model.layers.1.padding": np.zeros(100_000, np.float32)})
    hostile = {
        "NaN": cores_to_bytes({**good, first: good[first] * np.float32("nan")}),
        "wrong shapes": cores_to_bytes(small),
        "missing module": cores_to_bytes({module: core for module, core in good.items() if module != first}),
        "extra tensor": save({**good, "x": np.zeros(1, np.float32)}),
        "float16": save({module: core.astype(np.float16) for module, core in good.items()}),
        "oversized": huge,
        "no tensors at all": b"\x08\0\0\0\0\0\0\0{}      ",
        "another adapter's core": cores_to_bytes(cores(5)),
    }
    for case, data in hostile.items():
        copy = tmp_path / case
        shutil.copytree(folder, copy)
        swapped(copy, "global/core.safetensors", data)
        refused(copy, "release")
    copy = tmp_path / "basis"
    shutil.copytree(folder, copy)
    swapped(copy, "basis.safetensors", Basis({first: basis().factors[first]}).to_bytes())
    refused(copy, "basis is not the one")


def test_a_peft_folder_that_is_not_its_core_is_refused(folder: Path) -> None:
    """Stock tools load the PEFT files, so these must not differ from the core that was audited."""
    good = (folder / "global" / "adapter_model.safetensors").read_bytes()
    other = peft_files(basis(), cores(3), FACTS.base_model)
    swapped(folder, "global/adapter_model.safetensors", other["adapter_model.safetensors"])
    refused(folder, "not B R and A")
    factors = {}
    for module, (a, b_r) in lora_factors(basis(), ADAPTERS["global"]).items():
        factors[f"base_model.model.{module}.lora_A.weight"] = a
        factors[f"base_model.model.{module}.lora_B.weight"] = b_r
    for change in (np.float32("nan"), np.float32("inf"), np.float32(1.01)):
        key = next(iter(factors))
        swapped(folder, "global/adapter_model.safetensors", save({**factors, key: factors[key] * change}))
        refused(folder, "not B R and A")
    swapped(folder, "global/adapter_model.safetensors", save({**factors, "lm_head": np.zeros(2, np.float32)}))
    refused(folder, "not those of its basis")
    swapped(folder, "global/adapter_model.safetensors", good)
    verify_release(folder, KEY.public_key())
    config = (folder / "global" / "adapter_config.json").read_bytes()
    for hostile in (
        config.replace(b'"lora_alpha": 2', b'"lora_alpha": 64'),
        config.replace(b'"bias"', b'"auto_mapping": {"x": 1}, "bias"'),
        b"[" * 100_000,
        b"{",
    ):
        swapped(folder, "global/adapter_config.json", hostile)
        refused(folder, "PEFT")


def test_a_claim_is_written_exactly() -> None:
    claim = privacy_claim({"a": 0.1, "b": [1, 2.5], "c": {"1e-06": None}, "d": True})
    assert claim == {"a": "0.1", "b": [1, "2.5"], "c": {"1e-06": None}, "d": True}
    with pytest.raises(ReleaseInvalid):
        privacy_claim({"a": object()})


LEARNED = Learned(
    {
        "centroids": np.ones((1, 3), np.float32),
        "directions": np.eye(2, 4, dtype=np.float32),
        "retriever": np.zeros((2, 2), np.float32),
    },
    {"persona-1": PersonaFacts("41.5", "bread, river")},
    "c" * 64,
)


def test_what_was_learned_besides_adapters_is_signed_with_them(tmp_path: Path) -> None:
    written = write_release(tmp_path / "r", basis(), ADAPTERS, FACTS, KEY, LEARNED)
    assert written.learned.personas == LEARNED.personas and written.learned.public_sha256 == "c" * 64
    for name, table in LEARNED.tables.items():
        np.testing.assert_array_equal(written.learned.tables[name], table)
    (tmp_path / "r" / "tables.safetensors").write_bytes(b"x" * (tmp_path / "r" / "tables.safetensors").stat().st_size)
    refused(tmp_path / "r", "not the file that was signed")
    write_release(tmp_path / "r", basis(), ADAPTERS, FACTS, KEY)
    (tmp_path / "r" / "tables.safetensors").write_bytes(b"more")
    refused(tmp_path / "r", "does not belong")


@pytest.mark.parametrize(
    "changes",
    [
        {"tables": ["retriever"]},
        {"tables": []},
        {"tables": None},
        {"personas": {"persona-9": {"description": "", "noisy_count": "1"}}},
        {"personas": {"persona-1": {"description": "", "noisy_count": "many"}}},
        {"personas": {"persona-1": {"description": "x" * 3000, "noisy_count": "1"}}},
        {"personas": {"persona-1": {"noisy_count": "1", "text": "x"}}},
        {"personas": {}},
        {"public_sha256": "none"},
        {"more": 1},
    ],
)
def test_learned_parts_of_another_shape_are_refused(tmp_path: Path, changes: dict[str, Json]) -> None:
    write_release(tmp_path / "r", basis(), ADAPTERS, FACTS, KEY, LEARNED)

    def change(value: dict[str, Json]) -> None:
        learned = value["learned"]
        assert isinstance(learned, dict)
        learned |= changes

    forged(tmp_path / "r", change)
    refused(tmp_path / "r", "release")


def test_a_release_of_the_first_format_is_read(folder: Path) -> None:
    def first(value: dict[str, Json]) -> None:
        del value["learned"]
        value["format"] = "confide-release/1"

    forged(folder, first)
    assert verify_release(folder, KEY.public_key()).learned == NOTHING
    forged(folder, lambda value: value.update(learned={}))
    refused(folder, "exactly the fields")


@pytest.mark.parametrize(
    "tables",
    [
        {"retriever": np.zeros((2, 2), np.float32)},
        {"retriever": np.zeros((3, 3), np.float32), "directions": np.zeros((2, 4), np.float32)},
        {"other": np.zeros((2, 2), np.float32)},
        {"centroids": np.full((1, 2), np.nan, np.float32)},
        {"centroids": np.zeros((2, 2), np.float32)},
    ],
)
def test_tables_that_do_not_fit_each_other_are_none(tables: dict[str, Any]) -> None:
    with pytest.raises(ReleaseInvalid):
        Learned(tables, {"persona-1": PersonaFacts("3")})
