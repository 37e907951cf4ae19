"""The load's own client of the Fleet API against a real server, in a small size; and what it measures by."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import confide
from deploy.load.crew import MadeUp, made_basis
from deploy.load.memory import peak_mb
from deploy.supply.beside import beside
from tests.agents_by_hand import policy as any_policy
from tests.agents_by_hand import query

ROOT = Path(confide.__file__).parent


@pytest.mark.slow
def test_eight_devices_in_one_process_make_a_sum_on_a_real_server(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "deploy.load", str(tmp_path / "load"), "--devices", "8", "--sites", "20"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, timeout=1800)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads((tmp_path / "load" / "load.json").read_text())
    assert told["sums"] == [8] and len(told["round_s"]) == 1 and told["lost"] == []
    assert told["exact"] == 1 and told["books_agree"]
    assert all(count >= 8 for count in told["messages"].values()) and len(told["messages"]) == 8
    assert set(told["peak_mb"]) == {"superlink", "server", "run"} and min(told["peak_mb"].values()) > 20
    running = [path for path in Path("/proc").glob("[0-9]*") if str(tmp_path).encode() in line_of(path)]
    assert running == [], "nothing that was started is left"


@pytest.mark.slow
def test_a_reply_that_is_announced_and_never_sent_holds_up_nobody(tmp_path: Path) -> None:
    """Flower itself waits three minutes for such a reply before it looks at the next: longer than this stage."""
    words = [sys.executable, "-m", "deploy.load", str(tmp_path / "load"), "--devices", "8", "--sites", "20"]
    words += ["--half", "1", "--stage", "60"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, timeout=1800)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads((tmp_path / "load" / "load.json").read_text())
    assert told["sums"] == [7], "all others, at the first attempt"
    lines = (tmp_path / "load" / "server" / "server" / "events.jsonl").read_text().splitlines()
    assert not [line for line in lines if json.loads(line)["event"] == "lost"]


def line_of(path: Path) -> bytes:
    try:
        return (path / "cmdline").read_bytes()
    except OSError:
        return b""


def test_devices_of_the_load_answer_different_vectors_and_the_same_again() -> None:
    basis = made_basis(3, 2)
    learner, asked = MadeUp(basis.layout), query(any_policy())
    first, second = (learner.update(name, {}, asked, 0) for name in ("a", "b"))
    assert first.shape == (12,) and (first != second).any() and (first == learner.update("a", {}, asked, 1)).all()
    assert basis.sha256 == made_basis(3, 2).sha256 != made_basis(4, 2).sha256


def test_memory_is_that_of_a_process_and_none_of_one_that_is_gone() -> None:
    assert peak_mb(os.getpid()) > 10 and peak_mb(2**22 + 1) == 0.0


def test_a_lock_beside_another_holds_what_that_lacks_with_its_hashes() -> None:
    both = "# by\n#\na==1 \\\n    --hash=sha256:aa\n    # via b\nb==2 \\\n    --hash=sha256:bb\ntorch==3\n"
    assert beside(both, "a==1 \\\n    --hash=sha256:aa\n") == "# by\n#\nb==2 \\\n    --hash=sha256:bb\n"
