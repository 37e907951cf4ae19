"""A face over a vault of a few notes and the tiny model, served by the real program on a real port."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client import vault_key
from client.agent_home import AgentHome
from client.encoder import HashedEncoder
from client.face.serve import serve
from client.importers import add
from client.listener import ask
from client.vault import Vault
from client.vault_key import Opener

OPENER = Opener(passphrase="x")
NOTES = {
    "ferry.txt": "The ferry leaves at seven on weekdays. On Sundays the ferry leaves at ten.",
    "bees.txt": "Moved the second hive behind the barn. The queen has a blue dot.",
    "bread.txt": "Rye loaf with caraway, proofed overnight in the cellar.",
    "mail.txt": "Write to zebedee@example.org about the boat, said Johanna Lindqvist.",
}


@dataclass
class Face:
    """A served face: its folder, its vault, its port, the page's token."""

    folder: Path
    vault: Vault
    url: str
    token: str

    @property
    def port(self) -> int:
        return int(self.url.rstrip("/").rsplit(":", 1)[1])

    def request(
        self, method: str, path: str, body: object = None, token: str | None = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and body; the page's token unless another ("": none) is given."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        bearer = self.token if token is None else token
        if bearer:
            sent["Authorization"] = f"Bearer {bearer}"
        data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        connection.request(method, path, data, sent)
        answer = connection.getresponse()
        found = answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
        connection.close()
        return found

    def post(self, path: str, body: object, token: str | None = None) -> Any:
        """Return what a successful request answers: an object, or the list of a stream's lines."""
        status, headers, data = self.request("POST", path, body, token)
        assert status == 200, (status, data)
        if headers["content-type"].startswith("application/x-ndjson"):
            return [json.loads(line) for line in data.splitlines()]
        return json.loads(data)

    def get(self, path: str) -> Any:
        status, _, data = self.request("GET", path)
        assert status == 200, (status, data)
        return json.loads(data)


@contextmanager
def served(folder: Path, model: Path, notes: dict[str, str] = NOTES, idle_s: float = 0.0) -> Iterator[Face]:
    """Yield a face over `notes`; the program ends as its owner ends it."""
    place = folder / "notes"
    place.mkdir(parents=True)
    for name, text in notes.items():
        (place / name).write_text(text)
    before, vault_key.ARGON2ID = vault_key.ARGON2ID, {"iterations": 1, "lanes": 1, "memory_kib": 64}
    try:
        vault = Vault.create(folder / "home", OPENER)
    finally:
        vault_key.ARGON2ID = before
    add(vault, place)
    vault.set_setting("model", str(model))
    listening, facts, home = threading.Event(), {}, AgentHome(vault.folder, vault)
    failed: list[BaseException] = []

    def say(told: dict[str, Any]) -> None:
        facts.update(told)
        listening.set()

    def run() -> None:
        try:
            serve(home, 0, say, HashedEncoder(64), idle_s)
        except BaseException as error:  # noqa: BLE001 - shown by the test that waits
            failed.append(error)
            listening.set()

    thread = threading.Thread(target=run)
    with home.alone():
        thread.start()
        assert listening.wait(60) and not failed, failed
        try:
            yield Face(vault.folder, vault, facts["url"], facts["token"])
        finally:
            with suppress(OSError):  # it may have ended by itself
                ask(vault.folder, {"do": "end"})
            thread.join(30)
            vault.close()
    assert not thread.is_alive() and not failed, failed
