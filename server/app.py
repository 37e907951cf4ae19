"""The server inside Flower: finds its campaign, runs the rounds that are left, writes the release.

Started by `confide simulate`, it is told the campaign by the line it inherits; by an operator, $CONFIDE_SERVER_HOME or
`home` in the run's configuration names it; by `flwr run .` in a checkout, it starts the simulation itself, in a process
of its own, so that nothing of the installed agent is imported here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from privacy.errors import ConfideError
from server.courier import AGAIN_S, FlowerCourier
from server.events import EventLog
from server.home import ServerHome
from server.link import Link, LinkWatch
from server.publish import publish
from server.rounds import Watch
from server.simulated import Simulation

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the campaign that this process was started for."""
    home = os.environ.get("CONFIDE_SERVER_HOME") or str(context.run_config.get("home", ""))
    if home:
        serve(ServerHome.load(Path(home)), grid)
        return
    with ExitStack() as stack:
        link = Link.inherited() or stack.enter_context(Simulation(context.run_config, context.run_id)).link
        try:
            rounds(ServerHome.load(link.home()), grid, LinkWatch(link))
            link.send({"event": "done"})
        except ConfideError as error:
            link.send({"event": "failed", "line": str(error)})
            raise


def rounds(home: ServerHome, grid: Grid, watch: Watch, publishes: bool = False) -> None:
    """Run what is left of the campaign in `home`; with `publishes`, write its release."""

    def courier_to(directory: Mapping[str, Ed25519PublicKey]) -> FlowerCourier:
        people = len(directory)
        if home.simulated:
            return FlowerCourier(grid, directory, lambda nodes: -(-people // nodes))
        return FlowerCourier(
            grid, directory, nodes=home.plan.cohort, greeting_s=home.deadlines.greeting, again_s=AGAIN_S
        )

    with home.rounds(courier_to, watch) as all_rounds:
        all_rounds.run()
        if publishes:
            publish(all_rounds.campaign, home.basis, home.release, home.key, home.folder / "release")


def serve(home: ServerHome, grid: Grid) -> None:
    """Run a campaign of real devices to its signed release; what happens is noted for the operator, in counts."""
    log = EventLog(home.folder, home.plan.campaign)
    log.note("begun", rounds=len(home.plan.steps), cohort=home.plan.cohort)
    try:
        rounds(home, grid, log, publishes=True)
    except ConfideError as error:
        log.note("failed", reason=str(error))
        raise
    log.note("released")
