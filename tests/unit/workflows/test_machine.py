"""The pure machine: its road, its gates, its ways back."""

from __future__ import annotations

from dataclasses import replace

import pytest

from perf_service.models.errors import ErrorReason
from perf_service.models.metrics import Engine
from perf_service.models.plan import Plan
from perf_service.models.workflow import EventKind, Gate, Judgement, ReplicaPhase, WorkflowStatus
from perf_service.targets.base import PreflightReport
from perf_service.workflows.machine import decide, next_look_at
from perf_service.workflows.types import Abort, Approve, Observation, Pause, Problem, Promote, Resume
from tests.support.machine_driver import NEW, OLD, Machine, S, policy, workflow


def states(machine: Machine) -> list[str]:
    return [e.status.value for e in machine.events if e.kind is EventKind.STATE_CHANGED]


def test_the_whole_road() -> None:
    machine = Machine.of(workflow())
    done = machine.run()
    assert done.status is S.COMPLETED
    assert states(machine) == (
        ["collecting", "analyzing", "planning", "preflight"] + ["applying", "baking", "deciding"] * 3 + ["finalizing", "completed"]
    )
    assert [(r.percent, r.exposure_percent, r.judgement) for r in done.rollout_history] == [
        (10, 25, Judgement.PASS),
        (50, 50, Judgement.PASS),
        (100, 100, Judgement.PASS),
    ]
    assert list(machine.configs.values()) == [NEW] * 4
    assert [e.sequence for e in machine.events] == list(range(1, done.last_sequence + 1))
    assert done.initial_health_score == 40.0
    assert done.final_health_score == 90.0


@pytest.mark.parametrize(
    ("replicas", "sizes"),
    [(1, [1, 1, 1]), (2, [1, 1, 2]), (3, [1, 2, 3]), (4, [1, 2, 4]), (10, [1, 5, 10]), (25, [3, 13, 25])],
)
def test_stage_sizes_are_rounded_up_and_at_least_one(replicas: int, sizes: list[int]) -> None:
    machine = Machine.of(workflow(), replicas)
    done = machine.run()
    assert [len(r.replicas) for r in done.rollout_history] == sizes
    assert [r.exposure_percent for r in done.rollout_history] == pytest.approx([100 * s / replicas for s in sizes])
    assert len(machine.applied) == replicas, "each replica is changed once"


def test_previous_configs_are_recorded_before_the_first_effect() -> None:
    machine = Machine.of(workflow())
    machine.run(until=S.APPLYING)
    assert not machine.applied
    assert [(r.previous_config, r.phase) for r in machine.workflow.replicas] == [(OLD, ReplicaPhase.UNCHANGED)] * 4
    assert all(r.previous_hash and r.desired_hash != r.previous_hash for r in machine.workflow.replicas)


def test_replicas_are_changed_one_at_a_time_in_a_fixed_order() -> None:
    machine = Machine.of(workflow(rollout=policy(max_parallel_applies=1)))
    machine.run()
    assert [name for _, name in machine.applied] == ["r0", "r1", "r2", "r3"]


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


def test_too_few_requests_hold_and_roll_back() -> None:
    machine = Machine.of(workflow())
    machine.run(until=S.BAKING)
    machine.requests = 2.0
    done = machine.run()
    assert done.status is S.ROLLED_BACK
    assert "requests on the changed replicas" in done.message


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


def test_drift_of_a_changed_replica_is_restored_to_the_recorded_config() -> None:
    machine = Machine.of(workflow())
    machine.run(until=S.BAKING)
    machine.configs["r0"] = machine.configs["r0"].of({"max_num_seqs": 9})
    assert machine.run().status is S.ROLLED_BACK
    assert machine.configs["r0"] == OLD


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


def test_a_rollout_that_waits_for_promotion_is_still_watched() -> None:
    waiting = policy(stages=tuple(replace(s, requires_promotion=True) for s in policy().stages))
    machine = Machine.of(workflow(rollout=waiting))
    machine.run(until=S.DECIDING)
    machine.step()
    machine.errors = 0.5
    machine.step(10.0)
    assert machine.is_at(S.ROLLING_BACK)


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


def test_dry_run_walks_every_stage_and_touches_nothing() -> None:
    machine = Machine.of(workflow(dry_run=True))
    done = machine.run()
    assert done.status is S.COMPLETED
    assert "dry run" in done.message
    assert [r.judgement for r in done.rollout_history] == [Judgement.NOT_APPLICABLE] * 3
    assert not machine.applied
    assert not done.effects_started
    assert done.outcome is not None
    assert not done.outcome.comparable


def test_a_dry_run_whose_engine_goes_away_fails() -> None:
    machine = Machine.of(workflow(dry_run=True))
    machine.run(until=S.BAKING)
    machine.metrics_work = False
    done = machine.run()
    assert done.status is S.FAILED
    assert "scraped" in done.message


def test_a_required_improvement_that_did_not_come_is_rolled_back() -> None:
    machine = Machine.of(workflow(rollout=policy(min_improvement_ratio=0.3)))
    done = machine.run()
    assert done.status is S.ROLLED_BACK
    assert done.failure_reason == "min_improvement"


@pytest.mark.parametrize("status", [s for s in WorkflowStatus if s.terminal])
def test_terminal_never_changes(status: WorkflowStatus) -> None:
    done = workflow(status=status)
    decision = decide(done, Observation(), 5000.0)
    assert decision.workflow == done
    assert not decision.events
    assert next_look_at(done, 0.0) is None


def test_a_pause_stops_preparation() -> None:
    machine = Machine.of(workflow())
    machine.run(until=S.ANALYZING)
    machine.command(Pause("ann"))
    machine.step(10.0)
    assert machine.is_at(S.ANALYZING)
    assert next_look_at(machine.workflow, machine.now) is None
    machine.command(Resume("ann"))
    assert machine.run().status is S.COMPLETED


def test_an_action_journal_replayed_twice_leaves_the_same_fleet() -> None:
    """I12: a step carried out twice changes nothing the second time."""
    machine = Machine.of(workflow())
    machine.run(until=S.APPLYING)
    stored = replace(machine.workflow)
    machine.step(1.0)
    configs = dict(machine.configs)
    machine.workflow, machine.events = stored, machine.events[: stored.last_sequence]
    machine.step(1.0)
    assert machine.configs == configs
    assert len(machine.applied) == 1
