"""Ledgers of a small federation: verified, then with one byte changed; invented numbers, no model."""

import marimo

app = marimo.App(width="medium", app_title="confide: the ledger under audit")


@app.cell
def _():
    from pathlib import Path
    from tempfile import TemporaryDirectory

    import marimo as mo
    import numpy as np

    from privacy.accounting import epsilon_zcdp
    from privacy.errors import ConfideError
    from privacy.ledger import read_ledger
    from simulation.mechanism.people import People, layout_of

    return ConfideError, Path, People, TemporaryDirectory, epsilon_zcdp, layout_of, mo, np, read_ledger


@app.cell
def _(mo):
    rounds = mo.ui.slider(1, 5, value=3, label="private sums", show_value=True)
    changed = mo.ui.slider(0, 100, value=60, label="where a byte is changed, percent of the file", show_value=True)
    mo.vstack([mo.md("# A ledger under audit"), rounds, changed])
    return changed, rounds


@app.cell
def _(Path, People, TemporaryDirectory, layout_of, np, rounds):
    # Eight real devices and real masked sums; what each ledger says is read back below, by the auditor's code.
    with TemporaryDirectory() as _folder:
        with People(Path(_folder), 8, layout_of(3), bytes(32)) as people:
            updates = {user: np.full(people.layout.dim, 0.01) for user in people.users}
            sums = [people.sum(people.query(number), updates) for number in range(rounds.value)]
        _path = next(iter(sorted((Path(_folder) / "ledger").rglob("*.jsonl"))))
        ledger, owner = _path.read_bytes(), _path.with_suffix(".pub").read_bytes()
    survivors = [len(each.survivors) for each in sums]
    return ledger, owner, survivors


@app.cell
def _(ConfideError, Path, TemporaryDirectory, epsilon_zcdp, owner, read_ledger):
    def verdict(data):
        """Return what the auditor says of a ledger's bytes."""
        with TemporaryDirectory() as folder:
            path = Path(folder) / "ledger.jsonl"
            path.write_bytes(data)
            path.with_suffix(".pub").write_bytes(owner)
            try:
                account = read_ledger(path).account
            except ConfideError as error:
                return f"violated: {error}"
        return f"holds: epsilon {epsilon_zcdp(account.spent_rho(), 1e-6):.2f} at delta 1e-6"

    return (verdict,)


@app.cell
def _(changed, ledger, mo, survivors, verdict):
    at = min(len(ledger) * changed.value // 100, len(ledger) - 2)
    torn = ledger[:at] + bytes([ledger[at] ^ 1]) + ledger[at + 1 :]
    before, after = verdict(ledger), verdict(torn)
    mo.md(f"{len(survivors)} sums over {survivors} devices. As written: **{before}**. One bit changed: **{after}**.")
    return after, before


@app.cell
def _(after, before, mo):
    mo.stop(mo.running_in_notebook())
    print(f"as written, the ledger {before}")
    print(f"with one bit changed, it is {after}")


if __name__ == "__main__":
    app.run()
