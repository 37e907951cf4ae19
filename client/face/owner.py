"""What the owner alone sees and does, on the page: what is stored, was scrubbed, ever left; the dials; forgetting."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from datetime import UTC, date, datetime, time
from fractions import Fraction
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from client.blind import Blind, by_chance, tally
from client.budget import FOLDER, epsilon_of, given, policy_of, releases_hold
from client.consent import consent
from client.device_cli import vault_facts
from client.dial import DELTA, turn, turns, where
from client.export import exports
from client.face.asked import field, json_of, whole
from client.face.tokens import PAGE, drop_token, new_token, token_names
from client.face.work import Work, answering
from client.forget import Wanted, forget
from client.gains import gains
from client.imported import unpacked_spans
from client.importers import PURPOSES
from client.journal import changes
from client.library import Kept
from client.owner_cli import dial_facts
from client.preferences import drop_preferences, prefer, preferences, thumbs
from client.scrub_strength import set_strength, strength_of
from client.speaker import BASE, PERSONAL, VOICES, Speaker
from client.vault import Vault
from privacy.errors import ConfigError
from privacy.ledger import read_ledger

BLIND_TOKENS = 96
_PLACEHOLDER = re.compile(r"<([A-Z_]{2,30})_\d{1,9}>")
Forgot = Callable[[], object]


class Owner:
    """The routes of what the owner alone decides; `forgot` tells the agent that something was forgotten."""

    def __init__(self, vault: Vault, speaker: Speaker, work: Work, forgot: Forgot) -> None:
        self._vault, self._speaker, self._work, self._forgot = vault, speaker, work, forgot
        self._blind = Blind(vault)

    def routes(self) -> list[Route]:
        """Return the routes."""

        def asked(path: str, act: Callable[[dict[str, Any]], dict[str, Any]], model: bool = False) -> Route:
            async def answer(request: Request) -> Response | dict[str, Any]:
                body = await json_of(request)
                return await (self._work.model if model else self._work.vault)(partial(act, body))

            return Route(f"/page/{path}", answering(PAGE, answer), methods=["POST"])

        def shown(path: str, act: Callable[[], dict[str, Any]]) -> Route:
            async def answer(_request: Request) -> Response | dict[str, Any]:
                return await self._work.vault(act)

            return Route(f"/page/{path}", answering(PAGE, answer))

        return [
            shown("stored", self.stored), shown("left", self.left), shown("tokens", self.tokens),
            asked("document", self.document), asked("scrubbed", self.scrubbed), asked("dial", self.dial),
            asked("consent", self.consent), asked("forget", self.forget), asked("chosen", self.chosen),
            asked("token", self.token), asked("blind", self.blind, model=True), asked("verdict", self.verdict),
            asked("drop-preferences", self.drop),
        ]  # fmt: skip

    def stored(self) -> dict[str, Any]:
        """Return what the vault holds, in numbers, and what was forgotten."""
        count = self._vault.one
        kinds = self._vault.select("SELECT entity, count(*) FROM pseudonym GROUP BY entity ORDER BY 2 DESC")
        return vault_facts(self._vault) | {
            "purposes": list(PURPOSES),
            "vectors": count("SELECT count(*) FROM vector"),
            "preferences": len(preferences(self._vault)),
            "thumbs": thumbs(self._vault),
            "chats": count("SELECT count(*) FROM chat"),
            "attributes": dict(self._vault.select("SELECT name, value FROM attribute ORDER BY name")),
            "pseudonyms": dict(kinds),
            "forgotten": count("SELECT count(*) FROM forgotten"),
        }

    def document(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Return the document `number`, span by span, with whose words each is."""
        kept = self._kept(asked)
        spans = [{"text": span.text, "own": span.own} for span in kept.spans]
        facts = {"document": kept.number, "title": kept.title, "type": kept.type, "written": kept.written}
        return facts | {"source": kept.source, "held_back": kept.held_back, "spans": spans}

    def scrubbed(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Return the document `number` as it would train what is shared, and how many places of each kind went."""
        from client.pseudonym import VaultScrubber  # spaCy loads here

        kept = self._kept(asked)
        text = VaultScrubber(self._vault).hidden([kept.as_document().text])[0]
        return {"text": text, "removed": dict(Counter(_PLACEHOLDER.findall(text)))}

    def left(self) -> dict[str, Any]:
        """Return what ever left this device, by its own signed ledgers, with epsilon, and what the dials allow."""
        answers = []
        for path in sorted((self._vault.folder / FOLDER).glob("*.jsonl")):
            view = read_ledger(path)
            seconds = {e.body.get("event"): e.ts_ms / 1000 for e in view.entries if e.kind == "RESERVE"}
            for event in view.account.charged():
                query = event.query
                answers.append(
                    {
                        "second": seconds.get(event.event), "federation": query.federation, "purpose": query.purpose,
                        "numbers": query.dim, "state": event.state, "least_answers": query.cohort.min_survivors,
                        "epsilon": None if query.rho is None else epsilon_of(query.rho),
                    }
                )  # fmt: skip
        turns(self._vault)  # refuses a dial that its journal does not explain
        spent = given(self._vault.folder)
        facts = dial_facts(
            where(self._vault), strength_of(self._vault), gains(self._vault), policy_of(self._vault.folder), spent
        )
        unprotected = sum(each.unprotected for each in spent)
        total = None if unprotected else epsilon_of(sum((each.rho for each in spent), Fraction(0)))
        return facts | {
            "exports": exports(self._vault), "ever": answers,
            "epsilon_ever": total, "unprotected": unprotected, "delta": DELTA,
            "words": releases_hold(spent), "turns": changes(self._vault),
        }  # fmt: skip

    def dial(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Turn the dial to `stop`, or set the strength of `scrubbing`; both go into the journal."""
        stop, scrubbing = field(asked, "stop", str, ""), field(asked, "scrubbing", str, "")
        if stop:
            turn(self._vault, stop)
        if scrubbing:
            set_strength(self._vault, scrubbing)
        return {"dial": where(self._vault), "scrubbing": strength_of(self._vault)}

    def consent(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Grant or withdraw a purpose for a source."""
        source, granted = field(asked, "source", int), field(asked, "granted", bool)
        changed = consent(self._vault, source, field(asked, "purpose", str), granted)
        return {"changed": changed}

    def forget(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Forget documents, sources or all before a day, tell the agent, and return the certificate."""
        day = field(asked, "before", str, "")
        try:
            before = datetime.combine(date.fromisoformat(day), time.min, UTC).timestamp() if day else None
        except ValueError:
            raise ConfigError("before is a day: YYYY-MM-DD") from None
        numbers = [field({"number": n}, "number", int) for n in field(asked, "documents", list, [])]
        sources = [field({"number": n}, "number", int) for n in field(asked, "sources", list, [])]
        wanted = Wanted(tuple(numbers), tuple(sources), before)
        if wanted == Wanted():
            raise ConfigError("say what: documents, sources, or everything before a day")
        made = forget(self._vault, wanted, releases_hold(given(self._vault.folder)))
        self._blind.forget()
        self._forgot()
        return made.to_json()

    def chosen(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Keep what the person chose as pairs."""
        rejected, shown = field(asked, "rejected", list), field(asked, "documents", list, [])
        texts = [field({"text": text}, "text", str) for text in rejected]
        numbers = [field({"number": n}, "number", int) for n in shown]
        prompt, chosen = field(asked, "prompt", str), field(asked, "chosen", str)
        return {"kept": prefer(self._vault, prompt, chosen, texts, numbers, field(asked, "kind", str))}

    def drop(self, _asked: dict[str, Any]) -> dict[str, Any]:
        """Delete every preference."""
        return {"dropped": drop_preferences(self._vault)}

    def tokens(self) -> dict[str, Any]:
        """Return the tokens of other programs by name, with their scopes."""
        return {"tokens": token_names(self._vault)}

    def token(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Give a program a token, or drop it."""
        name = field(asked, "name", str)
        if field(asked, "drop", bool, False):
            drop_token(self._vault, name)
            return {"token": None}
        scopes = [field({"scope": scope}, "scope", str) for scope in field(asked, "scopes", list)]
        return {"token": new_token(self._vault, name, scopes)}

    def blind(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Return two replies to `question`, base and personal, in an order that nobody is told."""
        question, most = field(asked, "question", str), whole(asked, "most_tokens", BLIND_TOKENS, 1, 512)
        replies: dict[str, str] = {}
        documents_shown: tuple[int, ...] = ()
        for voice in VOICES:
            prompt = self._speaker.prompt([("user", question)], voice)
            replies[voice] = "".join(piece for piece, _ in self._speaker.spoken(prompt, most)).strip()
            documents_shown = documents_shown or tuple(p.document for p in prompt.shown)
        name, pair = self._blind.put(question, replies, documents_shown)
        return {"pair": name, "replies": list(pair.replies)}

    def verdict(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Count which reply was better, keep the pair where `learn` says so, and say whose they were."""
        better = None if asked.get("better") is None else field(asked, "better", int)
        pair = self._blind.verdict(field(asked, "pair", str), better)
        if better is not None and field(asked, "learn", bool, False):
            prefer(self._vault, pair.question, pair.replies[better], [pair.replies[1 - better]], pair.documents)
        counts = tally(self._vault)
        return {"voices": list(pair.voices), "tally": counts, "chance": by_chance(counts[PERSONAL], counts[BASE])}

    def _kept(self, asked: dict[str, Any]) -> Kept:
        number = field(asked, "number", int)
        rows = self._vault.select(
            "SELECT id, source, type, title, written, spans, held_back FROM document WHERE id = ?", (number,)
        )
        if not rows:
            raise ConfigError(f"the vault has no document {number}")
        found, source, kind, title, written, spans, held_back = rows[0]
        return Kept(found, source, kind, title, written, unpacked_spans(spans), bool(held_back))
