"""The rollout of a plan over a fleet: request, policy, state, events, outcome."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from perf_service.models.config import ConfigChange, EngineConfig
from perf_service.models.fleet import TargetSpec
from perf_service.models.metrics import Engine
from perf_service.models.plan import PredictedEffect
from perf_service.models.slo import SLOTarget


class WorkflowStatus(StrEnum):
    """Where a workflow stands. Output-only: transitions are verbs."""

    PENDING = "pending"
    COLLECTING = "collecting"
    ANALYZING = "analyzing"
    PLANNING = "planning"
    AWAITING_APPROVAL = "awaiting_approval"
    PREFLIGHT = "preflight"
    APPLYING = "applying"
    BAKING = "baking"
    DECIDING = "deciding"
    FINALIZING = "finalizing"
    ROLLING_BACK = "rolling_back"
    # terminal
    COMPLETED = "completed"
    NO_CHANGE = "no_change"  # nothing to roll out, with the reason
    FAILED = "failed"  # ended before any effect
    REJECTED = "rejected"  # by a person or by the approval's timeout
    CANCELLED = "cancelled"  # aborted before any effect
    ROLLED_BACK = "rolled_back"
    ROLLBACK_INCOMPLETE = "rollback_incomplete"  # needs an operator; the service keeps trying

    @property
    def terminal(self) -> bool:
        """Whether the state never changes again. ROLLBACK_INCOMPLETE still may become ROLLED_BACK."""
        return self in _TERMINAL


_TERMINAL = frozenset(
    {
        WorkflowStatus.COMPLETED, WorkflowStatus.NO_CHANGE, WorkflowStatus.FAILED, WorkflowStatus.REJECTED,
        WorkflowStatus.CANCELLED, WorkflowStatus.ROLLED_BACK,
    }
)  # fmt: skip


class Gate(StrEnum):
    """Orthogonal to the status: stops forward moves only, never a rollback."""

    OPEN = "open"
    PAUSED = "paused"  # by a person
    HELD = "held"  # by an inconclusive verdict or drift


class Judgement(StrEnum):
    """What a gate says of one sample or one stage."""

    PASS = "pass"
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"
    NO_DATA = "no_data"
    NOT_APPLICABLE = "not_applicable"  # a dry run changes nothing, so there is nothing to judge


@dataclass(frozen=True, slots=True)
class StagePolicy:
    """One step of a rollout. `percent` of the replicas (cumulative), at least one."""

    percent: float
    bake_seconds: float = 300.0
    min_samples: int = 5
    min_requests: int = 50
    requires_promotion: bool = False  # wait for PromoteWorkflow before the next stage


@dataclass(frozen=True, slots=True)
class RolloutPolicy:
    """How carefully to roll out. Defaults follow progressive-delivery practice."""

    stages: tuple[StagePolicy, ...] = (StagePolicy(10), StagePolicy(50), StagePolicy(100))
    sample_interval_seconds: float = 15.0
    warmup_seconds: float = 30.0  # cold caches and graph capture after a restart: samples inside are dropped
    # Hard limits: one breach ends the rollout at once.
    max_error_ratio: float = 0.05
    max_restarts: int = 0  # engine process restarts that we did not cause
    # SLO gates: `slo_failures` of the last `slo_window` samples beyond an objective that the baseline met.
    slo_failures: int = 3
    slo_window: int = 5
    # Relative gates against the replicas not yet changed, or the recorded baseline at 100 %.
    max_relative_regression_ratio: float = 0.20
    false_alarm_probability: float = 0.01
    hold_limit_seconds: float = 900.0  # HELD longer than this rolls back
    apply_timeout_seconds: float = 900.0  # start-up of one replica
    rollback_timeout_seconds: float = 1800.0
    approval_timeout_seconds: float = 86_400.0
    min_improvement_ratio: float = 0.0  # at the end: required improvement of the objective; 0 = no regression suffices
    max_exposure_percent: float | None = None  # refuse a first stage that exposes more than this
    max_parallel_applies: int = 1


@dataclass(frozen=True, slots=True)
class WorkflowRequest:
    """What to do. Without `plan_id` or `changes` the workflow collects, analyzes and optimizes by itself.

    `monitoring_duration_seconds` is the bake time of each stage when no policy is given.
    """

    instance_id: str = ""
    instance_type: str = "vllm"
    requires_approval: bool = True
    auto_rollout: bool = True
    monitoring_duration_seconds: float = 300.0
    fleet_id: str = ""
    plan_id: str = ""
    changes: tuple[ConfigChange, ...] = ()
    policy: RolloutPolicy | None = None
    slo_targets: tuple[SLOTarget, ...] = ()
    request_id: str = ""
    dry_run: bool = False
    requested_by: str = ""


class ReplicaPhase(StrEnum):
    """Where one replica stands within a rollout."""

    UNCHANGED = "unchanged"
    APPLYING = "applying"
    CONVERGED = "converged"
    RESTORING = "restoring"
    RESTORED = "restored"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class ReplicaProgress:
    """One replica's recorded previous config (immutable once set), desired config and phase."""

    instance_id: str
    phase: ReplicaPhase = ReplicaPhase.UNCHANGED
    previous_config: EngineConfig = field(default_factory=EngineConfig)
    previous_hash: str = ""
    desired_config: EngineConfig = field(default_factory=EngineConfig)
    desired_hash: str = ""
    observed_hash: str = ""
    generation: int = 0
    stage: int = -1  # index of the stage that changes it; -1: none yet
    converged_at: float | None = None
    attempts: int = 0
    message: str = ""
    restarts_before: int = 0  # unasked process restarts that were counted before the first effect


@dataclass(frozen=True, slots=True)
class MetricSample:
    """One comparison of a metric at one time: changed replicas (canary) against unchanged ones (baseline)."""

    metric: str  # "ttft_seconds_mean", "error_ratio", ...
    canary: float | None
    baseline: float | None
    limit: float | None = None  # absolute bound where one applies
    judgement: Judgement = Judgement.NO_DATA
    text: str = ""


@dataclass(frozen=True, slots=True)
class StageSample:
    """One sample of a bake: its window lies wholly after convergence and warm-up."""

    start: float
    end: float
    canary_requests: float
    baseline_requests: float
    metrics: tuple[MetricSample, ...] = ()
    judgement: Judgement = Judgement.NO_DATA
    text: str = ""


@dataclass(frozen=True, slots=True)
class StageRecord:
    """One entry of the rollout history."""

    index: int
    percent: float
    replicas: tuple[str, ...]  # changed once the stage is done (cumulative)
    exposure_percent: float  # the real share, after rounding up to whole replicas
    started_at: float
    finished_at: float | None = None
    judgement: Judgement = Judgement.NO_DATA
    samples: int = 0
    requests: float = 0.0
    health_score: float | None = None
    message: str = ""


@dataclass(frozen=True, slots=True)
class Approval:
    """A decision of a person, bound to what was shown."""

    approved: bool
    by: str
    at: float
    plan_hash: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class RealisedEffect:
    """One metric before the rollout and after it, measured, beside what was predicted."""

    metric: str
    before: float
    after: float
    ratio: float  # after / before
    before_samples: float
    after_samples: float
    predicted_ratio: float | None = None
    predicted_low: float | None = None
    predicted_high: float | None = None
    within_prediction: bool | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the change really did. `comparable` is False where the workload's mix shifted, with the reason."""

    effects: tuple[RealisedEffect, ...] = ()
    comparable: bool = True
    summary: str = ""


@dataclass(frozen=True, slots=True)
class Workflow:
    """A rollout's whole state: what the store keeps and the reconciler reads."""

    workflow_id: str
    request: WorkflowRequest
    engine: Engine
    status: WorkflowStatus = WorkflowStatus.PENDING
    gate: Gate = Gate.OPEN
    fleet_id: str = ""  # the instance's own id where it belongs to no fleet
    instance_id: str = ""
    target: TargetSpec = field(default_factory=TargetSpec)
    policy: RolloutPolicy = field(default_factory=RolloutPolicy)
    slo_targets: tuple[SLOTarget, ...] = ()
    analysis_id: str = ""
    plan_id: str = ""
    plan_hash: str = ""
    changes: tuple[ConfigChange, ...] = ()
    predicted_effects: tuple[PredictedEffect, ...] = ()
    expected_losers: tuple[str, ...] = ()
    stage_index: int = -1
    replicas: tuple[ReplicaProgress, ...] = ()
    rollout_history: tuple[StageRecord, ...] = ()
    samples: tuple[StageSample, ...] = ()  # of the present stage
    approval: Approval | None = None
    approval_deadline: float | None = None
    dry_run: bool = False  # the target changes nothing: stages are walked, not judged
    phase_started_at: float | None = None
    phase_deadline: float | None = None  # absolute: a restart neither extends nor shortens it
    bake_started_at: float | None = None
    held_since: float | None = None
    paused_at: float | None = None
    paused_seconds: float = 0.0  # of the present bake: its clock stops while paused
    baseline: Mapping[str, float] = field(default_factory=dict)  # metric -> value before the first effect
    baseline_samples: Mapping[str, float] = field(default_factory=dict)
    promoted_through: int = -1  # highest stage index a person has promoted past
    abort_requested: str = ""  # reason; empty: none
    effects_started: bool = False  # a target was (or may have been) touched
    initial_health_score: float | None = None
    final_health_score: float | None = None
    outcome: Outcome | None = None
    failure_reason: str = ""  # ErrorReason or gate name
    message: str = ""  # one sentence for a person
    created_at: float = 0.0
    updated_at: float = 0.0
    finished_at: float | None = None
    version: int = 0  # optimistic lock
    fence: int = 0  # of the lease under which it was last written
    last_sequence: int = 0

    @property
    def instance_type(self) -> str:
        """The engine's name."""
        return self.engine.value

    @property
    def approved(self) -> bool | None:
        """The decision, None while there is none."""
        return self.approval.approved if self.approval else None

    @property
    def approved_by(self) -> str | None:
        """Who decided."""
        return self.approval.by if self.approval else None


class EventKind(StrEnum):
    """Kinds of workflow events; `Event.data` holds the kind's own fields."""

    STATE_CHANGED = "state_changed"
    ANALYZED = "analyzed"
    PLANNED = "planned"
    APPROVAL_REQUESTED = "approval_requested"
    APPROVAL_DECIDED = "approval_decided"
    STAGE_STARTED = "stage_started"
    REPLICA_CHANGED = "replica_changed"
    SAMPLE_TAKEN = "sample_taken"
    STAGE_JUDGED = "stage_judged"
    GATE_CHANGED = "gate_changed"
    ROLLBACK_STARTED = "rollback_started"
    ROLLBACK_VERIFIED = "rollback_verified"
    OUTCOME_MEASURED = "outcome_measured"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Event:
    """One entry of a workflow's gap-free history. `status` and `gate` are those after the event.

    Typed payloads ride along where the kind has one; the rest are None.
    """

    workflow_id: str
    sequence: int  # 1, 2, 3, ... without gaps
    at: float  # unix seconds
    kind: EventKind
    status: WorkflowStatus
    gate: Gate
    message: str
    reason: str = ""
    stage: StageRecord | None = None
    replica: ReplicaProgress | None = None
    sample: StageSample | None = None
    approval: Approval | None = None
    outcome: Outcome | None = None
    previous_status: WorkflowStatus | None = None
    details: Mapping[str, str] = field(default_factory=dict)
