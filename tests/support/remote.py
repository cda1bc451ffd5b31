"""A client of a real server, for the integration tests."""

from __future__ import annotations

import asyncio
import gzip
import itertools
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from perf_service.app import App
from perf_service.v1 import (
    analyze_service_pb2_grpc,
    collect_service_pb2,
    collect_service_pb2_grpc,
    engine_pb2,
    fleet_pb2,
    fleet_service_pb2,
    fleet_service_pb2_grpc,
    instance_pb2,
    optimize_service_pb2_grpc,
    system_service_pb2_grpc,
    workflow_service_pb2_grpc,
)

CAPTURES = Path(__file__).resolve().parents[1] / "fixtures" / "captures"


class Remote:
    """Stubs of every service on one channel."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self.fleets: Any = fleet_service_pb2_grpc.FleetServiceStub(channel)
        self.collect: Any = collect_service_pb2_grpc.CollectServiceStub(channel)
        self.analyze: Any = analyze_service_pb2_grpc.AnalyzeServiceStub(channel)
        self.optimize: Any = optimize_service_pb2_grpc.OptimizeServiceStub(channel)
        self.workflows: Any = workflow_service_pb2_grpc.WorkflowServiceStub(channel)
        self.system: Any = system_service_pb2_grpc.SystemServiceStub(channel)

    async def fleet(self, fleet_id: str = "f", replicas: int = 2, endpoint: str = "http://127.0.0.1:9") -> list[str]:
        """A fleet of vLLM replicas, by default at an address where nobody listens; their ids."""
        await self.fleets.CreateFleet(
            fleet_service_pb2.CreateFleetRequest(fleet=fleet_pb2.Fleet(fleet_id=fleet_id, engine=engine_pb2.ENGINE_VLLM))
        )
        names = [f"{fleet_id}-{i}" for i in range(replicas)]
        for name in names:
            instance = instance_pb2.Instance(instance_id=name, fleet_id=fleet_id, engine=engine_pb2.ENGINE_VLLM, endpoint=endpoint)
            await self.fleets.RegisterInstance(fleet_service_pb2.RegisterInstanceRequest(instance=instance))
        return names

    async def import_capture(self, instance_id: str, scenario: str, *, end: float, limit: int = 99) -> int:
        """The pages of a recorded scenario, moved in time so that the last one was collected at `end`; how many."""
        lines = [json.loads(line) for line in (CAPTURES / scenario / "scrapes.jsonl").read_text().splitlines()]
        entries = [entry for entry in lines if entry["file"]][-limit:]
        for entry in entries:
            name = entry["file"] if entry["file"].endswith(".gz") else f"{entry['file']}.gz"
            request = collect_service_pb2.ImportMetricsRequest(
                instance_id=instance_id, page=gzip.decompress((CAPTURES / scenario / name).read_bytes())
            )
            request.collected_at.FromNanoseconds(int((end + entry["t_unix"] - entries[-1]["t_unix"]) * 1e9))
            await self.collect.ImportMetrics(request)
        return len(entries)


def pages_of(scenario: str) -> list[bytes]:
    """The pages of a recorded scenario in order."""
    lines = [json.loads(line) for line in (CAPTURES / scenario / "scrapes.jsonl").read_text().splitlines()]
    names = [line["file"] if line["file"].endswith(".gz") else f"{line['file']}.gz" for line in lines if line["file"]]
    return [gzip.decompress((CAPTURES / scenario / name).read_bytes()) for name in names]


@asynccontextmanager
async def engine(scenario: str) -> AsyncIterator[str]:
    """An HTTP server that answers every request with the scenario's next page, the last one again and again; its URL."""
    pages = pages_of(scenario)
    served = itertools.chain(pages, itertools.repeat(pages[-1]))

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        page = next(served)
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(page), page)
        )
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


@dataclass(frozen=True)
class Refusal:
    """What a caller learns of an error."""

    code: grpc.StatusCode
    text: str
    reason: str
    metadata: dict[str, str]
    fields: tuple[str, ...]
    retry_seconds: float | None


async def refusal(call: Awaitable[Any]) -> Refusal:
    """The error that a call must end with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return explain(caught.value)


def explain(error: Any) -> Refusal:
    """The details of an error."""
    info, bad, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
    status = rpc_status.from_call(error)
    has_retry = False
    for detail in status.details if status else ():
        if not detail.Unpack(info) and not detail.Unpack(bad):
            has_retry |= detail.Unpack(retry)
    fields = tuple(violation.field for violation in bad.field_violations)
    seconds = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9 if has_retry else None
    return Refusal(error.code(), error.details(), info.reason, dict(info.metadata), fields, seconds)


Start = Callable[..., Awaitable[App]]
