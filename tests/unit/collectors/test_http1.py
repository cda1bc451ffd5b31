"""Responses as they come over a connection: whole, in pieces, cut, lying about their length."""

from __future__ import annotations

import gzip

import pytest

from perf_service.collectors.http1 import BadResponseError, ResponseReader, UnreadableBodyError, decoded
from perf_service.models.errors import CollectError, ErrorReason

COUNTED = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\na 1\n\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\na 1\r\n2\r\n\n\n\r\n0\r\nTrailer: x\r\n\r\n"


def read(*pieces: bytes, limit: int = 1000) -> ResponseReader:
    reader = ResponseReader(limit)
    done = [reader.feed(piece) for piece in pieces]
    assert done == [False] * (len(pieces) - 1) + [True]
    return reader


@pytest.mark.parametrize("response", [COUNTED, CHUNKED], ids=["counted", "chunked"])
def test_where_it_is_cut_does_not_matter(response: bytes) -> None:
    for cut in range(1, len(response)):
        reader = read(response[:cut], response[cut:])
        assert (reader.status, reader.body, reader.keeps_alive) == (200, b"a 1\n\n", True)
    assert read(*(response[i : i + 1] for i in range(len(response)))).body == b"a 1\n\n"


def test_headers() -> None:
    reader = read(b"HTTP/1.1 404 Not Found\nX-A: 1\nx-a:  2 \nContent-Length: 0\n\n")
    assert (reader.status, reader.headers["x-a"], reader.body) == (404, "1, 2", b"")


def test_a_body_that_ends_with_the_connection() -> None:
    reader = ResponseReader(1000)
    assert not reader.feed(b"HTTP/1.1 200 OK\r\n\r\nabc")
    assert not reader.feed(b"def")
    reader.end()
    assert (reader.body, reader.keeps_alive) == (b"abcdef", False)


def test_an_interim_answer_is_not_the_answer() -> None:
    assert read(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + COUNTED).body == b"a 1\n\n"


def test_no_body_where_there_can_be_none() -> None:
    assert read(b"HTTP/1.1 204 No Content\r\n\r\n").body == b""


@pytest.mark.parametrize(
    ("response", "keeps"),
    [
        (COUNTED, True),
        (COUNTED + b"HTTP/1.1 200 OK", False),
        (COUNTED.replace(b"Content-Type: text/plain", b"Connection: Close"), False),
        (COUNTED.replace(b"1.1", b"1.0", 1), False),
        (COUNTED.replace(b"1.1", b"1.0", 1).replace(b"Content-Type: text/plain", b"Connection: keep-alive"), True),
        (CHUNKED.replace(b"\r\n", b"\r\nContent-Length: 9\r\n", 1), False),
    ],
    ids=["kept", "more than asked for", "close", "1.0", "1.0 kept", "both lengths"],
)
def test_whether_the_connection_can_be_used_again(response: bytes, keeps: bool) -> None:
    reader = read(response)
    assert (reader.keeps_alive, reader.body) == (keeps, b"a 1\n\n")


@pytest.mark.parametrize(
    "response",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nSpaced : 1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1" * 5000,
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000,
    ],
)
def test_nonsense_is_refused(response: bytes) -> None:
    with pytest.raises(BadResponseError):
        ResponseReader(1000).feed(response)


@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 2", COUNTED[:-1], CHUNKED[:-1]])
def test_a_connection_that_ends_too_early(sent: bytes) -> None:
    reader = ResponseReader(1000)
    if sent:
        assert not reader.feed(sent)
    assert reader.has_begun == bool(sent)
    with pytest.raises(BadResponseError, match="closed"):
        reader.end()


@pytest.mark.parametrize(
    "response",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffff\r\n" + b"a" * 11,
        b"HTTP/1.1 200 OK\r\n\r\n" + b"a" * 11,
    ],
)
def test_a_body_beyond_the_limit_is_not_awaited(response: bytes) -> None:
    with pytest.raises(CollectError) as error:
        ResponseReader(10).feed(response)
    assert error.value.reason is ErrorReason.BODY_TOO_LARGE


def test_packed_bodies() -> None:
    packed = gzip.compress(b"a 1\n" * 100)
    assert decoded(packed, " GZip ", 400) == b"a 1\n" * 100
    assert decoded(b"a", "identity", 1) == b"a"
    with pytest.raises(CollectError):
        decoded(packed, "gzip", 399)
    for body, encoding in ((packed[:-9], "gzip"), (b"plain", "gzip"), (b"x", "br")):
        with pytest.raises(UnreadableBodyError):
            decoded(body, encoding, 1000)
