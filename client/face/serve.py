"""One program with one model: the agent's sockets, the page, the API; on loopback, until it is told to end."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from typing import Any

import uvicorn
from starlette.applications import Starlette

from client.agent_home import AgentHome
from client.encoder import MINILM, Encoder, open_encoder
from client.face.feedback import Replies
from client.face.guard import Guard
from client.face.openai_api import OpenAI
from client.face.owner import Owner
from client.face.page import Page
from client.face.tokens import Tokens
from client.face.work import Work
from client.resident import Resident, go_on_when_idle
from client.speaker import Speaker
from privacy.errors import ConfigError
from privacy.files import write_atomic

LOOPBACK = "127.0.0.1"
RUNNING = "face.json"
PATIENCE_S = 3
LOOK_S = 15.0  # between two looks at whether anybody asks


def face_app(speaker: Speaker, resident: Resident, tokens: Tokens, work: Work, port: int) -> Guard:
    """Return the application behind its guard."""
    replies = Replies(speaker.vault)
    resident.forgotten.append(replies.forget)
    page = Page(speaker, work, replies)
    api, vault = OpenAI(speaker, work, replies), speaker.vault
    owner = Owner(vault, speaker, work, lambda: resident.handle({"do": "forgot"}))
    return Guard(Starlette(routes=[*page.routes(), *owner.routes(), *api.routes()]), tokens, port)


def bound(port: int) -> socket.socket:
    """Return a listening socket on loopback; port 0 is any free one. Raises ConfigError where it is taken."""
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((LOOPBACK, port))
    except OSError as error:
        made.close()
        raise ConfigError(f"port {port} cannot be had ({error.strerror}); `--port 0` takes any free one") from None
    made.listen(256)
    return made


def serve(
    home: AgentHome,
    port: int,
    say: Callable[[dict[str, Any]], None],
    encoder: Encoder | None = None,
    idle_s: float = 0.0,
) -> None:
    """Serve until SIGTERM, Ctrl-C, or the owner says that it is over; `say` hears url and token once it listens.

    After `idle_s` seconds without a request it ends by itself and gives its memory back; 0: never, nor where a
    federation may ask. Call with the folder's lock held: there is one agent a vault. Raises ConfideError.
    """
    assert home.vault is not None
    listening = bound(port)
    try:
        here = listening.getsockname()[1]
        ended, work = threading.Event(), Work()
        encoder = encoder or open_encoder(MINILM)
        resident = Resident(home, encoder, ended)
        try:
            speaker = Speaker(home.vault, resident.model, resident.lock, encoder)
            resident.forgotten.append(speaker.forgot)
            tokens = Tokens(home.vault)
            app = face_app(speaker, resident, tokens, work, here)
            server = uvicorn.Server(
                uvicorn.Config(
                    app, log_level="warning", access_log=False, server_header=False, date_header=False,
                    timeout_graceful_shutdown=PATIENCE_S, lifespan="off", proxy_headers=False, ws="none",
                )
            )  # fmt: skip

            def end_with_the_agent() -> None:
                while not ended.wait(min(LOOK_S, idle_s / 4) if idle_s and not home.joined else None):
                    if app.idle_s() > idle_s:
                        break
                server.should_exit = True

            threading.Thread(target=end_with_the_agent, daemon=True).start()
            threading.Thread(target=speaker.warm, daemon=True).start()
            unasked = (home.vault, ended, lambda: min(app.idle_s(), resident.idle_s()))
            threading.Thread(target=go_on_when_idle, args=unasked, daemon=True).start()
            facts = {"url": f"http://{LOOPBACK}:{here}/", "token": tokens.page}
            write_atomic(home.folder / RUNNING, json.dumps(facts).encode(), mode=0o600)
            say(facts)
            server.run(sockets=[listening])
        finally:
            ended.set()
            (home.folder / RUNNING).unlink(missing_ok=True)
            work.close()
            resident.close()
    finally:
        listening.close()
