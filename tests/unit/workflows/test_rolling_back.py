"""The ways back: what leads to them, what is restored, what is believed."""

from __future__ import annotations

import pytest

from perf_service.models.errors import ErrorReason
from perf_service.models.workflow import EventKind, Judgement
from perf_service.workflows.types import Abort, Problem
from tests.support.machine_driver import OLD, Machine, S, policy, workflow


def test_a_regression_rolls_back_to_what_was_recorded() -> None:
    machine = Machine.of(workflow())
    machine.run(until=S.BAKING)
    machine.ratio = 3.0
    done = machine.run()
    assert done.status is S.ROLLED_BACK
    assert done.failure_reason == "relative"
    assert all(c == OLD for c in machine.configs.values())
    assert done.outcome is not None
    assert done.outcome.effects[0].ratio == pytest.approx(3.0)
    assert done.rollout_history[0].judgement is Judgement.FAIL
    kinds = [e.kind for e in machine.events]
    assert kinds.index(EventKind.STAGE_JUDGED) < kinds.index(EventKind.ROLLBACK_STARTED) < kinds.index(EventKind.ROLLBACK_VERIFIED)


def test_drift_of_a_changed_replica_is_restored_to_the_recorded_config() -> None:
    machine = Machine.of(workflow())
    machine.run(until=S.BAKING)
    machine.configs["r0"] = machine.configs["r0"].of({"max_num_seqs": 9})
    assert machine.run().status is S.ROLLED_BACK
    assert machine.configs["r0"] == OLD


def test_a_decision_that_was_recorded_but_not_acted_on_is_made_good() -> None:
    machine = Machine.of(workflow())
    machine.run(until=S.APPLYING)
    machine.carry_out = False
    first = machine.step(1.0).actions
    machine.crash()
    machine.carry_out = True
    again = machine.step(1.0).actions
    assert [a.op_id for a in first] == [a.op_id for a in again]
    assert machine.run().status is S.COMPLETED
    assert len(machine.applied) == 4


def test_rollback_is_not_believed_until_the_order_was_taken() -> None:
    """An apply that the target accepted but that is not visible yet must not pass for a restored replica."""
    machine = Machine.of(workflow())
    machine.run(until=S.APPLYING)
    machine.carry_out = False
    machine.step(1.0)  # recorded: r0 is being changed; the target shows the old config still
    machine.command(Abort("ann"))
    for _ in range(5):
        machine.step(1.0)
    assert machine.is_at(S.ROLLING_BACK)
    machine.carry_out = True
    assert machine.run().status is S.ROLLED_BACK


def test_an_unfinished_rollback_says_so_and_keeps_trying() -> None:
    machine = Machine.of(workflow())
    machine.run(until=S.BAKING)
    machine.command(Abort("ann"))
    machine.refuse = Problem(ErrorReason.TARGET_UNAVAILABLE, "down")
    machine.run(until=S.ROLLBACK_INCOMPLETE, seconds=200.0)
    assert not machine.status.terminal
    assert "r0" in machine.workflow.message
    assert machine.workflow.failure_reason == "aborted"
    machine.refuse = None
    assert machine.run().status is S.ROLLED_BACK
    assert machine.configs["r0"] == OLD


def test_a_failed_restore_is_ordered_anew_under_another_id() -> None:
    """A target answers a failed order with its failure for ever: only a new one makes it try again."""
    machine = Machine.of(workflow())
    machine.run(until=S.BAKING)
    machine.command(Abort("ann"))
    machine.refuse = Problem(ErrorReason.TARGET_APPLY_FAILED, "the port is taken", permanent=True)
    orders = [{a.op_id for a in machine.step(30.0).actions} for _ in range(5)]
    assert len(set.union(*orders)) > 1
    assert machine.step(0.0).actions == machine.step(1.0).actions, "but the same one within a minute: nothing is done twice"
    machine.refuse = None
    assert machine.run().status is S.ROLLED_BACK


def test_a_replica_that_left_the_fleet_does_not_claim_it_for_ever() -> None:
    machine = Machine.of(workflow(), 2)
    machine.run(until=S.BAKING)
    machine.command(Abort("ann"))
    del machine.configs["r0"]
    machine.run(until=S.ROLLBACK_INCOMPLETE, seconds=200.0)
    done = machine.run(seconds=60.0)
    assert done.status is S.ROLLED_BACK
    assert any(e.kind is EventKind.WARNING and "no longer in the fleet: r0" in e.message for e in machine.events)


def test_a_required_improvement_that_did_not_come_is_rolled_back() -> None:
    machine = Machine.of(workflow(rollout=policy(min_improvement_ratio=0.3)))
    done = machine.run()
    assert done.status is S.ROLLED_BACK
    assert done.failure_reason == "min_improvement"
