"""Mutations that may be repeated: the same request_id with the same body gives the earlier response.

Only success is remembered: a call that failed may be tried again under its id. A server that dies between the effect and the
remembering makes a repeat run again, which creations then refuse by the id of what they create.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from contextlib import asynccontextmanager
from typing import Any

from perf_service.rpc.interceptors.base import Context, Interceptor, Proceed
from perf_service.rpc.methods import Method
from perf_service.storage.ports import RequestLog

# The store makes these idempotent in the transaction of their effect, and answers a repeat with the present state.
OWN_WAY = frozenset({"StartWorkflow"})


class Idempotency(Interceptor):
    """Answers a repeat from the request log."""

    def __init__(self, log: RequestLog, *, clock: Callable[[], float]) -> None:
        self._log = log
        self._clock = clock
        self._running: dict[tuple[str, str], tuple[asyncio.Lock, int]] = {}

    async def unary(self, method: Method, request: Any, context: Context, proceed: Proceed) -> Any:
        """Recall, else run once and remember."""
        request_id = getattr(request, "request_id", "") if method.mutating and method.name not in OWN_WAY else ""
        if not request_id:
            return await proceed(request)
        body_hash = hashlib.sha256(request.SerializeToString(deterministic=True)).hexdigest()
        async with self._alone(method.path, request_id):
            earlier = await self._log.recall(method.path, request_id, body_hash)
            if earlier is not None:
                return method.response.FromString(earlier)
            response = await proceed(request)
            await self._log.remember(method.path, request_id, body_hash, response.SerializeToString(), at=self._clock())
            return response

    @asynccontextmanager
    async def _alone(self, path: str, request_id: str) -> Any:
        """Repeats that arrive while the first one runs wait for it."""
        key = (path, request_id)
        lock, waiting = self._running.get(key, (asyncio.Lock(), 0))
        self._running[key] = (lock, waiting + 1)
        try:
            async with lock:
                yield
        finally:
            lock, waiting = self._running[key]
            if waiting == 1:
                del self._running[key]
            else:
                self._running[key] = (lock, waiting - 1)
