"""What the optimizer proposes: candidates with exact changes, predictions with intervals, one merged plan."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from perf_service.models.analysis import Cause, Evidence, Severity
from perf_service.models.config import ConfigChange, EngineConfig
from perf_service.models.fleet import Hardware
from perf_service.models.metrics import Engine
from perf_service.models.slo import SLOTarget


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with the interval that is meant to hold the truth in `coverage_ratio` of the cases."""

    value: float
    low: float
    high: float
    coverage_ratio: float = 0.9


@dataclass(frozen=True, slots=True)
class LatencyEstimate:
    """A latency distribution in seconds."""

    mean: Estimate
    p50: Estimate | None = None
    p95: Estimate | None = None
    p99: Estimate | None = None


class Calibration(StrEnum):
    """What a prediction stands on, strongest first."""

    FITTED = "fitted"  # coefficients fitted from this instance's windows, candidate inside what was observed
    EXTRAPOLATED = "extrapolated"  # fitted, but the candidate lies outside what was observed
    PRIOR = "prior"  # hardware roofline or engine-typical values only
    NONE = "none"  # cannot be predicted; says why


@dataclass(frozen=True, slots=True)
class Prediction:
    """Predicted steady state of one instance under a config and its present workload. Fields are None where not predictable."""

    config: EngineConfig
    calibration: Calibration
    throughput_tokens_per_second: Estimate | None = None
    requests_per_second: Estimate | None = None
    ttft_seconds: LatencyEstimate | None = None
    itl_seconds: LatencyEstimate | None = None
    tpot_seconds: LatencyEstimate | None = None
    e2e_seconds: LatencyEstimate | None = None
    queue_seconds: LatencyEstimate | None = None
    preemptions_per_second: Estimate | None = None
    kv_cache_usage_ratio: Estimate | None = None
    running_requests: Estimate | None = None
    notes: tuple[str, ...] = ()  # assumptions, and why something is missing


class Direction(StrEnum):
    """What a change does to a metric, as the operator sees it."""

    IMPROVES = "improves"
    WORSENS = "worsens"
    UNCHANGED = "unchanged"


@dataclass(frozen=True, slots=True)
class PredictedEffect:
    """One metric before and after a change; `ratio` is after / before."""

    metric: str  # engine-neutral with statistic: "ttft_seconds_mean", "throughput_tokens_per_second"
    direction: Direction
    before: Estimate
    after: Estimate
    ratio: Estimate


class OptimizerKind(StrEnum):
    """Which optimizer proposed a candidate."""

    KV_CACHE = "kv_cache"
    BATCHING = "batching"
    QUANTIZATION = "quantization"


@dataclass(frozen=True, slots=True)
class Optimization:
    """One candidate: exact changes for that engine and version with evidence, predicted effect, risks and way back.

    Without `config_changes` it is advice (another replica, tensor parallelism, migration), never rolled out.
    """

    optimizer: OptimizerKind
    title: str
    description: str
    config_changes: tuple[ConfigChange, ...] = ()
    cause: Cause = Cause.UNKNOWN
    expected_impact: Severity = Severity.MEDIUM
    evidence: tuple[Evidence, ...] = ()
    effects: tuple[PredictedEffect, ...] = ()  # includes what it is expected to worsen
    expected_losers: tuple[str, ...] = ()  # metrics that it is expected to worsen, for guardrails
    risks: tuple[str, ...] = ()
    prerequisites: tuple[str, ...] = ()
    rollback: str = ""
    needs_restart: bool = True
    restart_cost: str = ""
    needs_quality_gate: bool = False  # precision changes: never without approval
    confidence_ratio: float = 0.5

    @property
    def advice_only(self) -> bool:
        """Whether nothing would be changed by a rollout."""
        return not self.config_changes


@dataclass(frozen=True, slots=True)
class ObjectiveForecast:
    """One objective of the operator under a set of changes."""

    target: SLOTarget
    value: Estimate | None = None  # in the unit of the target; of the no-op: as measured. None: not predictable
    met: bool | None = None  # judged by the value itself, of the no-op as measured; None: not known


@dataclass(frozen=True, slots=True)
class PlanOption:
    """One way to go that was weighed: some changes, or none at all (the no-op)."""

    changes: tuple[ConfigChange, ...] = ()  # empty: the no-op
    objectives: tuple[ObjectiveForecast, ...] = ()
    benefit: float = 0.0  # weighted natural log of the predicted improvement less the risk; of the no-op 0
    chosen: bool = False
    note: str = ""  # why it is not taken


@dataclass(frozen=True, slots=True)
class Plan:
    """Ordered optimizations merged into one consistent config, with the no-op beside it."""

    engine: Engine
    optimizations: tuple[Optimization, ...] = ()
    advice: tuple[Optimization, ...] = ()  # what would help but is no config change
    changes: tuple[ConfigChange, ...] = ()  # merged: what a rollout applies
    current_config: EngineConfig = field(default_factory=EngineConfig)
    proposed_config: EngineConfig = field(default_factory=EngineConfig)
    diff: str = ""  # unified, one knob a line
    command_line: str = ""  # the proposed config in the engine's own flags
    baseline: Prediction | None = None  # the no-op
    prediction: Prediction | None = None  # the merged plan
    effects: tuple[PredictedEffect, ...] = ()
    estimated_total_improvement: str = "none: nothing to change"
    instance_id: str = ""
    fleet_id: str = ""
    engine_version: str = ""
    hardware: Hardware = field(default_factory=Hardware)
    analysis_id: str = ""
    plan_id: str = ""
    plan_hash: str = ""
    summary: str = ""
    options: tuple[PlanOption, ...] = ()  # what was weighed, best first; the no-op is always among them
    created_at: float = 0.0
    expires_at: float = 0.0  # 0: never

    @property
    def instance_type(self) -> str:
        """The engine's name."""
        return self.engine.value

    @property
    def priority_order(self) -> tuple[str, ...]:
        """Titles in the order of predicted benefit over risk."""
        return tuple(o.title for o in self.optimizations)

    @property
    def empty(self) -> bool:
        """Whether a rollout would change nothing."""
        return not self.changes


def plan_hash(engine: Engine, engine_version: str, changes: tuple[ConfigChange, ...]) -> str:
    """Hex SHA-256 over what a rollout would do; an approval is bound to it."""
    body: Mapping[str, object] = {
        "engine": engine.value,
        "engine_version": engine_version,
        "changes": sorted([c.parameter, repr(c.current_value), repr(c.recommended_value)] for c in changes),
    }
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


class KnobType(StrEnum):
    """Value type of a knob."""

    BOOL = "bool"
    INT = "int"
    FLOAT = "float"
    ENUM = "enum"
    STRING = "string"


@dataclass(frozen=True, slots=True)
class Knob:
    """One engine flag of the catalogue."""

    engine: Engine
    name: str
    flag: str
    type: KnobType
    group: OptimizerKind
    description: str
    default: str = ""  # as documented; may depend on hardware
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    negative_flag: str = ""  # e.g. --no-enable-prefix-caching
    since: str = ""  # first engine version known to have it; empty: older than the catalogue
    removed: str = ""  # first version known not to have it
    needs_restart: bool = True
    min_compute_capability: str = ""
    conflicts: tuple[str, ...] = ()
    trades: str = ""
    tunable: bool = True  # whether the optimizer may propose it by itself
    env: str = ""  # the environment variable that sets it, where the engine has one
