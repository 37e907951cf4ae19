"""`python -P -m server.register_nodes`: registers many SuperNodes at Flower's SuperLink in one process.

Reads one JSON object from standard input, {device: public key in OpenSSH's form}, and writes one line of JSON,
{device: Flower's number of its node}. A key that is registered already gets the number that it has, so that what a
crash cut off can be asked again. What is asked is what `flwr supernode register NAME` asks, over the same settings in
$FLWR_HOME; that command would need a process, and a second of a processor, for each. Read in Flower 1.41.0.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from flwr.cli.flower_config import read_superlink_connection
from flwr.cli.utils import init_http_client_from_connection
from flwr.proto.control_pb2 import ListNodesRequest, RegisterNodeRequest
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

GONE = "unregistered"


def main() -> int:
    """Register everybody on standard input and return 0."""
    registered = register(json.load(sys.stdin), sys.argv[1])
    sys.stdout.write(json.dumps(registered) + "\n")
    return 0


def register(keys: Mapping[str, str], connection: str) -> dict[str, str]:
    """Return the number of each device's node, registered now or before; raises what Flower's client raises."""
    client = init_http_client_from_connection(read_superlink_connection(connection))
    try:
        nodes = client.ListNodes(ListNodesRequest()).nodes_info
        known = {bytes(node.public_key): str(node.node_id) for node in nodes if node.status != GONE}
        found = {}
        for device, text in keys.items():
            key = load_ssh_public_key(text.encode())
            if not isinstance(key, EllipticCurvePublicKey):
                raise ValueError(f"{device} has no key on a curve")
            data = public_key_to_bytes(key)
            if data not in known:
                known[data] = str(client.RegisterNode(RegisterNodeRequest(public_key=data)).node_id)
            found[device] = known[data]
        return found
    finally:
        client.close()


if __name__ == "__main__":
    sys.exit(main())
