"""What must hold of every decision, checked before it is stored: the last guard between a mistake in a phase and a fleet."""

from __future__ import annotations

from perf_service.models.workflow import EventKind, Gate, Judgement, ReplicaPhase, Workflow, WorkflowStatus
from perf_service.workflows.stages import settled_at
from perf_service.workflows.types import ApplyReplica, Decision, RestoreReplica

_FORWARD = (
    WorkflowStatus.PENDING,
    WorkflowStatus.COLLECTING,
    WorkflowStatus.ANALYZING,
    WorkflowStatus.PLANNING,
    WorkflowStatus.AWAITING_APPROVAL,
    WorkflowStatus.PREFLIGHT,
    WorkflowStatus.APPLYING,
    WorkflowStatus.BAKING,
    WorkflowStatus.DECIDING,
    WorkflowStatus.FINALIZING,
    WorkflowStatus.COMPLETED,
)
_ROLLBACK = frozenset({WorkflowStatus.ROLLING_BACK, WorkflowStatus.ROLLBACK_INCOMPLETE})
_AFTER_ROLLBACK = _ROLLBACK | {WorkflowStatus.ROLLED_BACK}
_UNTOUCHED_ENDS = frozenset({WorkflowStatus.FAILED, WorkflowStatus.CANCELLED, WorkflowStatus.REJECTED, WorkflowStatus.NO_CHANGE})
_GOOD = frozenset({Judgement.PASS, Judgement.FAIL})


def violations(before: Workflow, decision: Decision) -> tuple[str, ...]:
    """Sentences for every invariant that the decision breaks; empty for a sound one."""
    after = decision.workflow
    found = [*_history(before, decision), *_order(before, after), *_effects(before, decision), *_rollback(before, after, decision)]
    if before.status.terminal and (after != before or decision.events or decision.actions):
        found.append(f"a {before.status.value} workflow changed")
    return tuple(found)


def _history(before: Workflow, decision: Decision) -> list[str]:
    found = []
    expected = list(range(before.last_sequence + 1, before.last_sequence + 1 + len(decision.events)))
    if [e.sequence for e in decision.events] != expected or decision.workflow.last_sequence != before.last_sequence + len(expected):
        found.append("event sequences have a gap")
    changes = sum(e.kind is EventKind.STATE_CHANGED for e in decision.events)
    if changes != (decision.workflow.status is not before.status):
        found.append(f"{changes} state events for {before.status.value} -> {decision.workflow.status.value}")
    return found


def _order(before: Workflow, after: Workflow) -> list[str]:
    found = []
    if after.stage_index not in (before.stage_index, before.stage_index + 1):
        found.append(f"stage index went from {before.stage_index} to {after.stage_index}")
    moves_on = after.status in _FORWARD and before.status in _FORWARD and after.status is not before.status
    if moves_on and before.gate is Gate.PAUSED and after.gate is Gate.PAUSED:
        found.append("moved forward while paused")
    next_stage = after.stage_index > before.stage_index >= 0
    if (next_stage or (moves_on and after.status is WorkflowStatus.FINALIZING)) and not after.dry_run:
        found += _evidence(before, after)
    return found


def _evidence(before: Workflow, after: Workflow) -> list[str]:
    """No advance without a sample that lies wholly after convergence, unless a person promoted the stage."""
    if before.promoted_through >= before.stage_index:
        return []
    settled = settled_at(before)
    sound = settled is not None and any(s.judgement in _GOOD and s.start >= settled - 1e-6 for s in before.samples)
    record = next((r for r in after.rollout_history if r.index == before.stage_index), None)
    found = [] if sound else ["advanced without a sample after convergence"]
    if record is None or record.judgement is not Judgement.PASS:
        found.append(f"advanced on {record.judgement.value if record else 'no verdict'}")
    return found


def _effects(before: Workflow, decision: Decision) -> list[str]:
    after, found = decision.workflow, []
    recorded = {r.instance_id: r for r in before.replicas}
    for now in after.replicas:
        was = recorded.get(now.instance_id)
        if was and (was.previous_hash, was.previous_config) != (now.previous_hash, now.previous_config):
            found.append(f"the recorded configuration of {now.instance_id} changed")
    if recorded and {r.instance_id for r in after.replicas} != set(recorded):
        found.append("the set of replicas changed")
    progress_of = {r.instance_id: r for r in after.replicas}
    for action in decision.actions:
        progress = progress_of.get(action.instance_id)
        if progress is None or not progress.previous_hash:
            found.append(f"an effect on {action.instance_id} without a recorded configuration")
            continue
        if not after.effects_started and not after.dry_run:
            found.append("an effect that the state does not know of")
        if isinstance(action, ApplyReplica):
            if after.status is not WorkflowStatus.APPLYING or progress.phase is not ReplicaPhase.APPLYING:
                found.append(f"applied to {action.instance_id} in {after.status.value}/{progress.phase.value}")
            if progress.stage != after.stage_index:
                found.append(f"applied to {action.instance_id} outside of its stage")
        elif isinstance(action, RestoreReplica):
            if after.status not in _ROLLBACK:
                found.append(f"restored {action.instance_id} in {after.status.value}")
            if action.recorded != progress.previous_config:
                found.append(f"{action.instance_id} would be restored to something else than recorded")
    return found


def _rollback(before: Workflow, after: Workflow, decision: Decision) -> list[str]:
    found = []
    if before.status in _ROLLBACK and after.status not in _AFTER_ROLLBACK:
        found.append(f"{before.status.value} -> {after.status.value}")
    if after.effects_started and after.status in _UNTOUCHED_ENDS:
        found.append(f"{after.status.value} although replicas were changed")
    if after.status is WorkflowStatus.ROLLED_BACK and not before.status.terminal:
        changed = [r for r in after.replicas if r.stage >= 0]
        # Past the deadline a replica may have left the fleet for good: then nothing was observed of it.
        late = before.status is WorkflowStatus.ROLLBACK_INCOMPLETE
        here = [r for r in changed if not (late and r.phase is ReplicaPhase.FAILED and not r.observed_hash)]
        left = [r.instance_id for r in here if r.phase is not ReplicaPhase.RESTORED or r.observed_hash != r.previous_hash]
        found += [f"rolled back without {name} being seen as recorded" for name in left]
    if after.status is WorkflowStatus.COMPLETED and not after.dry_run and before.status is WorkflowStatus.FINALIZING:
        left = [r.instance_id for r in after.replicas if r.phase is not ReplicaPhase.CONVERGED or r.observed_hash != r.desired_hash]
        found += [f"completed without {name} running the new configuration" for name in left]
    return found
