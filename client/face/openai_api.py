"""The OpenAI-compatible API: `/v1/models`, `/v1/chat/completions`, `/v1/completions`, `/v1/embeddings`.

Beside it `/v1/feedback`, ours: {"id" of a reply, "thumb": "up" or "down"}, or {"id", "edited": what it should be}.

Two models: `personal` (the person's text, and the own adapter where it was chosen) and `base` (neither). What of the
person's text stood in the prompt is said beside every reply of `personal`, in a field of our own that clients pass on:

    "confide": {"voice", "model", "own_adapter", "memories": [{"document", "type", "title", "written"}, …]}

A token without the scope `memories` sees and uses `base` alone. What is asked for and cannot be done (several choices,
tools, log-probabilities) is refused, never passed over in silence.
"""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from client.decode import Sampling
from client.face.asked import field, json_of, whole
from client.face.feedback import Replies, new_name
from client.face.guard import fault, may
from client.face.tokens import CHAT, EMBEDDINGS, LEARN, MEMORIES
from client.face.turns import turns_of
from client.face.work import Work, answering
from client.preferences import CHAT as TURN
from client.preferences import SENTENCE
from client.speaker import BASE, MOST_CHARACTERS, MOST_TOKENS, PERSONAL, VOICES, Prompt, Speaker, source
from privacy.errors import ConfideError, ConfigError

EMBEDDER = "embeddings"
DEFAULT_TOKENS = 256
MOST_TEXTS = 256
_UNKNOWN = {"n": 1, "best_of": 1, "logprobs": None, "echo": False, "suffix": None, "tools": None, "functions": None}
_STARTED = int(time.time())


class OpenAI:
    """The routes of the API over one speaker."""

    def __init__(self, speaker: Speaker, work: Work, replies: Replies) -> None:
        self._speaker, self._work, self._replies = speaker, work, replies

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            Route("/v1/models", answering("", self.models)),
            Route("/v1/models/{name}", answering("", self.model)),
            Route("/v1/chat/completions", answering(CHAT, self.chat), methods=["POST"]),
            Route("/v1/completions", answering(CHAT, self.completion), methods=["POST"]),
            Route("/v1/embeddings", answering(EMBEDDINGS, self.embeddings), methods=["POST"]),
            Route("/v1/feedback", answering(LEARN, self.feedback), methods=["POST"]),
        ]

    async def models(self, request: Request) -> dict[str, Any]:
        """Return the models that this token may use."""
        return {"object": "list", "data": [_model(name) for name in self._allowed(request)]}

    async def model(self, request: Request) -> Response | dict[str, Any]:
        """Return one model."""
        name = request.path_params["name"]
        return (
            _model(name) if name in self._allowed(request) else fault(404, f"there is no model {name} for this token")
        )

    async def chat(self, request: Request) -> Response | dict[str, Any]:
        """Return or stream the next turn of a conversation."""
        asked = await json_of(request)
        voice = self._voice(request, asked)
        turns = turns_of(field(asked, "messages", list))
        prompt = await self._work.vault(partial(self._speaker.prompt, turns, voice))
        return await self._reply(asked, prompt, chat=True)

    async def completion(self, request: Request) -> Response | dict[str, Any]:
        """Return or stream what goes on after a text."""
        asked = await json_of(request)
        voice, text = self._voice(request, asked), asked.get("prompt")
        if isinstance(text, list) and len(text) == 1:
            text = text[0]
        if not isinstance(text, str):
            raise ConfigError("prompt is one text")
        prompt = await self._work.vault(partial(self._speaker.written, text, voice))
        return await self._reply(asked, prompt, chat=False)

    async def embeddings(self, request: Request) -> Response | dict[str, Any]:
        """Return the vectors of texts, of length one each."""
        asked = await json_of(request)
        given = asked.get("input")
        texts = [given] if isinstance(given, str) else given
        if (
            not isinstance(texts, list)
            or not 0 < len(texts) <= MOST_TEXTS
            or not all(isinstance(t, str) for t in texts)
        ):
            raise ConfigError(f"input is a text, or 1 to {MOST_TEXTS} of them")
        if any(not text.strip() or len(text) > MOST_CHARACTERS for text in texts):
            raise ConfigError(f"a text to embed has 1 to {MOST_CHARACTERS} characters")
        form = field(asked, "encoding_format", str, "float")
        encoder = self._speaker.encoder
        if encoder is None or form not in ("float", "base64"):
            raise ConfigError("there is no encoder here" if encoder is None else "encoding_format is float or base64")
        vectors = await self._work.vault(partial(encoder.encode, texts))
        data = [{"object": "embedding", "index": i, "embedding": _vector(row, form)} for i, row in enumerate(vectors)]
        words = sum(len(text.split()) for text in texts)
        return {
            "object": "list", "data": data, "model": EMBEDDER, "usage": {"prompt_tokens": words, "total_tokens": words},
        }  # fmt: skip

    async def feedback(self, request: Request) -> dict[str, Any]:
        """Keep in the vault what is said of a reply."""
        asked = await json_of(request)
        return await self._work.vault(partial(self._replies.judge, asked))

    def _allowed(self, request: Request) -> list[str]:
        names = []
        if may(request, CHAT):
            names += [PERSONAL, BASE] if may(request, MEMORIES) else [BASE]
        return names + ([EMBEDDER] if may(request, EMBEDDINGS) else [])

    def _voice(self, request: Request, asked: dict[str, Any]) -> str:
        voice = field(asked, "model", str)
        if voice not in VOICES or voice not in self._allowed(request):
            raise ConfigError(f"there is no model {voice} for this token; there is {', '.join(self._allowed(request))}")
        for name, usual in _UNKNOWN.items():
            if asked.get(name) not in (None, usual, [], False):
                raise ConfigError(f"{name} is not done here; leave it out")
        return voice

    async def _reply(self, asked: dict[str, Any], prompt: Prompt, chat: bool) -> Response | dict[str, Any]:
        most = whole(asked, "max_completion_tokens" if asked.get("max_completion_tokens") else "max_tokens",
                     DEFAULT_TOKENS, 1, MOST_TOKENS)  # fmt: skip
        sampling = sampling_of(asked)
        ends = stops_of(asked)
        stream = field(asked, "stream", bool, False)
        options = field(asked, "stream_options", dict, {})
        frame = _Frame(chat, prompt, self._speaker.label)

        def make(stopped: threading.Event) -> Iterator[tuple[str, int]]:
            return until(self._speaker.spoken(prompt, most, sampling, stopped), ends)

        if stream:
            return StreamingResponse(self._events(frame, prompt, make, most, options), media_type="text/event-stream")
        text, count = "", 0
        async for piece, made in self._work.stream(make):
            text, count = text + piece, made
        self._replies.put(frame.name, prompt, text, frame.of)
        return frame.whole(text.strip() if chat else text, count, most)

    async def _events(
        self, frame: _Frame, prompt: Prompt, make: Any, most: int, options: dict[str, Any]
    ) -> AsyncIterator[bytes]:
        """Yield a reply as server-sent events; an error after the first is an event as well, then the end."""
        count, first, text = 0, True, ""
        try:
            yield _event(frame.opening())
            async for piece, made in self._work.stream(make):
                count, text = made, text + piece
                yield _event(frame.part(piece.lstrip() if first and frame.chat else piece))
                first = first and not piece.strip()
            self._replies.put(frame.name, prompt, text, frame.of)
            yield _event(frame.closing(count, most))
            if options.get("include_usage"):
                yield _event(frame.usage(count))
        except (ConfideError, RuntimeError) as error:
            said = str(error) if isinstance(error, ConfideError) else "the reply failed"
            yield _event({"error": {"message": said, "type": "server_error"}})
        yield b"data: [DONE]\n\n"


class _Frame:
    """The objects around a reply: one for all of it, or a chunk for each piece."""

    def __init__(self, chat: bool, prompt: Prompt, label: str) -> None:
        self.chat, self.of = chat, TURN if chat else SENTENCE
        self.name = f"{'chatcmpl' if chat else 'cmpl'}-{new_name()}"
        self._prompt_tokens = len(prompt.ids)
        memories = [{k: v for k, v in source(p).items() if k != "text"} for p in prompt.shown]
        facts = {"voice": prompt.voice, "model": label, "own_adapter": prompt.own, "memories": memories}
        kind = "chat.completion" if chat else "text_completion"
        self._head = {
            "id": self.name, "object": kind,
            "created": int(time.time()), "model": prompt.voice, "confide": facts,
        }  # fmt: skip

    def whole(self, text: str, tokens: int, most: int) -> dict[str, Any]:
        """Return the reply as one object."""
        body = {"message": {"role": "assistant", "content": text, "refusal": None}} if self.chat else {"text": text}
        choice = {"index": 0, **body, "finish_reason": _reason(tokens, most), "logprobs": None}
        return {**self._head, "choices": [choice], "usage": self._usage(tokens)}

    def opening(self) -> dict[str, Any]:
        """Return the first chunk."""
        return self._chunk({"delta": {"role": "assistant", "content": ""}} if self.chat else {"text": ""})

    def part(self, piece: str) -> dict[str, Any]:
        """Return the chunk of a piece."""
        return self._chunk({"delta": {"content": piece}} if self.chat else {"text": piece})

    def closing(self, tokens: int, most: int) -> dict[str, Any]:
        """Return the chunk that says why the reply ends."""
        return self._chunk({"delta": {}} if self.chat else {"text": ""}, _reason(tokens, most))

    def usage(self, tokens: int) -> dict[str, Any]:
        """Return the chunk that counts tokens."""
        return {**self._chunked(), "choices": [], "usage": self._usage(tokens)}

    def _chunk(self, body: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        return {**self._chunked(), "choices": [{"index": 0, **body, "finish_reason": reason, "logprobs": None}]}

    def _chunked(self) -> dict[str, Any]:
        return {**self._head, "object": "chat.completion.chunk" if self.chat else "text_completion"}

    def _usage(self, tokens: int) -> dict[str, int]:
        prompt = self._prompt_tokens
        return {"prompt_tokens": prompt, "completion_tokens": tokens, "total_tokens": prompt + tokens}


def sampling_of(asked: dict[str, Any]) -> Sampling:
    """Return how tokens are drawn; the likeliest ones where nothing is said. Raises ConfigError."""
    temperature, top_p = field(asked, "temperature", float, 0.0), field(asked, "top_p", float, 1.0)
    seed = asked.get("seed")
    if not 0 <= temperature <= 2 or not 0 < top_p <= 1:
        raise ConfigError("temperature is from 0 to 2, top_p above 0 and at most 1")
    if seed is not None and (type(seed) is not int or not 0 <= seed < 2**63):
        raise ConfigError("seed is a whole number from 0")
    return Sampling(temperature, top_p, seed)


def stops_of(asked: dict[str, Any]) -> tuple[str, ...]:
    """Return the texts before which a reply ends. Raises ConfigError."""
    given = asked.get("stop")
    found = (given,) if isinstance(given, str) else tuple(given or ()) if isinstance(given, list | None) else None
    if found is None or len(found) > 4 or not all(isinstance(each, str) and each for each in found):
        raise ConfigError("stop is a text, or up to four of them")
    return found


def until(pieces: Iterator[tuple[str, int]], ends: Sequence[str]) -> Iterator[tuple[str, int]]:
    """Yield pieces up to the first of `ends`, which is left out even where it is spread over pieces."""
    longest, held, count = max(map(len, ends), default=0), "", 0
    for piece, count in pieces:
        held += piece
        places = [at for at in (held.find(end) for end in ends) if at >= 0]
        if places:
            if held[: min(places)]:
                yield held[: min(places)], count
            return
        ready = held[: max(0, len(held) - longest + 1)] if longest else held
        if ready:
            yield ready, count
            held = held[len(ready) :]
    if held:
        yield held, count


def _reason(tokens: int, most: int) -> str:
    return "length" if tokens >= most else "stop"


def _vector(row: Any, form: str) -> list[float] | str:
    if form == "base64":
        return base64.b64encode(np.asarray(row, dtype="<f4").tobytes()).decode()
    return [float(value) for value in row]


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": _STARTED, "owned_by": "you"}


def _event(facts: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(facts).encode() + b"\n\n"
