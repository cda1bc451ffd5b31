"""Drives the pure machine over a tiny fleet of dictionaries: no store, no clock, no engine. Checks every decision's invariants."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from perf_service.models.analysis import Analysis
from perf_service.models.config import ConfigChange, EngineConfig, Source, config_hash
from perf_service.models.errors import ErrorReason
from perf_service.models.metrics import Engine
from perf_service.models.plan import Plan, plan_hash
from perf_service.models.workflow import (
    Event,
    Gate,
    Judgement,
    MetricSample,
    ReplicaPhase,
    ReplicaProgress,
    RolloutPolicy,
    StagePolicy,
    StageRecord,
    StageSample,
    Workflow,
    WorkflowRequest,
    WorkflowStatus,
)
from perf_service.targets.base import Capabilities, FleetState, PreflightReport, ReplicaState
from perf_service.workflows.gates import is_concurrent
from perf_service.workflows.invariants import violations
from perf_service.workflows.machine import command, decide, wants_sample
from perf_service.workflows.measures import COMPARED, ERROR_RATIO
from perf_service.workflows.stages import next_sample_at, settled_at
from perf_service.workflows.types import ApplyReplica, Command, Decision, Measured, Observation, Problem

OLD = EngineConfig.of({"max_num_seqs": 2, "enable_prefix_caching": True})
CHANGE = ConfigChange("max_num_seqs", 2, 64, current_source=Source.USER)
NEW = OLD.with_changes((CHANGE,))
S = WorkflowStatus


def policy(**changes: object) -> RolloutPolicy:
    """10/50/100 %, 60 s each, a sample every 10 s."""
    stages = tuple(StagePolicy(p, bake_seconds=60.0, min_samples=4, min_requests=40) for p in (10.0, 50.0, 100.0))
    return replace(RolloutPolicy(stages=stages, sample_interval_seconds=10.0, warmup_seconds=5.0, hold_limit_seconds=50.0), **changes)  # type: ignore[arg-type]


def workflow(*, dry_run: bool = False, approval: bool = False, rollout: RolloutPolicy | None = None, **changes: object) -> Workflow:
    """A new workflow over the fleet f1."""
    request = WorkflowRequest(fleet_id="f1", requires_approval=approval)
    made = Workflow("wf-1", request, Engine.VLLM, fleet_id="f1", policy=rollout or policy(), dry_run=dry_run, created_at=0.0)
    return replace(made, **changes)  # type: ignore[arg-type]


def baking(*, replicas: int = 4, changed: int = 1, **changes: object) -> Workflow:
    """A workflow in its first bake."""
    progress = tuple(
        ReplicaProgress(
            f"r{i}", ReplicaPhase.CONVERGED if i < changed else ReplicaPhase.UNCHANGED, previous_hash="a", stage=0 if i < changed else -1
        )
        for i in range(replicas)
    )
    made = workflow(status=S.BAKING, stage_index=0, replicas=progress, bake_started_at=0.0, effects_started=True)
    made = replace(made, rollout_history=(StageRecord(0, 10, ("r0",), 25.0, 0.0),), baseline=dict.fromkeys(COMPARED, 0.5))
    return replace(made, **changes)  # type: ignore[arg-type]


def sample(
    start: float, end: float, *, ratio: float = 1.0, errors: float = 0.0, requests: float = 50.0, baseline: float = 0.5
) -> StageSample:
    """A sample in which every latency of the canary is `ratio` times the baseline's."""
    if requests <= 0:
        return StageSample(start, end, 0.0, 0.0, (), Judgement.NO_DATA, "no request ended")
    metrics = [MetricSample(key, baseline * ratio, baseline, None, Judgement.PASS) for key in COMPARED]
    metrics.append(MetricSample(ERROR_RATIO, errors, 0.0, None, Judgement.PASS))
    return StageSample(start, end, requests, requests, tuple(metrics), Judgement.PASS)


@dataclass
class Machine:
    """The workflow with the little world around it."""

    workflow: Workflow
    now: float = 1000.0
    configs: dict[str, EngineConfig] = field(default_factory=dict)
    ready: dict[str, bool] = field(default_factory=dict)
    restarts: dict[str, int] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    applied: list[tuple[str, str]] = field(default_factory=list)
    accepted: set[str] = field(default_factory=set)
    failures: tuple[Problem, ...] = ()
    # What the world does next
    ratio: float = 1.0
    errors: float = 0.0
    requests: float = 50.0
    metrics_work: bool = True
    target_works: bool = True
    refuse: Problem | None = None
    carry_out: bool = True  # False: actions are lost, as in a crash between recording and acting
    plan: Plan | None = None
    preflight: PreflightReport = field(default_factory=PreflightReport)
    before: Measured | None = None
    after: Measured | None = None

    @classmethod
    def of(cls, made: Workflow, replicas: int = 4) -> Machine:
        """A fleet of replicas with the old config."""
        names = [f"r{i}" for i in range(replicas)]
        machine = cls(made)
        machine.configs = dict.fromkeys(names, OLD)
        machine.ready = dict.fromkeys(names, True)
        machine.restarts = dict.fromkeys(names, 0)
        changes = (CHANGE,)
        machine.plan = Plan(Engine.VLLM, changes=changes, plan_id="plan-1", plan_hash=plan_hash(Engine.VLLM, "", changes))
        values = dict.fromkeys(COMPARED, 0.5) | {"requests_per_second": 5.0, ERROR_RATIO: 0.0}
        machine.before = Measured(0.0, 60.0, values, dict.fromkeys(values, 300.0))
        machine.after = machine.before
        return machine

    @property
    def status(self) -> WorkflowStatus:
        return self.workflow.status

    def is_at(self, status: WorkflowStatus) -> bool:
        """Whether the workflow is in that state now."""
        return self.workflow.status is status

    def gate_is(self, gate: Gate) -> bool:
        """Whether its gate is that one now."""
        return self.workflow.gate is gate

    def fleet(self) -> FleetState:
        """As the target would be observed."""
        states = [
            ReplicaState(n, f"http://{n}", c, config_hash(c), 0, self.ready[n], restarts=self.restarts[n]) for n, c in self.configs.items()
        ]
        return FleetState(tuple(states), self.now, Capabilities(changes_anything=not self.workflow.dry_run))

    def observe(self) -> Observation:
        """What the phase looks at."""
        status = self.status
        seen = Observation(failures=self.failures, accepted=frozenset(self.accepted))
        if status in (S.COLLECTING, S.PREFLIGHT):
            refused = (Problem(ErrorReason.ENDPOINT_UNREACHABLE, "connection refused"),)
            seen = replace(seen, pages=8, covered_seconds=600.0) if self.metrics_work else replace(seen, collect_problems=refused)
        if status is S.ANALYZING:
            seen = replace(seen, analysis=Analysis("f1", Engine.VLLM, overall_health_score=40.0, analysis_id="an-1"))
        if status is S.PLANNING:
            seen = replace(seen, plan=self.plan)
        if status in (S.PREFLIGHT, S.APPLYING, S.BAKING, S.DECIDING, S.FINALIZING, S.ROLLING_BACK, S.ROLLBACK_INCOMPLETE):
            down = Problem(ErrorReason.TARGET_UNAVAILABLE, "the target does not answer")
            seen = replace(seen, fleet=self.fleet()) if self.target_works else replace(seen, fleet_problem=down)
        if status is S.PREFLIGHT:
            seen = replace(seen, preflight=self.preflight, measured=self.before)
        if wants_sample(self.workflow, self.now):
            seen = replace(seen, sample=self._sample())
        if status is S.FINALIZING:
            seen = replace(seen, measured=self.after, health_score=90.0)
        return seen

    def step(self, seconds: float = 0.0) -> Decision:
        """Time passes, then one decision; its effects happen at once unless `carry_out` is off."""
        self.now += seconds
        decision = decide(self.workflow, self.observe(), self.now)
        self._take(decision)
        self.failures = ()
        if self.carry_out:
            self._act(decision)
        return decision

    def command(self, order: Command) -> Workflow:
        """A person's command."""
        self._take(command(self.workflow, order, self.now))
        return self.workflow

    def run(self, *, until: WorkflowStatus | None = None, seconds: float = 10.0, limit: int = 400) -> Workflow:
        """Steps until a status, or the end. Between two steps without a transition time passes."""
        for _ in range(limit):
            if self.status is until or self.status.terminal:
                return self.workflow
            before = self.status
            self.step()
            if self.status is before:
                due = next_sample_at(self.workflow)
                self.now = due if due is not None and due > self.now else self.now + seconds
        raise AssertionError(f"still {self.status.value} ({self.workflow.gate.value}) after {limit} steps: {self.workflow.message}")

    def crash(self) -> None:
        """Everything but the stored state is forgotten."""
        self.accepted, self.failures = set(), ()

    def _sample(self) -> StageSample:
        start = self.workflow.samples[-1].end if self.workflow.samples else settled_at(self.workflow) or self.now
        if self.workflow.dry_run:
            judgement = Judgement.NOT_APPLICABLE if self.metrics_work else Judgement.NO_DATA
            return StageSample(start, self.now, 0.0, 0.0, (), judgement)
        made = sample(start, self.now, ratio=self.ratio, errors=self.errors, requests=self.requests if self.metrics_work else 0.0)
        return made if is_concurrent(self.workflow) else replace(made, baseline_requests=0.0)

    def _take(self, decision: Decision) -> None:
        assert violations(self.workflow, decision) == ()
        if decision.moved:
            self.workflow = replace(decision.workflow, version=self.workflow.version + 1)
            self.events += decision.events

    def _act(self, decision: Decision) -> None:
        failures = []
        for action in decision.actions:
            if self.refuse is not None:
                failures.append(replace(self.refuse, instance_id=action.instance_id))
                continue
            if action.instance_id not in self.configs:
                failures.append(Problem(ErrorReason.INSTANCE_NOT_FOUND, "no such replica", True, action.instance_id))
                continue
            self.accepted.add(action.op_id)
            desired = action.desired if isinstance(action, ApplyReplica) else action.recorded
            if self.configs[action.instance_id] != desired and not self.workflow.dry_run:
                self.applied.append((action.op_id, action.instance_id))
                self.configs[action.instance_id] = desired
            self.ready[action.instance_id] = True
        self.failures = tuple(failures)
