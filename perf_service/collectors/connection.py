"""One HTTP/1.1 connection as an asyncio protocol: one request at a time, and nothing between the socket and the response's reader."""

from __future__ import annotations

import asyncio
from typing import cast

from perf_service.collectors.http1 import BadResponseError, ResponseReader
from perf_service.models.errors import CollectError


class ConnectionLostError(Exception):
    """The connection is gone. `unanswered`: before any byte of an answer."""

    def __init__(self, why: str, *, unanswered: bool) -> None:
        super().__init__(why)
        self.unanswered = unanswered


class Connection(asyncio.Protocol):
    """One connection, one request at a time."""

    __slots__ = ("_reader", "_transport", "_waiter", "idle_since", "is_open")

    def __init__(self) -> None:
        self.is_open = False
        self.idle_since = 0.0
        self._transport: asyncio.Transport | None = None
        self._reader: ResponseReader | None = None
        self._waiter: asyncio.Future[ResponseReader] | None = None

    async def exchange(self, request: bytes, max_body_bytes: int) -> ResponseReader:
        """Send a request and read its answer. Raises ConnectionLostError, BadResponseError, CollectError BODY_TOO_LARGE."""
        if self._transport is None or not self.is_open:
            raise ConnectionLostError("the connection was closed", unanswered=True)
        self._reader = ResponseReader(max_body_bytes)
        self._waiter = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        try:
            return await self._waiter
        except BaseException:
            # Cancelled, perhaps in the very turn in which the answer came: whoever asked will not give the connection back.
            self.abort()
            raise

    def abort(self) -> None:
        """Close at once."""
        self.is_open = False
        self._reader = self._waiter = None
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.is_open = True

    def data_received(self, data: bytes) -> None:
        reader = self._reader
        if reader is None:  # nobody asked
            self.abort()
            return
        try:
            is_complete = reader.feed(data)
        except (BadResponseError, CollectError) as error:
            self._fail(error)
            return
        if is_complete:
            self._answer(reader)

    def eof_received(self) -> bool:
        self._closed(None)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._closed(exc)
        self._transport = None

    def _closed(self, exc: Exception | None) -> None:
        self.is_open = False
        reader = self._reader
        if reader is None:
            return
        try:
            if exc is not None:
                raise BadResponseError(str(exc) or type(exc).__name__)
            reader.end()
        except BadResponseError as error:
            self._fail(ConnectionLostError(str(error), unanswered=not reader.has_begun))
        else:
            self._answer(reader)

    def _answer(self, reader: ResponseReader) -> None:
        waiter, self._waiter, self._reader = self._waiter, None, None
        if waiter is not None and not waiter.done():
            waiter.set_result(reader)

    def _fail(self, error: Exception) -> None:
        waiter = self._waiter
        self.abort()
        if waiter is not None and not waiter.done():
            waiter.set_exception(error)
