"""A training that is killed goes on; one that may take no more memory or no more of the day stops and loses nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch

from client import background, personal, resident
from client.forget import Wanted, forget
from client.limits import Limits, keep_limits, kept_limits, peak_memory_mb
from client.model import LanguageModel
from client.own_training import Checkpoint
from client.personal import active, train, training_slice, unfinished, window
from client.vault import Vault
from client.vault_key import Opener
from privacy.errors import ConfigError, TrainingPaused
from tests.vault_of_notes import vault_of_notes

NewModel = Callable[..., LanguageModel]
ROOT = Path(__file__).resolve().parents[2]
# A child that trains long enough to be killed in the middle, and keeps a checkpoint every tenth of a second.
CHILD = """
import sys, torch
from pathlib import Path
torch.set_num_threads(1)
from client import personal
from client.limits import Limits, peak_memory_mb
from client.model import LanguageModel
from client.vault import Vault
from client.vault_key import Opener
personal.KEPT_EVERY_S, personal.EPOCHS["lora"] = 0.1, int(sys.argv[3])
epsilon = float(sys.argv[4]) or None
if epsilon: personal.RECORD_EPOCHS = personal.RECORD_STEPS = int(sys.argv[3])
with Vault.open(Path(sys.argv[1]), Opener(passphrase="x")) as vault:
    model = LanguageModel.load(sys.argv[2], 3, torch.float32)
    made = personal.train(vault, model, "lora", epsilon, Limits(seconds=600, memory_mb=int(sys.argv[5])))
    print(made.resumed_at, peak_memory_mb())
"""


@pytest.fixture
def vault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Vault]:
    texts = [f"Note {i}: the boat and the lamp, number {i * 7}, zyx zyx again." for i in range(16)]
    with vault_of_notes(tmp_path, monkeypatch, texts) as made:
        yield made


def child(vault: Vault, model: Path, epochs: int, epsilon: float = 0.0, memory_mb: int = 0) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", CHILD, str(vault.folder), str(model), str(epochs), str(epsilon), str(memory_mb)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def steps_kept(vault: Vault) -> int:
    found = vault.select("SELECT tensors FROM adapter WHERE json_extract(facts, '$.unfinished')")
    return Checkpoint.of_bytes(bytes(found[0][0])).done if found and found[0][0] else 0


def killed_after_a_checkpoint(vault: Vault, process: subprocess.Popen[str], beyond: int = 0) -> int:
    end = time.monotonic() + 120
    while steps_kept(vault) <= beyond and time.monotonic() < end and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "it was killed in the middle"
    return steps_kept(vault)


@pytest.mark.parametrize("epsilon", [0.0, pytest.param(8.0, marks=pytest.mark.slow)])
def test_a_training_that_is_killed_goes_on_from_its_checkpoint(
    vault: Vault, tiny_model_dir: Path, new_model: NewModel, monkeypatch: pytest.MonkeyPatch, epsilon: float
) -> None:
    first = killed_after_a_checkpoint(vault, child(vault, tiny_model_dir, 100_000, epsilon))
    assert first > 0 and active(vault) is None and unfinished(vault)
    second = killed_after_a_checkpoint(vault, child(vault, tiny_model_dir, 100_000, epsilon), beyond=first)
    assert second > first, "the second went on where the first was"
    assert vault.one("SELECT count(*) FROM adapter") == 1
    monkeypatch.setitem(personal.EPOCHS, "lora", 1)  # what is left is none: the third only finishes
    monkeypatch.setattr(personal, "RECORD_STEPS", second)
    monkeypatch.setattr(personal, "RECORD_EPOCHS", second)
    made = train(vault, new_model(dtype=torch.float32), "lora", epsilon or None)
    assert made.resumed_at == second and active(vault) is not None and not unfinished(vault)
    assert (made.privacy is not None) == bool(epsilon)
    assert made.privacy is None or made.privacy.steps == second


def test_a_checkpoint_is_forgotten_with_a_document_that_it_learned_from(
    vault: Vault, new_model: NewModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stops(done: int, _steps: int) -> None:
        if done == 3:
            raise TrainingPaused("by hand")

    monkeypatch.setattr(personal, "KEPT_EVERY_S", 0.0)
    with pytest.raises(TrainingPaused):
        train(vault, new_model(dtype=torch.float32), report=stops)
    assert steps_kept(vault) == 3
    learned = vault.one("SELECT document FROM adapter_document LIMIT 1")
    assert forget(vault, Wanted(documents=(learned,))).adapters == 1
    assert vault.one("SELECT count(*) FROM adapter") == 0


def test_what_is_forgotten_during_a_training_stops_it(vault: Vault, new_model: NewModel) -> None:
    def forgets(done: int, _steps: int) -> None:
        if done == 2:
            forget(vault, Wanted(documents=(vault.one("SELECT document FROM adapter_document LIMIT 1"),)))

    with pytest.raises(ConfigError, match="forgotten during the training"):
        train(vault, new_model(dtype=torch.float32), report=forgets)
    assert vault.one("SELECT count(*) FROM adapter") == 0


@pytest.mark.slow
def test_memory_is_the_real_one_and_bounds_the_training(vault: Vault, tiny_model_dir: Path) -> None:
    free = child(vault, tiny_model_dir, 2)
    out, error = free.communicate()
    assert free.returncode == 0, error
    peak = float(out.split()[1])
    assert peak > 150, "torch alone takes more"
    within = child(vault, tiny_model_dir, 2, memory_mb=int(peak * 1.2))
    out, error = within.communicate()
    assert within.returncode == 0 and float(out.split()[1]) <= peak * 1.2, error
    below = child(vault, tiny_model_dir, 2, memory_mb=max(130, int(peak * 0.7)))
    out, error = below.communicate()
    assert below.returncode != 0 and "raise --memory-mb" in error.splitlines()[-1]
    assert peak_memory_mb() > 0


def test_at_the_end_of_the_hours_it_pauses_and_goes_on_later(
    vault: Vault, new_model: NewModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    hour = datetime.now().astimezone().hour
    night = Limits(first_hour=hour, last_hour=hour + 1)
    late = datetime(2025, 1, 1, (hour + 2) % 24, tzinfo=UTC)

    class Clock(datetime):
        calls = 0

        @classmethod
        def now(cls, tz: Any = None) -> Any:
            Clock.calls += 1
            return datetime.now(tz) if Clock.calls < 5 else late

    with monkeypatch.context() as patch:
        patch.setattr(personal, "datetime", Clock)
        with pytest.raises(TrainingPaused, match="paused after step"):
            train(vault, new_model(dtype=torch.float32), limits=night)
    assert unfinished(vault) and (steps := steps_kept(vault)) > 0
    assert train(vault, new_model(dtype=torch.float32), limits=night).resumed_at == steps


def test_limits_are_kept(vault: Vault) -> None:
    assert kept_limits(vault) == Limits()
    keep_limits(vault, Limits(seconds=60, first_hour=22, last_hour=6, memory_mb=2000))
    assert kept_limits(vault) == Limits(seconds=60, first_hour=22, last_hour=6, memory_mb=2000)
    for wrong in ({"first_hour": 25}, {"memory_mb": 5}):
        with pytest.raises(ConfigError):
            Limits(**wrong)


def test_one_training_at_a_time(vault: Vault) -> None:
    with background.training_alone(vault.folder):
        assert background.under_way(vault.folder)
        with pytest.raises(ConfigError, match="under way"), background.training_alone(vault.folder):
            pass
    assert not background.under_way(vault.folder)


@pytest.mark.slow
def test_in_the_background_it_trains_and_says_how_it_ended(vault: Vault, tiny_model_dir: Path) -> None:
    process = background.start(vault.folder, Opener(passphrase="x"), {"kind": "full", "model": str(tiny_model_dir)})
    environment = Path(f"/proc/{process}/environ")
    if environment.exists():
        assert b"CONFIDE_PASSPHRASE" not in environment.read_bytes()
    end = time.monotonic() + 120
    while background.state(vault).get("state") in (None, "running") and time.monotonic() < end:
        time.sleep(0.1)
    assert background.state(vault)["state"] == "failed" and "kind full" in background.state(vault)["words"]
    assert background.go_on(vault) is None, "what failed is not tried again and again"


def test_what_paused_or_died_in_the_background_goes_on_when_the_hour_allows(
    vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Any] = []

    def start(*given: Any) -> int:
        started.append(given)
        return 7

    monkeypatch.setattr(background, "start", start)
    asked = {"kind": "lora", "model": "", "record_epsilon": None}
    hour = datetime.now().astimezone().hour
    for at, hours, goes_on in (("done", 24, False), ("paused", 0, False), ("paused", 24, True), ("running", 24, True)):
        vault.set_setting(background.SETTING, json.dumps({"state": at, "asked": asked}))
        keep_limits(vault, Limits(first_hour=0 if hours else (hour + 2) % 24, last_hour=hours or (hour + 3) % 24))
        assert background.go_on(vault) == (7 if goes_on else None), (at, hours)
    assert started == [(vault.folder, vault.opener, asked)] * 2
    with background.training_alone(vault.folder):
        assert background.state(vault)["state"] == "running" and background.go_on(vault) is None


def counting(started: list[int]) -> Callable[..., int]:
    """Return what stands for the start of a child and counts."""

    def start(*_given: Any) -> int:
        started.append(1)
        return 7

    return start


@pytest.mark.parametrize("unasked_s, starts", [(299.0, 0), (301.0, resident.MOST_STARTS)])
def test_an_agent_goes_on_while_nobody_asks_and_not_for_ever(
    vault: Vault, monkeypatch: pytest.MonkeyPatch, unasked_s: float, starts: int
) -> None:
    """A training that dies at once each time is not started without end."""
    started: list[int] = []
    monkeypatch.setattr(background, "start", counting(started))
    asked = {"kind": "lora", "model": "", "record_epsilon": None}
    vault.set_setting(background.SETTING, json.dumps({"state": "paused", "asked": asked}))
    ended, looks = threading.Event(), iter(range(50))

    def idle_s() -> float:
        if next(looks, None) is None:
            ended.set()
        return unasked_s

    resident.go_on_when_idle(vault, ended, idle_s, every_s=0.001)
    assert len(started) == starts


def test_an_agent_keeps_to_the_hours_of_its_person(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []
    monkeypatch.setattr(background, "start", counting(started))
    hour = datetime.now().astimezone().hour
    keep_limits(vault, Limits(first_hour=(hour + 2) % 24, last_hour=(hour + 3) % 24))
    vault.set_setting(background.SETTING, json.dumps({"state": "paused", "asked": {}}))
    ended = threading.Event()
    threading.Timer(0.2, ended.set).start()
    resident.go_on_when_idle(vault, ended, lambda: 1e9, every_s=0.01)
    assert not started


def test_an_answer_at_the_end_of_a_long_text_is_learned(vault: Vault, new_model: NewModel, tmp_path: Path) -> None:
    model = new_model(dtype=torch.float32)
    encoded = model.encode_text("x" * 4000 + " the end", [(4001, 4008)], "d", 10_000)
    assert len(encoded.ids) > 128 and encoded.own_tokens
    cut = window(encoded, 64)
    assert len(cut.ids) == 64 and cut.own_tokens == encoded.own_tokens
    assert window(cut, 64).own_tokens == cut.own_tokens and not window(cut, 64).target[0]
    early = model.encode_text("the start " + "y" * 4000, [(0, 9)], "d", 10_000)
    assert window(early, 64).own_tokens == early.own_tokens
    assert training_slice(vault, model, Limits(documents=3))[-1][1].own_tokens
