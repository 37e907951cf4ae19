"""What noise does to a sum: people, epsilon and the size of an adapter against the signal that is left."""

import marimo

app = marimo.App(width="medium", app_title="confide: is it worth it?")


@app.cell
def _():
    import marimo as mo

    from privacy.errors import ConfigError
    from privacy.plan import Campaign
    from privacy.plan import plan as planned

    return Campaign, ConfigError, mo, planned


@app.cell
def _(mo):
    people = mo.ui.slider(steps=[16, 50, 100, 200, 500, 1000, 2000, 5000], value=500, label="people", show_value=True)
    epsilon = mo.ui.slider(steps=[0.5, 1, 2, 4, 8], value=2, label="epsilon of the campaign", show_value=True)
    rank = mo.ui.slider(steps=[2, 4, 8, 16, 32], value=8, label="rank of the adapter", show_value=True)
    mo.vstack([mo.md("# Is a federation of this size worth it?"), people, epsilon, rank])
    return epsilon, people, rank


@app.cell
def _(Campaign, ConfigError, mo, planned, rank):
    # 30 layers of seven modules, one core of rank x rank numbers each, as the embedded model has them.
    def told(count, allowed):
        try:
            campaign = Campaign(people=count, epsilon=allowed, dim=210 * rank.value**2, transport="masked")
            return planned(campaign).as_dict()
        except ConfigError as error:
            return {"verdict": str(error), "noise_ratio": float("nan"), "epsilon": float("nan")}

    mo.md("The accounting is the one that devices enforce; nothing is simulated and nothing is sampled.")
    return (told,)


@app.cell
def _(epsilon, mo, people, told):
    found = told(people.value, epsilon.value)
    mo.md(
        f"**{found['verdict']}**: epsilon {found['epsilon']:.2f} per person, noise {found['noise_ratio']:.2f} times "
        "the signal of one step."
    )
    return (found,)


@app.cell
def _(epsilon, mo, told):
    rows = [(count, told(count, epsilon.value)) for count in (50, 100, 200, 500, 1000, 2000, 5000)]
    mo.ui.table(
        [{"people": n, "noise to signal": round(row["noise_ratio"], 2), "verdict": row["verdict"]} for n, row in rows],
        selection=None,
    )
    return (rows,)


@app.cell
def _(mo, rows):
    mo.stop(mo.running_in_notebook())
    for _count, _row in rows:
        print(f"{_count:>5} people: noise {_row['noise_ratio']:.2f} times the signal, {_row['verdict']}")


if __name__ == "__main__":
    app.run()
