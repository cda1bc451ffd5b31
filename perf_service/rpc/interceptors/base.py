"""What every interceptor stands on: one call, seen from outside, as a coroutine or as an async iterator."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from perf_service.rpc.methods import Method, methods

Context = Any  # grpc.aio.ServicerContext: generic in types that differ for each method
Proceed = Callable[[Any], Awaitable[Any]]
ProceedStream = Callable[[Any], AsyncIterator[Any]]


class Malformed:
    """Stands for a request whose bytes are no message: grpc would tell the caller the parser's exception. The error boundary refuses it."""


def _tolerant(deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def parse(data: bytes) -> Any:
        try:
            return deserialize(data)
        except DecodeError:
            return Malformed()

    return parse


class Interceptor(grpc.aio.ServerInterceptor):
    """Wraps the methods of the contract. Those of others (health, reflection) pass by: probes and tools carry no token."""

    async def unary(self, method: Method, request: Any, context: Context, proceed: Proceed) -> Any:
        """Around a call with one answer."""
        return await proceed(request)

    async def stream(self, method: Method, request: Any, context: Context, proceed: ProceedStream) -> AsyncIterator[Any]:
        """Around a call with a stream of answers."""
        async for response in proceed(request):
            yield response

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        """Called by grpc for each call, before its request is read."""
        handler = await continuation(handler_call_details)
        method = methods().get(handler_call_details.method)
        if handler is None or method is None or handler.request_streaming:
            return handler
        known: Method = method
        serializers = {"request_deserializer": _tolerant(handler.request_deserializer), "response_serializer": handler.response_serializer}
        if handler.response_streaming:

            async def stream(request: Any, context: Context) -> AsyncIterator[Any]:
                async for response in self.stream(known, request, context, lambda r: handler.unary_stream(r, context)):
                    yield response

            return grpc.unary_stream_rpc_method_handler(stream, **serializers)

        async def unary(request: Any, context: Context) -> Any:
            return await self.unary(known, request, context, lambda r: handler.unary_unary(r, context))

        return grpc.unary_unary_rpc_method_handler(unary, **serializers)


def metadata_of(context: Context, key: str) -> str:
    """One header of the call; empty where it is not there."""
    for name, value in context.invocation_metadata() or ():
        if name == key:
            return value if isinstance(value, str) else value.decode("utf-8", "replace")
    return ""
