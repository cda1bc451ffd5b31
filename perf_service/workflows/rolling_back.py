"""Restoring exactly what was recorded, and the proof that it took. No gate stops it and nothing is judged on the way."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

from perf_service.models.workflow import EventKind, Judgement, ReplicaPhase, ReplicaProgress, Workflow, WorkflowStatus
from perf_service.workflows.draft import Draft
from perf_service.workflows.outcome import outcome_of_samples
from perf_service.workflows.stages import SLOW_RETRY_SECONDS, changed_replicas, listed
from perf_service.workflows.types import Observation, RestoreReplica

ABORTED = "aborted"
JUDGED = frozenset(
    {"relative", "slo", "error_ratio", "max_error_ratio", "min_improvement", "replica_not_ready", "restarts", "replica_gone"}
)
"""Failure reasons that say something about the change itself: its ledger entry is written, harmful advice included."""


def fail_or_roll_back(draft: Draft, message: str, reason: str) -> None:
    """FAILED where nothing was touched (always so in a dry run), ROLLING_BACK otherwise."""
    _close_stage(draft, message)
    workflow = draft.workflow
    if not workflow.effects_started:
        draft.move(WorkflowStatus.CANCELLED if reason == ABORTED else WorkflowStatus.FAILED, message, reason=reason)
        return
    if reason in JUDGED and workflow.outcome is None:
        draft.set(outcome=outcome_of_samples(workflow))
    deadline = draft.now + workflow.policy.rollback_timeout_seconds
    draft.move(WorkflowStatus.ROLLING_BACK, f"rolling back: {message}", reason=reason, deadline=deadline)
    names = [r.instance_id for r in changed_replicas(workflow)]
    draft.emit(EventKind.ROLLBACK_STARTED, f"restoring the recorded configuration of {listed(names)}", reason=reason)


def _close_stage(draft: Draft, message: str) -> None:
    """The stage that was under way ends here, whatever it was judged so far."""
    workflow = draft.workflow
    record = next((r for r in workflow.rollout_history if r.index == workflow.stage_index and r.finished_at is None), None)
    if record is None:
        return
    judgement = Judgement.INCONCLUSIVE if any(s.judgement is not Judgement.NO_DATA for s in workflow.samples) else Judgement.NO_DATA
    requests = math.fsum(s.canary_requests for s in workflow.samples)
    ended = replace(record, finished_at=draft.now, judgement=judgement, samples=len(workflow.samples), requests=requests, message=message)
    draft.stage(ended)


def rolling_back(draft: Draft, seen: Observation) -> None:
    """ROLLING_BACK -> ROLLED_BACK once every changed replica was seen with its recorded config and ready; too late: ROLLBACK_INCOMPLETE."""
    _restore(draft, seen)
    late = draft.workflow.phase_deadline is not None and draft.now >= draft.workflow.phase_deadline
    if _finished(draft, seen):
        return
    if late:
        draft.set(failure_reason=draft.workflow.failure_reason)
        missing = [r.instance_id for r in changed_replicas(draft.workflow) if r.phase is not ReplicaPhase.RESTORED]
        text = f"{listed(missing)} not restored in time: look at them; the service keeps trying every {SLOW_RETRY_SECONDS:g} s"
        draft.move(WorkflowStatus.ROLLBACK_INCOMPLETE, text)


def rollback_incomplete(draft: Draft, seen: Observation) -> None:
    """Keeps trying; ROLLED_BACK in the end. What has left the fleet since (deregistered, scaled away) can no longer be restored."""
    _restore(draft, seen)
    _finished(draft, seen)


def _restore(draft: Draft, seen: Observation) -> None:
    for failure in seen.failures:
        progress = next((r for r in changed_replicas(draft.workflow) if r.instance_id == failure.instance_id), None)
        if progress and progress.phase is ReplicaPhase.RESTORING and progress.message != failure.message:
            draft.replica(progress, failure.message)
    if seen.fleet is None:
        return  # what a replica runs now is not known, and neither would be whether it was restored
    for progress in changed_replicas(draft.workflow):
        state = seen.fleet.replica(progress.instance_id)
        name = progress.instance_id
        if state is None:
            if _gone(draft.workflow, seen, progress) and (progress.phase is not ReplicaPhase.FAILED or progress.observed_hash):
                left = replace(progress, phase=ReplicaPhase.FAILED, observed_hash="")
                draft.replica(left, f"{name} has left the fleet: there is nothing to restore any more")
            continue
        current = replace(progress, observed_hash=state.config_hash, generation=state.generation)
        restored = state.config_hash == progress.previous_hash and state.ready
        # The target must have taken the order to restore: an apply that it accepted before might not be visible yet.
        if restored and progress.phase is ReplicaPhase.RESTORING and _taken(draft.workflow, name, seen):
            draft.replica(replace(current, phase=ReplicaPhase.RESTORED), f"{name} runs with its recorded configuration again")
        elif not restored and progress.phase is ReplicaPhase.RESTORED:
            draft.replica(replace(current, phase=ReplicaPhase.RESTORING), f"{name} is not as recorded after all")
    running = [r for r in changed_replicas(draft.workflow) if r.phase is ReplicaPhase.RESTORING]
    free = max(1, draft.workflow.policy.max_parallel_applies) - len(running)
    settled = (ReplicaPhase.RESTORING, ReplicaPhase.RESTORED)
    waiting = [r for r in changed_replicas(draft.workflow) if r.phase not in settled and not _gone(draft.workflow, seen, r)]
    # Those that serve nothing first: restoring them costs no capacity.
    waiting.sort(key=lambda r: (_serves(seen, r), r.instance_id))
    for progress in waiting[: max(0, free)]:
        draft.replica(replace(progress, phase=ReplicaPhase.RESTORING), f"restoring {progress.instance_id}")
    deadline = draft.workflow.phase_deadline or math.inf
    for progress in changed_replicas(draft.workflow):
        if progress.phase is ReplicaPhase.RESTORING:
            op = f"{restore_id(draft.workflow, progress.instance_id)}/{int(draft.now // SLOW_RETRY_SECONDS)}"
            draft.act(RestoreReplica(progress.instance_id, progress.previous_config, op, deadline))


def restore_id(workflow: Workflow, instance_id: str) -> str:
    """Id of the order to restore a replica, without the number of the try.

    A target does nothing more for an order that has failed there, so each `SLOW_RETRY_SECONDS` bring a new one: an engine that could not
    be started (a port still taken, a full disk) gets its recorded configuration once it can be.
    """
    return f"{workflow.workflow_id}/restore/{instance_id}"


def _taken(workflow: Workflow, instance_id: str, seen: Observation) -> bool:
    tries = f"{restore_id(workflow, instance_id)}/"
    return any(op.startswith(tries) for op in seen.accepted)


def _gone(workflow: Workflow, seen: Observation, progress: ReplicaProgress) -> bool:
    """Whether a replica is taken for lost: missing past the rollback's deadline. A fleet must not stay claimed for its sake for ever."""
    late = workflow.status is WorkflowStatus.ROLLBACK_INCOMPLETE
    return late and seen.fleet is not None and seen.fleet.replica(progress.instance_id) is None


def _serves(seen: Observation, progress: ReplicaProgress) -> bool:
    state = seen.fleet.replica(progress.instance_id) if seen.fleet else None
    return bool(state and state.ready)


def _finished(draft: Draft, seen: Observation) -> bool:
    workflow = draft.workflow
    here = [r for r in changed_replicas(workflow) if not _gone(workflow, seen, r)]
    if seen.fleet is None or any(r.phase is not ReplicaPhase.RESTORED for r in here):
        return False
    foreign = foreign_changes(workflow, seen)
    text = f"{len(here)} replica(s) verified: configuration as recorded, and ready"
    if gone := [r.instance_id for r in changed_replicas(workflow) if r not in here]:
        draft.emit(EventKind.WARNING, f"not restored, because no longer in the fleet: {listed(gone)}", reason="replica_gone")
    if foreign:
        draft.emit(EventKind.WARNING, f"left alone, changed by somebody else: {listed(foreign)}", reason="drift")
    draft.emit(EventKind.ROLLBACK_VERIFIED, text, outcome=workflow.outcome)
    if workflow.failure_reason in JUDGED:
        draft.ledger()
    cause = workflow.message.removeprefix("rolling back: ") if workflow.status is WorkflowStatus.ROLLING_BACK else text
    draft.move(WorkflowStatus.ROLLED_BACK, f"rolled back: {cause}")
    return True


def foreign_changes(workflow: Workflow, seen: Observation) -> list[str]:
    """Replicas that this rollout never touched and that run something else than recorded: not ours to undo."""
    if seen.fleet is None:
        return []
    states = ((r, seen.fleet.replica(r.instance_id)) for r in workflow.replicas if r.stage < 0)
    return [r.instance_id for r, state in states if state and state.config_hash != r.previous_hash]


PHASES: Mapping[WorkflowStatus, Callable[[Draft, Observation], None]] = {
    WorkflowStatus.ROLLING_BACK: rolling_back,
    WorkflowStatus.ROLLBACK_INCOMPLETE: rollback_incomplete,
}
