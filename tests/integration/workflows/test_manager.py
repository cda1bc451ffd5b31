"""`WorkflowManager` as a library: no server, no database; scripted pages through the one HTTP call that fetches them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from unittest.mock import AsyncMock, patch

import pytest

from perf_service.models.config import ConfigChange
from perf_service.models.errors import ConflictError, ErrorReason, InvalidArgumentError, NotFoundError, PerfServiceError, WrongStateError
from perf_service.models.fleet import Fleet, Instance
from perf_service.models.metrics import Engine
from perf_service.models.plan import Plan
from perf_service.models.workflow import EventKind, WorkflowRequest, WorkflowStatus
from perf_service.storage.store import SqlStore
from perf_service.workflows.manager import WorkflowManager

PAGE = """
vllm:num_requests_running 8
vllm:num_requests_waiting 25
vllm:gpu_cache_usage_perc 0.5
vllm:time_to_first_token_seconds_sum 500
vllm:time_to_first_token_seconds_count 100
vllm:request_success_total 100
"""
S = WorkflowStatus
QUICK = WorkflowRequest(instance_id="localhost:8000", requires_approval=False, monitoring_duration_seconds=0.15)


class Answer:
    """What `httpx.AsyncClient.get` may be patched to return."""

    text = PAGE
    status_code = 200


@pytest.fixture
def pages() -> Iterator[None]:
    with patch("httpx.AsyncClient.get", new=AsyncMock(return_value=Answer())):
        yield


@pytest.fixture
async def manager() -> AsyncIterator[WorkflowManager]:
    made = WorkflowManager()
    yield made
    await made.close()
    await made.store.close()


@pytest.mark.usefixtures("pages")
async def test_an_unregistered_instance_is_walked_through_as_a_dry_run(manager: WorkflowManager) -> None:
    done = await manager.start_workflow(QUICK)
    assert done.status == "completed"
    assert (done.instance_id, done.instance_type) == ("localhost:8000", "vllm")
    assert [r.percent for r in done.rollout_history] == [10, 50, 100]
    assert done.final_health_score is not None
    assert 0 <= done.final_health_score < 100
    assert "dry run" in done.message
    assert done.changes, "the queue has a cure"
    again = await manager.start_workflow(QUICK)
    assert again.status == "completed", "a dry run leaves nothing behind that the next one would take for real"


async def test_nothing_listening_fails_soon_with_the_reason(manager: WorkflowManager) -> None:
    started = time.monotonic()
    done = await manager.start_workflow(replace(QUICK, instance_id="127.0.0.1:9"))
    assert done.status == "failed"
    assert done.failure_reason == ErrorReason.ENDPOINT_UNREACHABLE.value
    assert "127.0.0.1:9" in done.message
    assert time.monotonic() - started < 10


@pytest.mark.usefixtures("pages")
async def test_approval_from_another_task(manager: WorkflowManager) -> None:
    running = asyncio.create_task(manager.start_workflow(replace(QUICK, requires_approval=True)))
    workflow_id = ""
    while not workflow_id:
        await asyncio.sleep(0)
        workflow_id = next((w.workflow_id for w in (await manager.list()).items), "")
    async for event in manager.watch(workflow_id):
        if event.kind is EventKind.APPROVAL_REQUESTED:
            with pytest.raises(WrongStateError) as caught:
                await manager.approve(workflow_id, "ann", plan_hash="0" * 64)
            assert caught.value.reason is ErrorReason.APPROVAL_STALE
            await manager.approve(workflow_id, "ann", plan_hash=event.details["plan_hash"])
    done = await running
    assert done.status == "completed"
    assert done.approved_by == "ann"
    assert done.approved


@pytest.mark.usefixtures("pages")
async def test_without_auto_rollout_each_stage_waits_for_promotion(manager: WorkflowManager) -> None:
    workflow = await manager.start(replace(QUICK, auto_rollout=False))
    running = asyncio.create_task(manager.run_to_end(workflow.workflow_id))
    promoted = 0
    async for event in manager.watch(workflow.workflow_id):
        if event.kind is EventKind.STAGE_JUDGED and event.stage is not None and event.stage.index < 2:
            await manager.promote(workflow.workflow_id, "ann")
            promoted += 1
    assert promoted == 2
    assert (await running).status == "completed"


@pytest.mark.usefixtures("pages")
async def test_reject_pause_resume_abort(manager: WorkflowManager) -> None:
    first = await manager.start(replace(QUICK, requires_approval=True))
    await manager.pause(first.workflow_id, "ann")
    await manager.resume(first.workflow_id, "ann")
    done = await manager.abort(first.workflow_id, "ann", reason="wrong fleet")
    assert done.status is S.CANCELLED
    with pytest.raises(WrongStateError):
        await manager.pause(first.workflow_id, "ann")
    second = await manager.start(replace(QUICK, requires_approval=True))
    running = asyncio.create_task(manager.run_to_end(second.workflow_id))
    async for event in manager.watch(second.workflow_id):
        if event.kind is EventKind.APPROVAL_REQUESTED:
            await manager.reject(second.workflow_id, "bob", reason="no")
    assert (await running).status is S.REJECTED


@pytest.mark.usefixtures("pages")
async def test_the_loop_drives_what_is_started_and_takes_up_what_was_left(manager: WorkflowManager) -> None:
    left = await manager.start(QUICK)  # before the loop runs, as after a restart
    loop = asyncio.create_task(manager.run())
    other = await manager.start(replace(QUICK, instance_id="localhost:8001"))
    for workflow in (left, other):
        last = [e async for e in manager.watch(workflow.workflow_id)][-1]
        assert last.status is S.COMPLETED
    assert (await manager.start_workflow(replace(QUICK, instance_id="localhost:8002"))).status is S.COMPLETED
    await manager.stop()
    assert loop.done()


async def test_start_is_idempotent_and_one_rollout_a_fleet(manager: WorkflowManager) -> None:
    asked = replace(QUICK, request_id="req-1")
    first = await manager.start(asked)
    assert (await manager.start(asked)).workflow_id == first.workflow_id
    with pytest.raises(ConflictError) as caught:
        await manager.start(replace(asked, monitoring_duration_seconds=9.0))
    assert caught.value.reason is ErrorReason.REQUEST_ID_REUSED
    with pytest.raises(PerfServiceError) as active:
        await manager.start(replace(QUICK, request_id="req-2"))
    assert active.value.reason is ErrorReason.WORKFLOW_ACTIVE_ON_FLEET
    assert active.value.metadata["workflow_id"] == first.workflow_id


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (WorkflowRequest(), InvalidArgumentError),
        (WorkflowRequest(instance_id="a", instance_type="llama.cpp"), InvalidArgumentError),
        (WorkflowRequest(instance_id="a", monitoring_duration_seconds=0.0), InvalidArgumentError),
        (WorkflowRequest(instance_id="a", monitoring_duration_seconds=float("nan")), InvalidArgumentError),
        (WorkflowRequest(fleet_id="nowhere"), NotFoundError),
        (WorkflowRequest(plan_id="nothing"), NotFoundError),
    ],
)
async def test_bad_requests_start_nothing(manager: WorkflowManager, wrong: WorkflowRequest, error: type[Exception]) -> None:
    with pytest.raises(error):
        await manager.start(wrong)
    assert not (await manager.list()).items


@pytest.mark.parametrize(
    ("plan", "reason"),
    [
        (Plan(Engine.VLLM, plan_id="p", instance_id="a", summary="add a replica"), ErrorReason.PLAN_EMPTY),
        (
            Plan(Engine.VLLM, plan_id="p", instance_id="a", changes=(ConfigChange("max_num_seqs", 2, 64),), expires_at=1.0),
            ErrorReason.PLAN_STALE,
        ),
    ],
)
async def test_a_plan_that_cannot_be_rolled_out_is_refused_at_the_start(manager: WorkflowManager, plan: Plan, reason: ErrorReason) -> None:
    await manager.store.add_plan(plan)
    with pytest.raises(WrongStateError) as caught:
        await manager.start(WorkflowRequest(plan_id="p"))
    assert caught.value.reason is reason
    assert not (await manager.list()).items


async def test_an_instance_of_a_fleet_stands_for_the_fleet() -> None:
    store = SqlStore.open("sqlite://")
    await store.create_fleet(Fleet("f1", Engine.SGLANG))
    await store.create_instance(Instance("i1", Engine.SGLANG, "http://localhost:30000", "f1"))
    manager = WorkflowManager(store)
    workflow = await manager.start(WorkflowRequest(instance_id="i1", changes=(ConfigChange("max_running_requests", None, 64),)))
    assert (workflow.fleet_id, workflow.engine, workflow.dry_run) == ("f1", Engine.SGLANG, True)
    await manager.close()
    await store.close()
