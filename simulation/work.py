"""What a host does with its people: scrub, train, answer as devices, score the arms of the evaluation."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from numpy.typing import NDArray

from client.agent import Device, Opening
from client.compose import GLOBAL_ALONE, Composition, by_portrait, fitted
from client.contribution import contribution
from client.deliveries import Deliveries
from client.documents import Document, Person, latest, shortened
from client.encoder import Encoder, open_encoder
from client.learner import TextLearner
from client.listener import RelaySocket
from client.model import GLOBAL, OWN, Cached, Encoded, LanguageModel
from client.own import load_own
from client.own_training import OwnTraining, train_own
from client.retrieve import TextIndex
from client.retriever_core import RetrieverCore
from client.service import AgentService, Lazy, Pace, Worker
from client.teaching import Shelf
from client.train import CoreTraining
from privacy.adapter import Basis
from privacy.answer import make_answer
from privacy.canonical import sha256_hex
from privacy.directory import open_directory
from privacy.errors import ModelError
from privacy.files import ProcessDisk
from privacy.noise import KeyStream, device_noise_key
from privacy.policy import open_policy
from privacy.query import Query
from privacy.record import RecordCharge
from privacy.secagg.journal import MemoryJournal
from privacy.secagg.keys import RememberedChecks
from simulation.baselines.parts import PARTS
from simulation.config import declared_of
from simulation.crowd import Names, names_of
from simulation.devices import MOST_OPEN, Devices, Places, most_open
from simulation.held_out import opening, up_to
from simulation.host import HostSettings, peak_memory_bytes
from simulation.kept import Kept
from simulation.observed import ObservedLearner
from simulation.public_tables import tables_of
from simulation.record_level import record_noise, shared_charge
from simulation.relayed import remembered
from simulation.retrieval_score import Ranked, ranked
from simulation.run_folder import DeviceKeys
from simulation.scorecard.lent import CardSettings, Learned, Loan
from simulation.scorecard.person import PersonCard, score_for_card, train_for_card

Vector = NDArray[np.float64]
Tensors = dict[str, NDArray[np.float32]]
Scores = dict[str, list[tuple[str, float, int]]]  # arm -> (document, nats, tokens)
PATIENCE_S = 60.0  # a relay of simulated people waits for training; whose it is and how long it took is no secret here
RECORD_BATCH = 4  # documents a step under record-level noise: with fewer, the noise of a step hides its gradient
RECORD_STEPS = 8  # at most, an epoch: all documents take part, and this bounds the work


class HostWork:
    """One host's model, devices and people; every method may be called over the pipe."""

    def __init__(self, settings: HostSettings) -> None:
        torch.set_num_threads(1)
        config, local = settings.config, settings.config.local
        self.config, self.folder, self._noise_root = config, Path(settings.run_folder), settings.noise_root
        self.people = settings.everybody
        self.counts: dict[str, dict[str, Any]] = {}  # of everybody whose text was prepared
        layers = config.adapter.layers
        self.model = LanguageModel.load(settings.model_path, top_layers=layers, quantize=config.quantize)
        basis = Basis.load(Path(settings.basis_file))
        self.model.attach(basis)
        self.model.add_own(config.own.rank, OwnTraining().modules, top_layers=config.own.layers)
        training = CoreTraining(local.steps, local.step, local.sampling_rate, local.document_clip, record_noise(config))
        updates = self.folder / "checkpoints" / "updates"
        twice = config.compare_without_noise and config.privacy.transport != "off"
        kept_bytes, together = config.cache_mb * 2**20, local.together
        self.learner = ObservedLearner(
            updates, self.model, training, local.max_document_tokens, twice, tables_of(config), kept_bytes, together
        )
        self._slots = {text.partition(":")[0].strip(): k for k, text in enumerate(declared_of(config.queries.declared))}
        root_key = Ed25519PublicKey.from_public_bytes(settings.root_key)
        policy = open_policy(settings.policy_file, root_key)
        directory = open_directory(settings.directory_file, root_key) if settings.directory_file else None
        if basis.sha256 != policy.basis_sha256:
            raise ModelError("the basis in this process is not the one that the policy names")
        self._keys = DeviceKeys(settings.device_root)
        self._opening = Opening(
            self.folder / "ledger" / "devices",
            policy,
            lambda user: device_noise_key(settings.noise_root, user),
            self.learner,
            self.folder / "checkpoints" / "answers",
            directory,
            lambda _: MemoryJournal(),  # nothing leaves this machine: what a crash cut off is asked again as it was
            RememberedChecks(),
            (settings.policy_file, root_key),
            shared_charge(config),
            ProcessDisk(),
        )
        names = names_of(settings.people) if settings.device_root else ()
        self._places: dict[str, int] = {}
        if not isinstance(names, Names):
            self._places = {user: place for place, user in enumerate(names)}
        # Under masks a device lives in memory from its keys to its last word: all of a cohort may stay open.
        asked = min(config.cohort or len(names), len(names))
        most = max(MOST_OPEN, asked) if config.privacy.transport == "masked" else most_open(asked)
        self.devices = Devices(names, self._device, most)
        self.lock = threading.RLock()
        self._basis, self._policy, self._number = basis, policy, settings.number
        self._service = AgentService(Places(self.devices), Deliveries(policy, basis), Lazy())
        self._socket: RelaySocket | None = None
        self._tests = Kept[list[Cached]](kept_bytes)
        self._encoder: Encoder | None = None  # the scorecard's
        self.answered: dict[tuple[str, bytes], list[Any]] = {}  # neutral questions under arms of nobody's own

    # -- before the first round -------------------------------------------------------------------------------------

    def prepare(self, user: str) -> dict[str, Any]:
        """Scrub and encode a person's history; return own tokens and what the scrubber counted."""
        person, report = self.people[user], None
        local = self.config.local
        enough = latest(person.history, self.config.rounds * local.own_tokens)  # a token is at most a word
        history = tuple(shortened(document, 6 * local.max_document_tokens) for document in enough)
        if self.config.scrub:
            from client.scrub import scrub_person  # spaCy loads here, once

            scrubbed, counts = scrub_person(Person(user, history))
            history, report = scrubbed.history, counts
        tokens = 0
        if user in self.devices:
            tokens = self.learner.add(user, history)
            if person.persona in self._slots:
                self.learner.named[user] = self._slots[person.persona]
        self.counts[user] = {"tokens": tokens, "scrub": report}
        return self.counts[user]

    def prepared(self) -> dict[str, dict[str, Any]]:
        """Return the counts of everybody whose text was prepared so far."""
        return self.counts

    def _ready(self, user: str) -> None:
        """See that the person's text is held: it may never have been, or have made room for others'."""
        if not self.learner.knows(user):
            self.prepare(user)

    def _device(self, user: str) -> Device:
        device = self._opening.device(user, self._keys[user])
        device.refresh = partial(self._ready, user)
        return device

    def probe(self, user: str) -> dict[str, float]:
        """Run the start-up probes of `client.probe` on one person's documents; raises ModelError where one fails."""
        from client.probe import probe_training

        encoded = [self.model.encode(d, 64) for d in self.people[user].history[:6]]
        documents = [self.model.prefix(e) for e in encoded if e.own_tokens]
        without_noise = replace(self.learner.training, noise_multiplier=0.0)  # few documents drown in a record's
        return probe_training(self.model, documents, without_noise)

    # -- rounds -----------------------------------------------------------------------------------------------------

    def relay(self, user: str, frame: bytes) -> bytes:
        """Return the person's agent's answer to one frame, as over a relay's socket."""
        names = self.devices.names
        place = names.place(user) if isinstance(names, Names) else self._places.get(user)
        return self._service.reply(-1 if place is None else place, 0, frame)

    def begin(self) -> None:
        """Drop what earlier rounds left in memory: their answers are on the disk."""
        self._service.forget_jobs()

    def listen(self, folder: str, again: bool = False) -> None:
        """Answer relays, on a socket in `folder` if one is named; `again`: as a host that died was."""
        self.devices.most = None  # relays come in threads of their own: none may find its device closed by another
        deliveries = Deliveries(self._policy, self._basis)
        service = AgentService(Places(self.devices), deliveries, Worker(self.lock), Pace(patience_s=PATIENCE_S))
        self.relayed = remembered(service.reply, self.folder / "checkpoints" / "relayed" / str(self._number), again)
        if folder:
            self._socket = RelaySocket(Path(folder) / f"{self._number}.sock", self.relayed)

    def observe(self, user: str, number: int, slots: Vector) -> Vector | None:
        """Return what the device learned in round `number`, before clip and noise, in its slot of [slots x slot_dim].

        `slots` are the rows that the round started from. None if it has not trained from any of them.
        """
        kept, layout = self.learner.kept(user, number), self.learner.layout
        slots = slots[:, : layout.dim]
        starts = [sha256_hex(layout.flatten(layout.unflatten(row)).tobytes()) for row in slots]
        if kept is None or kept[0] not in starts:
            return None
        seen = np.zeros_like(slots)
        seen[starts.index(kept[0])] = kept[1]
        return seen.ravel()

    def without_noise(self, user: str, query_bytes: bytes, slots: Vector) -> bytes:
        """Return a person's answer to a query of transport `off`: same clip and rounding, no noise, no ledger.

        For the comparison line of a simulation alone; no device of a federation has this method.
        """
        self._ready(user)
        query = Query.from_bytes(query_bytes)
        seed = (
            int(KeyStream(device_noise_key(self._noise_root, user), query.event_id(user)).candidates(0, 1)[0, 0]) >> 1
        )
        update = contribution(self.learner, user, query, slots.astype(np.float32), seed)
        return make_answer(update, query, user, bytes(32)).encode()

    def unscrubbed_update(self, user: str, query_bytes: bytes, start: Vector) -> Vector:
        """Return the update of round 0 trained on the person's raw text: what scrubbing costs is measured with it."""
        raw = TextLearner(self.model, self.learner.training, self.config.local.max_document_tokens)
        raw.add(user, latest(self.people[user].history, self.config.local.own_tokens))
        return raw.update(user, self.learner.layout.unflatten(start), Query.from_bytes(query_bytes), 0)

    def scrubbed_update(self, user: str, query_bytes: bytes, start: Vector) -> Vector:
        """Return the same update as `unscrubbed_update`, trained on the scrubbed text, with the same batches."""
        self._ready(user)
        query = Query.from_bytes(query_bytes)
        return TextLearner.update(self.learner, user, self.learner.layout.unflatten(start), query, 0)

    # -- evaluation -------------------------------------------------------------------------------------------------

    def score(self, user: str, arms: Mapping[str, Vector]) -> Scores:
        """Return the nats of the person's test documents under each flat core; every arm sees the same tokens."""
        self.model.activate(GLOBAL)
        scores: Scores = {}
        for name, core in arms.items():
            self.model.set_cores(self.learner.layout.unflatten(core))
            scores[name] = self._scored(self._test(user), self._test(user))
        return scores

    def choose(self, user: str, candidates: Sequence[Vector], centroids: Vector | None = None) -> int:
        """Return the index of the flat core with the least loss on the person's own history (never on test text).

        With `centroids` [K, e] it is that of the centroid nearest to the history's portrait.
        """
        if centroids is not None and self.learner.tables is not None:
            texts = [document.own_text for document in self.people[user].history]
            portrait = self.learner.tables.portrait(texts)
            return int(np.argmin(np.linalg.norm(centroids - portrait, axis=1)))
        newest = latest(self.people[user].history, self.config.local.own_tokens)
        documents = [self.model.prefix(e) for e in self._encoded(newest)]
        self.model.activate(GLOBAL)
        losses = []
        for core in candidates:
            self.model.set_cores(self.learner.layout.unflatten(core))
            losses.append(sum(float(n.double().sum()) for n in self.model.document_nats(documents)))
        return int(np.argmin(losses))

    def compose(self, user: str, core: Vector, personas: Sequence[Vector], centroids: Vector | None = None) -> Vector:
        """Return the share of each persona that the person's device finds on its history, float64 [K], see `fitted`.

        With `centroids` [K, p] it also tries where somebody of whom only a portrait is known would start.
        """
        newest = latest(self.people[user].history, 2 * self.config.local.own_tokens)
        documents = [self.model.prefix(e) for e in self._encoded(newest)]
        self.model.activate(GLOBAL)
        names = [str(k) for k in range(len(personas))]

        def nats(part: Sequence[Cached], composition: Composition) -> float:
            shares = [composition.personas.get(name, 0.0) for name in names]
            self.model.set_cores(self.learner.layout.unflatten(core + np.array(shares) @ np.array(personas)))
            return sum(float(n.double().sum()) for n in self.model.document_nats(part))

        if len(documents) < 2:
            return np.zeros(len(personas))
        start = GLOBAL_ALONE
        if centroids is not None and self.learner.tables is not None:
            portrait = self.learner.tables.portrait([document.own_text for document in newest])
            start = by_portrait(portrait, dict(zip(names, centroids, strict=True)))
        found = fitted(names, partial(nats, documents[::2]), partial(nats, documents[1::2]), start)
        return np.array([found.personas.get(name, 0.0) for name in names])

    def rank(self, user: str, core: Vector, directions: Vector) -> list[Ranked]:
        """Return how the person's history is ranked for questions of their test text, frozen and under the core."""
        tables, person = self.learner.tables, self.people[user]
        if tables is None:
            return []
        shelf = Shelf.of(latest(person.history, 40 * self.config.local.own_tokens), tables.encoder)
        rng = np.random.default_rng([self.config.seed, 12, *user.encode()])
        return ranked(self.model, tables.encoder, shelf, person.test, RetrieverCore(directions, core), rng)

    def train_own(self, user: str, core: Vector, record: bool) -> tuple[Tensors, dict[str, Any] | None]:
        """Train the person's own LoRA over the global core on raw text; with `record` under record-level privacy.

        The record-level charge is written to the device's ledger, in its own unit, before its noise is drawn.
        """
        own = self.config.own
        self.model.set_cores(self.learner.layout.unflatten(core))
        settings = OwnTraining(
            own.rank,
            own.record_epochs if record else own.epochs,
            own.learning_rate,
            batch_documents=RECORD_BATCH if record else 1,
            record_epsilon=own.record_epsilon if record else None,
            record_delta=own.record_delta,
            most_steps=own.record_epochs * RECORD_STEPS if record else None,
        )
        documents = self._all_documents(user) if record else self._own_documents(user)
        stream = KeyStream(device_noise_key(self._noise_root, user), bytes([int(record)]) * 32)
        generator = torch.Generator().manual_seed(int(stream.candidates(0, 1)[0, 0]) >> 1)
        tensors, privacy = train_own(self.model, documents, settings, generator, self._charge(user))
        arrays = {name: tensor.float().cpu().numpy() for name, tensor in tensors.items()}
        return arrays, None if privacy is None else {**vars(privacy), "clip_norm": settings.document_clip}

    def score_person(self, user: str, core: Vector, own: Tensors, others: Mapping[str, Tensors]) -> Scores:
        """Return the nats of the arms that only some people have: retrieval, own, all, and `others` by their names."""
        self.model.set_cores(self.learner.layout.unflatten(core))
        test, with_memory = self._test(user), self._with_memories(user)
        self.model.activate(GLOBAL)
        scores: Scores = {"retrieval": self._scored(with_memory, test)}
        self.model.activate(GLOBAL, OWN)
        alone = [(name, tensors, test) for name, tensors in others.items()]
        for name, tensors, documents in (*alone, ("own", own, test), ("all", own, with_memory)):
            load_own(self.model, {key: torch.from_numpy(value) for key, value in tensors.items()})
            scores[name] = self._scored(documents, test)
        return scores

    def card_train(self, user: str, core: Vector, settings: CardSettings, seed: int, preferred: bool) -> Learned:
        """Return the own adapter that the scorecard trains, and the tokens it learned from."""
        return train_for_card(self, user, core, settings, seed, preferred)

    def card_score(self, user: str, arms: Sequence[str], loan: Loan, settings: CardSettings) -> PersonCard:
        """Return the person's scorecard, see `simulation.scorecard.person`."""
        self._encoder = self._encoder or open_encoder(settings.encoder)
        return score_for_card(self, user, arms, loan, settings, self._encoder)

    def part(self, name: str, *arguments: Any) -> Any:
        """Return one person's part of a baseline, or of what the scorecard asks, by its name in `PARTS`."""
        return PARTS[name](self, *arguments)

    def write_checkpoints(self) -> None:
        """Sign the state of the ledger of each device that was asked, for a witness to countersign."""
        for user in self.devices.begun(self._opening.folder):
            self.devices[user].ledger.write_checkpoint()
        self.devices.close()

    def peak_memory_bytes(self) -> int:
        """Return the most memory that this process held."""
        return peak_memory_bytes()

    # -- inside -----------------------------------------------------------------------------------------------------

    def _charge(self, user: str) -> Any:
        def charge(noise_multiplier: float, sampling_rate: float, steps: int, clip_norm: float, delta: float) -> None:
            body = RecordCharge("own_record_dp", noise_multiplier, sampling_rate, steps, clip_norm, delta).body()
            ledger = self.devices[user].ledger
            if body not in [dict(e.body) for e in ledger.entries() if e.kind == "RECORD_DP"]:
                ledger.append("RECORD_DP", body)

        return charge if user in self.devices else lambda *_: None

    def _scored(self, documents: Sequence[Cached], named: Sequence[Cached]) -> list[tuple[str, float, int]]:
        nats = self.model.document_nats(documents)
        return [(d.encoded.document, float(n.double().sum()), len(n)) for d, n in zip(named, nats, strict=True)]

    def _test(self, user: str) -> list[Cached]:
        """Return the person's raw test documents, up to the limit of own tokens, each with its cached prefix."""
        found = self._tests.get(user)
        if found is None:
            limit = self.config.evaluation.test_tokens
            chosen = up_to(self._encoded(self.people[user].test), limit)
            found = [self.model.prefix(e) for e in chosen]
            self._tests.put(user, found, sum(cached.hidden.nbytes for cached in found))
        return found

    def _own_documents(self, user: str) -> list[Cached]:
        """Return the newest raw history documents up to the limit of own tokens, oldest first."""
        encoded = self._encoded(self.people[user].history[::-1])
        return [self.model.prefix(e) for e in up_to(encoded, self.config.own.tokens)[::-1]]

    def _all_documents(self, user: str) -> list[Cached]:
        """Return every raw history document: of a choice by length, one document more would change another's place."""
        return [self.model.prefix(e) for e in self._encoded(self.people[user].history)]

    def _encoded(self, documents: Sequence[Document]) -> list[Encoded]:
        rows = (self.model.encode(d, self.config.local.max_document_tokens) for d in documents)
        return [e for e in rows if e.own_tokens]

    def _with_memories(self, user: str) -> list[Cached]:
        """Return the test documents behind what BM25 finds in the history for the words before the first target."""
        settings = self.config.evaluation
        index = TextIndex(self.people[user].history)
        by_id = {d.id: d for d in self.people[user].test}
        result = []
        for cached in self._test(user):
            query = opening(by_id[cached.encoded.document])
            memories = index.search(query, settings.retrieved)
            context = self.model.context_ids("\n\n".join(memories), settings.retrieved_tokens)
            result.append(self.model.prefix(self.model.with_context(cached.encoded, context)))
        return result
