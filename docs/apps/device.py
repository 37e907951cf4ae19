"""A device that is asked: what it answers, what it refuses, and what an answer costs; invented numbers, no model."""

import marimo

app = marimo.App(width="medium", app_title="confide: a device that is asked")


@app.cell
def _():
    from dataclasses import replace
    from fractions import Fraction
    from pathlib import Path
    from tempfile import TemporaryDirectory

    import marimo as mo
    import numpy as np

    from privacy.accounting import epsilon_zcdp
    from privacy.wire import Refusal, decode
    from simulation.mechanism.people import People, layout_of

    return Fraction, Path, People, Refusal, TemporaryDirectory, decode, epsilon_zcdp, layout_of, mo, np, replace


@app.cell
def _(mo):
    noise = mo.ui.slider(steps=[0.5, 1, 2, 4], value=1, label="noise multiplier", show_value=True)
    rounds = mo.ui.slider(1, 6, value=4, label="questions asked", show_value=True)
    budget = mo.ui.slider(1, 6, value=2, label="answers that the budget allows", show_value=True)
    mo.vstack([mo.md("# A device decides before it computes"), noise, rounds, budget])
    return budget, noise, rounds


@app.cell
def _(Fraction, Path, People, Refusal, TemporaryDirectory, budget, decode, epsilon_zcdp, layout_of, noise, np, rounds):
    # Sixteen real devices with policy, ledger and keys; only their updates are made up.
    z = Fraction(str(noise.value))
    allowed = budget.value / (2 * z**2)
    rows = []
    with (
        TemporaryDirectory() as _folder,
        People(Path(_folder), 16, layout_of(4), bytes(32), budget_rho=allowed) as people,
    ):
        user = people.users[0]
        people.learner.updates = {user: np.full(people.layout.dim, 0.01)}
        for number in range(rounds.value):
            query = people.query(number, noise_multiplier=z, transport="ideal")
            device = people.devices[user]
            answer = decode(device.answer(query.to_bytes(), people.start(1)))
            spent = device.ledger.account.spent_rho()
            code = answer.code.value if isinstance(answer, Refusal) else "answered"
            rows.append((number, code, float(spent), epsilon_zcdp(spent, 1e-6)))
    return (rows,)


@app.cell
def _(mo, rows):
    mo.vstack(
        [
            mo.md("Past the budget it refuses, before anything is computed or charged."),
            mo.ui.table(
                [
                    {"question": n, "device": code, "rho spent": rho, "epsilon at 1e-6": round(eps, 2)}
                    for n, code, rho, eps in rows
                ],
                selection=None,
            ),
        ]
    )


@app.cell
def _(mo, rows):
    mo.stop(mo.running_in_notebook())
    for _n, _code, _rho, _eps in rows:
        print(f"question {_n}: {_code}, epsilon {_eps:.2f} spent")


if __name__ == "__main__":
    app.run()
