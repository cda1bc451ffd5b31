"""Rollouts over the wire: started, watched, steered, resumed across a restart of the server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from perf_service.app import App
from perf_service.rpc.client import connect, watch_workflow
from perf_service.v1 import collect_service_pb2, config_pb2, workflow_pb2, workflow_service_pb2
from tests.support.remote import Remote, Start, engine, refusal

CHANGE = config_pb2.ConfigChange(parameter="max_num_seqs", recommended_value=config_pb2.KnobValue(int_value=64))
POLICY = workflow_pb2.RolloutPolicy(
    stages=[workflow_pb2.StagePolicy(percent=p, bake_seconds=0.05, min_samples=1, min_requests=0) for p in (50, 100)],
    sample_interval_seconds=0.02,
    warmup_seconds=0,
)


def spec(**fields: Any) -> workflow_pb2.WorkflowSpec:
    return workflow_pb2.WorkflowSpec(**{"fleet_id": "f", "changes": [CHANGE], "policy": POLICY, "requires_approval": True, **fields})


async def start_one(remote: Remote, request_id: str = "", **fields: Any) -> workflow_pb2.Workflow:
    request = workflow_service_pb2.StartWorkflowRequest(workflow=spec(**fields), request_id=request_id)
    workflow: workflow_pb2.Workflow = (await remote.workflows.StartWorkflow(request)).workflow
    return workflow


async def awaiting_approval(remote: Remote, workflow_id: str) -> workflow_pb2.Workflow:
    """Wait until a person is asked."""
    async with asyncio.timeout(10):
        async for update in remote.workflows.WatchWorkflow(workflow_service_pb2.WatchWorkflowRequest(workflow_id=workflow_id)):
            if update.HasField("event") and update.event.status == workflow_pb2.WORKFLOW_STATUS_AWAITING_APPROVAL:
                break
    workflow: workflow_pb2.Workflow = (
        await remote.workflows.GetWorkflow(workflow_service_pb2.GetWorkflowRequest(workflow_id=workflow_id))
    ).workflow
    return workflow


@pytest.fixture
async def endpoint() -> AsyncIterator[str]:
    """An engine with recorded traffic."""
    async with engine("a_healthy") as url:
        yield url


@pytest.fixture
async def fleet(remote: Remote, endpoint: str) -> list[str]:
    """A fleet of two such replicas."""
    return await remote.fleet(endpoint=endpoint)


async def test_a_dry_run_is_watched_to_its_end_without_a_gap(remote: Remote, fleet: list[str]) -> None:
    workflow = await start_one(remote, requires_approval=False)
    watch = remote.workflows.WatchWorkflow(workflow_service_pb2.WatchWorkflowRequest(workflow_id=workflow.workflow_id))
    async with asyncio.timeout(20):
        updates = [update async for update in watch]
    assert updates[0].snapshot.workflow_id == workflow.workflow_id
    events = [update for update in updates if update.HasField("event")]
    assert [update.event.sequence for update in events] == list(range(1, len(events) + 1))
    assert [update.sequence for update in events] == [update.event.sequence for update in events]
    assert all(update.event.WhichOneof("kind") for update in events)
    assert events[-1].event.status == workflow_pb2.WORKFLOW_STATUS_COMPLETED, [e.event.message for e in events]
    final = (await remote.workflows.GetWorkflow(workflow_service_pb2.GetWorkflowRequest(workflow_id=workflow.workflow_id))).workflow
    assert final.last_sequence == len(events)
    assert [(stage.percent, stage.exposure_percent) for stage in final.rollout_history] == [(50, 50), (100, 100)]

    half = len(events) // 2
    request = workflow_service_pb2.WatchWorkflowRequest(workflow_id=workflow.workflow_id, after_sequence=half)
    rest = [update async for update in remote.workflows.WatchWorkflow(request)]
    assert (rest[0].WhichOneof("update"), rest[0].sequence) == ("snapshot", half)
    assert [update.event.sequence for update in rest[1:]] == list(range(half + 1, len(events) + 1))
    request.after_sequence = len(events)
    assert len([update async for update in remote.workflows.WatchWorkflow(request)]) == 1
    request.after_sequence = len(events) + 1
    told = await refusal(remote.workflows.WatchWorkflow(request).read())
    assert (told.code, told.reason) == (grpc.StatusCode.OUT_OF_RANGE, "CURSOR_OUT_OF_RANGE")


async def test_a_started_workflow_is_started_once(remote: Remote, fleet: list[str]) -> None:
    first, second = await asyncio.gather(start_one(remote, "r"), start_one(remote, "r"))
    assert first.workflow_id == second.workflow_id
    other = workflow_service_pb2.StartWorkflowRequest(workflow=spec(dry_run=True), request_id="r")
    told = await refusal(remote.workflows.StartWorkflow(other))
    assert (told.code, told.reason) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")
    told = await refusal(remote.workflows.StartWorkflow(workflow_service_pb2.StartWorkflowRequest(workflow=spec())))
    assert (told.code, told.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "WORKFLOW_ACTIVE_ON_FLEET")
    assert told.metadata["workflow_id"] == first.workflow_id
    listed = await remote.workflows.ListWorkflows(workflow_service_pb2.ListWorkflowsRequest(fleet_id="f"))
    assert [w.workflow_id for w in listed.workflows] == [first.workflow_id]


async def test_an_approval_is_bound_to_what_was_shown(remote: Remote, fleet: list[str]) -> None:
    workflow = await awaiting_approval(remote, (await start_one(remote)).workflow_id)
    wrong = workflow_service_pb2.ApproveWorkflowRequest(workflow_id=workflow.workflow_id, plan_hash="of-another-plan", principal="bob")
    told = await refusal(remote.workflows.ApproveWorkflow(wrong))
    assert (told.code, told.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "APPROVAL_STALE")
    right = workflow_service_pb2.ApproveWorkflowRequest(
        workflow_id=workflow.workflow_id, plan_hash=workflow.plan_hash, principal="alice", reason="looks right"
    )
    approved = (await remote.workflows.ApproveWorkflow(right)).workflow
    assert [(a.approved, a.by, a.reason) for a in approved.approvals] == [(True, "alice", "looks right")]
    told = await refusal(remote.workflows.RejectWorkflow(workflow_service_pb2.RejectWorkflowRequest(workflow_id=workflow.workflow_id)))
    assert (told.code, told.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "WORKFLOW_WRONG_STATE")


async def test_verbs_steer_and_the_end_is_final(remote: Remote, fleet: list[str]) -> None:
    workflow_id = (await awaiting_approval(remote, (await start_one(remote)).workflow_id)).workflow_id
    paused = await remote.workflows.PauseWorkflow(workflow_service_pb2.PauseWorkflowRequest(workflow_id=workflow_id, principal="a"))
    assert paused.workflow.gate == workflow_pb2.ROLLOUT_GATE_PAUSED
    resumed = await remote.workflows.ResumeWorkflow(workflow_service_pb2.ResumeWorkflowRequest(workflow_id=workflow_id, principal="a"))
    assert resumed.workflow.gate == workflow_pb2.ROLLOUT_GATE_OPEN
    rejected = await remote.workflows.RejectWorkflow(
        workflow_service_pb2.RejectWorkflowRequest(workflow_id=workflow_id, principal="a", reason="not today")
    )
    assert rejected.workflow.status == workflow_pb2.WORKFLOW_STATUS_REJECTED
    for call in (
        remote.workflows.AbortWorkflow(workflow_service_pb2.AbortWorkflowRequest(workflow_id=workflow_id)),
        remote.workflows.PromoteWorkflow(workflow_service_pb2.PromoteWorkflowRequest(workflow_id=workflow_id)),
    ):
        assert (await refusal(call)).reason == "WORKFLOW_WRONG_STATE"


async def test_an_idle_watch_sends_heartbeats_that_carry_the_cursor(remote: Remote, fleet: list[str]) -> None:
    workflow = await awaiting_approval(remote, (await start_one(remote)).workflow_id)
    request = workflow_service_pb2.WatchWorkflowRequest(workflow_id=workflow.workflow_id, after_sequence=workflow.last_sequence)
    stream = remote.workflows.WatchWorkflow(request)
    kinds = [((update := await stream.read()).WhichOneof("update"), update.sequence) for _ in range(3)]
    assert kinds == [("snapshot", workflow.last_sequence)] + [("heartbeat", workflow.last_sequence)] * 2
    stream.cancel()


async def test_a_server_that_goes_down_ends_its_streams_and_takes_nothing_new_on(start: Start, endpoint: str) -> None:
    app = await start(heartbeat_seconds=30)
    async with grpc.aio.insecure_channel(app.address) as channel:
        remote = Remote(channel)
        await remote.fleet(endpoint=endpoint)
        workflow = await awaiting_approval(remote, (await start_one(remote)).workflow_id)
        watch = remote.workflows.WatchWorkflow(
            workflow_service_pb2.WatchWorkflowRequest(workflow_id=workflow.workflow_id, after_sequence=workflow.last_sequence)
        )
        metrics = remote.collect.WatchMetrics(collect_service_pb2.WatchMetricsRequest(fleet_id="f"))
        assert (await watch.read()).HasField("snapshot")
        health: Any = health_pb2_grpc.HealthStub(channel)
        states = health.Watch(health_pb2.HealthCheckRequest(service="perf_service.v1.WorkflowService"))
        assert (await states.read()).status == health_pb2.HealthCheckResponse.SERVING
        began = time.monotonic()
        stopping = asyncio.create_task(app.stop(5))
        assert (await states.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        last = await watch.read()
        assert (last.WhichOneof("update"), last.sequence) == ("draining", workflow.last_sequence)
        assert await watch.read() is grpc.aio.EOF
        assert (await metrics.read()).HasField("draining")
        states.cancel()
        await stopping
        assert time.monotonic() - began < 4, "nobody is waited for who has been told to go"


async def test_what_is_started_while_going_down_is_refused(app: App, remote: Remote, fleet: list[str]) -> None:
    app.lifecycle.drain()
    told = await refusal(remote.workflows.StartWorkflow(workflow_service_pb2.StartWorkflowRequest(workflow=spec())))
    assert (told.code, told.reason) == (grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")
    assert told.retry_seconds
    assert not (await remote.workflows.ListWorkflows(workflow_service_pb2.ListWorkflowsRequest())).workflows


async def test_a_watch_survives_a_restart_of_the_server(start: Start, endpoint: str) -> None:
    app = await start()
    port = app.port
    async with grpc.aio.insecure_channel(app.address) as channel:
        remote = Remote(channel)
        await remote.fleet(endpoint=endpoint)
        workflow = await awaiting_approval(remote, (await start_one(remote)).workflow_id)

    seen: list[Any] = []

    def follow() -> None:
        with connect(f"127.0.0.1:{port}") as sync:
            seen.extend(watch_workflow(sync, workflow.workflow_id, sleep=lambda seconds: time.sleep(min(seconds, 0.05))))

    following = asyncio.create_task(asyncio.to_thread(follow))
    async with asyncio.timeout(15):
        while not any(update.HasField("event") and update.sequence == workflow.last_sequence for update in seen):  # noqa: ASYNC110 (another thread appends)
            await asyncio.sleep(0.01)
        await app.stop(1)
        again = await start(port=port)
        async with grpc.aio.insecure_channel(again.address) as channel:
            approve = workflow_service_pb2.ApproveWorkflowRequest(
                workflow_id=workflow.workflow_id, plan_hash=workflow.plan_hash, principal="alice"
            )
            await Remote(channel).workflows.ApproveWorkflow(approve, wait_for_ready=True)
        await following
    sequences = [update.event.sequence for update in seen if update.HasField("event")]
    assert sequences == list(range(1, len(sequences) + 1)), "nothing missed, nothing twice"
    assert seen[-1].event.status == workflow_pb2.WORKFLOW_STATUS_COMPLETED
    assert sum(update.HasField("snapshot") for update in seen) >= 2


async def test_a_reader_that_stops_reading_misses_nothing(remote: Remote, fleet: list[str]) -> None:
    workflow = await start_one(remote, requires_approval=False)
    stream = remote.workflows.WatchWorkflow(workflow_service_pb2.WatchWorkflowRequest(workflow_id=workflow.workflow_id))
    async with asyncio.timeout(20):
        updates = aiter(stream)
        assert (await anext(updates)).HasField("snapshot")
        while True:
            request = workflow_service_pb2.GetWorkflowRequest(workflow_id=workflow.workflow_id)
            final = (await remote.workflows.GetWorkflow(request)).workflow
            if final.HasField("finished_at"):
                break
            await asyncio.sleep(0.02)
        rest = [update async for update in updates]
    assert [u.event.sequence for u in rest if u.HasField("event")] == list(range(1, final.last_sequence + 1))
    (listed,) = (await remote.workflows.ListWorkflows(workflow_service_pb2.ListWorkflowsRequest())).workflows
    assert (listed.last_sequence, len(listed.samples)) == (final.last_sequence, 0)
    assert final.samples


async def test_a_workflow_needs_something_to_act_on(remote: Remote) -> None:
    for workflow, reason in (
        (workflow_pb2.WorkflowSpec(fleet_id="nobody"), "FLEET_NOT_FOUND"),
        (workflow_pb2.WorkflowSpec(plan_id="nobody"), "PLAN_NOT_FOUND"),
        (workflow_pb2.WorkflowSpec(), "INVALID_ARGUMENT"),
    ):
        told = await refusal(remote.workflows.StartWorkflow(workflow_service_pb2.StartWorkflowRequest(workflow=workflow)))
        assert told.reason == reason


@pytest.mark.parametrize(
    ("parameter", "value", "reason"),
    [("max_num_seq", 8, "KNOB_UNKNOWN"), ("max_num_seqs", 0, "KNOB_VALUE_INVALID"), ("mem_fraction_static", 1, "KNOB_UNKNOWN")],
)
async def test_changes_are_checked_before_anything_is_started(remote: Remote, parameter: str, value: int, reason: str) -> None:
    await remote.fleet()
    change = config_pb2.ConfigChange(parameter=parameter, recommended_value=config_pb2.KnobValue(int_value=value))
    told = await refusal(remote.workflows.StartWorkflow(workflow_service_pb2.StartWorkflowRequest(workflow=spec(changes=[change]))))
    assert (told.code, told.reason) == (grpc.StatusCode.INVALID_ARGUMENT, reason)
    assert not (await remote.workflows.ListWorkflows(workflow_service_pb2.ListWorkflowsRequest())).workflows
