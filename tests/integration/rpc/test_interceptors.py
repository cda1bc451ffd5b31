"""Each concern at the edge on its own: rules, repeats, limits, tokens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
from prometheus_client import CollectorRegistry

from perf_service.models.errors import ConflictError, ErrorReason, PerfServiceError
from perf_service.rpc.errors import ValidationError
from perf_service.rpc.interceptors.access import Access, Audit, principal
from perf_service.rpc.interceptors.idempotency import Idempotency
from perf_service.rpc.interceptors.limits import Limits
from perf_service.rpc.interceptors.observe import CallMetrics, Observe
from perf_service.rpc.interceptors.validation import Validation
from perf_service.rpc.lifecycle import Lifecycle
from perf_service.rpc.methods import methods
from perf_service.storage.store import SqlStore
from perf_service.v1 import config_pb2, engine_pb2, fleet_pb2, fleet_service_pb2, optimize_service_pb2, workflow_pb2, workflow_service_pb2

CREATE = methods()["/perf_service.v1.FleetService/CreateFleet"]
GET = methods()["/perf_service.v1.FleetService/GetFleet"]
START = methods()["/perf_service.v1.WorkflowService/StartWorkflow"]
WATCH = methods()["/perf_service.v1.WorkflowService/WatchWorkflow"]
FLEET = fleet_pb2.Fleet(fleet_id="f", engine=engine_pb2.ENGINE_VLLM)


def context(**headers: str) -> Any:
    return SimpleNamespace(invocation_metadata=lambda: tuple(headers.items()), auth_context=dict, peer=lambda: "ipv4:127.0.0.1:1")


def violations(request: Any) -> dict[str, str]:
    with pytest.raises(ValidationError) as caught:
        Validation(max_message_bytes=10_000).check(request)
    return dict(caught.value.violations)


def test_a_rule_is_told_with_its_path() -> None:
    stages = [workflow_pb2.StagePolicy(percent=10), workflow_pb2.StagePolicy(percent=0)]
    spec = workflow_pb2.WorkflowSpec(fleet_id="f", policy=workflow_pb2.RolloutPolicy(stages=stages))
    assert list(violations(workflow_service_pb2.StartWorkflowRequest(workflow=spec))) == ["workflow.policy.stages[1].percent"]


def test_a_map_key_is_told() -> None:
    config = config_pb2.EngineConfig(settings={"Max-Num": config_pb2.Setting(value=config_pb2.KnobValue(int_value=1))})
    request = optimize_service_pb2.PredictRequest(instance_id="i")
    assert "changes" in violations(request)
    assert any("Max-Num" in path for path in violations(_register(config)))


def _register(config: config_pb2.EngineConfig) -> fleet_service_pb2.RegisterInstanceRequest:
    from perf_service.v1 import instance_pb2

    return fleet_service_pb2.RegisterInstanceRequest(
        instance=instance_pb2.Instance(instance_id="i", engine=engine_pb2.ENGINE_VLLM, endpoint="h:1", config=config)
    )


def test_texts_are_for_people() -> None:
    found = violations(fleet_service_pb2.CreateFleetRequest(fleet=fleet_pb2.Fleet(fleet_id="a b")))
    assert "letters" in found["fleet.fleet_id"]
    assert found[""] == "fleet.engine must be set"


def test_a_rule_over_the_whole_message_has_no_path() -> None:
    assert list(violations(fleet_service_pb2.UpdateFleetRequest(fleet=fleet_pb2.Fleet(engine=engine_pb2.ENGINE_TGI)))) == [""]


def test_a_request_that_is_too_large_is_refused_before_its_rules() -> None:
    with pytest.raises(PerfServiceError) as caught:
        Validation(max_message_bytes=10).check(fleet_service_pb2.CreateFleetRequest(fleet=fleet_pb2.Fleet(display_name="x" * 100)))
    assert caught.value.reason is ErrorReason.MESSAGE_TOO_LARGE


class Calls:
    """A servicer that counts."""

    def __init__(self) -> None:
        self.count = 0
        self.fails = False

    async def __call__(self, request: Any) -> Any:
        self.count += 1
        await asyncio.sleep(0)
        if self.fails:
            raise PerfServiceError(ErrorReason.STORE_UNAVAILABLE, "locked")
        return fleet_service_pb2.CreateFleetResponse(fleet=fleet_pb2.Fleet(fleet_id=f"made-{self.count}"))


@pytest.fixture
async def store() -> Any:
    opened = SqlStore.open("sqlite://")
    yield opened
    await opened.close()


async def test_a_repeat_gets_the_earlier_response(store: SqlStore) -> None:
    once, calls = Idempotency(store, clock=lambda: 1.0), Calls()
    request = fleet_service_pb2.CreateFleetRequest(fleet=FLEET, request_id="r")
    answers = await asyncio.gather(*(once.unary(CREATE, request, context(), calls) for _ in range(5)))
    assert calls.count == 1
    assert {a.fleet.fleet_id for a in answers} == {"made-1"}


async def test_another_body_under_the_same_id_is_refused(store: SqlStore) -> None:
    once, calls = Idempotency(store, clock=lambda: 1.0), Calls()
    await once.unary(CREATE, fleet_service_pb2.CreateFleetRequest(fleet=FLEET, request_id="r"), context(), calls)
    with pytest.raises(ConflictError) as caught:
        await once.unary(CREATE, fleet_service_pb2.CreateFleetRequest(request_id="r"), context(), calls)
    assert (caught.value.reason, calls.count) == (ErrorReason.REQUEST_ID_REUSED, 1)


async def test_a_failure_may_be_tried_again(store: SqlStore) -> None:
    once, calls = Idempotency(store, clock=lambda: 1.0), Calls()
    request = fleet_service_pb2.CreateFleetRequest(fleet=FLEET, request_id="r")
    calls.fails = True
    with pytest.raises(PerfServiceError):
        await once.unary(CREATE, request, context(), calls)
    calls.fails = False
    assert (await once.unary(CREATE, request, context(), calls)).fleet.fleet_id == "made-2"


async def test_without_an_id_every_call_runs(store: SqlStore) -> None:
    once, calls = Idempotency(store, clock=lambda: 1.0), Calls()
    for _ in range(2):
        await once.unary(CREATE, fleet_service_pb2.CreateFleetRequest(fleet=FLEET), context(), calls)
    assert calls.count == 2


async def test_a_call_beyond_the_limit_is_refused_and_the_place_given_back() -> None:
    limits, gate = Limits(Lifecycle(), max_calls=1, max_streams=1), asyncio.Event()

    async def wait(request: Any) -> str:
        await gate.wait()
        return "done"

    first = asyncio.create_task(limits.unary(GET, None, context(), wait))
    await asyncio.sleep(0)
    with pytest.raises(PerfServiceError) as caught:
        await limits.unary(GET, None, context(), wait)
    assert caught.value.reason is ErrorReason.RATE_LIMITED
    gate.set()
    assert await first == "done"
    assert await limits.unary(GET, None, context(), wait) == "done"


async def test_going_down_refuses_what_is_new_but_answers_reads() -> None:
    lifecycle = Lifecycle()
    limits, calls = Limits(lifecycle, max_calls=9, max_streams=9), Calls()
    lifecycle.drain()
    for method in (CREATE, START):
        with pytest.raises(PerfServiceError) as caught:
            await limits.unary(method, None, context(), calls)
        assert caught.value.reason is ErrorReason.SHUTTING_DOWN
    with pytest.raises(PerfServiceError):
        async for _ in limits.stream(WATCH, None, context(), lambda r: _none()):
            pass
    await limits.unary(GET, None, context(), calls)
    assert calls.count == 1


async def _none() -> Any:
    for item in list[int]():
        yield item


@pytest.mark.parametrize("header", ["", "secret", "Basic secret", "Bearer wrong", "Bearer "])
async def test_a_wrong_token_is_refused(header: str) -> None:
    calls = Calls()
    with pytest.raises(PerfServiceError) as caught:
        await Access("secret").unary(GET, None, context(authorization=header), calls)
    assert (caught.value.reason, calls.count) == (ErrorReason.UNAUTHENTICATED, 0)


async def test_the_right_token_is_let_in_and_names_the_principal() -> None:
    async def who(request: Any) -> str:
        return principal()

    assert await Access("secret").unary(GET, None, context(authorization="bearer secret"), who) == "token"


async def test_mutations_are_written_down_with_their_result(store: SqlStore) -> None:
    audit, calls = Audit(store, clock=lambda: 7.0), Calls()
    await audit.unary(CREATE, fleet_service_pb2.CreateFleetRequest(fleet=FLEET, request_id="r"), context(), calls)
    calls.fails = True
    with pytest.raises(PerfServiceError):
        await audit.unary(CREATE, fleet_service_pb2.CreateFleetRequest(fleet=FLEET), context(), calls)
    with pytest.raises(PerfServiceError):
        await audit.unary(GET, fleet_service_pb2.GetFleetRequest(fleet_id="f"), context(), calls)
    entries = (await store.list_audit()).items
    assert [(e.method, e.resource, e.request_id, e.result) for e in entries] == [
        (CREATE.path, "f", "", "STORE_UNAVAILABLE"),
        (CREATE.path, "f", "r", "OK"),
    ]


async def test_waiting_ends_as_soon_as_the_server_goes_down() -> None:
    lifecycle = Lifecycle()
    cancelled = asyncio.Event()

    async def never() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return "never"

    task = asyncio.create_task(lifecycle.unless_draining(never()))
    await asyncio.sleep(0)
    lifecycle.drain()
    assert await task is None
    assert cancelled.is_set()
    assert await lifecycle.unless_draining(asyncio.sleep(0, "late")) in (None, "late")


class _MortalContext:
    """A call that grpc has destroyed: asking it anything then would end the process."""

    def __init__(self) -> None:
        self.gone = False

    def _asked(self) -> None:
        assert not self.gone, "the context of a finished call was asked"

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        self._asked()
        return ()

    def peer(self) -> str:
        self._asked()
        return "ipv4:127.0.0.1:1"

    def code(self) -> None:
        self._asked()


async def test_a_stream_that_is_closed_after_its_call_has_gone_asks_the_call_nothing() -> None:
    registry = CollectorRegistry()
    ctx = _MortalContext()

    async def endless(request: Any) -> AsyncIterator[int]:
        yield 1
        yield 2

    stream = Observe(CallMetrics(registry)).stream(WATCH, None, cast(Any, ctx), endless)
    assert await anext(stream) == 1
    ctx.gone = True
    await cast(Any, stream).aclose()
    labels = {"service": WATCH.service, "method": WATCH.name, "code": "CANCELLED"}
    assert registry.get_sample_value("perf_service_rpc_handled_total", labels) == 1
