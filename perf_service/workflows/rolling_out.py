"""The stages: apply to their replicas, wait until converged, bake, judge; then measure what it brought."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

from perf_service.models.errors import ErrorReason
from perf_service.models.workflow import EventKind, Gate, Judgement, ReplicaPhase, ReplicaProgress, StageRecord, Workflow, WorkflowStatus
from perf_service.workflows import gates
from perf_service.workflows.draft import Draft
from perf_service.workflows.outcome import measure_outcome, objective_ratio
from perf_service.workflows.preparing import start_stage
from perf_service.workflows.rolling_back import fail_or_roll_back
from perf_service.workflows.stages import (
    PREPARATION_GRACE_SECONDS,
    SAMPLES_KEPT,
    baked_seconds,
    listed,
    settled_at,
    stage_members,
    stage_policy,
    stage_record,
)
from perf_service.workflows.types import ApplyReplica, Observation, Problem

MAX_ATTEMPTS = 3
"""Tries to apply to one replica before the rollout gives up."""
NO_DATA_LIMIT = 3
"""Samples in a row without data before the rollout is held, without waiting for the end of the bake."""


def applying(draft: Draft, seen: Observation) -> None:
    """APPLYING(i) -> BAKING(i) once exactly the stage's replicas run the new config and are ready."""
    if watch(draft, seen):
        return
    _note_convergence(draft, seen)
    _note_failures(draft, seen.failures)
    if draft.workflow.status is not WorkflowStatus.APPLYING:
        return
    index = draft.workflow.stage_index
    members = stage_members(draft.workflow, index)
    if all(r.phase is ReplicaPhase.CONVERGED for r in members):
        if draft.workflow.gate is Gate.OPEN:
            draft.set(bake_started_at=draft.now, paused_seconds=0.0, samples=())
            policy = stage_policy(draft.workflow)
            draft.move(WorkflowStatus.BAKING, f"stage {index + 1}: baking {len(members)} replica(s) for {policy.bake_seconds:g} s")
        return
    deadline = draft.workflow.phase_deadline
    if draft.workflow.gate is not Gate.PAUSED and deadline is not None and draft.now >= deadline:
        late = [r.instance_id for r in members if r.phase is ReplicaPhase.APPLYING]
        text = f"{listed(late)} did not become ready within {draft.workflow.policy.apply_timeout_seconds:g} s"
        fail_or_roll_back(draft, text, ErrorReason.TARGET_APPLY_FAILED.value)
        return
    _apply_next(draft)


def baking(draft: Draft, seen: Observation) -> None:
    """BAKING(i) -> DECIDING(i): minimum time and samples and requests. Without them the rollout is held, never passed."""
    if watch(draft, seen):
        return
    workflow = draft.workflow
    if workflow.gate is not Gate.OPEN:
        return
    promoted = workflow.promoted_through >= workflow.stage_index
    over = baked_seconds(workflow, draft.now) >= stage_policy(workflow).bake_seconds
    if not over and not promoted:
        return
    if workflow.dry_run:
        draft.move(WorkflowStatus.DECIDING, f"stage {workflow.stage_index + 1}: dry run, walked")
        return
    short = "" if promoted else gates.shortage(workflow) or _stale(workflow, draft.now)
    if not short:
        why = "promoted" if promoted and not over else "bake done"
        draft.move(WorkflowStatus.DECIDING, f"stage {workflow.stage_index + 1}: {why}, judging {len(workflow.samples)} samples")


def deciding(draft: Draft, seen: Observation) -> None:
    """DECIDING(i) -> APPLYING(i+1) or FINALIZING on a pass; waits for a promotion where the policy says so."""
    if watch(draft, seen):
        return
    workflow = draft.workflow
    if workflow.gate is not Gate.OPEN:
        return
    promoted = workflow.promoted_through >= workflow.stage_index
    record = stage_record(workflow)
    if record.finished_at is None:
        if not promoted and not workflow.dry_run and _stale(workflow, draft.now):
            return  # after an outage or a restart of this service: a fresh sample first
        verdict = gates.judge_stage(workflow)
        if verdict.judgement is Judgement.FAIL or (workflow.dry_run and verdict.judgement is Judgement.NO_DATA):
            _judged(draft, verdict.judgement, verdict.text, seen.health_score)
            fail_or_roll_back(draft, f"stage {workflow.stage_index + 1} failed: {verdict.text}", verdict.gate)
            return
        passed = verdict.judgement in (Judgement.PASS, Judgement.NOT_APPLICABLE)
        if not passed and not promoted:
            return  # `watch` holds the rollout; further samples may settle it
        text = verdict.text if passed else f"promoted by a person although: {verdict.text}"
        _judged(draft, verdict.judgement, text, seen.health_score)
        record = stage_record(draft.workflow)
        waits = stage_policy(workflow).requires_promotion and workflow.stage_index + 1 < len(workflow.policy.stages)
        if waits and not promoted:
            deadline = draft.now + workflow.policy.approval_timeout_seconds
            draft.set(phase_deadline=deadline, message=f"stage {workflow.stage_index + 1} passed; waiting for promotion")
    last = workflow.stage_index + 1 >= len(workflow.policy.stages)
    if last:
        deadline = draft.now + PREPARATION_GRACE_SECONDS
        draft.move(WorkflowStatus.FINALIZING, "every stage passed; measuring the effect", deadline=deadline)
    elif promoted or not stage_policy(workflow).requires_promotion:
        if draft.workflow.gate is Gate.OPEN:
            start_stage(draft, workflow.stage_index + 1)
    elif draft.workflow.phase_deadline is not None and draft.now >= draft.workflow.phase_deadline:
        fail_or_roll_back(draft, f"nobody promoted stage {workflow.stage_index + 1} in time", "promotion_timeout")


def finalizing(draft: Draft, seen: Observation) -> None:
    """FINALIZING -> COMPLETED with the realised effect beside the predicted one."""
    if watch(draft, seen):
        return
    workflow = draft.workflow
    if workflow.gate is not Gate.OPEN:
        return
    late = workflow.phase_deadline is not None and draft.now >= workflow.phase_deadline
    if seen.measured is None and not late:
        return
    if seen.health_score is not None:
        draft.set(final_health_score=seen.health_score)
    outcome = measure_outcome(workflow, seen.measured)
    needed = workflow.policy.min_improvement_ratio
    ratio = objective_ratio(workflow, outcome)
    draft.set(outcome=outcome)
    draft.emit(EventKind.OUTCOME_MEASURED, outcome.summary, outcome=outcome)
    if needed > 0 and not workflow.dry_run and outcome.comparable and ratio is not None and 1.0 - ratio < needed:
        text = f"the objective improved by {1.0 - ratio:.1%}, the policy demands {needed:.1%}"
        fail_or_roll_back(draft, text, "min_improvement")
        return
    if not workflow.dry_run:
        draft.ledger()
    draft.move(WorkflowStatus.COMPLETED, outcome.summary)


# --- watching, in every phase after the first effect ---------------------------------------------------------------------------------


def watch(draft: Draft, seen: Observation) -> bool:
    """Take in what was seen. True where the rollout left its phase (rollback) and the phase has nothing more to do."""
    _note_observed(draft, seen)
    if seen.sample is not None and draft.workflow.bake_started_at is not None:
        _take_sample(draft, seen)
    text, gate = _hard_breach(draft.workflow, seen)
    if text:
        fail_or_roll_back(draft, text, gate)
        return True
    if seen.sample is not None:
        verdict = gates.breach(draft.workflow)
        if verdict:
            if draft.workflow.status in (WorkflowStatus.BAKING, WorkflowStatus.DECIDING):
                _judged(draft, verdict.judgement, verdict.text, seen.health_score)
            fail_or_roll_back(draft, verdict.text, verdict.gate)
            return True
    return _hold(draft, seen)


def _take_sample(draft: Draft, seen: Observation) -> None:
    sample = seen.sample
    settled = settled_at(draft.workflow)
    if sample is None or settled is None or sample.start < settled - 1e-6:
        return  # not wholly after convergence and warm-up
    draft.set(samples=(*draft.workflow.samples, sample)[-SAMPLES_KEPT:])
    draft.emit(EventKind.SAMPLE_TAKEN, sample.text or sample.judgement.value, sample=sample)


def _note_observed(draft: Draft, seen: Observation) -> None:
    """Keep what each replica was seen to run; stored with the next event."""
    if seen.fleet is None:
        return
    states = {state.instance_id: state for state in seen.fleet.replicas}
    replicas = []
    for progress in draft.workflow.replicas:
        state = states.get(progress.instance_id)
        if state and (state.config_hash, state.generation) != (progress.observed_hash, progress.generation):
            progress = replace(progress, observed_hash=state.config_hash, generation=state.generation)
        replicas.append(progress)
    draft.set(replicas=tuple(replicas))


def _hard_breach(workflow: Workflow, seen: Observation) -> tuple[str, str]:
    """A changed replica that died, is not ready or restarted by itself. An unchanged one only holds the rollout."""
    if seen.fleet is None or workflow.dry_run:
        return "", ""
    for progress in workflow.replicas:
        if progress.phase is not ReplicaPhase.CONVERGED:
            continue
        state = seen.fleet.replica(progress.instance_id)
        if state is None:
            return f"changed replica {progress.instance_id} is gone", "replica_gone"
        restarts = state.restarts - progress.restarts_before
        if restarts > workflow.policy.max_restarts:
            return f"changed replica {progress.instance_id} restarted {restarts} time(s) by itself", "restarts"
        if not state.ready and state.config_hash == progress.desired_hash:
            detail = f": {state.message}" if state.message else ""
            return f"changed replica {progress.instance_id} is not ready{detail}", "replica_not_ready"
    return "", ""


def _hold(draft: Draft, seen: Observation) -> bool:
    """Set or lift HELD by what is seen now; past the limit roll back. True where that happened."""
    workflow = draft.workflow
    if workflow.gate is Gate.PAUSED:
        return False
    text, reason = _hold_reason(draft, seen)
    if not text:
        if workflow.gate is Gate.HELD:
            draft.set(held_since=None)
            draft.gate(Gate.OPEN, "going on: what held the rollout is over", reason="released")
        return False
    if workflow.gate is not Gate.HELD:
        draft.set(held_since=draft.now)
        limit = workflow.policy.hold_limit_seconds
        draft.gate(Gate.HELD, f"held: {text}; rolls back after {limit:g} s of this", reason=reason)
        return False
    if workflow.held_since is not None and draft.now - workflow.held_since >= workflow.policy.hold_limit_seconds:
        fail_or_roll_back(draft, f"held for {draft.now - workflow.held_since:.0f} s: {text}", reason)
        return True
    return False


def _hold_reason(draft: Draft, seen: Observation) -> tuple[str, str]:
    workflow = draft.workflow
    if seen.fleet is None:
        if seen.fleet_problem is not None:
            return f"the target cannot be observed ({seen.fleet_problem.message})", seen.fleet_problem.reason.value
        return ("", "") if workflow.gate is not Gate.HELD else ("the target has not been observed", ErrorReason.TARGET_UNAVAILABLE.value)
    if workflow.dry_run:
        return "", ""
    for progress in workflow.replicas:
        state = seen.fleet.replica(progress.instance_id)
        if state is None:
            return f"replica {progress.instance_id} is gone", "replica_gone"
        if state.config_hash not in expected_hashes(progress):
            return f"somebody else changed the configuration of {progress.instance_id}", ErrorReason.TARGET_DRIFT.value
        if progress.stage < 0 and not state.ready:
            text = f"replica {progress.instance_id}, not changed yet, is not ready: going on would take more capacity away"
            return text, "capacity"
    if any(p.reason is ErrorReason.TARGET_DRIFT for p in seen.failures):
        return next(p.message for p in seen.failures if p.reason is ErrorReason.TARGET_DRIFT), ErrorReason.TARGET_DRIFT.value
    if workflow.status in (WorkflowStatus.BAKING, WorkflowStatus.DECIDING):
        return _data_hold(workflow, draft.now)
    return "", ""


def _data_hold(workflow: Workflow, now: float) -> tuple[str, str]:
    if workflow.promoted_through >= workflow.stage_index or stage_record(workflow).finished_at is not None:
        return "", ""
    tail = workflow.samples[-NO_DATA_LIMIT:]
    if len(tail) == NO_DATA_LIMIT and all(s.judgement is Judgement.NO_DATA for s in tail):
        return f"no data: {tail[-1].text}", "no_data"
    if baked_seconds(workflow, now) < stage_policy(workflow).bake_seconds:
        return "", ""
    short = gates.shortage(workflow) or _stale(workflow, now)
    # The last sample of a bake falls together with its end: the rollout is held only when that has come and was not enough.
    grace = stage_policy(workflow).bake_seconds + workflow.policy.warmup_seconds + 2.0 * workflow.policy.sample_interval_seconds
    if short:
        return (f"the bake is over with {short}", "no_data") if baked_seconds(workflow, now) >= grace else ("", "")
    verdict = gates.judge_stage(workflow)
    return (verdict.text, verdict.gate) if verdict.judgement is Judgement.INCONCLUSIVE else ("", "")


def expected_hashes(progress: ReplicaProgress) -> tuple[str, ...]:
    """Configs that a replica may be seen with; any other was somebody else's doing."""
    if progress.phase is ReplicaPhase.UNCHANGED:
        return (progress.previous_hash,)
    if progress.phase is ReplicaPhase.CONVERGED:
        return (progress.desired_hash,)
    return (progress.previous_hash, progress.desired_hash)


def _stale(workflow: Workflow, now: float) -> str:
    """Why the freshest sample with data is too old to decide on."""
    usable = gates.usable_samples(workflow)
    if not usable or now - usable[-1].end <= 2.0 * workflow.policy.sample_interval_seconds:
        return ""
    return f"a freshest sample {now - usable[-1].end:.0f} s old"


# --- applying -----------------------------------------------------------------------------------------------------------------------


def _note_convergence(draft: Draft, seen: Observation) -> None:
    for progress in stage_members(draft.workflow, draft.workflow.stage_index):
        if progress.phase is not ReplicaPhase.APPLYING:
            continue
        if draft.workflow.dry_run:
            done = replace(progress, phase=ReplicaPhase.CONVERGED, converged_at=draft.now)
            draft.replica(done, f"{progress.instance_id}: dry run, would run with {_diff(progress)}")
            continue
        state = seen.fleet.replica(progress.instance_id) if seen.fleet else None
        if state and state.config_hash == progress.desired_hash and state.ready:
            done = replace(progress, phase=ReplicaPhase.CONVERGED, converged_at=draft.now, restarts_before=state.restarts)
            draft.replica(done, f"{progress.instance_id} runs with {_diff(progress)} and is ready")


def _note_failures(draft: Draft, failures: tuple[Problem, ...]) -> None:
    for failure in failures:
        progress = next((r for r in draft.workflow.replicas if r.instance_id == failure.instance_id), None)
        if progress is None or progress.phase is not ReplicaPhase.APPLYING or failure.reason is ErrorReason.TARGET_DRIFT:
            continue
        if failure.permanent or progress.attempts >= MAX_ATTEMPTS:
            draft.replica(replace(progress, phase=ReplicaPhase.FAILED), failure.message)
            text = f"{progress.instance_id} could not be changed after {progress.attempts} attempt(s): {failure.message}"
            fail_or_roll_back(draft, text, failure.reason.value)
            return
        draft.replica(replace(progress, attempts=progress.attempts + 1), f"trying again: {failure.message}")


def _apply_next(draft: Draft) -> None:
    """Start what may start, and ask again for what was asked for: the target does nothing twice."""
    workflow = draft.workflow
    members = stage_members(workflow, workflow.stage_index)
    running = sum(r.phase is ReplicaPhase.APPLYING for r in members)
    free = max(1, workflow.policy.max_parallel_applies) - running
    if workflow.gate is Gate.OPEN:
        for progress in [r for r in members if r.phase is ReplicaPhase.UNCHANGED][: max(0, free)]:
            started = replace(progress, phase=ReplicaPhase.APPLYING, stage=workflow.stage_index, attempts=progress.attempts + 1)
            draft.set(phase_deadline=draft.now + workflow.policy.apply_timeout_seconds)
            draft.set(effects_started=draft.workflow.effects_started or not workflow.dry_run)
            draft.replica(started, f"{progress.instance_id}: {'would apply' if workflow.dry_run else 'applying'} {_diff(progress)}")
    deadline = draft.workflow.phase_deadline or math.inf
    if workflow.gate is Gate.HELD:
        return
    for progress in stage_members(draft.workflow, workflow.stage_index):
        if progress.phase is ReplicaPhase.APPLYING:
            op = f"{workflow.workflow_id}/{workflow.stage_index}/{progress.instance_id}/{progress.attempts}"
            draft.act(ApplyReplica(progress.instance_id, progress.desired_config, progress.previous_hash, op, deadline))


def _diff(progress: ReplicaProgress) -> str:
    was, now = progress.previous_config.values(), progress.desired_config.values()
    changed = [f"{k}={now[k]}" for k in now if was.get(k) != now[k]] + [f"{k} removed" for k in was if k not in now]
    return ", ".join(changed) or "an unchanged configuration"


def _judged(draft: Draft, judgement: Judgement, text: str, health_score: float | None) -> None:
    record = stage_record(draft.workflow)
    samples = draft.workflow.samples
    done: StageRecord = replace(
        record,
        finished_at=draft.now,
        judgement=judgement,
        samples=len(samples),
        requests=math.fsum(s.canary_requests for s in samples),
        health_score=health_score,
        message=text,
    )
    draft.stage(done)
    if health_score is not None:
        draft.set(final_health_score=health_score)
    draft.emit(EventKind.STAGE_JUDGED, f"stage {record.index + 1}: {judgement.value}: {text}", reason=judgement.value, stage=done)


PHASES: Mapping[WorkflowStatus, Callable[[Draft, Observation], None]] = {
    WorkflowStatus.APPLYING: applying,
    WorkflowStatus.BAKING: baking,
    WorkflowStatus.DECIDING: deciding,
    WorkflowStatus.FINALIZING: finalizing,
}
