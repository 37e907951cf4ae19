"""The API through a client that shares no code with OpenAI's: Vercel's AI SDK, in Node.

`npm ci --prefix tests/web` puts it there, as `make e2e` does; without it or Node these tests are skipped.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.encoder import HashedEncoder
from client.face.tokens import new_token
from tests.face_served import Face, served

WEB = Path(__file__).parents[1] / "web"
NODE = shutil.which("node") or ""
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not NODE or not (WEB / "node_modules" / "ai").exists(), reason="no Node, or no npm ci"),
]
QUESTION = "When does the ferry leave on Sundays?"


@pytest.fixture(scope="module")
def face(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Iterator[Face]:
    with served(tmp_path_factory.mktemp("other"), tiny_model_dir) as made:
        yield made


def told(face: Face, *scopes: str) -> dict[str, Any]:
    """Return what the other client got with a token of some scopes."""
    token = new_token(face.vault, "other " + " ".join(scopes), scopes)
    command = [NODE, "other_client.mjs", f"{face.url}v1", token, QUESTION]
    made = subprocess.run(command, cwd=WEB, capture_output=True, text=True, timeout=300, check=True)
    found: dict[str, Any] = json.loads(made.stdout)
    return found


def test_another_client_gets_replies_streams_vectors_and_the_memories_used(face: Face) -> None:
    found = told(face, "chat", "memories", "embeddings")
    assert found["models"] == ["personal", "base", "embeddings"]
    whole, streamed = found["whole"], found["streamed"]
    assert whole["text"] and whole["text"] == streamed["text"].strip() and streamed["parts"] >= 1
    assert whole["reason"] in ("length", "stop") and streamed["reason"] == whole["reason"]
    assert whole["usage"]["outputTokens"] == streamed["usage"]["outputTokens"] <= 24
    assert whole["confide"]["memories"][0]["title"] == "ferry"
    assert isinstance(found["completion"], str) and found["completion"]
    assert np.allclose(found["vectors"], HashedEncoder(64).encode(["ferry", "bees"]), atol=1e-6)


def test_another_client_is_refused_what_its_token_is_not_for(face: Face) -> None:
    found = told(face, "chat")
    assert found["models"] == ["base"] and found["completion"]
    assert found["whole"]["refused"] == found["streamed"]["refused"] == 400
    assert "no model personal" in found["whole"]["message"]
    assert found["vectors"]["refused"] == 403 and "not for embeddings" in found["vectors"]["message"]
