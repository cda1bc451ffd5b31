"""Why matchers select nothing, asked at most once a minute: replicas that are gone are scraped on, and must not load Prometheus for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final, Generic, TypeVar

from perf_service.collectors.prometheus.client import PrometheusClient
from perf_service.collectors.prometheus.history import engines_instead, is_down, selects_nothing, unreachable
from perf_service.models.errors import CollectError
from perf_service.models.fleet import PrometheusSource
from perf_service.models.metrics import Engine

T = TypeVar("T")

KEPT_SECONDS: Final = 60.0
_Key = tuple[object, ...]


class Absences:
    """`history.nothing_found` for who asks again and again: one query a minute for each source, two for each server and engine.

    Whether there is something again does not depend on it: this is only asked when there is not. Belongs to one event loop.
    """

    def __init__(self, client: PrometheusClient) -> None:
        self._client = client
        self._down: _Kept[bool] = _Kept()
        self._instead: _Kept[tuple[str, ...] | None] = _Kept()

    async def error(self, source: PrometheusSource, what: str, engine: Engine, now: float) -> CollectError:
        """The error for a source that selects nothing at `now` (unix seconds)."""
        server = (source.url, source.bearer_token, tuple(sorted(source.headers.items())))
        if await self._down.get((*server, source.match), now, lambda: is_down(self._client, source)):
            return unreachable(source)
        there = await self._instead.get((*server, engine), now, lambda: engines_instead(self._client, source, engine))
        return selects_nothing(source, what, engine, there)


class _Kept(Generic[T]):
    """Answers by key, for `KEPT_SECONDS` from when they were asked for; who comes meanwhile waits for the same one."""

    def __init__(self) -> None:
        self._tasks: dict[_Key, tuple[float, asyncio.Task[T]]] = {}

    async def get(self, key: _Key, now: float, ask: Callable[[], Coroutine[Any, Any, T]]) -> T:
        at, task = self._tasks.get(key, (now, None))
        if task is None or not 0 <= now - at < KEPT_SECONDS or (task.done() and (task.cancelled() or task.exception() is not None)):
            # The others that are old too: of instances that are gone, with their tokens.
            self._tasks = {name: kept for name, kept in self._tasks.items() if 0 <= now - kept[0] < KEPT_SECONDS}
            task = asyncio.create_task(ask())
            self._tasks[key] = now, task
        # Shielded: one caller's cancellation is not the others'.
        return await asyncio.shield(task)
