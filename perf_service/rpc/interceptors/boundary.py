"""The error boundary: nothing but a proper status leaves the server.

grpc.aio answers an exception that it does not know with its text. So every exception ends here: an expected one by the table, an
unexpected one as INTERNAL with a correlation id, its text in the log only.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from typing import Any, NoReturn

import grpc
import structlog
from grpc_status import rpc_status

from perf_service.models.errors import InvalidArgumentError, PerfServiceError
from perf_service.rpc.errors import internal, to_status
from perf_service.rpc.interceptors.base import Context, Interceptor, Malformed, Proceed, ProceedStream
from perf_service.rpc.methods import Method

_log = structlog.get_logger("perf_service.rpc")


class ErrorBoundary(Interceptor):
    """Outermost of those that may fail."""

    async def unary(self, method: Method, request: Any, context: Context, proceed: Proceed) -> Any:
        """Translate."""
        try:
            _check_parsed(request)
            return await proceed(request)
        except Exception as error:
            await _fail(method, context, error)

    async def stream(self, method: Method, request: Any, context: Context, proceed: ProceedStream) -> AsyncIterator[Any]:
        """Translate, also in mid-stream."""
        try:
            _check_parsed(request)
            async for response in proceed(request):
                yield response
        except Exception as error:
            await _fail(method, context, error)


def _check_parsed(request: Any) -> None:
    if isinstance(request, Malformed):
        raise InvalidArgumentError("the request's bytes are no message of this method; check the client's version of the contract")


async def _fail(method: Method, context: Context, error: Exception) -> NoReturn:
    if isinstance(error, grpc.aio.AbortError):
        raise error
    if not isinstance(error, PerfServiceError):
        correlation_id = uuid.uuid4().hex[:12]
        _log.error("internal error", method=method.path, correlation_id=correlation_id, exc_info=error)
        error = internal(correlation_id)
    structlog.contextvars.bind_contextvars(reason=error.reason.value)
    await context.abort_with_status(rpc_status.to_status(to_status(error)))
    raise AssertionError("abort_with_status returned")
