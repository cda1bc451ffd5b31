"""A small HTTP/1.1 server on asyncio protocols: enough for an engine, with nothing to install.

It answers one request at a time per connection, keeps connections alive, bounds heads and bodies, and
tells the running exchange at once when the client goes away.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlsplit

MAX_HEAD_BYTES = 64 * 1024
MAX_BODY_BYTES = 32 * 1024 * 1024
_REASONS = {
    200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 411: "Length Required",
    413: "Content Too Large", 422: "Unprocessable Entity", 429: "Too Many Requests", 431: "Headers Too Large",
    500: "Internal Server Error", 501: "Not Implemented", 503: "Service Unavailable",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """One parsed request; header names are lower case."""

    method: str
    path: str
    query: dict[str, str]
    headers: Mapping[str, str]
    body: bytes


class Exchange:
    """One request and the way to answer it. ``on_disconnect`` is called if the client leaves first."""

    def __init__(self, connection: Connection, request: HttpRequest) -> None:
        self.request = request
        self.on_disconnect: Callable[[], None] | None = None
        self._connection = connection
        self._streaming = False
        self.finished = False

    def respond(
        self,
        status: int,
        body: bytes | str = b"",
        content_type: str = "text/plain; charset=utf-8",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Sends a whole answer."""
        raw = body.encode() if isinstance(body, str) else body
        more = "".join(f"{k}: {v}\r\n" for k, v in (headers or {}).items())
        self._write(
            f"HTTP/1.1 {status} {_REASONS.get(status, 'Unknown')}\r\ncontent-type: {content_type}\r\n"
            f"{more}content-length: {len(raw)}\r\n\r\n".encode()
            + raw
        )
        self._end()

    def respond_json(self, status: int, value: Any, headers: Mapping[str, str] | None = None) -> None:
        """Sends a JSON answer."""
        self.respond(status, json.dumps(value), "application/json", headers)

    def start_stream(self) -> None:
        """Begins a server-sent event stream."""
        self._streaming = True
        self._write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
            b"cache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n"
        )

    def send_event(self, data: str) -> None:
        """Sends one ``data:`` event."""
        raw = f"data: {data}\n\n".encode()
        self._write(b"%x\r\n%b\r\n" % (len(raw), raw))

    def end_stream(self) -> None:
        """Ends the stream."""
        self._write(b"0\r\n\r\n")
        self._end()

    def break_off(self) -> None:
        """Closes the connection without finishing the answer, as a dying process does."""
        self.finished = True
        self._connection.close()

    def _write(self, raw: bytes) -> None:
        if not self.finished:
            self._connection.write(raw)

    def _end(self) -> None:
        if not self.finished:
            self.finished = True
            self._connection.exchange_done()


class Connection(asyncio.Protocol):
    """One client connection."""

    def __init__(self, handle: Callable[[Exchange], None], open_connections: set[Connection]) -> None:
        self._handle = handle
        self._open = open_connections
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._exchange: Exchange | None = None
        self._keep_alive = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Part of asyncio.Protocol."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101
        self._transport = transport
        self._open.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Part of asyncio.Protocol."""
        self._open.discard(self)
        exchange, self._exchange = self._exchange, None
        if exchange is not None and not exchange.finished:
            exchange.finished = True
            if exchange.on_disconnect is not None:
                exchange.on_disconnect()

    def data_received(self, data: bytes) -> None:
        """Part of asyncio.Protocol."""
        self._buffer += data
        if self._exchange is None:
            self._next()
        elif len(self._buffer) > MAX_BODY_BYTES + MAX_HEAD_BYTES:
            self.close()

    @property
    def busy(self) -> bool:
        """Whether a request is being answered."""
        return self._exchange is not None

    def write(self, raw: bytes) -> None:
        """Sends bytes unless the client has gone."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(raw)

    def close(self) -> None:
        """Closes after what is buffered for sending."""
        if self._transport is not None:
            self._transport.close()

    def exchange_done(self) -> None:
        """The answer is complete: next request, or close."""
        self._exchange = None
        if not self._keep_alive:
            self.close()
        elif self._buffer:
            self._next()

    def _refuse(self, status: int) -> None:
        self._keep_alive = False
        self._exchange = Exchange(self, HttpRequest("", "", {}, {}, b""))
        self._exchange.respond(status, _REASONS[status])

    def _next(self) -> None:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > MAX_HEAD_BYTES:
                self._refuse(431)
            return
        lines = bytes(self._buffer[:end]).decode("latin-1").split("\r\n")
        try:
            method, target, version = lines[0].split(" ")
            headers = {k.strip().lower(): v.strip() for k, _, v in (line.partition(":") for line in lines[1:])}
            length = int(headers.get("content-length", "0"))
        except ValueError:
            self._refuse(400)
            return
        if "transfer-encoding" in headers:
            self._refuse(411)
            return
        if length < 0 or length > MAX_BODY_BYTES:
            self._refuse(413)
            return
        if len(self._buffer) < end + 4 + length:
            return
        body = bytes(self._buffer[end + 4 : end + 4 + length])
        del self._buffer[: end + 4 + length]
        self._keep_alive = version == "HTTP/1.1" and headers.get("connection", "").lower() != "close"
        parts = urlsplit(target)
        self._exchange = Exchange(self, HttpRequest(method, parts.path, dict(parse_qsl(parts.query)), headers, body))
        self._handle(self._exchange)
