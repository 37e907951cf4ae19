"""One person's device: text, policy, ledger and keys; it answers queries, or refuses with a code and nothing else.

    query -> form, policy, release -> RESERVE on the disk -> local training -> clip, noise, sign -> stored -> COMMIT

Everything that leaves is a `privacy.wire` message. An answer is stored before it is handed over, and handed over again
byte for byte when the same question comes again, so that no second noise is ever drawn for one charge.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from numpy.typing import NDArray

from client.contribution import Learner, Rows, contribution, fits
from privacy.adapter import rows_sha256
from privacy.answer import make_answer
from privacy.canonical import sha256_hex
from privacy.directory import Directory
from privacy.errors import PolicyRefused
from privacy.files import Disk, write_atomic
from privacy.ledger import Ledger
from privacy.noise import KeyStream
from privacy.objective import NEAREST, NEEDS_PUBLIC_TABLES, RECORD_LEVEL
from privacy.policy import Policy
from privacy.query import Query
from privacy.record import RecordCharge
from privacy.sampling import takes_part
from privacy.secagg.device import SumDevice
from privacy.secagg.journal import MASKED, REVEALED, FileJournal, Journal
from privacy.secagg.keys import Verify, verify_signature
from privacy.session import Hello
from privacy.wire import Answer, Refusal, RefusalCode, decode

logger = logging.getLogger(__name__)
Proofs = Mapping[int, Sequence[bytes]]
Part = Callable[[bytes], bytes]  # a device's part in one sum: the frame of a stage in, its answer out


class Device:
    """A device of one federation. `home` holds the answers it gave; `ledger` stays open while the device lives.

    `record`: an organisation's device, whose learner adds record-level noise. The charge covers all training that the
    policy grants; it is noted before the first, and what it does not cover (figures, personas) is refused.
    """

    def __init__(
        self,
        device_id: str,
        home: Path,
        policy: Policy,
        ledger: Ledger,
        signing_key: Ed25519PrivateKey,
        noise_key: bytes,
        learner: Learner | None,
        directory: Directory | None = None,
        journal: Journal | None = None,
        verify: Verify = verify_signature,
        record: RecordCharge | None = None,
        disk: Disk | None = None,
    ) -> None:
        self.device_id, self.home, self.policy, self.ledger = device_id, home, policy, ledger
        # The purposes that the owner's dial allows at this moment; without a dial, all of the policy's.
        self.allowed: Callable[[], frozenset[str]] | None = None
        self.refresh: Callable[[], None] = lambda: None  # brings the learner up to what its owner holds and shares now
        self.learner, self.record, self._disk = learner, record, disk
        self.directory, self._journal = directory, journal or FileJournal(home)
        self._key, self._noise_key, self._verify = signing_key, noise_key, verify
        self.books = threading.RLock()  # one thread trains, another answers the relay: both read the ledger

    def hello(self, held: int, node_id: int, nonce: str) -> bytes:
        """Return the wire bytes of the signed answer to a greeting that came through the node `node_id`."""
        return Hello.signed(self._key, self.device_id, held, node_id, nonce).encode()

    def refusal(
        self, query_bytes: bytes, rows: Rows | None, history: tuple[bytes, Proofs] | None = None
    ) -> bytes | None:
        """Return the wire bytes of a refusal if the device would refuse now, else None; nothing is computed or charged.

        `rows` is None where what the query starts from has not been delivered. `history` is what the federation shows
        of its ledger: it must continue what this device saw last, and is noted.
        """
        try:
            query = Query.from_bytes(query_bytes)
            event = query.event_id(self.device_id)
            if self._stored(event).exists():
                return None
            self._permit(query, event, rows)
            if history is not None:
                self._see(*history)
        except Exception as error:  # noqa: BLE001 - `_refused` keeps its kind alone
            return self._refused(query_bytes, error)
        return None

    def refuse(self, query_sha256: str, code: RefusalCode) -> bytes:
        """Return the wire bytes of a refusal with `code`."""
        return Refusal(query_sha256, self.device_id, code).encode()

    def answer(self, query_bytes: bytes, rows: Rows | None) -> bytes:
        """Return the wire bytes of an Answer, or of a Refusal whose code is all that the server learns.

        `rows`, float32 [rows, numbers], is what to start from (`privacy.objective`); the query must name its hash.

        No exception leaves and no text: whatever fails inside, a broken query too, becomes `device.unable`.
        """
        try:
            return self._answer(Query.from_bytes(query_bytes), rows)
        except Exception as error:  # noqa: BLE001 - `_refused` keeps its kind alone
            return self._refused(query_bytes, error)

    def part(self, query_bytes: bytes, rows: Rows | None) -> Part:
        """Return the device's part in the sum of a query, after training for it; a part only ever refuses if it must.

        Transport `masked`: the vector exists in this process alone and leaves it under masks. In the clear the part is
        one answer, stored before it is handed over. No exception leaves, as in `answer`.
        """
        try:
            query = Query.from_bytes(query_bytes)
            if query.transport == "masked":
                return self._masked_part(query, rows)
            data = self._answer(query, rows)
        except Exception as error:  # noqa: BLE001 - `_refused` keeps its kind alone
            data = self._refused(query_bytes, error)
        return lambda _frame: data

    def _refused(self, query_bytes: bytes, error: Exception) -> bytes:
        """Return the refusal that stands for `error`: its code, or `device.unable`; its text may hold the person's."""
        query_sha256 = sha256_hex(query_bytes)
        if isinstance(error, PolicyRefused):
            return self.refuse(query_sha256, RefusalCode(error.code))
        logger.warning("query %s: %s", query_sha256[:16], type(error).__name__)
        return self.refuse(query_sha256, RefusalCode.UNABLE)

    def _masked_part(self, query: Query, rows: Rows | None) -> Part:
        event = query.event_id(self.device_id)
        if self.directory is None:
            raise PolicyRefused(RefusalCode.DIRECTORY)
        if self._journal.load(event):
            raise PolicyRefused(RefusalCode.STALE)  # it restarted inside this sum: its keys are gone, so it is out
        with self.books:
            self._permit(query, event, rows)
            self.ledger.reserve(query, self.device_id)
        update = self._local_update(query, event, rows)
        vector = make_answer(update, query, self.device_id, self._noise_key).vector
        journal = _Committing(self._journal, self._commit)
        head, verify = self.ledger.head, self._verify
        return SumDevice(query, self.device_id, self.directory, self._key, vector, head, journal, verify=verify).reply

    def _commit(self, event: bytes) -> None:
        with self.books:
            self.ledger.commit(event)

    def _stored(self, event: bytes) -> Path:
        return self.home / f"{event.hex()}.answer"

    def _answer(self, query: Query, rows: Rows | None) -> bytes:
        if query.transport == "masked":  # its noise protects a sum: alone it would stand at the Sybil floor
            raise PolicyRefused(RefusalCode.SUM)
        event = query.event_id(self.device_id)
        stored = self._stored(event)
        if stored.exists():
            return self._again(stored.read_bytes(), query, event)
        with self.books:
            self._permit(query, event, rows)
            self.ledger.reserve(query, self.device_id)
        update = self._local_update(query, event, rows)
        with self.books:
            answer = make_answer(update, query, self.device_id, self._noise_key).signed(self._key, self.ledger.head)
            write_atomic(stored, answer.encode(), disk=self._disk)
            self.ledger.commit(event)
        return answer.encode()

    def _again(self, answer: bytes, query: Query, event: bytes) -> bytes:
        """Return the stored answer if it was made for exactly this query; one event is answered to one query only."""
        if not answer:  # its owner had what it rests on forgotten; made again it would be a second for one charge
            raise PolicyRefused(RefusalCode.STALE)
        kept = decode(answer)
        if not isinstance(kept, Answer) or kept.query_sha256 != query.sha256:
            raise PolicyRefused(RefusalCode.STALE)
        with self.books:
            self.ledger.commit(event)  # a crash may have come between answer and COMMIT
        return answer

    def _see(self, note: bytes, proofs: Proofs) -> None:
        """Note what the federation shows of its ledger; raises PolicyRefused unless it continues what was seen last."""
        signer = Ed25519PublicKey.from_public_bytes(bytes.fromhex(self.policy.release_signer))
        with self.books:
            seen = self.ledger.account.seen
            self.ledger.see(note, signer, proofs.get(seen.size, ()) if seen is not None else ())

    def _permit(self, query: Query, event: bytes, rows: Rows | None) -> None:
        """Refuse what the owner or the policy does not grant. An event charged before a crash is not charged again."""
        if self.allowed is not None and query.purpose not in self.allowed():
            raise PolicyRefused(RefusalCode.PURPOSE)
        with self.books:
            self.policy.check(query, *self.ledger.spent(event))
        if query.sampling is not None and not takes_part(self._noise_key, query, self.device_id):
            raise PolicyRefused(RefusalCode.NOT_SAMPLED)
        if self.record is not None and (query.objective not in RECORD_LEVEL or query.slots > 1):
            raise PolicyRefused(RefusalCode.OBJECTIVE)
        learner = self.learner
        tables = learner.public_sha256 if learner is not None else None
        needs = query.objective in NEEDS_PUBLIC_TABLES or (query.choice == NEAREST and query.slots > 1)
        if needs and (tables is None or tables != self.policy.public_sha256):
            raise PolicyRefused(RefusalCode.BASIS)
        if rows is None or learner is None or not fits(learner, query, rows):
            raise PolicyRefused(RefusalCode.RELEASE)
        if rows_sha256(self.policy.basis_sha256, rows) != query.release_sha256:
            raise PolicyRefused(RefusalCode.RELEASE)

    def _local_update(self, query: Query, event: bytes, rows: Rows | None) -> NDArray[np.float64]:
        """Return the vector to be clipped and noised."""
        assert self.learner is not None and rows is not None  # `_permit` came before
        if self.record is not None:
            self._note_record(self.record)
        self.refresh()
        seed = int(KeyStream(self._noise_key, batches_event(event)).candidates(0, 1)[0, 0]) >> 1
        return contribution(self.learner, self.device_id, query, rows, seed)

    def _note_record(self, charge: RecordCharge) -> None:
        """Write the record-level line into the ledger, once: it stands there before the noise that it counts."""
        with self.books:
            body = charge.body()
            if not any(e.kind == "RECORD_DP" and dict(e.body) == body for e in self.ledger.entries()):
                self.ledger.append("RECORD_DP", body)


class _Committing:
    """A journal that also notes in the ledger that a masked vector was made: it is on the disk, and has not left."""

    def __init__(self, journal: Journal, commit: Callable[[bytes], None]) -> None:
        self._journal, self._commit = journal, commit

    def load(self, event: bytes) -> dict[str, bytes]:
        return self._journal.load(event)

    def store(self, event: bytes, step: str, data: bytes) -> None:
        self._journal.store(event, step, data)
        if step == MASKED:
            self._commit(event)
        if step == REVEALED and isinstance(self._journal, FileJournal):
            self._journal.forget_vector(event)  # the server has it, or will never use it


def batches_event(event: bytes) -> bytes:
    """Return the name under which an event's Poisson batches are drawn: the same key, never the noise's own stream."""
    return bytes.fromhex(sha256_hex(b"confide/batches/1\x00" + event))


@dataclass(frozen=True)
class Opening:
    """What the devices of one process have in common; `device` opens one of them from its files.

    Ledgers lie in `folder`, kept answers and journals under `answers`. `granted` is the policy's file with the root key
    that signed it: the ledgers then hold their owners to it. `disk` is what ledgers and answers are written to.
    """

    folder: Path
    policy: Policy
    noise_key_of: Callable[[str], bytes]
    learner: Learner
    answers: Path
    directory: Directory | None = None
    new_journal: Callable[[Path], Journal] = FileJournal
    verify: Verify = verify_signature
    granted: tuple[bytes, Ed25519PublicKey] | None = None
    record: RecordCharge | None = None
    disk: Disk | None = None

    def device(self, user: str, key: Ed25519PrivateKey) -> Device:
        """Return the device of `user`, its ledger open: begun now, or as it was left."""
        genesis = {"federation": self.policy.federation, "owner": user}
        if self.granted is not None:
            genesis["root_key"] = self.granted[1].public_bytes_raw().hex()
        ledger = Ledger(self.folder / f"{user}.jsonl", key, genesis, disk=self.disk)
        if self.granted is not None:
            ledger.grant(self.granted[0])
        home = self.answers / user
        home.mkdir(parents=True, exist_ok=True)
        return Device(
            user,
            home,
            self.policy,
            ledger,
            key,
            self.noise_key_of(user),
            self.learner,
            self.directory,
            self.new_journal(home),
            self.verify,
            self.record,
            self.disk,
        )


def open_devices(
    folder: Path,
    policy: Policy,
    users: Sequence[str],
    keys: Mapping[str, Ed25519PrivateKey],
    noise_key_of: Callable[[str], bytes],
    learner: Learner,
    answers: Path,
    directory: Directory | None = None,
    new_journal: Callable[[Path], Journal] = FileJournal,
    verify: Verify = verify_signature,
) -> dict[str, Device]:
    """Return a device for each user, all of them open, see `Opening`."""
    opening = Opening(folder, policy, noise_key_of, learner, answers, directory, new_journal, verify)
    return {user: opening.device(user, keys[user]) for user in users}
