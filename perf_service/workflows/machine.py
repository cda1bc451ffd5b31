"""The state machine of a rollout: a pure function from (workflow, observation, time) to the next state, its events and the effects.

Effects are carried out after the decision is stored and are asked for again until they are seen to have happened, so a decision that is
stored but not acted on (a crash in between) is made good by the next tick, and one that is acted on twice changes nothing.
"""

from __future__ import annotations

from perf_service.models.workflow import Gate, Workflow, WorkflowStatus
from perf_service.workflows import preparing, rolling_back, rolling_out
from perf_service.workflows.commands import allowed, command
from perf_service.workflows.draft import Draft
from perf_service.workflows.stages import POLL_SECONDS, SLOW_RETRY_SECONDS, UNREACHABLE_SECONDS, next_sample_at, settled_at, stage_policy
from perf_service.workflows.types import Decision, Observation

__all__ = ["allowed", "command", "decide", "next_look_at", "wants_sample"]

_PHASES = {**preparing.PHASES, **rolling_out.PHASES, **rolling_back.PHASES}
_SETTING_UP = frozenset(preparing.PHASES)


def decide(workflow: Workflow, seen: Observation, now: float) -> Decision:
    """One step: at most one transition. Terminal states never change; a pause stops preparation altogether.

    After the first effect the rollout is watched even while paused: a hard breach rolls back whatever the gate says.
    """
    draft = Draft(workflow, now)
    if workflow.status.terminal:
        return draft.done()
    waits = workflow.status is WorkflowStatus.AWAITING_APPROVAL
    if workflow.gate is Gate.PAUSED and workflow.status in _SETTING_UP and not waits:
        return draft.done()
    _PHASES[workflow.status](draft, seen)
    return draft.done()


def wants_sample(workflow: Workflow, now: float) -> bool:
    """Whether the next sample of a bake is due."""
    due = next_sample_at(workflow)
    return due is not None and workflow.status in (WorkflowStatus.BAKING, WorkflowStatus.DECIDING) and now >= due - 1e-6


def next_look_at(workflow: Workflow, now: float) -> float | None:
    """When the workflow wants to be looked at again if nothing happens before; None: only a command can move it."""
    interval = workflow.policy.sample_interval_seconds
    status = workflow.status
    if status.terminal:
        return None
    if status is WorkflowStatus.AWAITING_APPROVAL:
        return workflow.approval_deadline
    if workflow.gate is Gate.PAUSED and status in _SETTING_UP:
        return None
    poll = now + min(POLL_SECONDS, interval)
    if workflow.status in (WorkflowStatus.COLLECTING, WorkflowStatus.PREFLIGHT):
        # Soon after the start, to tell a server that is not there at once; then at the pace of the pages.
        fresh = now - (workflow.phase_started_at or now) < 2.0 * UNREACHABLE_SECONDS
        return poll if fresh else now + interval
    if status is WorkflowStatus.ROLLBACK_INCOMPLETE:
        return now + SLOW_RETRY_SECONDS
    if status in (WorkflowStatus.BAKING, WorkflowStatus.DECIDING):
        times = [now + interval]
        sample, settled = next_sample_at(workflow), settled_at(workflow)
        # The first page of a bake is taken the moment it has settled.
        times += [t for t in (sample, settled) if t is not None and t > now]
        if workflow.bake_started_at is not None and workflow.gate is not Gate.PAUSED:
            times.append(workflow.bake_started_at + workflow.paused_seconds + stage_policy(workflow).bake_seconds)
        return min(t for t in times if t > now + 1e-9)
    return poll
