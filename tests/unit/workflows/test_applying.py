"""The new config on the replicas of a stage, and what goes wrong on the way."""

from __future__ import annotations

from perf_service.models.errors import ErrorReason
from perf_service.workflows.types import Problem
from tests.support.machine_driver import Machine, S, policy, workflow


def test_replicas_are_changed_one_at_a_time_in_a_fixed_order() -> None:
    machine = Machine.of(workflow(rollout=policy(max_parallel_applies=1)))
    machine.run()
    assert [name for _, name in machine.applied] == ["r0", "r1", "r2", "r3"]


def test_a_refused_apply_is_tried_again_under_a_new_id_and_then_rolled_back() -> None:
    machine = Machine.of(workflow())
    machine.run(until=S.APPLYING)
    machine.refuse = Problem(ErrorReason.TARGET_APPLY_FAILED, "no space left")
    for _ in range(3):
        machine.step(1.0)
    assert machine.workflow.replicas[0].attempts == 3
    machine.step(1.0)
    assert machine.is_at(S.ROLLING_BACK)
    machine.refuse = None
    done = machine.run()
    assert done.status is S.ROLLED_BACK
    assert "no space left" in done.message


def test_a_permanent_refusal_is_not_tried_again() -> None:
    machine = Machine.of(workflow())
    machine.run(until=S.APPLYING)
    machine.refuse = Problem(ErrorReason.TARGET_APPLY_FAILED, "unknown flag", permanent=True)
    machine.step(1.0)
    machine.step(1.0)
    assert machine.is_at(S.ROLLING_BACK)


def test_a_replica_that_never_becomes_ready_is_rolled_back_at_the_deadline() -> None:
    machine = Machine.of(workflow(rollout=policy(apply_timeout_seconds=100.0)))
    machine.run(until=S.APPLYING)
    machine.carry_out = False
    machine.step(99.0)
    machine.step(2.0)
    machine.step(97.0)
    assert machine.is_at(S.APPLYING)
    machine.step(3.0)
    assert machine.is_at(S.ROLLING_BACK)
