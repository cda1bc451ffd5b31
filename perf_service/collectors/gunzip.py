"""Gzip as it arrives: unpacked piece by piece, all members of it, within a limit. Pure: no files, no sockets."""

from __future__ import annotations

import zlib
from typing import Final

from perf_service.collectors.page import body_too_large

MAX_MEMBERS: Final = 4096
"""A body may be of several members (RFC 1952, 2.2), as a proxy makes of parts that it flushes or `cat a.gz b.gz`. A page within its limit
has no use for more; a member of nothing has 20 bytes and costs as much to begin as one of 64 kB."""
_SLICE_BYTES: Final = 64 * 1024
"""Given to zlib at once: what stands behind a member's end is copied each time, which must not grow with the body."""


class DamagedGzipError(Exception):
    """What came is no gzip, or ends too early."""


class Gunzip:
    """Unpacks one body. What it gives out never exceeds `limit` bytes, nor does what it keeps."""

    __slots__ = ("_inflate", "_left", "_limit", "_members")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._left = limit
        self._members = 0
        self._inflate: zlib._Decompress | None = None

    def feed(self, data: bytes) -> bytes:
        """Take bytes in, give out what they unpack to.

        Raises:
            DamagedGzipError: where that is no gzip; also for what follows its end, but for zeros (padding).
            CollectError: BODY_TOO_LARGE as soon as it is seen to unpack to more than the limit.
        """
        if len(data) <= _SLICE_BYTES:
            return self._feed(data)
        return b"".join(self._feed(data[at : at + _SLICE_BYTES]) for at in range(0, len(data), _SLICE_BYTES))

    def finish(self) -> None:
        """There is no more. Raises DamagedGzipError where the end is missing. A body of nothing is complete."""
        if self._inflate is not None:
            raise DamagedGzipError("it ends too early")

    def _feed(self, data: bytes) -> bytes:
        parts: list[bytes] = []
        while data:
            if self._inflate is None:
                if self._members:
                    data = data.lstrip(b"\0")
                    if not data:
                        break
                self._members += 1
                if self._members > MAX_MEMBERS:
                    raise DamagedGzipError(f"it has more than {MAX_MEMBERS} members")
                self._inflate = zlib.decompressobj(zlib.MAX_WBITS | 16)
            try:
                # One byte more than allowed is enough to know; a small body can unpack to gigabytes.
                part = self._inflate.decompress(data, self._left + 1)
            except zlib.error as error:
                raise DamagedGzipError(str(error)) from error
            if len(part) > self._left:
                raise body_too_large(self._limit)
            self._left -= len(part)
            parts.append(part)
            if not self._inflate.eof:
                break
            data, self._inflate = self._inflate.unused_data, None
        return parts[0] if len(parts) == 1 else b"".join(parts)


def gunzip(body: bytes, limit: int) -> bytes:
    """A whole body, unpacked. Raises as `Gunzip`."""
    unpacking = Gunzip(limit)
    text = unpacking.feed(body)
    unpacking.finish()
    return text
