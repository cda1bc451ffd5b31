"""A store or a target that goes away in the middle of a rollout: no effect meanwhile, and it goes on (or back) afterwards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from perf_service.models.config import ConfigChange
from perf_service.models.errors import ErrorReason, InvalidArgumentError, StoreError
from perf_service.models.fleet import Fleet, Instance, TargetSpec
from perf_service.models.workflow import Gate, StagePolicy, WorkflowRequest, WorkflowStatus
from perf_service.targets.base import Target
from perf_service.workflows.observer import Observer
from perf_service.workflows.reconciler import Reconciler, Scene
from tests.support.virtual_world import POLICY, World

S = WorkflowStatus
QUICK = replace(
    POLICY, stages=tuple(StagePolicy(p, bake_seconds=16.0, min_samples=2, min_requests=5) for p in (50.0, 100.0)), warmup_seconds=2.0
)
CHANGE = WorkflowRequest(fleet_id="f1", requires_approval=False, changes=(ConfigChange("max_num_seqs", 16, 32),), policy=QUICK)


async def world_of() -> World:
    world = World({"max_num_seqs": 16}, replicas=2)
    await world.register()
    world.virtual.advance(30)
    return world


class Outage:
    """Every transaction of the store fails, so many times; the clock of the world stands meanwhile."""

    def __init__(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = 0
        self.effects: list[int] = []
        database = world.store._db
        for name in ("read", "write"):
            monkeypatch.setattr(database, name, self._around(getattr(database, name)))
        self._journal = world.target.journal

    def _around(self, method: Callable[..., Any]) -> Callable[..., Any]:
        async def guarded(work: Callable[..., Any]) -> Any:
            if self.left > 0:
                self.left -= 1
                self.effects.append(len(self._journal))
                raise StoreError(ErrorReason.STORE_UNAVAILABLE, "the store is locked", retry_after_seconds=1.0)
            return await method(work)

        return guarded


@pytest.mark.parametrize("seconds", [20.0, 45.0])
async def test_a_store_that_goes_away_delays_a_rollout_and_nothing_else(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    world = await world_of()
    outage = Outage(world, monkeypatch)

    async def begin() -> None:
        outage.left = 4

    world.after(seconds, begin)
    done = await world.manager().start_workflow(CHANGE)
    assert done.status is S.COMPLETED, done.message
    assert len(outage.effects) == 4
    assert len(set(outage.effects)) == 1, "nothing is touched without a store"
    assert len(world.target.journal) == 2, "each replica is restarted once"
    await world.store.close()


async def test_a_target_that_can_no_longer_be_opened_holds_the_rollout_and_then_undoes_it() -> None:
    world = await world_of()
    broken = False

    async def get(fleet: Fleet, instances: Sequence[Instance], *, spec: TargetSpec | None = None) -> Target:
        if broken:
            raise InvalidArgumentError("target option 'ports': is needed", field="target.options[ports]")
        return world.target

    async def breaks() -> None:
        nonlocal broken
        broken = True

    async def mended() -> None:
        nonlocal broken
        broken = False

    world.get = get  # type: ignore[method-assign]
    world.after(40.0, breaks)
    world.after(120.0, mended)
    done = await world.manager().start_workflow(CHANGE)
    assert done.status is S.ROLLED_BACK, done.message
    assert "'ports'" in done.message
    held = [e for e in await world.store.events_after(done.workflow_id, 0, limit=10_000) if e.gate is Gate.HELD]
    assert held
    assert {c.get("max_num_seqs") for c in world.target.configs.values()} == {16}
    await world.store.close()


async def test_an_own_lease_that_expired_is_given_back_at_once() -> None:
    """After an outage longer than the lease the claim comes before the driver: nobody would drive for one more lease time."""
    world = await world_of()
    workflow = await world.manager().start(CHANGE)

    async def scene(_: object) -> Scene:
        return Scene(world.instances, world.target)

    manager = world.manager()
    reconciler = Reconciler(world.store, Observer(manager.pipeline, world.now), scene, clock=world.now, owner="me", wait=world.wait)
    lease = await reconciler.claim(workflow.workflow_id)
    assert lease is not None
    reconciler._runs[workflow.workflow_id] = None  # type: ignore[assignment]  # its task is late
    world.virtual.advance(60.0)
    await reconciler._claim_all()
    assert await world.store.acquire_lease("another", 15.0) is not None
    with pytest.raises(Exception, match="no longer leased"):
        await world.store.renew_lease(replace(lease), 15.0)
    await world.store.close()
