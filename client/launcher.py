"""`python -P -m client.launcher`: what a device runs in the place of Flower's `flwr-clientapp`.

A SuperNode starts a process for each message, found on its PATH by that name. Flower's own would install the bundle
that the server sent and run its code with this person's rights. This one compares the bundle with the one that the
person's federation pinned (`bundle.sha256` in $CONFIDE_HOME) and runs the relay that is installed here. On a mismatch
the server gets one fixed code, and nothing of the bundle is ever unpacked or imported.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from flwr.app import Error, Message

from client.app import app
from client.launcher_flower import BUNDLE_REFUSED, RELAY_FAILED, Runtime, Task, end_with

PIN, SOCKET = "bundle.sha256", "relay.sock"
OTHER_BUNDLE, FAILED = "bundle.other", "relay.failed"


def main(arguments: Sequence[str] | None = None, environment: Mapping[str, str] = os.environ) -> int:
    """Take one task, answer it, and return the exit status; no error's text leaves this process."""
    options = _options(arguments)
    home = Path(environment.get("CONFIDE_HOME") or os.devnull)
    if options.parent_pid is not None:
        # Flower ends a process by SIGINT to itself, which one begun in the background of a shell would ignore.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        end_with(options.parent_pid)
    certificates = Path(options.root_certificates).read_bytes() if options.root_certificates else None
    token = options.token or Path(options.token_file).read_text().strip()
    try:
        with Runtime.opened(options.runtime_api_address, token, certificates, options.insecure) as runtime:
            task = runtime.take()
            reply = reply_to(task, home)
            runtime.answer(reply, task.context)
            runtime.finish(task.context, completed=not reply.has_error())
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # noqa: BLE001 - its text may name what a server sent
        sys.stderr.write(f"relay: {type(error).__name__}\n")
        return 1
    return 0


def reply_to(task: Task, home: Path) -> Message:
    """Return the installed relay's reply, or a fixed code for a bundle other than the pinned one, or a failure."""
    if not pinned(task.bundle, home):
        sys.stderr.write(f"relay: the server's bundle is not the one pinned in {PIN}: refused\n")
        return Message(Error(BUNDLE_REFUSED, OTHER_BUNDLE), reply_to=task.message)
    task.context.node_config.setdefault("confide-socket", str(home / SOCKET))
    try:
        return app(task.message, task.context)
    except Exception as error:  # noqa: BLE001 - Flower would send its text to the server
        sys.stderr.write(f"relay: {type(error).__name__}\n")
        return Message(Error(RELAY_FAILED, FAILED), reply_to=task.message)


def pinned(bundle: bytes, home: Path) -> bool:
    """Return whether `bundle` is the one whose SHA-256 stands in `home`; False where none is pinned."""
    try:
        return (home / PIN).read_text().strip() == hashlib.sha256(bundle).hexdigest()
    except OSError:
        return False


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options with which a SuperNode calls; those it may add later are nothing to a relay."""
    parser = argparse.ArgumentParser(prog="flwr-clientapp", description=__doc__)
    parser.add_argument("--runtime-api-address", required=True)
    token = parser.add_mutually_exclusive_group(required=True)
    token.add_argument("--token")
    token.add_argument("--token-file")
    parser.add_argument("--insecure", action="store_true")
    parser.add_argument("--root-certificates")
    parser.add_argument("--parent-pid", type=int)
    known, _ = parser.parse_known_args(arguments)
    return known


if __name__ == "__main__":
    sys.exit(main())
