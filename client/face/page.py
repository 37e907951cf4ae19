"""The page and what it asks for: find, continue, chat; every answer of `/page/` needs the page's own token."""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from client.decode import LIKELIEST, Sampling
from client.face.asked import field, json_of, whole
from client.face.feedback import Replies, new_name
from client.face.languages import preferred, translation, words
from client.face.tokens import PAGE
from client.face.turns import turns_of
from client.face.work import Work, answering
from client.preferences import CHAT, SENTENCE
from client.speaker import DRAW, MOST_TOKENS, PERSONAL, Prompt, Speaker, source
from privacy.errors import ConfideError

HERE = Path(__file__).parent
FOUND = 8
READ, READ_TOKENS = 3, 320  # what the model reads before it answers: its first word comes the sooner
SCREENS = {
    "find": "Find",
    "continue": "Continue",
    "chat": "Chat",
    "stored": "Stored",
    "left": "Ever left",
    "compare": "Compare",
    "programs": "Programs",
}
LINES = "application/x-ndjson"


class Page:
    """The routes of the page over one speaker."""

    def __init__(self, speaker: Speaker, work: Work, replies: Replies) -> None:
        self._speaker, self._work, self._replies = speaker, work, replies
        self._templates = Environment(
            loader=FileSystemLoader(HERE / "templates"), autoescape=True, undefined=StrictUndefined
        )

    def routes(self) -> list[Route | Mount]:
        """Return the routes."""

        def post(path: str, act: Any) -> Route:
            return Route(f"/page/{path}", answering(PAGE, act), methods=["POST"])

        return [
            Route("/", answering("", self.shell)),
            Route("/words.json", answering("", self.words)),
            Mount("/static", StaticFiles(directory=HERE / "static")),
            post("find", self.find),
            post("answer", self.answer),
            post("continue", self.continued),
            post("chat", self.chat),
            post("judged", self.judged),
        ]

    async def shell(self, request: Request) -> Response:
        """Return the empty page in the reader's language: it holds nothing of the person's."""
        language = preferred(request.headers.get("accept-language", ""))
        say = translation(language).gettext
        screens = [(name, say(word)) for name, word in SCREENS.items()]
        made = self._templates.get_template("face.html").render(screens=screens, language=language, _=say)
        return HTMLResponse(made, headers={"Vary": "Accept-Language"})

    async def words(self, request: Request) -> dict[str, Any]:
        """Return what the page's script says in the reader's language, by its English."""
        return dict(words(preferred(request.headers.get("accept-language", ""))))

    async def find(self, request: Request) -> dict[str, Any]:
        """Return the passages that fit `question`."""
        asked = await json_of(request)
        question = field(asked, "question", str)
        found = await self._work.vault(partial(self._speaker.find, question, FOUND))
        quote = await self._work.vault(partial(self._speaker.quote, question, found))
        return {"passages": [source(passage) for passage in found], "quote": quote}

    async def answer(self, request: Request) -> Response:
        """Stream a reply to `question` made from the person's own text."""
        asked = await json_of(request)
        question, most = field(asked, "question", str), whole(asked, "most_tokens", 128, 1, MOST_TOKENS)
        turns = [("user", question)]
        prompt = await self._work.vault(partial(self._speaker.prompt, turns, passages=READ, budget=READ_TOKENS))
        return self._streamed(prompt, most)

    async def continued(self, request: Request) -> dict[str, Any]:
        """Return candidates of `kind` that go on after `text`, and the memories behind them."""
        asked = await json_of(request)
        text, kind = field(asked, "text", str), field(asked, "kind", str, SENTENCE)
        made, prompt = await self._work.model(partial(self._speaker.candidates, text, kind))
        return {
            "candidates": [{"text": each.text, "likelihood": each.likelihood} for each in made],
            **self._speaks(prompt),
        }

    async def chat(self, request: Request) -> Response:
        """Stream the next reply of a conversation, by the voice that is asked for; with `another` one that is drawn."""
        asked = await json_of(request)
        turns = turns_of(field(asked, "turns", list))
        voice, most = field(asked, "voice", str, PERSONAL), whole(asked, "most_tokens", 256, 1, MOST_TOKENS)
        steer = None if asked.get("steer") is None else field(asked, "steer", float)
        prompt = await self._work.vault(partial(self._speaker.prompt, turns, voice, steer=steer))
        return self._streamed(prompt, most, DRAW if field(asked, "another", bool, False) else LIKELIEST)

    async def judged(self, request: Request) -> dict[str, Any]:
        """Keep in the vault what the person says of a reply."""
        asked = await json_of(request)
        return await self._work.vault(partial(self._replies.judge, asked))

    def _streamed(self, prompt: Prompt, most: int, sampling: Sampling = LIKELIEST) -> Response:
        """Return a reply line by line: first who speaks and what was shown, then pieces, then the end or an error."""

        def make(stopped: threading.Event) -> Iterator[tuple[str, int]]:
            return self._speaker.spoken(prompt, most, sampling, stopped)

        async def lines() -> AsyncIterator[bytes]:
            yield _line(self._speaks(prompt))
            count, text, name = 0, "", new_name()
            try:
                async for piece, made in self._work.stream(make):
                    count, text = made, text + piece
                    yield _line({"piece": piece})
            except (ConfideError, RuntimeError) as error:
                yield _line({"error": str(error) if isinstance(error, ConfideError) else "the reply failed"})
                return
            self._replies.put(name, prompt, text, CHAT)
            yield _line({"tokens": count, "id": name})

        return StreamingResponse(lines(), media_type=LINES)

    def _speaks(self, prompt: Prompt) -> dict[str, Any]:
        return {
            "voice": prompt.voice,
            "model": self._speaker.label,
            "own_adapter": prompt.own,
            "steer": prompt.steering.strength if prompt.steering is not None else 0.0,
            "memories": [source(passage) for passage in prompt.shown],
        }


def _line(facts: dict[str, Any]) -> bytes:
    return json.dumps(facts).encode() + b"\n"
