"""APPLYING: the new config on a stage's replicas, a few at a time, until they run it and are ready."""

from __future__ import annotations

import math
from dataclasses import replace

from perf_service.models.errors import ErrorReason
from perf_service.models.workflow import Gate, ReplicaPhase, ReplicaProgress, WorkflowStatus
from perf_service.workflows.draft import Draft
from perf_service.workflows.rolling_back import fail_or_roll_back
from perf_service.workflows.stages import (
    listed,
    stage_members,
    stage_policy,
)
from perf_service.workflows.types import ApplyReplica, Observation, Problem
from perf_service.workflows.watching import watch

MAX_ATTEMPTS = 3
"""Tries to apply to one replica before the rollout gives up."""


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
