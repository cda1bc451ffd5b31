"""Reads one HTTP/1.1 response from the bytes of a connection, however they are cut. Pure: no sockets, no clock.

Follows RFC 9112 where a peer could otherwise make us misread where a body ends (two lengths that differ, a length beside a transfer
coding); a response that is merely odd is read.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from perf_service.collectors.exposition import body_too_large
from perf_service.collectors.gunzip import DamagedGzipError, gunzip

_MAX_HEAD_BYTES: Final = 64 * 1024
_MAX_CHUNK_LINE_BYTES: Final = 4 * 1024
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: [^\r\n]*)?\r?\Z")
_HEAD_END: Final = re.compile(rb"\r?\n\r?\n")
_DIGITS: Final = re.compile(r"[0-9]{1,18}\Z")
_CHUNK_SIZE: Final = re.compile(rb"[ \t]*([0-9a-fA-F]{1,15})[ \t]*(?:;[^\r\n]*)?\r?\Z")


class BadResponseError(Exception):
    """What came is not HTTP/1.1, or ends too early."""


class UnreadableBodyError(Exception):
    """The body came whole, but cannot be decoded."""


class ResponseReader:
    """Fed with bytes until one response is complete. `max_body_bytes` holds for the body as sent.

    After completion: `status`, `headers` (names in lower case; values of repeated ones joined by commas), `body`, and `keeps_alive`:
    whether the connection may carry another request.
    """

    __slots__ = ("_body", "_buffer", "_chunked", "_length", "_limit", "_seen", "_state", "body", "headers", "keeps_alive", "status")

    def __init__(self, max_body_bytes: int) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = b""
        self.keeps_alive = True
        self._limit = max_body_bytes
        self._buffer = bytearray()
        self._body = bytearray()
        self._length = 0
        self._chunked = False
        # Not bound: a reader in a cycle with itself would keep its body until the garbage collector comes by.
        self._state: Callable[[ResponseReader, bytes], bool] = ResponseReader._head
        self._seen = False

    @property
    def has_begun(self) -> bool:
        """Whether any byte of a response has come."""
        return self._seen

    def feed(self, data: bytes) -> bool:
        """Take bytes in; True once the response is complete.

        Raises BadResponseError, and CollectError BODY_TOO_LARGE as soon as the body is seen to exceed the limit.
        """
        self._seen = True
        return self._state(self, data)

    def end(self) -> None:
        """The peer has closed. Returns where that completes the response, else raises BadResponseError."""
        if self._state is not ResponseReader._until_close:
            raise BadResponseError("the connection was closed in the middle of the answer" if self._seen else "the connection was closed")
        self.body = bytes(self._body)

    def _head(self, data: bytes) -> bool:
        buffer = self._buffer
        scanned = max(0, len(buffer) - 3)
        buffer += data
        while (end := _HEAD_END.search(buffer, scanned)) is not None:
            head, rest = bytes(buffer[: end.start()]), bytes(buffer[end.end() :])
            buffer.clear()
            self._read_head(head)
            if self.status >= 200:
                return self._begin_body(rest)
            scanned = 0  # an interim answer: the real one follows
            buffer += rest
        if len(buffer) > _MAX_HEAD_BYTES:
            raise BadResponseError(f"its headers are longer than {_MAX_HEAD_BYTES} bytes")
        return False

    def _read_head(self, head: bytes) -> None:
        first, *lines = head.split(b"\n")
        match = _STATUS_LINE.match(first)
        if match is None:
            raise BadResponseError(f"it does not speak HTTP/1.1 ({first[:40]!r})")
        minor, status = match.groups()
        self.status = int(status)
        headers = self.headers = {}
        for line in lines:
            name, colon, value = line.decode("latin-1").partition(":")
            if not colon or not name or name != name.strip():
                raise BadResponseError(f"a header makes no sense ({line[:40]!r})")
            name, value = name.lower(), value.strip()
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        connection = headers.get("connection", "").lower()
        self.keeps_alive = "close" not in connection and (minor == b"1" or "keep-alive" in connection)

    def _begin_body(self, rest: bytes) -> bool:
        headers = self.headers
        coding = headers.get("transfer-encoding")
        length = headers.get("content-length")
        if self.status in (204, 304):
            return self._complete(b"", rest)
        if coding is not None:
            if coding.lower() != "chunked":
                raise BadResponseError(f"its transfer coding {coding[:40]!r} is not known")
            self.keeps_alive = self.keeps_alive and length is None
            self._state = ResponseReader._chunk_line
            return self._chunk_line(rest)
        if length is None:
            self.keeps_alive = False
            self._state = ResponseReader._until_close
            return self._until_close(rest)
        sizes = {text.strip() for text in length.split(",")}
        if len(sizes) != 1 or _DIGITS.match(size := sizes.pop()) is None:
            raise BadResponseError(f"its Content-Length {length[:40]!r} makes no sense")
        self._length = int(size)
        if self._length > self._limit:
            raise body_too_large(self._limit)
        self._state = ResponseReader._counted
        return self._counted(rest)

    def _counted(self, data: bytes) -> bool:
        body, length = self._body, self._length
        if not body and len(data) == length:
            return self._complete(data, b"")
        body += data
        if len(body) < length:
            return False
        return self._complete(bytes(body[:length]), bytes(body[length:]))

    def _until_close(self, data: bytes) -> bool:
        self._body += data
        self._within_limit()
        return False

    def _chunk_line(self, data: bytes) -> bool:
        """At the line that tells a chunk's size."""
        buffer = self._buffer
        buffer += data
        while True:
            end = buffer.find(b"\n")
            if end < 0:
                if len(buffer) > _MAX_CHUNK_LINE_BYTES:
                    raise BadResponseError("a chunk's size is longer than it can be")
                self._state = ResponseReader._chunk_line
                return False
            match = _CHUNK_SIZE.match(buffer[:end])
            if match is None:
                raise BadResponseError(f"a chunk's size makes no sense ({bytes(buffer[: min(end, 40)])!r})")
            del buffer[: end + 1]
            self._length = int(match[1], 16)
            if self._length == 0:
                self._state = ResponseReader._trailer
                return self._trailer(b"")
            if not self._take_chunk():
                self._state = ResponseReader._chunk
                return False

    def _chunk(self, data: bytes) -> bool:
        """Within a chunk."""
        self._buffer += data
        return self._chunk_line(b"") if self._take_chunk() else False

    def _take_chunk(self) -> bool:
        """Move what is there of the present chunk to the body; True at its end, `_length` being what lacks of it."""
        buffer = self._buffer
        if self._length:
            part = min(self._length, len(buffer))
            self._body += buffer[:part]
            del buffer[:part]
            self._length -= part
            self._within_limit()
            if self._length:
                return False
        line_end = 2 if buffer[:1] == b"\r" else 1
        if len(buffer) < line_end:
            return False
        if buffer[line_end - 1] != 0x0A:
            raise BadResponseError("a chunk is longer than its size")
        del buffer[:line_end]
        return True

    def _trailer(self, data: bytes) -> bool:
        buffer = self._buffer
        buffer += data
        while (end := buffer.find(b"\n")) >= 0:
            is_blank = not bytes(buffer[:end]).strip()
            del buffer[: end + 1]
            if is_blank:
                return self._complete(bytes(self._body), bytes(buffer))
        if len(buffer) > _MAX_HEAD_BYTES:
            raise BadResponseError("its trailer is too long")
        return False

    def _within_limit(self) -> None:
        if len(self._body) > self._limit:
            raise body_too_large(self._limit)

    def _complete(self, body: bytes, rest: bytes) -> bool:
        self.body = body
        # Bytes that belong to no answer of ours: where the next one begins can't be known any more.
        self.keeps_alive = self.keeps_alive and not rest
        self._state = ResponseReader._after
        return True

    def _after(self, data: bytes) -> bool:
        raise BadResponseError("more came than was asked for")


def decoded(body: bytes, encoding: str, limit: int) -> bytes:
    """A body without its content encoding: identity or gzip.

    Raises UnreadableBodyError for others and for damaged gzip, CollectError BODY_TOO_LARGE where it unpacks to more than `limit` bytes.
    """
    name = encoding.strip().lower()
    if name in ("", "identity") or not body:
        return body
    if name not in ("gzip", "x-gzip"):
        raise UnreadableBodyError(f"it is encoded as {encoding[:40]!r}, which was not asked for")
    try:
        return gunzip(body, limit)
    except DamagedGzipError as error:
        raise UnreadableBodyError(f"the gzip body is damaged: {error}") from error
