"""What is seen after the first effect, in every phase: taken in, held against the hard limits, and waited for where it is in doubt."""

from __future__ import annotations

import math
from dataclasses import replace

from perf_service.models.errors import ErrorReason
from perf_service.models.workflow import EventKind, Gate, Judgement, ReplicaPhase, ReplicaProgress, StageRecord, Workflow, WorkflowStatus
from perf_service.workflows import gates
from perf_service.workflows.draft import Draft
from perf_service.workflows.rolling_back import fail_or_roll_back
from perf_service.workflows.stages import (
    SAMPLES_KEPT,
    baked_seconds,
    settled_at,
    stage_policy,
    stage_record,
)
from perf_service.workflows.types import Observation

NO_DATA_LIMIT = 3
"""Samples in a row without data before the rollout is held, without waiting for the end of the bake."""


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
                judged(draft, verdict.judgement, verdict.text, seen.health_score)
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
    short = gates.shortage(workflow) or stale(workflow, now)
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


def stale(workflow: Workflow, now: float) -> str:
    """Why the freshest sample with data is too old to decide on."""
    usable = gates.usable_samples(workflow)
    if not usable or now - usable[-1].end <= 2.0 * workflow.policy.sample_interval_seconds:
        return ""
    return f"a freshest sample {now - usable[-1].end:.0f} s old"


def judged(draft: Draft, judgement: Judgement, text: str, health_score: float | None) -> None:
    """Write down what a stage's samples say."""
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
