"""Stages: their bake, their judgement, their promotion."""

from __future__ import annotations

from dataclasses import replace

import pytest

from perf_service.models.workflow import Judgement
from perf_service.workflows.types import Pause, Promote, Resume
from tests.support.machine_driver import Machine, S, policy, workflow


def test_too_few_requests_hold_and_roll_back() -> None:
    machine = Machine.of(workflow())
    machine.run(until=S.BAKING)
    machine.requests = 2.0
    done = machine.run()
    assert done.status is S.ROLLED_BACK
    assert "requests on the changed replicas" in done.message


def test_the_bake_clock_stops_while_paused() -> None:
    machine = Machine.of(workflow())
    machine.run(until=S.BAKING)
    machine.step(20.0)
    machine.command(Pause("ann"))
    for _ in range(10):
        machine.step(10.0)
    assert machine.is_at(S.BAKING)
    machine.command(Resume("ann"))
    assert machine.workflow.paused_seconds == pytest.approx(100.0)
    machine.step(10.0)
    machine.step(10.0)
    assert machine.is_at(S.BAKING), "40 of 60 s"
    assert machine.run().status is S.COMPLETED


def test_stages_wait_for_promotion_where_told_and_time_out() -> None:
    waiting = policy(stages=tuple(replace(s, requires_promotion=True) for s in policy().stages))
    machine = Machine.of(workflow(rollout=waiting))
    for stage in (0, 1):
        machine.run(until=S.DECIDING)
        for _ in range(20):
            machine.step(10.0)
        assert machine.is_at(S.DECIDING)
        assert machine.workflow.stage_index == stage
        machine.command(Promote("ann"))
        machine.step()
        assert machine.is_at(S.APPLYING)
    assert machine.run().status is S.COMPLETED, "after the last stage there is nothing to wait for"

    late = Machine.of(workflow(rollout=waiting))
    late.run(until=S.DECIDING)
    late.step()
    late.step(waiting.approval_timeout_seconds + 1)
    assert late.is_at(S.ROLLING_BACK)
    assert late.workflow.failure_reason == "promotion_timeout"


def test_promotion_cuts_the_bake_short_but_does_not_excuse_a_breach() -> None:
    machine = Machine.of(workflow())
    machine.run(until=S.BAKING)
    machine.command(Promote("ann", full=True))
    done = machine.run(seconds=1.0)
    assert done.status is S.COMPLETED
    assert done.rollout_history[0].judgement is not Judgement.PASS
    assert "promoted" in done.rollout_history[0].message

    bad = Machine.of(workflow())
    bad.run(until=S.BAKING)
    bad.command(Promote("ann", full=True))
    bad.ready["r0"] = False
    bad.step(1.0)
    assert bad.is_at(S.ROLLING_BACK)
