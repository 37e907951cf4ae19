"""What the report says of personas, of the retriever and of the federation's own evaluation, in people's units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from privacy.objective import GAIN_EDGES, LOSS_UNIT, METRICS
from server.campaign import Campaign
from server.personas import Event
from server.publish import descriptions
from simulation.report_schema import Measured, Persona, Personas, Retriever
from simulation.retrieval_score import Ranked, summary


def personas_section(campaign: Campaign, assignment: Mapping[str, int]) -> Personas:
    """Return the table of personas; `assignment` is the researcher's view of simulated people."""
    state, published = campaign.state, set(campaign.published_personas())
    rows: list[Persona] = []
    for k, (count, text) in enumerate(zip(state.persona_counts, descriptions(campaign), strict=True)):
        row: Persona = {"name": f"persona-{k}", "noisy_count": float(count), "published": k in published}
        if text:
            row["description"] = text
        rows.append(row)
    return Personas(
        k=campaign.plan.personas,
        rows=rows,
        count_deviation=float(state.count_deviation),
        floor=campaign.plan.persona_floor,
        collapsed=campaign.collapsed,
        events=[_told(event) for event in state.events],
        assignment=dict(assignment),
    )


def _told(event: Event) -> str:
    how = "merged into" if event.kind == "merged" else "begun anew as a half of"
    return f"round {event.round}: persona-{event.persona} {how} persona-{event.other}"


def measured_section(campaign: Campaign) -> list[Measured]:
    """Return what the federation measured of itself, one row for each persona, or one for all; [] if it did not ask.

    Shares and losses are noisy means, so a share may lie a little outside of 0 and 1 and is shown as it is.
    """
    state, several = campaign.state, campaign.plan.personas > 0
    edges = [f"{100 * edge:+g} %" for edge in GAIN_EDGES]
    labels = [
        f"under {edges[0]}",
        *(f"{a} to {b}" for a, b in pairwise(edges)),
        f"over {edges[-1]}",
    ]
    rows: list[Measured] = []
    for k, figures in enumerate(state.figures):
        told = dict(zip(METRICS, (float(figure) for figure in figures), strict=True))
        rows.append(
            Measured(
                name=f"persona-{k}" if several else "everybody",
                noisy_count=float(state.figure_counts[k]),
                bits_base=_bits(told["loss_base"]),
                bits_global=_bits(told["loss_global"]),
                bits_chosen=_bits(told["loss_chosen"]),
                accuracy=told["accuracy"],
                gains={label: told[f"gain_{place}"] for place, label in enumerate(labels)},
                without_persona=told["without_persona"] if several else None,
                compared=told["compared"],
                preferred=told["preferred"],
            )
        )
    return rows


def without_persona(campaign: Campaign) -> float | None:
    """Return the noisy number of people whom no persona serves better than the global adapter; None if not asked."""
    state = campaign.state
    if not len(state.figures) or not campaign.plan.personas:
        return None
    column = METRICS.index("without_persona")
    return float(np.sum(state.figures[:, column] * np.maximum(state.figure_counts, 0.0)))


def retriever_section(campaign: Campaign, questions: Sequence[Ranked]) -> Retriever:
    """Return how the retriever ranks, beside the frozen encoder, and what it was taught by."""
    plan, told = campaign.plan, summary(questions)
    return Retriever(
        rounds=plan.retriever_rounds,
        objective=plan.retriever_objective,
        numbers=plan.retriever_rank**2,
        questions=len(questions),
        recall_frozen=told["recall_frozen"],
        recall_taught=told["recall_taught"],
        ndcg_frozen=told["ndcg_frozen"],
        ndcg_taught=told["ndcg_taught"],
        gain_frozen=told["gain_frozen"],
        gain_taught=told["gain_taught"],
    )


def _bits(loss: float) -> float:
    return loss * LOSS_UNIT / float(np.log(2))
