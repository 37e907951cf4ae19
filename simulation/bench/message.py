"""A message to a device: our relay, which asks the resident agent, beside a ClientApp that loads torch and a model.

Flower starts a process a message, so what a ClientApp imports and loads is paid each time. Both sides are that process
from its start to its reply; SuperLink, SuperNode and the network are the same for both and left out.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.listener import RelaySocket
from privacy.session import Greeting, Hello
from privacy.wire import decode_request
from simulation.bench.environments import Peer
from simulation.bench.process import BenchFailed
from simulation.bench.row import Row, less_is_better

NAME = "Flower 1.41 ClientApp that loads torch and the model with PEFT LoRA"
SCRIPT = Peer("flower_message.py")
NONCE = "7" * 64


def message_row(model: Path, dtype: str = "bfloat16", tries: int = 5) -> Row:
    """Return the row `relay.message`: seconds of a process that answers one message, the median of `tries` in turns."""
    key = Ed25519PrivateKey.generate()

    def reply(_place: int, node: int, frame: bytes) -> bytes:
        request = decode_request(frame)
        assert isinstance(request, Greeting)
        return Hello.signed(key, "device", 0, node, request.nonce).encode()

    took: dict[str, list[float]] = {"relay": [], "model": [], "empty": []}
    with tempfile.TemporaryDirectory(prefix="confide-") as place:
        folder = Path(place)
        agent = RelaySocket(folder / "relay.sock", reply)
        try:
            for _ in range(tries):
                for client, found in took.items():
                    job = {
                        "client": client, "model": str(model), "dtype": dtype, "socket": str(agent.path),
                        "frame": Greeting(NONCE).encode().hex(),
                    }  # fmt: skip
                    cost, answer = SCRIPT.run(job, folder)
                    if not answer["bytes"]:
                        raise BenchFailed(f"the {client} had no answer")
                    found.append(cost.seconds)
        finally:
            agent.close()
    ours, peer, bare = (statistics.median(took[client]) for client in ("relay", "model", "empty"))
    same = (
        f"a greeting and its answer, one process a message, median of {tries} in turns; ours is read, sent to the "
        f"agent over its socket and signed there; the peer's model is in {dtype}, answers without using it; not the "
        "same: the agent has its model in memory already; limit: a ClientApp that does nothing"
    )
    return less_is_better("relay.message", "seconds", ours, (NAME, peer), same, bare)
