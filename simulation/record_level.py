"""Runs whose unit is a record: the noise organisations train with, its line in their ledgers, its epsilon."""

from __future__ import annotations

from privacy.errors import ConfigError
from privacy.objective import PREFERENCE
from privacy.record import RecordCharge
from simulation.config import RunConfig
from simulation.report_schema import RecordPrivacy

ARTEFACT = "shared_core"


def check_by_record(config: RunConfig) -> None:
    """Raise ConfigError for a run by record that would do what no record-level noise covers.

    That is all that a device learns but its core, what is one person's own, and the comparison without noise, which
    trains more than the ledgers' lines count.
    """
    if not config.privacy.by_record:
        return
    asked = config.queries
    if config.personas or asked.measure or asked.retriever_rounds or asked.objective == PREFERENCE:
        raise ConfigError("privacy.unit=record covers the training of a global core alone: no personas, no figures")
    for key in ("own.people", "compare_without_noise"):
        if config.value(key):
            raise ConfigError(f"privacy.unit=record needs {key}={'0' if key == 'own.people' else 'false'}")


def record_noise(config: RunConfig) -> float:
    """Return the noise multiplier that cores are trained with on the device; 0 where the unit is a person."""
    return config.privacy.record_noise if config.privacy.by_record else 0.0


def shared_charge(config: RunConfig) -> RecordCharge | None:
    """Return the charge of all shared training of a campaign, None where the unit is a person.

    As if every document could be drawn in each step of each round: documents are read in parts, a part a round, so a
    document is drawn from in some rounds only.
    """
    if not config.privacy.by_record:
        return None
    local = config.local
    batches = max(1, round(1 / local.sampling_rate))  # what Opacus makes of the rate
    steps = config.participations * local.steps
    return RecordCharge(
        ARTEFACT, record_noise(config), 1 / batches, steps, local.document_clip, config.privacy.record_delta
    )


def shared_record_privacy(config: RunConfig, organisations: int) -> RecordPrivacy | None:
    """Return what the report says of it, by Opacus' own accountant, which an audit recomputes another way."""
    charge = shared_charge(config)
    if charge is None:
        return None
    from opacus.accountants import RDPAccountant

    accountant = RDPAccountant()
    accountant.history = [(charge.noise_multiplier, charge.sampling_rate, charge.steps)]
    return RecordPrivacy(
        unit="document",
        people=organisations,
        epsilon=float(accountant.get_epsilon(charge.delta)),
        delta=charge.delta,
        noise_multiplier=charge.noise_multiplier,
        clip_norm=charge.clip_norm,
        shared=True,
    )
