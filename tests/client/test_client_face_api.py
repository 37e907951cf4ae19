"""The API as the official client uses it: replies, streams, vectors, and tokens that may do some of it."""

from __future__ import annotations

import json
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import openai
import pytest

from client.encoder import HashedEncoder
from client.face.openai_api import until
from client.face.tokens import drop_token, new_token, token_names
from client.preferences import preferences, thumbs
from privacy.errors import ConfigError
from tests.face_served import Face, served

QUESTION = "When does the ferry leave on Sundays?"


@pytest.fixture(scope="module")
def face(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Iterator[Face]:
    with served(tmp_path_factory.mktemp("api"), tiny_model_dir) as made:
        yield made


def client_of(face: Face, *scopes: str) -> openai.OpenAI:
    """Return the official client with a token of some scopes."""
    token = new_token(face.vault, "test " + " ".join(scopes), scopes)
    return openai.OpenAI(base_url=f"{face.url}v1", api_key=token, max_retries=0, timeout=60)


def test_a_chat_marks_the_memories_it_used(face: Face) -> None:
    client = client_of(face, "chat", "memories")
    made = client.chat.completions.create(
        model="personal", messages=[{"role": "user", "content": QUESTION}], max_tokens=6
    )
    assert made.choices[0].message.role == "assistant" and made.choices[0].message.content is not None
    assert made.usage is not None and made.usage.completion_tokens <= 6 < made.usage.prompt_tokens
    assert made.choices[0].finish_reason in ("length", "stop")
    assert made.model_extra is not None
    facts = made.model_extra["confide"]
    assert facts["voice"] == "personal" and facts["memories"][0]["title"] == "ferry"
    assert "text" not in facts["memories"][0]


def test_a_stream_says_the_same_as_the_whole(face: Face) -> None:
    client = client_of(face, "chat", "memories")
    asked = {"model": "personal", "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 24}
    whole = client.chat.completions.create(**asked)  # type: ignore[call-overload]
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))  # type: ignore[call-overload]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text.strip() == whole.choices[0].message.content
    assert chunks[0].model_extra["confide"]["memories"] and len({chunk.id for chunk in chunks}) == 1
    assert chunks[-1].usage == whole.usage and chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason


def test_completions_go_on_after_a_text(face: Face) -> None:
    client = client_of(face, "chat", "memories")
    made = client.completions.create(model="base", prompt="The ferry", max_tokens=5)
    assert made.choices[0].text and made.model_extra is not None and not made.model_extra["confide"]["memories"]
    parts = client.completions.create(model="base", prompt="The ferry", max_tokens=5, stream=True)
    assert "".join(part.choices[0].text for part in parts) == made.choices[0].text
    first = client.completions.create(model="base", prompt="The ferry", max_tokens=8, temperature=1, seed=1)
    again = client.completions.create(model="base", prompt="The ferry", max_tokens=8, temperature=1, seed=1)
    other = client.completions.create(model="base", prompt="The ferry", max_tokens=8, temperature=1, seed=2)
    assert first.choices[0].text == again.choices[0].text != other.choices[0].text


def test_vectors_are_the_encoders(face: Face) -> None:
    client = client_of(face, "embeddings")
    wanted = HashedEncoder(64).encode(["ferry", "bees"])
    made = client.embeddings.create(model="embeddings", input=["ferry", "bees"])  # the client asks for base64
    assert np.allclose([each.embedding for each in made.data], wanted, atol=1e-6)
    plain = client.embeddings.create(model="embeddings", input="ferry", encoding_format="float")
    assert np.allclose(plain.data[0].embedding, wanted[0], atol=1e-6)


def test_a_token_does_what_it_is_for_and_nothing_else(face: Face) -> None:
    chat, vectors = client_of(face, "chat"), client_of(face, "embeddings")
    assert [each.id for each in chat.models.list()] == ["base"]
    assert [each.id for each in vectors.models.list()] == ["embeddings"]
    assert [each.id for each in client_of(face, "chat", "memories").models.list()] == ["personal", "base"]
    with pytest.raises(openai.BadRequestError, match="no model personal"):
        chat.chat.completions.create(model="personal", messages=[{"role": "user", "content": QUESTION}])
    with pytest.raises(openai.PermissionDeniedError):
        vectors.chat.completions.create(model="base", messages=[{"role": "user", "content": QUESTION}])
    with pytest.raises(openai.PermissionDeniedError):
        chat.embeddings.create(model="embeddings", input="ferry")
    with pytest.raises(openai.NotFoundError):
        chat.models.retrieve("personal")
    made = chat.chat.completions.create(model="base", messages=[{"role": "user", "content": QUESTION}], max_tokens=2)
    assert made.model_extra is not None and made.model_extra["confide"]["memories"] == []
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{face.url}v1", api_key="x" * 43, max_retries=0).models.list()


def test_a_token_is_dropped_and_its_text_is_kept_nowhere(face: Face) -> None:
    token = new_token(face.vault, "once", ["chat"])
    assert face.request("GET", "/v1/models", token=token)[0] == 200
    assert token not in face.vault.setting("face.tokens") and token_names(face.vault)["once"] == ["chat"]
    drop_token(face.vault, "once")
    assert face.request("GET", "/v1/models", token=token)[0] == 401
    for name, scopes in (
        ("a/b", ["chat"]),
        ("x", []),
        ("x", ["page"]),
        ("x", ["memories"]),
        ("x", ["learn"]),
        ("", ["chat"]),
    ):
        with pytest.raises(ConfigError):
            new_token(face.vault, name, scopes)
    with pytest.raises(ConfigError):
        drop_token(face.vault, "once")


@pytest.mark.parametrize(
    "more",
    [
        {"n": 2}, {"tools": [{"type": "function"}]}, {"logprobs": True}, {"temperature": 3}, {"top_p": 0},
        {"stop": ["a"] * 5}, {"max_tokens": 0}, {"max_tokens": 10**6}, {"seed": -1}, {"stream": 1},
        {"messages": [{"role": "tool", "content": "x"}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        {"messages": []}, {"messages": [{"role": "assistant", "content": "x"}]}, {"model": "gpt-4"},
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_in_one_line(face: Face, more: dict[str, object]) -> None:
    asked = {"model": "base", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1} | more
    status, _, data = face.request("POST", "/v1/chat/completions", asked)
    error = json.loads(data)["error"]
    assert status == 400 and error["type"] == "invalid_request_error" and "\n" not in error["message"]


def test_another_client_reads_the_stream_as_events(face: Face) -> None:
    """The standard library alone: lines that begin with `data: `, the last of them `[DONE]`."""
    asked = {"model": "base", "messages": [{"role": "user", "content": "x"}], "max_tokens": 4, "stream": True}
    headers = {"Authorization": f"Bearer {face.token}", "Content-Type": "application/json"}
    request = urllib.request.Request(f"{face.url}v1/chat/completions", json.dumps(asked).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        events = [line for line in answer.read().decode().split("\n\n") if line]
    assert events[-1] == "data: [DONE]" and all(json.loads(event[6:])["choices"] for event in events[:-1])


def test_replies_asked_for_at_once_all_come(face: Face) -> None:
    client, found = client_of(face, "chat", "memories"), []

    def one() -> None:
        made = client.chat.completions.create(
            model="personal", messages=[{"role": "user", "content": QUESTION}], max_tokens=2
        )
        found.append(made.choices[0].message.content)

    threads = [threading.Thread(target=one) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 12 and len(set(found)) == 1


def test_what_is_said_of_a_reply_becomes_pairs_where_the_token_may(face: Face) -> None:
    client = client_of(face, "chat", "memories", "learn")
    asked = {"model": "personal", "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 6}
    first = client.chat.completions.create(**asked)  # type: ignore[call-overload]
    chunks = list(client.chat.completions.create(**asked, temperature=1.5, seed=3, stream=True))  # type: ignore[call-overload]
    drawn = "".join(chunk.choices[0].delta.content or "" for chunk in chunks).strip()
    said, text = first.choices[0].message.content, "At ten, I think."
    assert said != drawn

    def say(**facts: str) -> dict[str, int]:
        made: dict[str, int] = client.post("/feedback", body=facts, cast_to=dict[str, int])
        return made

    before = len(preferences(face.vault))
    assert say(id=first.id, thumb="down") == {"kept": 1} and len(preferences(face.vault)) == before
    say(id=chunks[0].id, thumb="up")
    say(id=first.id, edited=text)
    found = preferences(face.vault)[before:]
    assert [(p.prompt, p.chosen, p.rejected) for p in found] == [(QUESTION, text, said), (QUESTION, drawn, said)]
    say(id=first.id, thumb="up")  # a mind that changed
    assert len(preferences(face.vault)) == before + 1 and thumbs(face.vault)["bad"] == 0
    shown = {row[0] for row in face.vault.select("SELECT document FROM thumb_document")}
    assert face.vault.one("SELECT id FROM document WHERE title = 'ferry'") in shown
    for bad in ({"id": "chatcmpl-0", "thumb": "up"}, {"id": first.id}, {"id": first.id, "thumb": "up", "edited": "x"}):
        with pytest.raises(openai.BadRequestError):
            say(**bad)
    with pytest.raises(openai.PermissionDeniedError):
        client_of(face, "chat", "memories").post("/feedback", body={"id": first.id, "thumb": "up"}, cast_to=object)


@pytest.mark.parametrize("ends, wanted", [((), "one two three"), (("two",), "one "), (("wo t", "three"), "one t")])
def test_a_reply_ends_before_its_stop_wherever_it_is_cut(ends: tuple[str, ...], wanted: str) -> None:
    whole = "one two three"
    for size in range(1, 14):
        cut = ((whole[i : i + size], i) for i in range(0, len(whole), size))
        assert "".join(piece for piece, _ in until(cut, ends)) == wanted
