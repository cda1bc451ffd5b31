"""What the server takes on: no more calls at a time than it can serve, and nothing new once it is going down."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

from perf_service.models.errors import ErrorReason, PerfServiceError
from perf_service.rpc.interceptors.base import Context, Interceptor, Proceed, ProceedStream
from perf_service.rpc.lifecycle import Lifecycle
from perf_service.rpc.methods import Method


class Limits(Interceptor):
    """Calls and streams have limits of their own: a thousand watchers must not keep anybody from aborting a rollout."""

    def __init__(self, lifecycle: Lifecycle, *, max_calls: int, max_streams: int) -> None:
        self._lifecycle = lifecycle
        self._limits = {"calls": max_calls, "streams": max_streams}
        self._running = {"calls": 0, "streams": 0}
        self._idle = asyncio.Event()
        self._idle.set()

    async def idle(self) -> None:
        """Wait until no call of the contract is running."""
        while any(self._running.values()):
            self._idle.clear()
            await self._idle.wait()

    async def unary(self, method: Method, request: Any, context: Context, proceed: Proceed) -> Any:
        """Count, then go on."""
        self._refuse_when_draining(method, starts=method.mutating)
        with self._place("calls"):
            return await proceed(request)

    async def stream(self, method: Method, request: Any, context: Context, proceed: ProceedStream) -> AsyncIterator[Any]:
        """Count, then go on."""
        self._refuse_when_draining(method, starts=True)
        with self._place("streams"):
            async for response in proceed(request):
                yield response

    def _refuse_when_draining(self, method: Method, *, starts: bool) -> None:
        if starts and self._lifecycle.draining:
            raise PerfServiceError(
                ErrorReason.SHUTTING_DOWN, "the server is going down and takes nothing new on; retry in a moment", {"method": method.path}
            )

    @contextmanager
    def _place(self, kind: str) -> Iterator[None]:
        if self._running[kind] >= self._limits[kind]:
            raise PerfServiceError(
                ErrorReason.RATE_LIMITED,
                f"the server is serving {self._limits[kind]} {kind} already; wait a moment",
                {"limit": str(self._limits[kind]), "kind": kind},
            )
        self._running[kind] += 1
        try:
            yield
        finally:
            self._running[kind] -= 1
            if not any(self._running.values()):
                self._idle.set()
