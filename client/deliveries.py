"""What a federation delivers to a device: the frozen basis once, and the adapters that each round starts from.

Nothing is taken on trust: a basis is kept only if it is the one that the policy names, adapters only if the policy's
release signer signed them. A query then names the hash of the adapters that it means.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from client.contribution import Rows
from privacy.adapter import AdapterLayout, Basis, rows_sha256
from privacy.canonical import sha256_hex
from privacy.errors import ConfideError, EncodingError, ModelError, WireError
from privacy.files import write_atomic
from privacy.policy import Policy
from privacy.session import (
    BASIS_ITEM,
    DIRECTORY_ITEM,
    HISTORY_ITEM,
    Start,
    basis_item,
    directory_item,
    read_history,
)

KEPT_STARTS = 4
BASIS_FILE = "basis.safetensors"


class Deliveries:
    """What one device, or all devices of one host, were given; many threads may take and look.

    `on_basis` is called once, when the policy's basis has arrived or was there already. With `folder` the basis is kept
    there, so that an agent that starts again has it; one that cannot be read, or that the policy no longer names, is
    asked for again. The adapters of a round are not kept: a round that was cut off is over. `on_directory` is given
    each signed directory that arrives and raises ConfideError for one that this device does not take; `directory` is
    the file that it holds already.
    """

    def __init__(
        self,
        policy: Policy,
        basis: Basis | None = None,
        folder: Path | None = None,
        on_basis: Callable[[Basis], None] = lambda _: None,
        on_directory: Callable[[bytes], None] | None = None,
        directory: bytes = b"",
    ) -> None:
        self._policy, self._folder, self._on_basis, self._on_directory = policy, folder, on_basis, on_directory
        self._directory = sha256_hex(directory_item(directory)) if directory else ""
        self.history: tuple[bytes, dict[int, list[bytes]]] | None = None  # the federation's ledger, as shown last
        self._basis: Basis | None = None
        self._items: set[str] = set()
        self._starts: OrderedDict[str, tuple[str, Rows]] = OrderedDict()  # hash of the rows -> hash of the item, rows
        self._lock = threading.RLock()
        if basis is not None:
            self._take_basis(basis.to_bytes())
        elif folder is not None:
            self._take_kept(folder / BASIS_FILE)

    @property
    def layout(self) -> AdapterLayout | None:
        """Return the order of the cores in a flat vector; None before the basis has arrived."""
        return self._basis.layout if self._basis is not None else None

    def held(self, offered: Sequence[str]) -> int:
        """Return which of the `offered` item hashes are held, as bits."""
        with self._lock:
            have = self._items | {item for item, _ in self._starts.values()} | {self._directory}
        return sum(1 << i for i, digest in enumerate(offered) if digest in have)

    def take(self, items: Sequence[bytes]) -> None:
        """Keep what was delivered. Raises ConfideError for what the policy does not name or nobody signed."""
        for item in items:
            with self._lock:
                if item[0] == BASIS_ITEM:
                    self._take_basis(item[1:])
                elif item[0] == HISTORY_ITEM:
                    self.history = read_history(item)  # each device checks it against what it saw itself
                elif item[0] == DIRECTORY_ITEM:
                    self._take_directory(item)
                else:
                    self._take_start(item)

    def start(self, state: str) -> Rows | None:
        """Return the rows that hash to `state`, float32 [rows, numbers], if they were delivered."""
        with self._lock:
            found = self._starts.get(state)
        return None if found is None else found[1]

    def _take_kept(self, path: Path) -> None:
        try:
            data = path.read_bytes()
            basis = self._named(data)
        except (OSError, ConfideError):
            return
        self._on_basis(basis)
        self._basis = basis
        self._items.add(sha256_hex(basis_item(data)))

    def _take_basis(self, data: bytes) -> None:
        basis = self._named(data)
        if self._basis is None:
            if self._folder is not None:
                self._folder.mkdir(parents=True, exist_ok=True)
                write_atomic(self._folder / BASIS_FILE, data)
            self._on_basis(basis)
            self._basis = basis
        self._items.add(sha256_hex(basis_item(data)))  # last: whatever failed before is delivered again

    def _take_directory(self, item: bytes) -> None:
        if self._on_directory is None:
            raise WireError("a directory came where none is taken")
        self._on_directory(item[1:])
        self._directory = sha256_hex(item)

    def _named(self, data: bytes) -> Basis:
        basis = Basis.from_bytes(data)
        if basis.sha256 != self._policy.basis_sha256:
            raise ModelError("a basis that the policy does not name")
        return basis

    def _take_start(self, item: bytes) -> None:
        start = Start.from_item(item)
        start.verify(self._policy.release_signer)
        if self._basis is None:
            raise ModelError("adapters came before their basis")
        if start.federation != self._policy.federation:
            raise WireError("adapters of another federation")
        if not np.isfinite(start.slots).all():
            raise EncodingError("a start holds NaN or infinity")
        self._starts[rows_sha256(self._basis.sha256, start.slots)] = sha256_hex(item), start.slots
        while len(self._starts) > KEPT_STARTS:
            self._starts.popitem(last=False)
