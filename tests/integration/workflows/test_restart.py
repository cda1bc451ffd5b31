"""The manager dies at every step that it records, before and after acting; a new one on the same store ends in the same state."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from perf_service.models.config import ConfigChange
from perf_service.models.workflow import RolloutPolicy, StagePolicy, Workflow, WorkflowRequest, WorkflowStatus
from perf_service.simulator.workload import Lengths, Workload
from perf_service.workflows.manager import WorkflowManager
from tests.support.virtual_world import World

LOAD = Workload(prompt=Lengths.uniform(20, 40), output=Lengths.uniform(3, 6), rate=4.0)
QUICK = RolloutPolicy(
    stages=tuple(StagePolicy(p, bake_seconds=16.0, min_samples=2, min_requests=5) for p in (50.0, 100.0)),
    sample_interval_seconds=4.0,
    warmup_seconds=2.0,
    hold_limit_seconds=20.0,
    apply_timeout_seconds=60.0,
    max_relative_regression_ratio=0.5,
)
S = WorkflowStatus


class Died(BaseException):
    """The process is gone: nothing after this line runs."""


class Mortal:
    """Kills the manager at the n-th chance: around a record (before, after) or around an effect (before, after)."""

    def __init__(self, world: World, at: int) -> None:
        self.chances = 0
        self._at = at
        store, target = world.store, world.target
        self._save, self._apply, self._restore = store.save_workflow, target.apply, target.restore

        async def save(*args: object, **kwargs: object) -> Workflow:
            self._chance()
            saved = await self._save(*args, **kwargs)  # type: ignore[arg-type]
            self._chance()
            return saved

        async def apply(*args: object, **kwargs: object) -> None:
            self._chance()
            await self._apply(*args, **kwargs)  # type: ignore[arg-type]
            self._chance()

        async def restore(*args: object, **kwargs: object) -> None:
            self._chance()
            await self._restore(*args, **kwargs)  # type: ignore[arg-type]
            self._chance()

        store.save_workflow, target.apply, target.restore = save, apply, restore  # type: ignore[method-assign]

    def _chance(self) -> None:
        self.chances += 1
        if self.chances == self._at:
            raise Died


async def drive(world: World, manager: WorkflowManager, workflow_id: str) -> Workflow | None:
    """To the end, or to the manager's death; the dead one's lease is left as it was."""
    release = world.store.release_lease

    async def keep(_: object) -> None:
        """A dead process gives nothing back."""

    world.store.release_lease = keep  # type: ignore[method-assign,assignment]
    try:
        return await manager.run_to_end(workflow_id)
    except Died:
        return None
    finally:
        world.store.release_lease = release  # type: ignore[method-assign]


async def rollout(change: ConfigChange, *, die_at: int, present: int = 8) -> tuple[Workflow, World, int]:
    world = World({"max_num_seqs": present}, replicas=2, workload=LOAD)
    await world.register()
    world.virtual.advance(20)
    request = WorkflowRequest(fleet_id="f1", requires_approval=False, changes=(change,), policy=QUICK)
    manager = world.manager()
    workflow = await manager.start(request)
    mortal = Mortal(world, die_at)
    done = await drive(world, manager, workflow.workflow_id)
    if done is None:
        world.virtual.advance(16.0)  # the dead one's lease runs out
        done = await drive(world, world.manager(), workflow.workflow_id)
    assert done is not None
    await world.store.close()
    return done, world, mortal.chances


@pytest.mark.parametrize(
    ("change", "present", "end"),
    [(ConfigChange("max_num_seqs", 8, 16), 8, S.COMPLETED), (ConfigChange("max_num_seqs", 8, 1), 8, S.ROLLED_BACK)],
    ids=["completes", "rolls back"],
)
async def test_killed_at_every_step_the_end_is_the_same(change: ConfigChange, present: int, end: WorkflowStatus) -> None:
    reference, _, chances = await rollout(change, die_at=-1, present=present)
    assert reference.status is end, reference.message
    # A step of 11 is prime to the four chances (before and after a record, before and after an effect), so each kind is hit.
    for at in range(1, chances + 1, 11):
        done, world, _ = await rollout(change, die_at=at, present=present)
        assert done.status is end, f"died at {at}: {done.message}"
        running = {config.get("max_num_seqs") for config in world.target.configs.values()}
        assert running == ({change.recommended_value} if end is S.COMPLETED else {present})
        if end is S.COMPLETED:
            names = [name for _, name, _ in world.target.journal]
            assert sorted(names) == ["r0", "r1"], f"died at {at}: each replica is restarted once"


async def test_two_managers_never_act_at_the_same_time() -> None:
    world = World({"max_num_seqs": 8}, replicas=2, workload=LOAD)
    await world.register()
    world.virtual.advance(20)
    one, two = world.manager(), world.manager()
    change = ConfigChange("max_num_seqs", 8, 16)
    workflow = await one.start(WorkflowRequest(fleet_id="f1", requires_approval=False, changes=(change,), policy=QUICK))
    done = await asyncio.gather(one.run_to_end(workflow.workflow_id), two.run_to_end(workflow.workflow_id))
    assert [d.status for d in done] == [S.COMPLETED] * 2
    assert len(world.target.journal) == 2
    await world.store.close()


async def test_a_file_store_carries_a_rollout_over(tmp_path: object) -> None:
    world = World({"max_num_seqs": 8}, replicas=2, workload=LOAD, store_url=f"sqlite:///{tmp_path}/perf.db")
    await world.register()
    world.virtual.advance(20)
    manager = world.manager()
    change = ConfigChange("max_num_seqs", 8, 16)
    request = WorkflowRequest(fleet_id="f1", requires_approval=False, changes=(change,), policy=replace(QUICK))
    workflow = await manager.start(request)
    assert (await manager.run_to_end(workflow.workflow_id)).status is S.COMPLETED
    await world.store.close()
