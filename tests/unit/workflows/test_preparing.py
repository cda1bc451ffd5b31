"""Before the first effect: what is waited for, what is refused, what is recorded."""

from __future__ import annotations

from dataclasses import replace

import pytest

from perf_service.models.errors import ErrorReason
from perf_service.models.metrics import Engine
from perf_service.models.plan import Plan
from perf_service.models.workflow import EventKind, ReplicaPhase
from perf_service.targets.base import PreflightReport
from perf_service.workflows.machine import next_look_at
from perf_service.workflows.types import Approve, Pause, Resume
from tests.support.machine_driver import NEW, OLD, Machine, S, policy, workflow


def test_previous_configs_are_recorded_before_the_first_effect() -> None:
    machine = Machine.of(workflow())
    machine.run(until=S.APPLYING)
    assert not machine.applied
    assert [(r.previous_config, r.phase) for r in machine.workflow.replicas] == [(OLD, ReplicaPhase.UNCHANGED)] * 4
    assert all(r.previous_hash and r.desired_hash != r.previous_hash for r in machine.workflow.replicas)


def test_an_unreachable_engine_fails_soon_with_the_reason() -> None:
    machine = Machine.of(workflow())
    machine.metrics_work = False
    machine.step()
    machine.step(1.0)
    assert machine.is_at(S.COLLECTING)
    machine.step(1.0)
    assert machine.is_at(S.FAILED)
    assert machine.workflow.failure_reason == ErrorReason.ENDPOINT_UNREACHABLE.value
    assert "connection refused" in machine.workflow.message


def test_nothing_to_do_is_no_change_with_the_reason() -> None:
    machine = Machine.of(workflow())
    machine.plan = Plan(Engine.VLLM, summary="add a replica", plan_id="p")
    assert machine.run().status is S.NO_CHANGE
    assert machine.workflow.message == "add a replica"
    already = Machine.of(workflow())
    already.configs = dict.fromkeys(already.configs, NEW)
    assert already.run().status is S.NO_CHANGE


@pytest.mark.parametrize("fault", ["not_ready", "preflight", "drifted_plan", "no_replica", "exposure", "expired", "other_engine"])
def test_preparation_refuses_before_any_effect(fault: str) -> None:
    machine = Machine.of(workflow())
    assert machine.plan is not None
    match fault:
        case "not_ready":
            machine.ready["r2"] = False
        case "preflight":
            machine.preflight = PreflightReport(("the program 'vllm' is not installed",))
        case "drifted_plan":
            machine.configs = {n: c.of({"max_num_seqs": 7}) for n, c in machine.configs.items()}
        case "no_replica":
            machine.configs = {}
        case "exposure":
            machine.workflow = replace(machine.workflow, policy=policy(max_exposure_percent=20.0))
        case "expired":
            machine.plan = replace(machine.plan, expires_at=1.0)
        case "other_engine":
            machine.plan = replace(machine.plan, engine=Engine.TGI)
    assert machine.run().status is S.FAILED
    assert not machine.applied
    assert not machine.workflow.effects_started
    assert machine.workflow.message


def test_a_target_that_does_not_answer_is_waited_for_and_then_fails() -> None:
    machine = Machine.of(workflow())
    machine.run(until=S.PREFLIGHT)
    machine.target_works = False
    machine.step(10.0)
    assert machine.is_at(S.PREFLIGHT)
    assert machine.run().status is S.FAILED
    assert machine.workflow.failure_reason == ErrorReason.TARGET_UNAVAILABLE.value


def test_approval_binds_and_times_out() -> None:
    machine = Machine.of(workflow(approval=True))
    machine.run(until=S.AWAITING_APPROVAL)
    requested = machine.events[-1]
    assert requested.kind is EventKind.APPROVAL_REQUESTED
    assert machine.workflow.plan_hash
    assert requested.details["plan_hash"] == machine.workflow.plan_hash
    assert next_look_at(machine.workflow, machine.now) == machine.workflow.approval_deadline
    machine.step(86_399.0)
    assert machine.is_at(S.AWAITING_APPROVAL)
    machine.step(2.0)
    assert machine.is_at(S.REJECTED)
    assert machine.workflow.failure_reason == "approval_timeout"


def test_an_approved_rollout_goes_on() -> None:
    machine = Machine.of(workflow(approval=True))
    machine.run(until=S.AWAITING_APPROVAL)
    machine.command(Approve("ann", machine.workflow.plan_hash))
    assert machine.is_at(S.PREFLIGHT)
    assert machine.run().status is S.COMPLETED
    assert machine.workflow.approved_by == "ann"


def test_a_pause_stops_preparation() -> None:
    machine = Machine.of(workflow())
    machine.run(until=S.ANALYZING)
    machine.command(Pause("ann"))
    machine.step(10.0)
    assert machine.is_at(S.ANALYZING)
    assert next_look_at(machine.workflow, machine.now) is None
    machine.command(Resume("ann"))
    assert machine.run().status is S.COMPLETED
