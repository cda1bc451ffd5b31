"""From PENDING to the first effect: collect, analyze, plan, approval, preflight. Nothing here touches a replica."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from perf_service.models.config import ConfigChange, EngineConfig, KnobValue, Source, config_hash
from perf_service.models.errors import ErrorReason
from perf_service.models.plan import Plan, plan_hash
from perf_service.models.workflow import EventKind, Gate, ReplicaProgress, StageRecord, Workflow, WorkflowStatus
from perf_service.targets.base import FleetState, ReplicaState
from perf_service.workflows.draft import Draft
from perf_service.workflows.stages import (
    PREPARATION_GRACE_SECONDS,
    UNREACHABLE_SECONDS,
    baseline_seconds,
    exposure_percent,
    listed,
    stage_members,
    stage_size,
)
from perf_service.workflows.types import Observation, Problem

_TOLD = frozenset({Source.USER, Source.LAUNCH_ARGS, Source.SERVER_INFO})


def pending(draft: Draft, _: Observation) -> None:
    """PENDING -> COLLECTING."""
    seconds = baseline_seconds(draft.workflow)
    draft.move(
        WorkflowStatus.COLLECTING,
        f"collecting metrics for {seconds:g} s",
        deadline=draft.now + seconds + PREPARATION_GRACE_SECONDS,
    )


def collecting(draft: Draft, seen: Observation) -> None:
    """COLLECTING -> ANALYZING, or PLANNING where the request brings the change; FAILED where no engine answers."""
    workflow = draft.workflow
    problem = next((p for p in seen.collect_problems if p.permanent), seen.collect_problems[0] if seen.collect_problems else None)
    if not seen.pages:
        waited = draft.now - (workflow.phase_started_at or draft.now)
        if problem and (problem.permanent or waited >= UNREACHABLE_SECONDS):
            draft.move(WorkflowStatus.FAILED, f"no metrics could be collected: {problem.message}", reason=problem.reason)
        elif _late(draft):
            draft.move(
                WorkflowStatus.FAILED, "no metrics could be collected: there is nothing to scrape", reason=ErrorReason.NOT_ENOUGH_DATA
            )
        return
    if not _covered(draft, seen):
        return
    if problem:
        draft.emit(EventKind.WARNING, problem.message, reason=problem.reason.value, details={"instance_id": problem.instance_id})
    text = f"{seen.pages} pages over {seen.covered_seconds:.3g} s"
    if workflow.request.plan_id or workflow.request.changes:
        draft.move(WorkflowStatus.PLANNING, f"{text}; the change is given", deadline=draft.now + PREPARATION_GRACE_SECONDS)
    else:
        draft.move(WorkflowStatus.ANALYZING, f"{text}; analyzing", deadline=draft.now + PREPARATION_GRACE_SECONDS)


def analyzing(draft: Draft, seen: Observation) -> None:
    """ANALYZING -> PLANNING."""
    analysis = seen.analysis
    if analysis is None:
        _fail_on(draft, seen.problem, "the analysis failed")
        return
    score = analysis.overall_health_score
    draft.set(analysis_id=analysis.analysis_id, initial_health_score=score, final_health_score=score)
    root = analysis.root_cause
    found = f"{root.cause.value}: {root.description}" if root else "no bottleneck found"
    details = {"analysis_id": analysis.analysis_id, "health_score": "" if score is None else f"{score:g}"}
    draft.emit(EventKind.ANALYZED, analysis.summary or found, details=details)
    draft.move(WorkflowStatus.PLANNING, found, deadline=draft.now + PREPARATION_GRACE_SECONDS)


def planning(draft: Draft, seen: Observation) -> None:
    """PLANNING -> AWAITING_APPROVAL or PREFLIGHT; NO_CHANGE where there is nothing to roll out."""
    workflow = draft.workflow
    if workflow.request.changes and not workflow.request.plan_id:
        changes = workflow.request.changes
        draft.set(changes=changes, plan_hash=plan_hash(workflow.engine, "", changes))
        if seen.plan is not None:  # a prediction for the given changes
            _take_hypothesis(draft, seen.plan)
        draft.emit(EventKind.PLANNED, f"given: {_changes_text(changes)}", details={"plan_hash": draft.workflow.plan_hash})
        _ask(draft, needs_quality_gate=False)
        return
    plan = seen.plan
    if plan is None:
        _fail_on(draft, seen.problem, "no plan could be made")
        return
    if plan.expires_at and draft.now > plan.expires_at:
        draft.move(WorkflowStatus.FAILED, f"plan {plan.plan_id} has expired: make a new one", reason=ErrorReason.PLAN_STALE)
        return
    if plan.engine is not workflow.engine:
        text = f"plan {plan.plan_id} is for {plan.engine.value}, the fleet runs {workflow.engine.value}"
        draft.move(WorkflowStatus.FAILED, text, reason=ErrorReason.ENGINE_MISMATCH)
        return
    draft.set(plan_id=plan.plan_id)
    if plan.empty:
        draft.move(WorkflowStatus.NO_CHANGE, plan.summary or "nothing to change: no safe config change would help", reason="no_change")
        return
    draft.set(
        changes=plan.changes,
        plan_hash=plan.plan_hash or plan_hash(plan.engine, plan.engine_version, plan.changes),
    )
    _take_hypothesis(draft, plan)
    details = {"plan_id": plan.plan_id, "plan_hash": draft.workflow.plan_hash, "improvement": plan.estimated_total_improvement}
    draft.emit(EventKind.PLANNED, _changes_text(plan.changes), details=details)
    _ask(draft, needs_quality_gate=any(o.needs_quality_gate and o.config_changes for o in plan.optimizations))


def awaiting_approval(draft: Draft, _: Observation) -> None:
    """AWAITING_APPROVAL -> PREFLIGHT once approved, REJECTED when the time is up (a pause does not prolong it)."""
    workflow = draft.workflow
    if workflow.approval and workflow.approval.approved:
        if workflow.gate is Gate.OPEN:
            to_preflight(draft, f"approved by {workflow.approval.by}")
    elif workflow.approval_deadline is not None and draft.now >= workflow.approval_deadline:
        draft.move(WorkflowStatus.REJECTED, "nobody approved in time", reason="approval_timeout")


def preflight(draft: Draft, seen: Observation) -> None:
    """PREFLIGHT -> APPLYING(0): every replica's full config is recorded before the first effect, or nothing is done at all."""
    workflow = draft.workflow
    problem = seen.fleet_problem or seen.problem
    if seen.fleet is None or (problem and not seen.preflight):
        _fail_on(draft, problem, "the target did not answer")
        return
    if not _covered(draft, seen):
        return
    text, reason = _refusal(workflow, seen.fleet)
    if not text and seen.preflight is not None and seen.preflight.problems:
        text, reason = "; ".join(seen.preflight.problems), ErrorReason.TARGET_APPLY_FAILED
    if text:
        draft.move(WorkflowStatus.FAILED, f"refused before any change: {text}", reason=reason)
        return
    replicas = tuple(_recorded(replica, workflow.changes) for replica in sorted(seen.fleet.replicas, key=lambda r: r.instance_id))
    if all(r.desired_hash == r.previous_hash for r in replicas):
        text = f"nothing to change: every replica runs with {_changes_text(workflow.changes)} already"
        draft.move(WorkflowStatus.NO_CHANGE, text, reason="no_change")
        return
    draft.set(replicas=replicas, dry_run=workflow.dry_run or not seen.fleet.capabilities.changes_anything)
    if seen.measured is not None:
        draft.set(baseline=dict(seen.measured.values), baseline_samples=dict(seen.measured.samples))
    for note in seen.preflight.notes if seen.preflight else ():
        draft.emit(EventKind.WARNING, note, reason="preflight")
    start_stage(draft, 0)


def start_stage(draft: Draft, index: int) -> None:
    """Begin stage `index`: its record, its event and the transition to APPLYING. The caller has checked that it may."""
    workflow = draft.workflow
    members = stage_members(workflow, index)
    stage = workflow.policy.stages[index]
    exposure = exposure_percent(len(members), len(workflow.replicas))
    record = StageRecord(index, stage.percent, tuple(r.instance_id for r in members), exposure, draft.now)
    draft.set(
        stage_index=index,
        samples=(),
        bake_started_at=None,
        paused_seconds=0.0,
        held_since=None,
    )
    draft.stage(record)
    new = [r.instance_id for r in members if r.stage < 0]
    what = f"changing {listed(new)}" if new else "no further replica, judged once more"
    text = f"stage {index + 1} of {len(workflow.policy.stages)} ({stage.percent:g} %, real exposure {exposure:.0f} %): {what}"
    deadline = draft.now + workflow.policy.apply_timeout_seconds
    draft.move(WorkflowStatus.APPLYING, f"dry run, would do: {text}" if workflow.dry_run else text, deadline=deadline)
    draft.emit(EventKind.STAGE_STARTED, draft.workflow.message, stage=record)


def to_preflight(draft: Draft, message: str) -> None:
    """Enter PREFLIGHT."""
    deadline = draft.now + baseline_seconds(draft.workflow) + PREPARATION_GRACE_SECONDS
    draft.move(WorkflowStatus.PREFLIGHT, message, deadline=deadline)


def config_with(current: EngineConfig, changes: tuple[ConfigChange, ...]) -> EngineConfig:
    """What a replica is to run with."""
    return current.with_changes(changes)


def _covered(draft: Draft, seen: Observation) -> bool:
    """Whether the range asked for is measured; past the deadline what there is must do."""
    return seen.covered_seconds >= 0.9 * baseline_seconds(draft.workflow) or _late(draft)


def _late(draft: Draft) -> bool:
    return draft.workflow.phase_deadline is not None and draft.now >= draft.workflow.phase_deadline


def _fail_on(draft: Draft, problem: Problem | None, text: str) -> None:
    """FAILED for a permanent problem or past the deadline; otherwise wait for the next tick."""
    if problem and problem.permanent:
        draft.move(WorkflowStatus.FAILED, problem.message, reason=problem.reason)
    elif _late(draft):
        draft.move(WorkflowStatus.FAILED, problem.message if problem else text, reason=problem.reason if problem else ErrorReason.INTERNAL)


def _take_hypothesis(draft: Draft, plan: Plan) -> None:
    losers = dict.fromkeys(loser for o in plan.optimizations for loser in o.expected_losers)
    draft.set(predicted_effects=plan.effects, expected_losers=tuple(losers))


def _ask(draft: Draft, *, needs_quality_gate: bool) -> None:
    workflow = draft.workflow
    must = workflow.request.requires_approval or (needs_quality_gate and not workflow.dry_run)
    if not must:
        to_preflight(draft, "no approval required; checking the target")
        return
    deadline = draft.now + workflow.policy.approval_timeout_seconds
    draft.set(approval_deadline=deadline)
    why = "" if workflow.request.requires_approval else " (it changes precision, which is never done without one)"
    draft.move(WorkflowStatus.AWAITING_APPROVAL, f"waiting for approval of: {_changes_text(workflow.changes)}{why}", deadline=deadline)
    details = {"plan_hash": workflow.plan_hash, "deadline": f"{deadline:.3f}"}
    draft.emit(EventKind.APPROVAL_REQUESTED, draft.workflow.message, details=details)


def _refusal(workflow: Workflow, fleet: FleetState) -> tuple[str, ErrorReason]:
    if not fleet.replicas:
        return "the fleet has no replica", ErrorReason.TARGET_UNAVAILABLE
    bad = [f"{r.instance_id}{f' ({r.message})' if r.message else ''}" for r in fleet.replicas if not r.ready or not r.config_hash]
    if bad:
        return f"not ready or of unknown state: {listed(bad)}", ErrorReason.TARGET_UNAVAILABLE
    for change in workflow.changes:
        for replica in fleet.replicas:
            running = replica.config.get(change.parameter)
            known = _same(running, change.current_value) or _same(running, change.recommended_value)
            if change.current_source in _TOLD and not known:
                text = f"the plan expects {change.parameter}={change.current_value}, {replica.instance_id} runs with {running}"
                return f"{text}; make a new plan", ErrorReason.PLAN_STALE
    size = stage_size(workflow.policy.stages[0].percent, len(fleet.replicas))
    exposure = exposure_percent(size, len(fleet.replicas))
    limit = workflow.policy.max_exposure_percent
    if limit is not None and exposure > limit:
        return f"the first stage would expose {exposure:.0f} %, the policy allows {limit:g} %", ErrorReason.INVALID_ARGUMENT
    return "", ErrorReason.INTERNAL


def _same(a: KnobValue | None, b: KnobValue | None) -> bool:
    if isinstance(a, int | float) and isinstance(b, int | float):
        return float(a) == float(b)
    return str(a) == str(b)


def _recorded(replica: ReplicaState, changes: tuple[ConfigChange, ...]) -> ReplicaProgress:
    desired = config_with(replica.config, changes)
    return ReplicaProgress(
        instance_id=replica.instance_id,
        previous_config=replica.config,
        previous_hash=replica.config_hash,
        desired_config=desired,
        desired_hash=config_hash(desired),
        observed_hash=replica.config_hash,
        generation=replica.generation,
        restarts_before=replica.restarts,
    )


def _changes_text(changes: tuple[ConfigChange, ...]) -> str:
    return ", ".join(f"{c.parameter}={'(removed)' if c.recommended_value is None else c.recommended_value}" for c in changes)


PHASES: Mapping[WorkflowStatus, Callable[[Draft, Observation], None]] = {
    WorkflowStatus.PENDING: pending,
    WorkflowStatus.COLLECTING: collecting,
    WorkflowStatus.ANALYZING: analyzing,
    WorkflowStatus.PLANNING: planning,
    WorkflowStatus.AWAITING_APPROVAL: awaiting_approval,
    WorkflowStatus.PREFLIGHT: preflight,
}
