"""The queries of a Prometheus source, without a server."""

from __future__ import annotations

import asyncio
from typing import Any

from perf_service.collectors.prometheus.client import PrometheusClient
from perf_service.collectors.prometheus.source import PrometheusScrape, _Group
from perf_service.models.fleet import PrometheusSource
from perf_service.models.metrics import Engine


class Waiting(PrometheusScrape):
    """Its queries find nothing, as soon as they may end."""

    def __init__(self, client: PrometheusClient) -> None:
        super().__init__(client)
        self.may_end = asyncio.Event()

    async def _ask(self, *_: Any) -> Any:
        await self.may_end.wait()
        return {}, ()


class Queries(dict[Any, Any]):
    """Fails who looks again and again: a loop that never gives up its turn cannot be stopped from outside."""

    looks = 0

    def items(self) -> Any:
        self.looks += 1
        assert self.looks < 100, "it looks without end"
        return super().items()


async def test_who_comes_as_a_query_ends_has_it_asked_anew() -> None:
    async with PrometheusClient() as client:
        source = Waiting(client)
        group = _Group(PrometheusSource("http://p:9090", 'job="a"'), Engine.VLLM, (), "instance", queries=Queries())
        first = asyncio.create_task(source._reading(group, "a", 0.0, 2.5))
        for _ in range(3):
            await asyncio.sleep(0)
        source.may_end.set()
        second = asyncio.create_task(source._reading(group, "a", 10.0, 2.5))  # runs in the turn after the query's last
        assert (await second).at == 10.0
        await first
    assert not group.queries
