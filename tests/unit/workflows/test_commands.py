"""What people may do, in every state: abort > pause > promote."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import cache

import pytest

from perf_service.models.errors import ErrorReason, WrongStateError
from perf_service.models.workflow import Approval, EventKind, Gate, Workflow, WorkflowStatus
from perf_service.workflows.machine import allowed, command
from perf_service.workflows.types import Abort, Approve, Command, Pause, Promote, Reject, Resume
from tests.support.machine_driver import Machine, S, workflow

ORDERS: dict[str, Command] = {
    "approve": Approve("ann"),
    "reject": Reject("ann"),
    "pause": Pause("ann"),
    "resume": Resume("ann"),
    "promote": Promote("ann"),
    "abort": Abort("ann"),
}
FORWARD = [
    S.PENDING, S.COLLECTING, S.ANALYZING, S.PLANNING, S.AWAITING_APPROVAL, S.PREFLIGHT,
    S.APPLYING, S.BAKING, S.DECIDING, S.FINALIZING,
]  # fmt: skip


@cache
def in_state(status: WorkflowStatus, gate: Gate = Gate.OPEN) -> Workflow:
    """A workflow as a run would have left it in that state."""
    machine = Machine.of(workflow(approval=status is S.AWAITING_APPROVAL))
    if gate is not Gate.OPEN:
        made = in_state(status)
    elif status in FORWARD:
        made = machine.run(until=status)
    else:
        made = replace(machine.workflow, status=status)
    return replace(made, gate=gate, paused_at=made.updated_at if gate is Gate.PAUSED else None)


def expected(status: WorkflowStatus, gate: Gate) -> set[str]:
    if status not in FORWARD:
        return set()
    names = {"abort", "resume" if gate is Gate.PAUSED else "pause"}
    if status is S.AWAITING_APPROVAL:
        names |= {"approve", "reject"}
    if status in (S.BAKING, S.DECIDING) and gate is not Gate.PAUSED:
        names.add("promote")
    return names


@pytest.mark.parametrize("gate", Gate)
@pytest.mark.parametrize("status", WorkflowStatus)
def test_matrix(status: WorkflowStatus, gate: Gate) -> None:
    made = in_state(status, gate)
    can = expected(status, gate)
    assert set(allowed(made)) == can
    for name, order in ORDERS.items():
        harmless = (name == "pause" and gate is Gate.PAUSED) or (
            name == "abort" and status in (S.ROLLING_BACK, S.ROLLBACK_INCOMPLETE, S.CANCELLED)
        )
        if name in can:
            decision = command(made, order, 2000.0)
            assert decision.moved
            changes = [e for e in decision.events if e.kind is EventKind.STATE_CHANGED]
            assert len(changes) == (decision.workflow.status is not status)
        elif harmless:
            assert not command(made, order, 2000.0).moved
        else:
            with pytest.raises(WrongStateError) as caught:
                command(made, order, 2000.0)
            assert caught.value.reason is ErrorReason.WORKFLOW_WRONG_STATE
            assert set(filter(None, caught.value.metadata["allowed"].split(","))) == can


@pytest.mark.parametrize("status", FORWARD)
def test_abort_wins_in_every_order(status: WorkflowStatus) -> None:
    for orders in itertools.permutations(["abort", "pause", "promote"]):
        made = in_state(status)
        for name in orders:
            try:
                made = command(made, ORDERS[name], 2000.0).workflow
            except WrongStateError:
                continue
        assert made.status in (S.CANCELLED, S.ROLLING_BACK)
        assert made.gate is Gate.OPEN


@pytest.mark.parametrize("status", FORWARD)
def test_abort_cancels_before_the_first_effect_and_rolls_back_after(status: WorkflowStatus) -> None:
    made = in_state(status)
    after = command(made, Abort("ann", "wrong fleet"), 2000.0).workflow
    assert after.status is (S.ROLLING_BACK if made.effects_started else S.CANCELLED)
    assert "ann" in after.message
    assert "wrong fleet" in after.message
    assert after.failure_reason == "aborted"


def test_pause_beats_promote() -> None:
    made = command(in_state(S.BAKING), Pause("ann"), 2000.0).workflow
    with pytest.raises(WrongStateError, match="possible now: abort, resume"):
        command(made, Promote("bob"), 2000.0)


def test_approval_of_another_plan_or_too_late_is_stale() -> None:
    made = in_state(S.AWAITING_APPROVAL)
    with pytest.raises(WrongStateError) as caught:
        command(made, Approve("ann", "f" * 64), 2000.0)
    assert caught.value.reason is ErrorReason.APPROVAL_STALE
    assert caught.value.metadata["plan_hash"] == made.plan_hash
    with pytest.raises(WrongStateError) as caught:
        command(made, Approve("ann", made.plan_hash), (made.approval_deadline or 0) + 1)
    assert caught.value.reason is ErrorReason.APPROVAL_STALE


def test_approval_is_recorded_with_the_plan_it_was_given_on() -> None:
    made = in_state(S.AWAITING_APPROVAL)
    decision = command(made, Approve("ann", reason="looked at it"), 2000.0)
    assert decision.workflow.approval == Approval(True, "ann", 2000.0, made.plan_hash, "looked at it")
    assert [e.kind for e in decision.events] == [EventKind.APPROVAL_DECIDED, EventKind.STATE_CHANGED]


def test_a_repeated_approval_changes_nothing() -> None:
    made = command(in_state(S.AWAITING_APPROVAL), Approve("ann"), 2000.0).workflow
    assert not command(made, Approve("ann"), 2001.0).moved
    with pytest.raises(WrongStateError):
        command(made, Approve("bob"), 2001.0)


def test_approval_while_paused_takes_effect_at_resume_and_the_approval_clock_runs_on() -> None:
    made = in_state(S.AWAITING_APPROVAL)
    made = command(made, Pause("ann"), 2000.0).workflow
    made = command(made, Approve("bob"), 2100.0).workflow
    assert made.status is S.AWAITING_APPROVAL
    deadline = made.approval_deadline
    made = command(made, Resume("ann"), 2200.0).workflow
    assert made.status is S.PREFLIGHT
    assert made.approval_deadline == deadline


def test_rejection_ends_it() -> None:
    made = command(in_state(S.AWAITING_APPROVAL), Reject("ann", "not today"), 2000.0).workflow
    assert made.status is S.REJECTED
    assert made.approved is False
    assert not command(made, Reject("ann", "not today"), 2001.0).moved


def test_resume_moves_deadlines_by_the_time_away() -> None:
    made = in_state(S.APPLYING)
    deadline = made.phase_deadline
    assert deadline is not None
    paused = command(made, Pause("ann"), 2000.0).workflow
    resumed = command(paused, Resume("ann"), 2500.0).workflow
    assert resumed.phase_deadline == deadline + 500.0
    assert resumed.paused_at is None
