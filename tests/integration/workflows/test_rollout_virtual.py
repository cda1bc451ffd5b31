"""Whole rollouts over simulated engines on a virtual clock: real pages, real store, real manager; only time is not."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from perf_service.models.config import ConfigChange, EngineConfig
from perf_service.models.errors import ErrorReason, TargetError
from perf_service.models.slo import SLOTarget
from perf_service.models.workflow import EventKind, Gate, Workflow, WorkflowRequest, WorkflowStatus
from perf_service.simulator.workload import Lengths, Workload
from tests.support.virtual_world import POLICY, World

SHORT = Workload(prompt=Lengths.uniform(20, 60), output=Lengths.uniform(5, 12), rate=6.0)
CURE = (ConfigChange("max_num_seqs", 2, 16),)
HARM = (ConfigChange("max_num_seqs", 16, 1),)
S = WorkflowStatus


async def world_of(max_num_seqs: int, **options: object) -> World:
    """Four replicas that have run for a while."""
    world = World({"max_num_seqs": max_num_seqs}, workload=SHORT, **options)  # type: ignore[arg-type]
    await world.register()
    world.virtual.advance(30)
    return world


def request(changes: tuple[ConfigChange, ...], **options: object) -> WorkflowRequest:
    made = WorkflowRequest(fleet_id="f1", requires_approval=False, changes=changes, policy=POLICY)
    return replace(made, **options)  # type: ignore[arg-type]


async def history(world: World, workflow: Workflow) -> list[object]:
    return list(await world.store.events_after(workflow.workflow_id, 0, limit=10_000))


def configs(world: World) -> set[object]:
    return {world.target.configs[i.instance_id].get("max_num_seqs") for i in world.instances}


async def test_a_planted_bottleneck_is_cured_and_the_effect_is_measured() -> None:
    world = await world_of(2)
    done = await world.manager().start_workflow(request(CURE, slo_targets=(SLOTarget("ttft_p95", 0.5),)))
    assert done.status is S.COMPLETED, done.message
    assert configs(world) == {16}
    registered = [await world.store.get_instance(i.instance_id) for i in world.instances]
    assert {i.config.get("max_num_seqs") for i in registered} == {16}, "the next analysis judges by the new limit"
    assert world.changed == registered, "and so does whoever keeps a copy, such as the scraper"
    assert [(r.percent, len(r.replicas)) for r in done.rollout_history] == [(10, 1), (50, 2), (100, 4)]
    assert done.outcome is not None
    ttft = next(e for e in done.outcome.effects if e.metric == "ttft_seconds_mean")
    assert ttft.ratio < 0.7
    assert ttft.before_samples > 50
    assert [name for _, name, _ in world.target.journal] == ["r0", "r1", "r2", "r3"], "one restart a replica"
    (entry,) = await world.store.ledger()
    assert not entry.harmful
    assert entry.parameters == ("max_num_seqs",)
    assert entry.effects == done.outcome.effects
    await world.store.close()


async def test_a_harmful_change_is_rolled_back_after_one_replica() -> None:
    world = await world_of(16)
    before = dict(world.target.configs)
    done = await world.manager().start_workflow(request(HARM))
    assert done.status is S.ROLLED_BACK, done.message
    assert world.target.configs == before
    assert [(await world.store.get_instance(i.instance_id)).config for i in world.instances] == [i.config for i in world.instances]
    assert world.changed == []
    assert {name for _, name, _ in world.target.journal} == {"r0"}
    assert done.failure_reason == "relative"
    (entry,) = await world.store.ledger()
    assert entry.harmful
    assert world.virtual.replicas[0].flags.max_num_seqs == 16
    await world.store.close()


@pytest.mark.parametrize("fault", ["metrics outage", "no traffic", "replica dies", "drift", "target gone"])
async def test_faults_in_the_middle_of_a_bake(fault: str) -> None:
    world = await world_of(16)
    manager = world.manager()

    async def plant() -> None:
        match fault:
            case "metrics outage":
                world.outage = True
            case "no traffic":
                world.virtual.stop_load()
            case "replica dies":
                world.virtual.stop(0)
            case "drift":
                world.target.drift("r3", max_num_seqs=5)
            case "target gone":
                world.target.unreachable = True

    async def heal() -> None:
        world.target.unreachable = False

    world.after(90.0, plant)
    world.after(400.0, heal)
    done = await manager.start_workflow(request((ConfigChange("max_num_seqs", 16, 32),)))
    assert done.status is S.ROLLED_BACK, done.message
    assert world.target.configs["r0"].get("max_num_seqs") == 16
    held = [e for e in await world.store.events_after(done.workflow_id, 0, limit=10_000) if e.gate is Gate.HELD]
    expected = {
        "metrics outage": "no_data",
        "no traffic": "no_data",
        "replica dies": "replica_not_ready",
        "drift": ErrorReason.TARGET_DRIFT.value,
        "target gone": ErrorReason.TARGET_UNAVAILABLE.value,
    }
    assert done.failure_reason == expected[fault]
    assert bool(held) == (fault != "replica dies"), "a dead replica is no matter of waiting"
    await world.store.close()


async def test_an_engine_that_refuses_the_flag_is_restored() -> None:
    world = await world_of(16)

    def refuse(_: str, desired: EngineConfig) -> TargetError | None:
        if desired.get("max_num_seqs") == 32:
            return TargetError(ErrorReason.TARGET_APPLY_FAILED, "r0 exited with code 1: unknown flag", permanent=True)
        return None

    world.target.refuse = refuse
    done = await world.manager().start_workflow(request((ConfigChange("max_num_seqs", 16, 32),)))
    assert done.status is S.ROLLED_BACK
    assert "unknown flag" in done.message
    await world.store.close()


async def test_events_read_in_parts_are_one_gap_free_history() -> None:
    world = await world_of(16)
    manager = world.manager()
    done = await manager.start_workflow(request((ConfigChange("max_num_seqs", 16, 32),)))
    seen = [e async for e in manager.watch(done.workflow_id)]
    assert [e.sequence for e in seen] == list(range(1, done.last_sequence + 1))
    assert seen[-1].status is done.status
    assert [e async for e in manager.watch(done.workflow_id, after_sequence=seen[-4].sequence)] == seen[-3:]
    changes = [(e.previous_status, e.status) for e in seen if e.kind is EventKind.STATE_CHANGED]
    assert all(b[0] is a[1] for a, b in pairwise(changes)), "each transition begins where the last one ended"
    await world.store.close()
