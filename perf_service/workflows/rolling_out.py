"""The stages: `applying`, then bake, judge, and go on to the next; after the last measure what it brought."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from perf_service.models.workflow import EventKind, Gate, Judgement, WorkflowStatus
from perf_service.workflows import gates
from perf_service.workflows.applying import applying
from perf_service.workflows.draft import Draft
from perf_service.workflows.outcome import measure_outcome, objective_ratio
from perf_service.workflows.preparing import start_stage
from perf_service.workflows.rolling_back import fail_or_roll_back
from perf_service.workflows.stages import (
    PREPARATION_GRACE_SECONDS,
    baked_seconds,
    stage_policy,
    stage_record,
)
from perf_service.workflows.types import Observation
from perf_service.workflows.watching import judged, stale, watch


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
    short = "" if promoted else gates.shortage(workflow) or stale(workflow, draft.now)
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
        if not promoted and not workflow.dry_run and stale(workflow, draft.now):
            return  # after an outage or a restart of this service: a fresh sample first
        verdict = gates.judge_stage(workflow)
        if verdict.judgement is Judgement.FAIL or (workflow.dry_run and verdict.judgement is Judgement.NO_DATA):
            judged(draft, verdict.judgement, verdict.text, seen.health_score)
            fail_or_roll_back(draft, f"stage {workflow.stage_index + 1} failed: {verdict.text}", verdict.gate)
            return
        passed = verdict.judgement in (Judgement.PASS, Judgement.NOT_APPLICABLE)
        if not passed and not promoted:
            return  # `watch` holds the rollout; further samples may settle it
        text = verdict.text if passed else f"promoted by a person although: {verdict.text}"
        judged(draft, verdict.judgement, text, seen.health_score)
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


PHASES: Mapping[WorkflowStatus, Callable[[Draft, Observation], None]] = {
    WorkflowStatus.APPLYING: applying,
    WorkflowStatus.BAKING: baking,
    WorkflowStatus.DECIDING: deciding,
    WorkflowStatus.FINALIZING: finalizing,
}
