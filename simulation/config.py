"""One federation in one configuration: TOML, `--set key=value`, defaults; parsed and checked once."""

from __future__ import annotations

import dataclasses
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from privacy.accounting import least_noise_multiplier, rho_for_epsilon
from privacy.canonical import canonical_json, sha256_hex
from privacy.errors import ConfigError
from privacy.objective import CHOICES, TRAINS_A_CORE, TRAINS_A_RETRIEVER
from simulation.config_bounds import LEAST, POSITIVE

KINDS = ("core", "svd")
TRANSPORTS = ("masked", "ideal", "off")
ENGINES = ("flower", "local")
QUANTIZED = ("none", "int8")  # `client.network`, which this module must not import: it loads torch
MACHINE = ("workers", "engine", "cache_mb", "cluster")  # how a campaign is run, not what it is


@dataclass(frozen=True)
class AdapterConfig:
    """`kind` core (whitened basis from the base model's own samples) or svd (LoRA-XS); `layers` from the top.

    `curvature` is the number of steep directions along which the server's steps are shortened (`server.curvature`), 0
    for none; `curvature_damping` is the curvature, over its mean, at which they are halved.
    """

    kind: str = "core"
    rank: int = 8
    layers: int = 30
    damping: float = 0.01
    samples: int = 64
    sample_tokens: int = 112
    curvature: int = 0
    curvature_damping: float = 10.0


@dataclass(frozen=True)
class PrivacyConfig:
    """Give `noise_multiplier` (the mechanism) or `epsilon` (the cap that devices enforce, from which it follows).

    Both are allowed where they agree: the mechanism must fit under the cap. `delta` is the one of the cap.

    `unit` "record": a client is an organisation that holds many people's records. It trains under Opacus with
    `record_noise`, and the epsilon at `record_delta` that follows is the guarantee; what `noise_multiplier` adds to the
    sum is still accounted for, and claims little for an organisation as a whole.
    """

    noise_multiplier: float | None = None
    epsilon: float | None = None
    delta: float = 1e-6
    transport: str = "masked"
    unit: str = "user"
    record_noise: float = 1.0
    record_delta: float = 1e-5

    @property
    def by_record(self) -> bool:
        """Return whether the guarantee is that of single records."""
        return self.unit == "record"


@dataclass(frozen=True)
class LocalConfig:
    """A device's work in a round; see `client.train.CoreTraining`. `clip` bounds the whole answer.

    `together` people of a simulation take their one step in one pass through the model: many times faster where models
    and texts are small, and no longer the same to the last bit as on devices. Without `cohort`, local engine.
    """

    own_tokens: int = 96
    steps: int = 1
    step: float = 0.1
    sampling_rate: float = 1.0
    document_clip: float = 1.0
    clip: float = 0.08
    max_document_tokens: int = 256
    together: int = 1


@dataclass(frozen=True)
class ServerConfig:
    """The step on the mean, see `server.optimizer`: `adam`, `avg` (with momentum FedAvgM), or one's own module:Class.

    `learning_rate` of adam is the length of the first step, of avg what the mean is multiplied with; it falls linearly
    to `last_share` of itself. Unset, both follow from the rounds (`server.optimizer.schedule`). Personas always take
    FedAvg, at `persona_rate`.
    """

    kind: str = "avg"
    learning_rate: float | None = None
    momentum: float = 0.0
    last_share: float | None = None
    persona_rate: float = 2.5


@dataclass(frozen=True)
class OwnConfig:
    """The own adapters of the evaluation: for how many people, from how much of their text, in how many top layers."""

    people: int = 12
    tokens: int = 320
    rank: int = 8
    layers: int = 10
    epochs: int = 2
    record_epochs: int = 1
    learning_rate: float = 1e-3
    record_epsilon: float = 8.0
    record_delta: float = 1e-5


@dataclass(frozen=True)
class EvaluationConfig:
    """`test_tokens` own tokens a person at most; `held_out` people take no part and are scored alone."""

    test_tokens: int = 80
    held_out: int = 0
    retrieved: int = 2
    retrieved_tokens: int = 192


@dataclass(frozen=True)
class QueriesConfig:
    """What else a campaign asks, all under one budget; see `server.plan.CampaignPlan`.

    `objective` of the training rounds. With `personas`: `clustering` rounds of private k-means on portraits before
    training (`portrait`: how people write, what about, or both; see `client.figures.PublicTables`), after which the
    first `centred` persona rounds go by centroids and the others by `persona_choice`; `words` public words of `encoder`
    are counted per persona at the end, for its description. `declared` are personas by name, "nurse: cares for people;
    teacher: gives lessons", which people count themselves to. `measure` asks every device once how well the adapters
    serve it; with `choose_round` also after each training round, and the best is released. `retriever_rounds` train the
    retriever's core on embeddings of `encoder`, by `retriever_objective`.
    """

    objective: str = "next-token"
    persona_choice: str = "least-loss"
    clustering: int = 0
    centred: int = 1
    portrait: str = "style"
    encoder: str = "minilm"
    words: int = 0
    measure: bool = False
    retriever_rounds: int = 0
    retriever_objective: str = "retriever-distillation"
    declared: str = ""
    choose_round: bool = False


@dataclass(frozen=True)
class RunConfig:
    """Everything that defines a run; equal configurations on equal people are equal campaigns.

    `workers`, `cache_mb` (what a worker keeps at most of people's encoded text and of the frozen layers' outputs, in
    MiB) and `cluster` (the address of a Ray cluster) are for the machine: they change no bit of a release. With
    `quantize` int8 the frozen layers are held in eight bits.
    """

    people: str = "chitchat"
    max_people: int = 104
    model: str = "smollm2-135m"
    quantize: str = "none"
    rounds: int = 2
    cohort: int | None = None
    organisations: int = 0
    personas: int = 0
    seed: int = 0
    engine: str = "flower"
    workers: int | None = None
    cache_mb: int = 256
    cluster: str = ""
    dropout: float = 0.0
    scrub: bool = True
    compare_without_noise: bool = True
    federation: str = "simulation"
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    privacy: PrivacyConfig = field(default_factory=PrivacyConfig)
    local: LocalConfig = field(default_factory=LocalConfig)
    server: ServerConfig = field(default_factory=ServerConfig)
    queries: QueriesConfig = field(default_factory=QueriesConfig)
    own: OwnConfig = field(default_factory=OwnConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        _choice("adapter.kind", self.adapter.kind, KINDS)
        _choice("privacy.transport", self.privacy.transport, TRANSPORTS)
        _choice("engine", self.engine, ENGINES)
        _choice("quantize", self.quantize, QUANTIZED)
        for key, least in LEAST.items():
            value = self.value(key)
            if value is not None and value < least:
                raise ConfigError(f"{key} must be at least {least}, not {value}")
        for key, most in POSITIVE.items():
            value = self.value(key)
            if value is not None and not 0 < value <= most:
                raise ConfigError(f"{key} must be in (0, {most:g}], not {value}")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout must be in [0, 1), not {self.dropout}")
        if ":" not in self.server.kind or self.engine != "local":  # module:Class runs in this process alone
            _choice("server.kind", self.server.kind, ("adam", "avg"))
        _choice("privacy.unit", self.privacy.unit, ("record", "user"))
        _choice("queries.objective", self.queries.objective, TRAINS_A_CORE)
        _choice("queries.persona_choice", self.queries.persona_choice, CHOICES)
        _choice("queries.retriever_objective", self.queries.retriever_objective, TRAINS_A_RETRIEVER)
        _choice("queries.portrait", self.queries.portrait, ("both", "meaning", "style"))
        _choice("queries.encoder", self.queries.encoder, ("minilm", "hashed"))
        if self.personas == 1:
            raise ConfigError("personas must be 0 (none) or at least 2, not 1")
        if self.own.people == 1:
            raise ConfigError("own.people must be 0 or at least 2 (each is the wrong person of another), not 1")
        self.noise_multiplier()

    def check_together(self) -> None:
        """Raise ConfigError where `local.together` asks for what the other keys do not allow; a run does so first."""
        local = self.local
        alike = self.engine == "local" and self.cohort is None and not self.privacy.by_record
        if local.together > 1 and not (alike and local.steps == 1 and local.sampling_rate == 1.0):
            raise ConfigError(
                "local.together takes several people's step at once: only with engine=local, no cohort, "
                "privacy.unit=user, local.steps=1 and local.sampling_rate=1.0"
            )

    def value(self, key: str) -> Any:
        """Return the value of a dotted key."""
        found: Any = self
        for part in key.split("."):
            found = getattr(found, part)
        return found

    @property
    def participations(self) -> int:
        """Return how often one device may answer: a device may be drawn for every query of the campaign."""
        asked = self.queries
        measurements = asked.measure + self.rounds * asked.choose_round
        return self.rounds + asked.clustering + asked.retriever_rounds + bool(asked.words) + measurements

    def noise_multiplier(self) -> Fraction:
        """Return z, given or derived from the cap: the least z, in thousandths, whose rounds fit under it.

        Raises ConfigError where a given z does not fit under a given epsilon.
        """
        z, epsilon = self.privacy.noise_multiplier, self.privacy.epsilon
        if z is not None and z <= 0:
            raise ConfigError("privacy.noise_multiplier must be above 0; for no noise say privacy.transport=off")
        given = Fraction(str(z)) if z is not None else None
        if epsilon is None:
            return given if given is not None else Fraction(1)
        least = least_noise_multiplier(epsilon, self.privacy.delta, self.participations)
        if given is not None and given < least:
            raise ConfigError(
                f"privacy.noise_multiplier {z} over {self.participations} participations exceeds "
                f"privacy.epsilon {epsilon} at delta {self.privacy.delta}: give {float(least)} or more"
            )
        return given if given is not None else least

    def budget_rho(self) -> Fraction:
        """Return what the policy lets a device spend: the cap's zCDP, or exactly what the rounds cost."""
        if self.privacy.epsilon is not None:
            return rho_for_epsilon(self.privacy.epsilon, self.privacy.delta)
        return self.participations / (2 * self.noise_multiplier() ** 2)

    def flat(self) -> dict[str, Any]:
        """Return every key with its value, dotted."""
        return _flat(dataclasses.asdict(self))

    @property
    def campaign(self) -> str:
        """Return the campaign's id: equal for equal configurations, whatever the machine or number of workers."""
        parts = {k: "" if v is None else str(v) for k, v in self.flat().items() if k not in MACHINE}
        return "sim-" + sha256_hex(canonical_json(parts))[:16]


def declared_of(text: str) -> tuple[str, ...]:
    """Return the declared personas in a setting, "name: description" each, in the order of their slots."""
    return tuple(part.strip() for part in text.split(";") if part.strip())


def load_config(path: Path | None, settings: Sequence[str]) -> RunConfig:
    """Return the configuration of a TOML file (or the defaults) with `key=value` settings on top.

    Raises ConfigError that names the key, for unknown keys, wrong types and values that cannot be.
    """
    tree: dict[str, Any] = {}
    if path is not None:
        try:
            tree = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: {error}") from error
    config: RunConfig = settings_of(RunConfig, settings, tree)
    return config


def settings_of(kind: Any, settings: Sequence[str], tree: dict[str, Any] | None = None) -> Any:
    """Return the frozen dataclass `kind` from a tree of values with `key=value` settings on top; raises ConfigError."""
    tree = {} if tree is None else tree
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set takes key=value, not {setting!r}")
        _put(tree, key.strip(), _parsed(text.strip()))
    return _build(kind, tree, "")


def config_of(flat: Mapping[str, Any]) -> RunConfig:
    """Return the configuration whose `flat` this is, as a run's manifest holds it; raises ConfigError."""
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        if value is not None:
            _put(tree, key, value)
    config: RunConfig = _build(RunConfig, tree, "")
    return config


def _parsed(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _put(tree: dict[str, Any], key: str, value: Any) -> None:
    *folders, last = key.split(".")
    for folder in folders:
        tree = tree.setdefault(folder, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"{key}: {folder} holds a value, not settings")
    tree[last] = value


def _build(kind: Any, tree: Mapping[str, Any], prefix: str) -> Any:
    hints = typing.get_type_hints(kind)
    unknown = sorted(set(tree) - set(hints))
    if unknown:
        raise ConfigError(f"unknown key {prefix}{unknown[0]}; known: {', '.join(prefix + name for name in hints)}")
    values = {name: _value(hints[name], value, prefix + name) for name, value in tree.items()}
    return kind(**values)


def _value(kind: Any, value: Any, key: str) -> Any:
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{key} is a group of settings, not a value")
        return _build(kind, value, f"{key}.")
    kinds = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    if float in kinds and type(value) is int:
        return float(value)
    if type(value) not in kinds:
        wanted = " or ".join(k.__name__ for k in kinds if k is not type(None))
        raise ConfigError(f"{key} must be {wanted}, not {value!r}")
    return value


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _choice(key: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ConfigError(f"{key} must be one of {', '.join(allowed)}, not {value!r}")
