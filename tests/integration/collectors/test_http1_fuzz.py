"""The response reader on anything: never another error than its own, never more than the limit, the same wherever the bytes are cut."""

from __future__ import annotations

import contextlib
import gzip
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perf_service.collectors.http1 import BadResponseError, ResponseReader, UnreadableBodyError, decoded
from perf_service.models.errors import CollectError

LIMIT = 500
FRAGMENTS = [
    b"HTTP/1.1 200 OK\r\n",
    b"HTTP/1.0 404\n",
    b"HTTP/1.1 100 Continue\r\n\r\n",
    b"Content-Length: 5\r\n",
    b"content-length: 99999999999\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Connection: close\r\n",
    b"\r\n",
    b"\n",
    b"\r",
    b"5\r\nabcde\r\n",
    b"0\r\n\r\n",
    b"fffff\r\n",
    b"abcde",
    b"\x00\xff",
    b": \r\n",
]
almost_http = st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.binary(max_size=20)), max_size=25).map(b"".join)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    ends = sorted({min(place, len(data)) for place in places} | {0, len(data)})
    return [data[a:b] for a, b in pairwise(ends)]


def outcome(pieces: list[bytes]) -> object:
    """What is read of these pieces and then the end of the connection; errors by their kind."""
    reader = ResponseReader(LIMIT)
    try:
        for index, piece in enumerate(pieces):
            if reader.feed(piece):
                # What follows a complete answer in a later piece is the connection's concern.
                return reader.status, reader.headers, reader.body, index == len(pieces) - 1
        reader.end()
    except BadResponseError:
        return BadResponseError
    except CollectError as error:
        return error.reason
    assert len(reader.body) <= LIMIT
    return reader.status, reader.headers, reader.body, True


@given(st.one_of(st.binary(max_size=300), almost_http, almost_http.map(lambda rest: b"HTTP/1.1 200 OK\r\n" + rest)))
def test_garbage_is_read_or_refused(data: bytes) -> None:
    outcome([data])
    outcome([data[i : i + 1] for i in range(len(data))])


@given(almost_http.map(lambda rest: b"HTTP/1.1 200 OK\r\n" + rest), st.lists(st.integers(0, 400), max_size=8))
def test_where_it_is_cut_does_not_matter(data: bytes, places: list[int]) -> None:
    whole, pieces = outcome([data]), outcome(cut(data, places))
    if isinstance(whole, tuple) and isinstance(pieces, tuple):
        assert whole[:3] == pieces[:3]
    elif isinstance(whole, tuple) != isinstance(pieces, tuple):
        pytest.fail(f"{whole} != {pieces}")


@st.composite
def responses(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A right response and the body in it."""
    body = draw(st.binary(max_size=LIMIT))
    line_end = draw(st.sampled_from([b"\r\n", b"\n"]))
    head = line_end.join([b"HTTP/1.1 200 OK", *draw(st.lists(st.sampled_from([b"A: b", b"X-Y:", b"Date:  now "]), max_size=3))])
    if draw(st.booleans()):
        return head + line_end + b"Content-Length: %d" % len(body) + line_end * 2 + body, body
    chunks = b""
    for piece in cut(body, draw(st.lists(st.integers(0, LIMIT), max_size=5))):
        chunks += b"%x%b\r\n%b\r\n" % (len(piece), draw(st.sampled_from([b"", b";a=b", b" "])), piece)
    trailer = draw(st.sampled_from([b"", b"T: 1\r\n"]))
    return head + line_end + b"Transfer-Encoding: chunked" + line_end * 2 + chunks + b"0\r\n" + trailer + b"\r\n", body


@given(responses(), st.lists(st.integers(0, 900), max_size=10))
def test_right_responses_are_read_whole(case: tuple[bytes, bytes], places: list[int]) -> None:
    response, body = case
    reader = ResponseReader(LIMIT)
    pieces = cut(response, places)
    assert [reader.feed(piece) for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert (reader.body, reader.keeps_alive) == (body, True)


@given(st.one_of(st.binary(max_size=200), st.binary(max_size=2000).map(gzip.compress)), st.integers(0, 60), st.integers(0, 255))
def test_packed_bodies_are_unpacked_or_refused(body: bytes, place: int, value: int) -> None:
    damaged = body[:place] + bytes([value]) + body[place + 1 :]
    for data in (body, damaged):
        with contextlib.suppress(UnreadableBodyError, CollectError):
            assert len(decoded(data, "gzip", LIMIT)) <= LIMIT
