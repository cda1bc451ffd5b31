"""What people may do with a workflow, as pure transitions. abort > pause > promote, in every state."""

from __future__ import annotations

from typing import Final

from perf_service.models.errors import ErrorReason, WrongStateError
from perf_service.models.workflow import Approval, EventKind, Gate, Workflow, WorkflowStatus
from perf_service.workflows.draft import Draft
from perf_service.workflows.preparing import to_preflight
from perf_service.workflows.rolling_back import ABORTED, fail_or_roll_back
from perf_service.workflows.types import Abort, Approve, Command, Decision, Pause, Promote, Reject, Resume

_NO_WAY_BACK: Final = frozenset({WorkflowStatus.ROLLING_BACK, WorkflowStatus.ROLLBACK_INCOMPLETE})
_PROMOTABLE: Final = frozenset({WorkflowStatus.BAKING, WorkflowStatus.DECIDING})


def allowed(workflow: Workflow) -> tuple[str, ...]:
    """Names of the commands that the present state takes."""
    status = workflow.status
    if status.terminal or status in _NO_WAY_BACK:
        return ()
    names = ["abort"]
    paused = workflow.gate is Gate.PAUSED
    names.append("resume" if paused else "pause")
    if status is WorkflowStatus.AWAITING_APPROVAL:
        names += ["approve", "reject"]
    if status in _PROMOTABLE and not paused:
        names.append("promote")
    return tuple(names)


def command(workflow: Workflow, order: Command, now: float) -> Decision:
    """The state after a command. A repetition that asks for what is so already changes nothing.

    Raises:
        WrongStateError: WORKFLOW_WRONG_STATE with what is allowed now; APPROVAL_STALE for an approval of another plan or too late.
    """
    draft = Draft(workflow, now)
    if _already(workflow, order):
        return draft.done()
    name = type(order).__name__.lower()
    if name not in allowed(workflow):
        raise _wrong_state(workflow, name)
    match order:
        case Abort():
            _abort(draft, order)
        case Pause():
            draft.set(paused_at=now)
            draft.gate(Gate.PAUSED, f"paused by {_who(order.by)}{_because(order.reason)}", reason="paused")
        case Resume():
            _resume(draft, order)
        case Promote():
            _promote(draft, order)
        case Approve():
            _approve(draft, order)
        case Reject():
            _decided(draft, Approval(False, order.by, now, workflow.plan_hash, order.reason))
            draft.move(WorkflowStatus.REJECTED, f"rejected by {_who(order.by)}{_because(order.reason)}", reason="rejected")
    return draft.done()


def _already(workflow: Workflow, order: Command) -> bool:
    match order:
        case Abort():
            return workflow.status in _NO_WAY_BACK or workflow.status is WorkflowStatus.CANCELLED or bool(workflow.abort_requested)
        case Pause():
            return workflow.gate is Gate.PAUSED
        case Approve():
            same_plan = not order.plan_hash or order.plan_hash == workflow.plan_hash
            return bool(workflow.approval and workflow.approval.approved and workflow.approval.by == order.by and same_plan)
        case Reject():
            return workflow.status is WorkflowStatus.REJECTED and bool(workflow.approval and workflow.approval.by == order.by)
    return False


def _abort(draft: Draft, order: Abort) -> None:
    text = f"aborted by {_who(order.by)}{_because(order.reason)}"
    draft.set(abort_requested=order.reason or text)
    if draft.workflow.effects_started:
        fail_or_roll_back(draft, text, ABORTED)
    else:
        draft.move(WorkflowStatus.CANCELLED, f"{text}; nothing was changed", reason=ABORTED)


def _resume(draft: Draft, order: Resume) -> None:
    """The clocks go on where they stood; the approval's own deadline was never stopped. Fresh samples decide."""
    workflow = draft.workflow
    away = draft.now - workflow.paused_at if workflow.paused_at is not None else 0.0
    approval = workflow.status is WorkflowStatus.AWAITING_APPROVAL
    deadline = workflow.phase_deadline
    draft.set(
        paused_at=None,
        held_since=None,
        phase_deadline=deadline + away if deadline is not None and not approval else deadline,
        paused_seconds=workflow.paused_seconds + (away if workflow.bake_started_at is not None else 0.0),
    )
    draft.gate(Gate.OPEN, f"resumed by {_who(order.by)} after {away:.0f} s{_because(order.reason)}", reason="resumed")
    if approval and workflow.approval and workflow.approval.approved:
        to_preflight(draft, f"approved by {workflow.approval.by}")


def _promote(draft: Draft, order: Promote) -> None:
    workflow = draft.workflow
    through = len(workflow.policy.stages) - 1 if order.full else workflow.stage_index
    if through <= workflow.promoted_through:
        return
    what = "every stage" if order.full else f"stage {workflow.stage_index + 1}"
    text = f"{what} promoted by {_who(order.by)}{_because(order.reason)}"
    draft.set(promoted_through=through, message=text)
    draft.emit(EventKind.GATE_CHANGED, text, reason="promoted")


def _approve(draft: Draft, order: Approve) -> None:
    workflow = draft.workflow
    if order.plan_hash and order.plan_hash != workflow.plan_hash:
        raise WrongStateError(
            ErrorReason.APPROVAL_STALE,
            f"the approval is for plan {order.plan_hash[:12]}, the workflow would now roll out {workflow.plan_hash[:12]}: look at it again",
            {"workflow_id": workflow.workflow_id, "plan_hash": workflow.plan_hash, "given": order.plan_hash},
        )
    if workflow.approval_deadline is not None and draft.now >= workflow.approval_deadline:
        raise WrongStateError(
            ErrorReason.APPROVAL_STALE,
            f"the time to approve workflow {workflow.workflow_id} is over: start a new one",
            {"workflow_id": workflow.workflow_id},
        )
    _decided(draft, Approval(True, order.by, draft.now, workflow.plan_hash, order.reason))
    if workflow.gate is Gate.OPEN:
        to_preflight(draft, f"approved by {_who(order.by)}{_because(order.reason)}")


def _decided(draft: Draft, approval: Approval) -> None:
    draft.set(approval=approval)
    verb = "approved" if approval.approved else "rejected"
    draft.emit(EventKind.APPROVAL_DECIDED, f"{verb} by {_who(approval.by)}{_because(approval.reason)}", reason=verb, approval=approval)


def _wrong_state(workflow: Workflow, name: str) -> WrongStateError:
    now = allowed(workflow)
    state = workflow.status.value + (f" ({workflow.gate.value})" if workflow.gate is not Gate.OPEN else "")
    can = f"possible now: {', '.join(now)}" if now else "nothing can be done with it any more"
    if workflow.status in _NO_WAY_BACK:
        can = "it restores the recorded configuration, which nothing interrupts"
    return WrongStateError(
        ErrorReason.WORKFLOW_WRONG_STATE,
        f"cannot {name} workflow {workflow.workflow_id}: it is {state}; {can}",
        {"workflow_id": workflow.workflow_id, "status": workflow.status.value, "gate": workflow.gate.value, "allowed": ",".join(now)},
    )


def _who(by: str) -> str:
    return by or "somebody"


def _because(reason: str) -> str:
    return f": {reason}" if reason else ""
