"""Workflows with their events, alike in every store."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from perf_service.models.errors import ConflictError, ErrorReason, InvalidArgumentError, WrongStateError
from perf_service.models.workflow import Event, Workflow, WorkflowStatus
from perf_service.storage import SqlStore

End = Callable[[Workflow], tuple[Workflow, list[Event]]]


async def test_state_and_events_change_together(store: SqlStore, started: Workflow, build: Any) -> None:
    saved = await store.save_workflow(
        replace(started, status=WorkflowStatus.COLLECTING), build.events("w", 3, 2), expect_version=started.version, fence=None
    )
    assert (saved.version, saved.last_sequence) == (2, 4)
    assert await store.get_workflow("w") == saved
    assert [e.sequence for e in await store.events_after("w", 1)] == [2, 3, 4]
    assert [e.sequence for e in await store.events_after("w", 0, limit=2)] == [1, 2]
    assert await store.events_after("w", 4) == []


@pytest.mark.parametrize("cursor", [-1, 3])
async def test_a_cursor_beyond_the_last_event_is_refused(store: SqlStore, started: Workflow, cursor: int) -> None:
    with pytest.raises(InvalidArgumentError) as info:
        await store.events_after("w", cursor)
    assert info.value.reason is ErrorReason.CURSOR_OUT_OF_RANGE


@pytest.mark.parametrize("first", [2, 4])
async def test_a_gap_or_a_repetition_changes_nothing(store: SqlStore, started: Workflow, build: Any, first: int) -> None:
    with pytest.raises(ValueError, match="gaps"):
        await store.save_workflow(replace(started, message="x"), build.events("w", first), expect_version=1, fence=None)
    assert await store.get_workflow("w") == started
    assert len(await store.events_after("w", 0)) == 2


async def test_a_stale_version_is_refused(store: SqlStore, started: Workflow, build: Any) -> None:
    await store.save_workflow(started, [], expect_version=1, fence=None)
    with pytest.raises(ConflictError) as info:
        await store.save_workflow(started, build.events("w", 3), expect_version=1, fence=None)
    assert info.value.reason is ErrorReason.ETAG_MISMATCH
    assert len(await store.events_after("w", 0)) == 2


async def test_a_workflow_that_has_ended_never_changes(store: SqlStore, started: Workflow, end: End) -> None:
    over = await store.save_workflow(*end(started), expect_version=1, fence=None)
    with pytest.raises(WrongStateError) as info:
        await store.save_workflow(replace(over, message="again"), [], expect_version=over.version, fence=None)
    assert info.value.reason is ErrorReason.WORKFLOW_WRONG_STATE


async def test_one_active_workflow_a_fleet(store: SqlStore, started: Workflow, build: Any, end: End) -> None:
    with pytest.raises(WrongStateError) as info:
        await store.create_workflow(build.workflow("second"), build.events("second", 1))
    assert info.value.reason is ErrorReason.WORKFLOW_ACTIVE_ON_FLEET
    assert info.value.metadata["workflow_id"] == "w"
    await store.create_workflow(build.workflow("elsewhere", "g"), build.events("elsewhere", 1))
    await store.save_workflow(*end(started), expect_version=1, fence=None)
    await store.create_workflow(build.workflow("second"), build.events("second", 1))


async def test_a_rollback_that_is_incomplete_keeps_its_claim(store: SqlStore, started: Workflow, build: Any) -> None:
    await store.save_workflow(replace(started, status=WorkflowStatus.ROLLBACK_INCOMPLETE), [], expect_version=1, fence=None)
    with pytest.raises(WrongStateError):
        await store.create_workflow(build.workflow("second"), build.events("second", 1))


async def test_the_same_request_starts_one_workflow(store: SqlStore, build: Any) -> None:
    first = await store.create_workflow(build.workflow("w1", request_id="r"), build.events("w1", 1))
    assert await store.create_workflow(build.workflow("w2", request_id="r"), build.events("w2", 1)) == first
    other = build.workflow("w3", "g", request_id="r")
    with pytest.raises(ConflictError) as info:
        await store.create_workflow(replace(other, request=replace(other.request, dry_run=True)), build.events("w3", 1))
    assert info.value.reason is ErrorReason.REQUEST_ID_REUSED


async def test_workflows_are_listed_by_fleet_and_status(store: SqlStore, started: Workflow, build: Any, end: End) -> None:
    await store.create_workflow(build.workflow("other", "g"), build.events("other", 1))
    over = await store.save_workflow(*end(started), expect_version=1, fence=None)
    assert (await store.list_workflows(fleet_id="f")).items == (over,)
    assert (await store.list_workflows(statuses=[WorkflowStatus.COMPLETED, WorkflowStatus.FAILED])).items == (over,)
    assert len((await store.list_workflows()).items) == 2


async def test_a_watcher_is_woken_by_the_event(store: SqlStore, started: Workflow, build: Any) -> None:
    assert await store.wait_for_events("w", 1, 0.0)
    assert not await store.wait_for_events("w", 2, 0.01)
    waiting = asyncio.create_task(store.wait_for_events("w", 2, 30.0))
    await asyncio.sleep(0)
    begun = time.monotonic()
    await store.save_workflow(started, build.events("w", 3), expect_version=1, fence=None)
    assert await waiting
    assert time.monotonic() - begun < 5
