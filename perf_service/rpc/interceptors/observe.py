"""What an operator sees of the calls: one log line each, with a request id, and Prometheus metrics without per-name labels."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

import grpc
import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from perf_service.rpc.interceptors.base import Context, Interceptor, Proceed, ProceedStream, metadata_of
from perf_service.rpc.methods import Method

_log = structlog.get_logger("perf_service.rpc")
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
# Server faults; the rest are the caller's business.
_FAULTS = frozenset({"INTERNAL", "UNKNOWN", "DATA_LOSS", "UNIMPLEMENTED"})


class CallMetrics:
    """Counts and times of calls, in a registry of their own: a process may have several servers."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.started = Counter("perf_service_rpc_started", "Calls begun.", ["service", "method"], registry=registry)
        self.handled = Counter("perf_service_rpc_handled", "Calls ended, by status.", ["service", "method", "code"], registry=registry)
        self.sent = Counter("perf_service_rpc_messages_sent", "Messages of streams.", ["service", "method"], registry=registry)
        self.running = Gauge("perf_service_rpc_running", "Calls running.", ["service", "method"], registry=registry)
        self.seconds = Histogram(
            "perf_service_rpc_seconds", "Time of calls with one answer.", ["service", "method"], registry=registry, buckets=_BUCKETS
        )


class Observe(Interceptor):
    """Outermost: sees the status that the caller gets."""

    def __init__(self, metrics: CallMetrics) -> None:
        self._metrics = metrics

    async def unary(self, method: Method, request: Any, context: Context, proceed: Proceed) -> Any:
        """Time, count, log."""
        call = _Call(self._metrics, method, context)
        try:
            response = await proceed(request)
        except BaseException as error:
            call.end(error)
            raise
        call.end(None)
        return response

    async def stream(self, method: Method, request: Any, context: Context, proceed: ProceedStream) -> AsyncIterator[Any]:
        """Count, log."""
        call = _Call(self._metrics, method, context)
        sent = self._metrics.sent.labels(method.service, method.name)
        try:
            async for response in proceed(request):
                yield response
                sent.inc()
        except BaseException as error:
            call.end(error)
            raise
        call.end(None)


class _Call:
    def __init__(self, metrics: CallMetrics, method: Method, context: Context) -> None:
        self._metrics, self._method, self._context = metrics, method, context
        self._labels = (method.service, method.name)
        self._began = time.perf_counter()
        # Asked now: a stream may be closed after its call is gone, and asking grpc for the peer then ends the process.
        self._peer = context.peer()
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(call_id=metadata_of(context, "x-request-id")[:64] or uuid.uuid4().hex[:12])
        metrics.started.labels(*self._labels).inc()
        metrics.running.labels(*self._labels).inc()

    def end(self, error: BaseException | None) -> None:
        seconds = time.perf_counter() - self._began
        code = self._code(error)
        self._metrics.running.labels(*self._labels).dec()
        self._metrics.handled.labels(*self._labels, code).inc()
        self._metrics.seconds.labels(*self._labels).observe(seconds)
        write = _log.error if code in _FAULTS else _log.info if self._method.mutating or code != "OK" else _log.debug
        write("call", method=self._method.path, code=code, milliseconds=round(seconds * 1e3, 2), peer=self._peer)

    def _code(self, error: BaseException | None) -> str:
        if isinstance(error, (asyncio.CancelledError, GeneratorExit)):
            return "CANCELLED"  # without a look at the context, whose call may be gone
        code = self._context.code()
        if isinstance(code, int):  # grpc.aio keeps the number
            code = next((known for known in grpc.StatusCode if known.value[0] == code), None)
        if code is None:
            return "OK" if error is None else "UNKNOWN"
        return str(code.name)
