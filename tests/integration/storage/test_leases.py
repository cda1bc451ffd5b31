"""Who may act on a workflow, alike in every store."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from perf_service.models.errors import ConflictError, ErrorReason
from perf_service.models.workflow import Event, Workflow
from perf_service.storage import SqlStore

End = Callable[[Workflow], tuple[Workflow, list[Event]]]


async def test_a_lease_is_exclusive_until_it_expires(store: SqlStore, started: Workflow, clock: Any) -> None:
    mine = await store.acquire_lease("a", 15.0)
    assert mine is not None
    assert await store.acquire_lease("b", 15.0) is None
    assert await store.acquire_lease("b", 15.0, workflow_id="w") is None
    clock.now += 14
    mine = await store.renew_lease(mine, 15.0)
    clock.now += 14
    assert await store.acquire_lease("b", 15.0) is None
    clock.now += 1
    theirs = await store.acquire_lease("b", 15.0)
    assert theirs is not None
    assert theirs.fence == mine.fence + 1
    with pytest.raises(ConflictError) as info:
        await store.renew_lease(mine, 15.0)
    assert info.value.reason is ErrorReason.LEASE_LOST


async def test_a_write_under_an_old_fence_is_refused(store: SqlStore, started: Workflow, clock: Any, build: Any) -> None:
    mine = await store.acquire_lease("a", 15.0)
    assert mine is not None
    clock.now += 15
    theirs = await store.acquire_lease("b", 15.0)
    assert theirs is not None
    with pytest.raises(ConflictError) as info:
        await store.save_workflow(started, build.events("w", 3), expect_version=1, fence=mine.fence)
    assert info.value.reason is ErrorReason.LEASE_LOST
    saved = await store.save_workflow(started, build.events("w", 3), expect_version=1, fence=theirs.fence)
    assert saved.fence == theirs.fence


async def test_the_holder_keeps_its_fence_and_a_released_lease_is_free(store: SqlStore, started: Workflow) -> None:
    mine = await store.acquire_lease("a", 15.0)
    assert mine is not None
    again = await store.acquire_lease("a", 15.0, workflow_id="w")
    assert again is not None
    assert again.fence == mine.fence
    await store.release_lease(mine)
    theirs = await store.acquire_lease("b", 15.0)
    assert theirs is not None
    assert theirs.fence > mine.fence
    await store.release_lease(mine)  # late, and without effect
    assert await store.acquire_lease("c", 15.0) is None


async def test_the_fence_grows_from_one_workflow_of_a_fleet_to_the_next(store: SqlStore, started: Workflow, build: Any, end: End) -> None:
    first = await store.acquire_lease("a", 15.0)
    assert first is not None
    await store.save_workflow(*end(started), expect_version=1, fence=first.fence)
    assert await store.acquire_lease("b", 15.0, workflow_id="w") is None, "there is nothing to do on a workflow that has ended"
    await store.create_workflow(build.workflow("next"), build.events("next", 1))
    second = await store.acquire_lease("a", 15.0)
    assert second is not None
    assert second.fence > first.fence


async def test_a_new_store_does_not_start_its_fences_below_an_old_one(store: SqlStore, started: Workflow, clock: Any) -> None:
    lease = await store.acquire_lease("a", 15.0)
    assert lease is not None
    assert lease.fence >= int(clock.now)
