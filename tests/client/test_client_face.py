"""The page's server: who is let in, what it answers, what it never lets through."""

from __future__ import annotations

import http.client
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from client.decode import Sampling, Steering, drawn, pieces
from client.encoder import HashedEncoder
from client.face.guard import MAX_BODY_BYTES
from client.face.tokens import new_token
from client.generate import chat_ids, reply
from client.listener import ask
from client.live_reply import LiveReply
from client.model import LanguageModel
from client.own import own_tensors, reset_own
from client.serving import Layers, fold
from client.speaker import Speaker
from client.steering import PLAUSIBLE, steered
from client.wall import harmless_reply
from tests.face_served import Face, served

PAGE_PATHS = ("find", "answer", "continue", "chat")


@pytest.fixture(scope="module")
def face(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Iterator[Face]:
    with served(tmp_path_factory.mktemp("face"), tiny_model_dir) as made:
        yield made


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1", "localhost:1", ""])
def test_a_foreign_name_that_resolves_to_loopback_is_refused(face: Face, host: str) -> None:
    assert face.request("GET", "/", Host=host)[0] == 421
    assert face.request("POST", "/page/find", {"question": "ferry"}, Host=host)[0] == 421


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1", "https://127.0.0.1"])
def test_another_page_is_refused_even_with_the_token(face: Face, origin: str) -> None:
    status, _, data = face.request("POST", "/page/find", {"question": "ferry"}, Origin=origin)
    assert status == 403 and b"ferry" not in data
    assert face.request("POST", "/page/find", {"question": "ferry"}, Origin=face.url.rstrip("/"))[0] == 200


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_another_site_or_another_port_is_refused(face: Face, site: str) -> None:
    assert face.request("GET", "/", Sec_Fetch_Site=site)[0] == 403
    assert face.request("GET", "/", Sec_Fetch_Site="none")[0] == 200


@pytest.mark.parametrize("path", PAGE_PATHS)
def test_nothing_of_the_person_without_the_pages_own_token(face: Face, path: str) -> None:
    body = {"question": "ferry", "text": "ferry", "turns": [{"role": "user", "content": "ferry"}]}
    assert face.request("POST", f"/page/{path}", body, token="")[0] == 401
    assert face.request("POST", f"/page/{path}", body, token=face.token[:-1] + "é")[0] == 401
    other = new_token(face.vault, "editor", ["chat", "memories", "embeddings"])
    assert face.request("POST", f"/page/{path}", body, token=other)[0] == 403


def test_the_shell_holds_nothing_of_the_person_and_loads_nothing_from_elsewhere(face: Face) -> None:
    status, headers, data = face.request("GET", "/", token="")
    page = data.decode()
    assert status == 200 and "ferry" not in page and face.token not in page
    assert "default-src 'none'" in headers["content-security-policy"] and "unsafe" not in str(headers)
    assert headers["cache-control"] == "no-store" and headers["x-frame-options"] == "DENY" and "server" not in headers
    assert not re.search(r"\bon\w+=|style=|<style|javascript:|https?://", page)
    for place in re.findall(r'(?:src|href)="([^"#]+)"', page):
        status, headers, asset = face.request("GET", place, token="")
        assert status == 200 and headers["content-security-policy"]
        assert not re.search(rb"https?://(?!www\.w3\.org/2000/svg)", asset), place


@pytest.mark.parametrize("path", ["/static/../../../pyproject.toml", "/static/%2e%2e/page.py", "/static//etc/passwd"])
def test_static_files_are_those_of_their_folder(face: Face, path: str) -> None:
    assert face.request("GET", path, token="")[0] == 404


def test_a_body_is_bounded_and_faults_are_one_line(face: Face) -> None:
    assert face.request("POST", "/page/find", b"x" * (MAX_BODY_BYTES + 1))[0] == 413
    for body, word in (
        (b"{", "no JSON"), (b"[]", "no JSON object"), ({"question": 3}, "question"), ({"question": " "}, "no text"),
        ({"question": "x" * 20_001}, "20000"), (b'{"question": ' + b"[" * 5000, "no JSON"),
    ):  # fmt: skip
        status, _, data = face.request("POST", "/page/find", body)
        assert status == 400 and word in json.loads(data)["error"]["message"]
    assert face.request("GET", "/page/find")[0] == 405 and face.request("GET", "/nowhere")[0] == 404


def test_a_chunked_body_is_bounded_as_well(face: Face) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", face.port, timeout=30)
    parts = (b"x" * 65536 for _ in range(MAX_BODY_BYTES // 65536 + 2))
    headers = {"Authorization": f"Bearer {face.token}", "Transfer-Encoding": "chunked"}
    connection.request("POST", "/page/find", parts, headers, encode_chunked=True)
    assert connection.getresponse().status == 413
    connection.close()


def test_find_gives_passages_and_a_sentence_word_for_word(face: Face) -> None:
    found = face.post("/page/find", {"question": "When does the ferry leave on Sundays?"})
    assert found["passages"][0]["title"] == "ferry"
    assert found["quote"]["text"] == "On Sundays the ferry leaves at ten."


def test_an_answer_says_who_speaks_and_what_was_shown_before_it_speaks(face: Face) -> None:
    lines = face.post("/page/answer", {"question": "When does the ferry leave?", "most_tokens": 8})
    assert lines[0]["memories"][0]["title"] == "ferry" and lines[0]["voice"] == "personal"
    assert not lines[0]["own_adapter"] and lines[-1]["tokens"] <= 8
    assert all(set(line) == {"piece"} for line in lines[1:-1])


def test_three_candidates_likeliest_first(face: Face) -> None:
    for kind in ("sentence", "subject", "reply"):
        made = face.post("/page/continue", {"text": "Moved the hive again.", "kind": kind})
        texts = [each["text"] for each in made["candidates"]]
        assert len(texts) == len(set(texts)) == 3 and all(texts), kind
        likelihoods = [each["likelihood"] for each in made["candidates"]]
        assert likelihoods == sorted(likelihoods, reverse=True)
        assert kind == "reply" or not any("\n" in text for text in texts)
    assert face.request("POST", "/page/continue", {"text": "x", "kind": "poem"})[0] == 400


def test_the_base_voice_is_shown_nothing_of_the_person(face: Face) -> None:
    turns = [{"role": "user", "content": "When does the ferry leave?"}]
    base = face.post("/page/chat", {"turns": turns, "voice": "base", "most_tokens": 4})
    assert base[0]["memories"] == [] and base[0]["voice"] == "base"
    assert face.post("/page/chat", {"turns": turns, "most_tokens": 4})[0]["memories"]
    assert face.request("POST", "/page/chat", {"turns": [], "voice": "base"})[0] == 400
    assert face.request("POST", "/page/chat", {"turns": turns, "voice": "mine"})[0] == 400


def test_a_hundred_requests_at_once_and_none_is_lost(face: Face) -> None:
    found: list[int] = []

    def one(i: int) -> None:
        question = {"question": f"Where is the ferry {i}?", "most_tokens": 2}
        found.append(face.request("POST", "/page/answer" if i % 4 == 0 else "/page/find", question)[0])

    threads = [threading.Thread(target=one, args=(i,)) for i in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == [200] * 100


def test_a_reader_who_goes_away_stops_the_model(face: Face) -> None:
    """The next reply comes long before the abandoned one of 2,048 tokens could have ended."""
    connection = http.client.HTTPConnection("127.0.0.1", face.port, timeout=30)
    body = json.dumps({"turns": [{"role": "user", "content": "Tell me all."}], "voice": "base", "most_tokens": 2048})
    connection.request("POST", "/page/chat", body, {"Authorization": f"Bearer {face.token}"})
    connection.getresponse().read1(10)
    connection.sock.close() if connection.sock else None
    connection.close()
    assert face.post("/page/answer", {"question": "ferry", "most_tokens": 1})[-1]["tokens"] <= 1


def test_the_agents_socket_answers_beside_the_page(face: Face) -> None:
    told = ask(face.folder, {"do": "ask", "question": "ferry", "most_tokens": 1}, 60)
    assert told["sources"][0]["title"] == "ferry"


# -- tokens drawn one by one --------------------------------------------------------------------------------------


def test_the_likeliest_tokens_are_those_of_transformers(new_model: object) -> None:
    assert callable(new_model)
    model: LanguageModel = new_model()
    for question in ("When?", "Where is the boat, and who has the key to it?"):
        whole = reply(model, "Answer.", question, 24)
        made = list(pieces(model, chat_ids(model, "Answer.", question), 24))
        assert "".join(piece for piece, _ in made).strip() == whole.text


def test_rows_are_drawn_apart_and_a_seed_repeats_them(new_model: object) -> None:
    assert callable(new_model)
    model: LanguageModel = new_model()
    ids = chat_ids(model, "Answer.", "When?")

    def draw(seed: int) -> torch.Tensor:
        return torch.stack([chosen for chosen, _ in drawn(model, ids, 8, Sampling(1.0, 0.95, seed), rows=3)])

    before = torch.random.get_rng_state()
    first = draw(1)
    assert torch.equal(first, draw(1)) and not torch.equal(first, draw(2))
    assert not torch.equal(first[:, 0], first[:, 1])
    assert torch.equal(before, torch.random.get_rng_state()), "the global generator is as it was"


def test_the_likelihood_is_the_models_own(new_model: object) -> None:
    assert callable(new_model)
    model: LanguageModel = new_model()
    ids = chat_ids(model, "Answer.", "When?")
    steps = list(drawn(model, ids, 6, Sampling(0.7, 0.8, 3), rows=2))
    for row in range(2):
        tokens = torch.tensor([int(chosen[row]) for chosen, _ in steps])
        logits = model.net(input_ids=torch.cat([ids, tokens])[None], use_cache=False).logits[0, len(ids) - 1 : -1]
        wanted = logits.float().log_softmax(-1).gather(1, tokens[:, None])[:, 0]
        assert torch.allclose(torch.stack([each[row] for _, each in steps]), wanted, atol=1e-4)


@pytest.mark.parametrize("strength", [-1.0, -0.5, 1.0])
def test_steered_tokens_are_those_of_the_mixture(new_model: object, strength: float) -> None:
    assert callable(new_model)
    model: LanguageModel = new_model()
    ids, plain = chat_ids(model, "The ferry goes at ten.", "When?"), chat_ids(model, "Answer.", "When?")
    steps = list(drawn(model, ids, 4, Sampling(1.0, 1.0, 3), steering=Steering(plain, strength)))
    tokens = torch.tensor([int(chosen[0]) for chosen, _ in steps])

    def plainly(prompt: torch.Tensor) -> torch.Tensor:
        logits = model.net(input_ids=torch.cat([prompt, tokens])[None], use_cache=False).logits[0, len(prompt) - 1 : -1]
        return torch.as_tensor(logits.float().log_softmax(-1))

    both = plainly(ids)
    mixed = steered(both, plainly(plain), strength)
    if strength > 0:
        mixed = mixed.masked_fill(both < both.max(-1, keepdim=True).values + np.log(PLAUSIBLE), -torch.inf)
        mixed = mixed.log_softmax(-1)
    wanted = mixed.gather(1, tokens[:, None])[:, 0]
    assert torch.allclose(torch.stack([each[0] for _, each in steps]), wanted, atol=1e-3)


def test_the_page_weighs_memories_as_it_is_told(face: Face) -> None:
    asked = {"turns": [{"role": "user", "content": "When does the ferry leave?"}], "most_tokens": 2}
    first = face.post("/page/chat", {**asked, "steer": 1.5})
    assert first[0]["steer"] == 1.5 and first[0]["memories"] and first[-1]["tokens"] <= 2
    assert face.post("/page/chat", asked)[0]["steer"] == 0.0, "nothing was measured on this vault"
    assert face.request("POST", "/page/chat", {**asked, "steer": 9})[0] == 400


def test_an_export_is_shown_among_what_left(face: Face) -> None:
    assert face.get("/page/left")["exports"] == []
    left = {"sha256": "0", "epsilon": 4.0, "delta": 1e-5, "unit": "choice", "time": 1.0}
    face.vault.set_setting("exports", json.dumps([left]))
    assert face.get("/page/left")["exports"] == [left]


LIVE = re.compile(r"https?://|(?<!\w)www\.|!\[[^\]]*\]\(|<img|<a ", re.IGNORECASE)
FRAGMENTS = st.sampled_from(
    [
        "![x](",
        "http://evil.example/?q=",
        "secret",
        ")",
        "[a",
        "](",
        "<img src=",
        ">",
        " ",
        "www.evil.example",
        "\n",
        "it",
    ]
)


@given(st.lists(FRAGMENTS, max_size=14), st.integers(1, 7))
def test_a_live_reply_lets_no_address_through_however_it_is_cut(parts: list[str], size: int) -> None:
    text = "".join(parts)
    live = LiveReply()
    shown = "".join(live.add(text[i : i + size]) for i in range(0, len(text), size)) + live.end()
    assert not LIVE.search(shown), shown
    if not re.search(r"[\[(<!]", text):
        assert shown == harmless_reply(text), "where no bracket is open the wall says the same of all of it"


def test_a_live_reply_of_plain_words_is_shown_word_by_word() -> None:
    live = LiveReply()
    shown = [live.add(piece) for piece in ("The fer", "ry lea", "ves at ", "ten.")]
    assert shown == ["The ", "ferry ", "leaves at ", ""] and live.end() == "ten."


def test_no_text_of_a_person_reaches_a_log_or_an_error(
    face: Face, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Whatever breaks inside, with whatever words: the answer and the log hold the kind of error alone."""
    planted = "the walnut chest has a false bottom"

    def broken(*_given: object, **_named: object) -> Iterator[tuple[str, int]]:
        raise ValueError(planted)

    question = {"question": planted}
    for name, path in (("find", "/page/find"), ("spoken", "/page/answer")):
        with monkeypatch.context() as patched:
            patched.setattr(Speaker, name, broken)
            status, _, data = face.request("POST", path, question)
        assert b"walnut" not in data and (status == 500 or b'"error"' in data), path
    asked = {"model": "personal", "messages": [{"role": "user", "content": planted}], "stream": True, "max_tokens": 2}
    with monkeypatch.context() as patched:
        patched.setattr(Speaker, "spoken", broken)
        data = face.request("POST", "/v1/chat/completions", asked)[2]
    assert b"walnut" not in data and b'"error"' in data and data.endswith(b"data: [DONE]\n\n")
    said = "".join(capfd.readouterr())
    assert "walnut" not in caplog.text + said and "ValueError" in caplog.text


def test_an_adapter_is_read_once_whatever_else_happens_to_the_model(
    face: Face, new_model: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replies follow the vault's adapter, untouched by training and rounds, without reading it each time."""
    assert callable(new_model)
    model: LanguageModel = new_model()
    model.add_own(4, ("q_proj",))
    reset_own(model, torch.Generator().manual_seed(1))
    facts = json.dumps({"rank": 4, "modules": ["q_proj"]})
    with face.vault.change() as rows:
        for active in (0, 1):
            with torch.no_grad():
                for tensor in own_tensors(model).values():
                    tensor.add_(0.1)
            blob = save({name: t.detach().clone() for name, t in own_tensors(model).items()})
            rows.execute(
                "INSERT INTO adapter (kind, release, made, active, facts, tensors) VALUES ('lora', ?, 0, ?, ?, ?)",
                (f"base {model.name}", active, facts, blob),
            )
    folded: list[object] = []

    def counted(into: LanguageModel, parts: Any) -> Layers:
        folded.append(fold(into, parts))
        return folded[-1]  # type: ignore[return-value]

    monkeypatch.setattr("client.serving.fold", counted)
    other: LanguageModel = new_model()
    speaker = Speaker(face.vault, other, threading.RLock(), HashedEncoder(64))
    prompt = replace(speaker.prompt([("user", "ferry")]), own=True)
    spoke: list[torch.Tensor] = []

    def watched(_module: object, _given: object, out: Any) -> None:
        spoke.append(out.logits[0, -1].clone())

    other.net.register_forward_hook(watched)

    def says() -> torch.Tensor:
        list(speaker.spoken(prompt, 1))
        return spoke[-1]

    first = says()
    assert torch.equal(says(), first) and len(folded) == 1
    other.add_own(4, ("q_proj",))  # a training begins, with its own numbers in the model
    with torch.no_grad():
        for tensor in own_tensors(other).values():
            tensor.add_(1.0)
    assert torch.equal(says(), first) and len(folded) == 1
    with face.vault.change() as rows:
        rows.execute("UPDATE adapter SET active = 1 - active")
    second = says()
    assert not torch.equal(second, first) and len(folded) == 2, "another adapter serves now"
    with face.vault.change() as rows:
        rows.execute("UPDATE adapter SET active = 1 - active")
    assert torch.equal(says(), first) and len(folded) == 2, "the one before was still ready"
    bare = replace(prompt, voice="base")
    list(speaker.spoken(bare, 1))
    assert not torch.equal(spoke[-1], first)
    speaker.forgot()
    assert torch.equal(says(), first) and len(folded) == 3
    with face.vault.change() as rows:
        rows.execute("DELETE FROM adapter")
