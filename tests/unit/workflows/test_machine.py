"""The pure machine as a whole: its road, its end, its journal."""

from __future__ import annotations

from dataclasses import replace

import pytest

from perf_service.models.workflow import EventKind, Judgement, WorkflowStatus
from perf_service.workflows.machine import decide, next_look_at
from perf_service.workflows.types import Observation
from tests.support.machine_driver import NEW, Machine, S, workflow


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


@pytest.mark.parametrize("status", [s for s in WorkflowStatus if s.terminal])
def test_terminal_never_changes(status: WorkflowStatus) -> None:
    done = workflow(status=status)
    decision = decide(done, Observation(), 5000.0)
    assert decision.workflow == done
    assert not decision.events
    assert next_look_at(done, 0.0) is None


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
