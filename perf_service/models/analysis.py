"""What the analyzer concludes: bottlenecks with a cause and evidence, SLO statuses, a health score."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from perf_service.models.config import EngineConfig
from perf_service.models.metrics import DataQuality, Engine
from perf_service.models.slo import Comparison, SLOTarget
from perf_service.models.window import Window

__all__ = [
    "Analysis",
    "Bottleneck",
    "BottleneckType",
    "BudgetState",
    "BurnRate",
    "Cause",
    "Comparison",
    "ErrorBudget",
    "Evidence",
    "EvidenceRole",
    "HealthPart",
    "HealthStatus",
    "PhaseShares",
    "SLOState",
    "SLOStatus",
    "SLOTarget",
    "Severity",
    "Verdict",
]


class BottleneckType(StrEnum):
    """The family of a bottleneck: what an operator sees."""

    HIGH_LATENCY = "high_latency"
    LOW_THROUGHPUT = "low_throughput"
    MEMORY_PRESSURE = "memory_pressure"
    QUEUE_BUILDUP = "queue_buildup"
    CACHE_INEFFICIENCY = "cache_inefficiency"
    BATCH_SIZE_SUBOPTIMAL = "batch_size_suboptimal"
    ERRORS = "errors"
    IMBALANCE = "imbalance"
    ENGINE_STALLED = "engine_stalled"
    CPU_BOUND = "cpu_bound"
    UNDERUTILIZATION = "underutilization"
    DATA_UNTRUSTED = "data_untrusted"


class Cause(StrEnum):
    """The named root cause behind a bottleneck."""

    BATCH_LIMIT = "batch_limit"  # the sequence limit binds while KV cache is free
    KV_EXHAUSTED = "kv_exhausted"
    TOKEN_BUDGET_TOO_SMALL = "token_budget_too_small"  # prefill starved by a small step budget
    TOKEN_BUDGET_TOO_LARGE = "token_budget_too_large"  # ITL spikes from prefill interference
    PREFILL_COMPUTE = "prefill_compute"
    DECODE_BOUND = "decode_bound"
    PREFIX_CACHE_OFF = "prefix_cache_off"
    PREFIX_CACHE_THRASHING = "prefix_cache_thrashing"
    HEAD_OF_LINE_BLOCKING = "head_of_line_blocking"
    WAITING_NOT_CAPACITY = "waiting_not_capacity"  # LoRA slots, KV transfer, grammar
    UNDER_ADMISSION = "under_admission"  # SGLang conservativeness too high
    RESERVATION_LIMIT = "reservation_limit"  # TGI worst-case token reservation
    CPU_OVERHEAD = "cpu_overhead"
    SPECULATION_NOT_PAYING = "speculation_not_paying"
    REPLICA_IMBALANCE = "replica_imbalance"
    OVERLOAD = "overload"  # no knob cures it: capacity
    REQUEST_ERRORS = "request_errors"
    REJECTIONS = "rejections"
    CLIENT_ABORTS = "client_aborts"
    ENGINE_HANG = "engine_hang"
    UPGRADE_REGRESSION = "upgrade_regression"
    UNDER_USE = "under_use"
    UNKNOWN = "unknown"


class Severity(StrEnum):
    """How bad for the operator's objectives."""

    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    CRITICAL = "critical"

    @property
    def rank(self) -> int:
        """0 (LOW) to 3 (CRITICAL), for ordering."""
        return ("low", "medium", "high", "critical").index(self.value)


class Verdict(StrEnum):
    """What to do about a finding."""

    TUNE = "tune"
    SCALE = "scale"
    RESTART = "restart"
    ROLL_BACK_UPGRADE = "roll_back_upgrade"
    LOOK_AT_CLIENT = "look_at_client"
    WAIT = "wait"
    NOTHING_TO_DO = "nothing_to_do"
    NOT_ENOUGH_EVIDENCE = "not_enough_evidence"


class EvidenceRole(StrEnum):
    """Which way a fact points."""

    FOR = "for"
    AGAINST = "against"


@dataclass(frozen=True, slots=True)
class Evidence:
    """One measured fact. `metric` is engine-neutral; `statistic` says how it was read (mean, p95, max, rate, delta, share, config)."""

    metric: str
    statistic: str
    value: float
    text: str  # one sentence for a person, with the number in it
    threshold: float | None = None
    unit: str = ""
    samples: float = 0.0
    window_seconds: float | None = None
    role: EvidenceRole = EvidenceRole.FOR


@dataclass(frozen=True, slots=True)
class Bottleneck:
    """One finding. The first of an analysis is the root cause; a symptom names its cause in `symptom_of`."""

    type: BottleneckType
    severity: Severity
    description: str
    metric_name: str
    current_value: float
    threshold_value: float
    recommendation: str
    cause: Cause = Cause.UNKNOWN
    verdict: Verdict = Verdict.TUNE
    confidence_ratio: float = 1.0
    evidence: tuple[Evidence, ...] = ()
    alternative: Cause | None = None  # next-best cause
    margin_ratio: float | None = None  # confidence minus the next-best cause's
    would_settle: str = ""  # the one fact that would separate this cause from the alternative
    symptom_of: Cause | None = None


class SLOState(StrEnum):
    """Result of holding a measurement against an objective."""

    MET = "met"
    MISSED = "missed"
    NOT_MEASURED = "not_measured"
    UNDECIDED = "undecided"  # measured, but the target lies inside a histogram bucket and so do the requests that would decide


class BudgetState(StrEnum):
    """What an error budget and its burn rates say together, worst first in `rank`."""

    OK = "ok"
    SLOW_BURN = "slow_burn"  # a ticket: 5 % of a 30-day budget in six hours
    FAST_BURN = "fast_burn"  # a page: 2 % of a 30-day budget in one hour
    EXHAUSTED = "exhausted"  # spent, and not burning fast now
    UNDECIDED = "undecided"  # the target lies inside a bucket, and its bounds disagree
    NOT_MEASURED = "not_measured"

    @property
    def rank(self) -> int:
        """0 (not measured) to 5 (fast burn), for ordering."""
        return ("not_measured", "ok", "undecided", "exhausted", "slow_burn", "fast_burn").index(self.value)


class HealthStatus(StrEnum):
    """The health score in one word; no score is never healthy."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    UNHEALTHY = "unhealthy"
    NO_LOAD = "no_load"  # nothing was asked of it: nothing can be said
    UNKNOWN = "unknown"  # not enough data


@dataclass(frozen=True, slots=True)
class PhaseShares:
    """Where the time of a latency objective went, as shares that add up to 1 where known."""

    queue_ratio: float
    prefill_ratio: float
    decode_ratio: float
    preemption_ratio: float = 0.0


@dataclass(frozen=True, slots=True)
class BurnRate:
    """How fast an error budget burns over a long and a short window; 1 uses up exactly the budget in its period.

    Rates are None where a window holds no request. Where the target lies inside a histogram bucket, `*_rate` is the certain lower
    bound and `*_rate_high` the upper one; else both are equal.
    """

    long_seconds: float
    short_seconds: float
    threshold: float
    long_rate: float | None = None
    short_rate: float | None = None
    long_rate_high: float | None = None
    short_rate_high: float | None = None
    covered_seconds: float = 0.0  # of the long window, what is known
    requests: float = 0.0  # in the long window
    alerting: bool = False  # both windows are certainly above the threshold: it is bad, and it still is


@dataclass(frozen=True, slots=True)
class ErrorBudget:
    """What an objective still allows: of `requests` in the known part of the period the share `1 - objective_ratio` may be bad."""

    objective_ratio: float
    period_seconds: float
    covered_seconds: float  # how much of the period is known
    requests: float
    bad_low: float  # bad requests for certain; equal to bad_high where the target is a bucket bound
    bad_high: float
    left_low: float | None = None  # share of the budget left, pessimistic bound; negative: overspent; None: no request
    left_high: float | None = None
    exhausted_in_seconds: float | None = None  # at the rate of the last hour, at the earliest; 0: it is; None: not at this rate
    burns: tuple[BurnRate, ...] = ()
    state: BudgetState = BudgetState.NOT_MEASURED
    message: str = ""


@dataclass(frozen=True, slots=True)
class SLOStatus:
    """One objective against what was measured."""

    target: SLOTarget
    state: SLOState
    current_value: float | None
    low: float | None = None  # bounds where the value was read off a histogram bucket
    high: float | None = None
    samples: float = 0.0
    attainment_ratio: float | None = None  # share of requests within the target value
    attainment_low: float | None = None
    attainment_high: float | None = None
    phases: PhaseShares | None = None  # attribution of a missed latency objective
    message: str = ""
    budget: ErrorBudget | None = None  # over the service's history; None for objectives without one (means, rates) or without a history

    @property
    def compliant(self) -> bool:
        """Whether the objective was measured and met."""
        return self.state is SLOState.MET

    @property
    def metric_name(self) -> str:
        """The objective's metric."""
        return self.target.metric_name

    @property
    def target_value(self) -> float:
        """The objective's target."""
        return self.target.target_value


@dataclass(frozen=True, slots=True)
class HealthPart:
    """One reason why the health score is below 100."""

    name: str
    penalty: float  # points taken off
    text: str


@dataclass(frozen=True, slots=True)
class Analysis:
    """The result of analyzing windows (or, weaker and flagged, one snapshot's lifetime totals)."""

    instance_id: str
    engine: Engine
    bottlenecks: tuple[Bottleneck, ...] = ()
    slo_statuses: tuple[SLOStatus, ...] = ()
    overall_health_score: float | None = 100.0  # 0..100; None: not enough evidence to say
    health_parts: tuple[HealthPart, ...] = ()
    verdict: Verdict = Verdict.NOTHING_TO_DO
    summary: str = ""  # one sentence for a tired on-call engineer
    window: Window | None = None  # the base of every number
    quality: DataQuality = field(default_factory=DataQuality)
    config: EngineConfig = field(default_factory=EngineConfig)
    engine_version: str = ""
    model_name: str = ""
    analysis_id: str = ""
    fleet_id: str = ""
    created_at: float = 0.0  # unix seconds; 0: not stored
    cause_confidences: Mapping[Cause, float] = field(default_factory=dict)
    health_status: HealthStatus = HealthStatus.UNKNOWN

    @property
    def instance_type(self) -> str:
        """The engine's name."""
        return self.engine.value

    @property
    def health_score(self) -> float | None:
        """Short name of `overall_health_score`."""
        return self.overall_health_score

    @property
    def root_cause(self) -> Bottleneck | None:
        """The first finding, if any."""
        return self.bottlenecks[0] if self.bottlenecks else None

    @property
    def recommendations(self) -> tuple[str, ...]:
        """The findings' recommendations in order."""
        return tuple(dict.fromkeys(b.recommendation for b in self.bottlenecks if b.recommendation))
