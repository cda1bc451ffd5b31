"""What is seen after the first effect: taken in, held, or a breach."""

from __future__ import annotations

from dataclasses import replace

import pytest

from perf_service.models.errors import ErrorReason
from perf_service.models.workflow import EventKind, Gate, Judgement
from perf_service.workflows.types import Pause
from tests.support.machine_driver import OLD, Machine, S, policy, workflow


def test_samples_lie_wholly_after_convergence_and_warm_up() -> None:
    machine = Machine.of(workflow())
    machine.run(until=S.BAKING)
    started = machine.workflow.bake_started_at
    assert started is not None
    for _ in range(4):
        machine.step(2.0)
    assert not machine.workflow.samples
    machine.run(until=S.DECIDING)
    assert machine.workflow.samples[0].start >= started + 5.0


def test_a_regression_within_doubt_is_held_until_it_is_beyond() -> None:
    machine = Machine.of(workflow(rollout=policy(hold_limit_seconds=900.0)))
    machine.run(until=S.BAKING)
    machine.ratio = 1.3
    while not machine.gate_is(Gate.HELD):
        machine.step(10.0)
        assert machine.status in (S.BAKING, S.DECIDING)
    done = machine.run()
    assert done.status is S.ROLLED_BACK
    assert "beyond doubt" in done.message
    assert done.rollout_history[0].judgement is Judgement.FAIL


def test_errors_beyond_the_limit_end_it_at_the_first_sample() -> None:
    machine = Machine.of(workflow())
    machine.run(until=S.BAKING)
    machine.errors = 0.2
    machine.run(until=S.ROLLING_BACK)
    assert machine.workflow.failure_reason == "max_error_ratio"
    assert len(machine.workflow.samples) == 1


@pytest.mark.parametrize("stage", [0, 2])
def test_no_data_is_never_a_pass(stage: int) -> None:
    machine = Machine.of(workflow())
    while machine.workflow.stage_index < stage or machine.status is not S.BAKING:
        machine.step()
        if machine.status in (S.BAKING, S.APPLYING) and (machine.workflow.stage_index < stage):
            machine.now += 10.0
    machine.metrics_work = False
    done = machine.run()
    assert done.status is S.ROLLED_BACK
    assert done.failure_reason == "no_data"
    gates = [e for e in machine.events if e.kind is EventKind.GATE_CHANGED]
    assert gates[0].gate is Gate.HELD
    assert all(c == OLD for c in machine.configs.values())


def test_data_that_comes_back_releases_the_hold() -> None:
    machine = Machine.of(workflow())
    machine.run(until=S.BAKING)
    machine.metrics_work = False
    while not machine.gate_is(Gate.HELD):
        machine.step(10.0)
    machine.metrics_work = True
    machine.step(10.0)
    assert machine.gate_is(Gate.OPEN)
    assert machine.workflow.held_since is None
    assert machine.run().status is S.COMPLETED


def test_a_changed_replica_that_dies_is_a_hard_breach_even_while_paused() -> None:
    machine = Machine.of(workflow())
    machine.run(until=S.BAKING)
    machine.command(Pause("ann"))
    machine.ready["r0"] = False
    machine.carry_out = False
    machine.step(1.0)
    assert machine.is_at(S.ROLLING_BACK)
    assert machine.workflow.failure_reason == "replica_not_ready"
    assert machine.gate_is(Gate.OPEN)


def test_a_restart_that_nobody_asked_for_is_a_hard_breach() -> None:
    machine = Machine.of(workflow())
    machine.restarts = dict.fromkeys(machine.restarts, 3)  # earlier ones do not count
    machine.run(until=S.BAKING)
    machine.step(1.0)
    assert machine.is_at(S.BAKING)
    machine.restarts["r0"] = 4
    machine.step(1.0)
    assert machine.is_at(S.ROLLING_BACK)
    assert machine.workflow.failure_reason == "restarts"


def test_an_unchanged_replica_that_is_down_only_holds() -> None:
    machine = Machine.of(workflow())
    machine.run(until=S.BAKING)
    machine.ready["r3"] = False
    machine.step(1.0)
    assert machine.is_at(S.BAKING)
    assert machine.gate_is(Gate.HELD)
    machine.ready["r3"] = True
    machine.step(1.0)
    assert machine.gate_is(Gate.OPEN)


def test_drift_is_held_and_not_fought_then_rolled_back() -> None:
    machine = Machine.of(workflow())
    machine.run(until=S.BAKING)
    machine.configs["r3"] = machine.configs["r3"].of({"max_num_seqs": 9})
    machine.step(1.0)
    assert machine.gate_is(Gate.HELD)
    done = machine.run()
    assert done.status is S.ROLLED_BACK
    assert done.failure_reason == ErrorReason.TARGET_DRIFT.value
    assert machine.configs["r3"].get("max_num_seqs") == 9, "what this rollout never touched is left alone"
    assert machine.configs["r0"] == OLD
    assert any(e.kind is EventKind.WARNING and "r3" in e.message for e in machine.events)


def test_a_rollout_that_waits_for_promotion_is_still_watched() -> None:
    waiting = policy(stages=tuple(replace(s, requires_promotion=True) for s in policy().stages))
    machine = Machine.of(workflow(rollout=waiting))
    machine.run(until=S.DECIDING)
    machine.step()
    machine.errors = 0.5
    machine.step(10.0)
    assert machine.is_at(S.ROLLING_BACK)
