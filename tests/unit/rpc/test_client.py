"""The synchronous client against a scripted server: what it sends, and how its watch survives restarts."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import Queue
from threading import Thread
from typing import Any

import grpc
import grpc_testing
import pytest

from perf_service.rpc.client import watch_workflow, with_defaults
from perf_service.v1 import (
    event_pb2,
    fleet_service_pb2,
    fleet_service_pb2_grpc,
    workflow_pb2,
    workflow_service_pb2,
)

FLEETS = fleet_service_pb2.DESCRIPTOR.services_by_name["FleetService"]
WORKFLOWS = workflow_service_pb2.DESCRIPTOR.services_by_name["WorkflowService"]
WATCH = WORKFLOWS.methods_by_name["WatchWorkflow"]
Update = workflow_service_pb2.WatchWorkflowResponse


class Interceptable(grpc.Channel):
    """The testing channel with the arguments that interceptors pass on and it does not know."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        self.timeouts: list[float | None] = []

    def unary_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return Multi(self._channel.unary_unary(method), self.timeouts)

    def unary_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return Multi(self._channel.unary_stream(method), self.timeouts)

    stream_unary = stream_stream = subscribe = unsubscribe = close = __enter__ = __exit__ = None  # type: ignore[assignment]


class Multi:
    def __init__(self, inner: Any, timeouts: list[float | None]) -> None:
        self._inner = inner
        self._timeouts = timeouts

    def with_call(self, request: Any, *, timeout: float, metadata: Any, **unknown: Any) -> Any:
        self._timeouts.append(timeout)
        return self._inner.with_call(request, timeout=timeout, metadata=metadata)

    def __call__(self, request: Any, *, timeout: float | None = None, metadata: Any = None, **unknown: Any) -> Any:
        self._timeouts.append(timeout)
        return self._inner(request, timeout=timeout, metadata=metadata)


class Script:
    """A channel whose other end is the test; calls of the client run in a thread."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool = pool
        self._testing = grpc_testing.channel([FLEETS, WORKFLOWS], grpc_testing.strict_real_time())
        self.channel = Interceptable(self._testing)
        self.seen: Queue[Any] = Queue()

    def call(self, work: Any) -> Future[Any]:
        return self._pool.submit(work)

    def watch(self, **options: Any) -> Future[Any]:
        def run() -> None:
            for update in watch_workflow(self.channel, "wf", **options):
                self.seen.put(update)

        return self.call(run)

    @staticmethod
    def _taken(take: Any, method: Any) -> Any:
        """The next call; fails instead of waiting for ever where none comes."""
        found: list[Any] = []
        waiting = Thread(target=lambda: found.append(take(method)), daemon=True)
        waiting.start()
        waiting.join(5)
        assert found, f"no call of {method.name} came"
        return found[0]

    def answer(self, method: str, response: Any) -> tuple[dict[str, str], Any]:
        """What came with the next call of a method of FleetService, which gets this response."""
        metadata, request, rpc = self._taken(self._testing.take_unary_unary, FLEETS.methods_by_name[method])
        rpc.send_initial_metadata(())
        rpc.terminate(response, (), grpc.StatusCode.OK, "")
        return dict(metadata), request

    def stream(self, *updates: Any, code: grpc.StatusCode = grpc.StatusCode.OK) -> int:
        """Serve the next watch; the cursor that it asked for."""
        _, request, rpc = self._taken(self._testing.take_unary_stream, WATCH)
        rpc.send_initial_metadata(())
        for update in updates:
            rpc.send_response(update)
            # The testing channel drops what has not been read when the call ends.
            assert self.seen.get(timeout=5) == update
        rpc.terminate((), code, "gone" if code is not grpc.StatusCode.OK else "")
        return int(request.after_sequence)


@pytest.fixture
def script() -> Iterator[Script]:
    pool = ThreadPoolExecutor(1)
    yield Script(pool)
    pool.shutdown(wait=False, cancel_futures=True)


def snapshot(sequence: int) -> Any:
    return Update(snapshot=workflow_pb2.Workflow(workflow_id="wf"), sequence=sequence)


def event(sequence: int) -> Any:
    return Update(event=event_pb2.WorkflowEvent(workflow_id="wf", sequence=sequence), sequence=sequence)


def test_a_mutation_gets_a_request_id_of_its_own_and_the_token(script: Script) -> None:
    stub = fleet_service_pb2_grpc.FleetServiceStub(with_defaults(script.channel, token="t"))
    given = fleet_service_pb2.CreateFleetRequest()
    seen = []
    for _ in range(2):
        answer = script.call(lambda: stub.CreateFleet(given))
        metadata, request = script.answer("CreateFleet", fleet_service_pb2.CreateFleetResponse())
        assert metadata["authorization"] == "Bearer t"
        seen.append(request.request_id)
        answer.result(5)
    assert all(seen)
    assert len(set(seen)) == 2
    assert given.request_id == "", "the caller's own message is left alone"


def test_a_told_request_id_and_a_read_are_left_as_they_are(script: Script) -> None:
    stub = fleet_service_pb2_grpc.FleetServiceStub(with_defaults(script.channel))
    answer = script.call(lambda: stub.CreateFleet(fleet_service_pb2.CreateFleetRequest(request_id="mine")))
    metadata, request = script.answer("CreateFleet", fleet_service_pb2.CreateFleetResponse())
    assert (request.request_id, "authorization" in metadata) == ("mine", False)
    answer.result(5)
    answer = script.call(lambda: stub.GetFleet(fleet_service_pb2.GetFleetRequest(fleet_id="f")))
    assert script.answer("GetFleet", fleet_service_pb2.GetFleetResponse())[1].fleet_id == "f"
    answer.result(5)


def test_every_call_has_a_deadline_but_a_watch_has_none(script: Script) -> None:
    channel = with_defaults(script.channel, timeout_seconds=7)
    stub = fleet_service_pb2_grpc.FleetServiceStub(channel)
    for timeout, expected in ((None, 7), (3, 3)):
        answer = script.call(lambda timeout=timeout: stub.GetFleet(fleet_service_pb2.GetFleetRequest(fleet_id="f"), timeout=timeout))
        script.answer("GetFleet", fleet_service_pb2.GetFleetResponse())
        answer.result(5)
        assert script.channel.timeouts.pop() == expected
    answer = script.call(lambda: list(watch_workflow(channel, "wf")))
    script.stream()
    answer.result(5)
    assert script.channel.timeouts == [None]


def test_a_watch_goes_on_after_a_restart_where_it_was(script: Script) -> None:
    waits: list[float] = []
    answer = script.watch(sleep=waits.append)
    assert script.stream(snapshot(0), event(1), event(2), code=grpc.StatusCode.UNAVAILABLE) == 0
    assert script.stream(snapshot(2), event(3), code=grpc.StatusCode.UNAVAILABLE) == 2
    assert script.stream(code=grpc.StatusCode.UNAVAILABLE) == 3
    assert script.stream(snapshot(3), event(4)) == 3
    answer.result(5)
    assert waits == [0.2, 0.2, 0.4], "the pause grows until a message comes"


def test_a_watch_raises_what_coming_back_cannot_cure(script: Script) -> None:
    answer = script.watch(sleep=lambda s: None)
    script.stream(code=grpc.StatusCode.NOT_FOUND)
    failed: Any = answer.exception(5)
    assert failed.code() is grpc.StatusCode.NOT_FOUND


def test_a_watch_gives_a_server_up_that_stays_away(script: Script) -> None:
    clock = iter([0.0, 10.0, 61.0])
    answer = script.watch(sleep=lambda s: None, now=lambda: next(clock))
    script.stream(code=grpc.StatusCode.UNAVAILABLE)
    script.stream(code=grpc.StatusCode.UNAVAILABLE)
    failed: Any = answer.exception(5)
    assert failed.code() is grpc.StatusCode.UNAVAILABLE
