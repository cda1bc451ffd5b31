"""Kept connections over real sockets, and servers that break them."""

from __future__ import annotations

import asyncio
import gzip
import random
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from perf_service.collectors import lean
from perf_service.collectors.connection import Connection
from perf_service.collectors.fetch import EndpointTimeoutError, EndpointUnreachableError, Fetcher
from perf_service.collectors.http1 import decoded
from perf_service.collectors.lean import LeanFetcher
from perf_service.collectors.transport import NetworkPolicy
from perf_service.models.errors import CollectError, ErrorReason

Serve = Callable[[int, int, asyncio.StreamWriter], Awaitable[None]]
"""Answers one request: number of the connection, number of the request on it (both from 1)."""
PAGE = b"vllm:num_requests_running 1\n"


def answer(body: bytes = PAGE, headers: str = "", length: int | None = None) -> bytes:
    return f"HTTP/1.1 200 OK\r\n{headers}Content-Length: {len(body) if length is None else length}\r\n\r\n".encode() + body


class Server:
    """Counts connections and requests."""

    def __init__(self, serve: Serve) -> None:
        self._serve = serve
        self.connections = 0
        self.requests: list[str] = []
        self.tasks: set[asyncio.Task[None]] = set()

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        connection = self.connections
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        number = 0
        try:
            while True:
                self.requests.append((await reader.readuntil(b"\r\n\r\n")).decode())
                number += 1
                await self._serve(connection, number, writer)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self.tasks.discard(task)
            writer.close()


@asynccontextmanager
async def serving(serve: Serve, tls: ssl.SSLContext | None = None) -> AsyncIterator[tuple[str, Server]]:
    served = Server(serve)
    server = await asyncio.start_server(served.connected, "127.0.0.1", 0, ssl=tls)
    try:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{server.sockets[0].getsockname()[1]}", served
    finally:
        server.close()
        for task in list(served.tasks):
            task.cancel()
        await asyncio.gather(*served.tasks, return_exceptions=True)


async def good(connection: int, number: int, writer: asyncio.StreamWriter) -> None:
    writer.write(answer())


def reset(writer: asyncio.StreamWriter) -> None:
    """Break the connection with an RST."""
    raw = writer.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def test_one_connection_serves_many_scrapes() -> None:
    async with serving(good) as (url, server), LeanFetcher(5.0) as fetcher:
        for endpoint in (url, url + "/metrics", url.removeprefix("http://")):
            assert (await fetcher.fetch(endpoint)).body == PAGE
    assert (server.connections, len(server.requests)) == (1, 3)
    assert server.requests[0].startswith("GET /metrics HTTP/1.1\r\nHost: 127.0.0.1:")
    assert "Accept-Encoding: identity\r\n" in server.requests[0]


async def test_simultaneous_scrapes_have_connections_of_their_own() -> None:
    async with serving(good) as (url, server), LeanFetcher(5.0) as fetcher:
        await asyncio.gather(*(fetcher.fetch(url) for _ in range(5)))
        assert server.connections == 5
        await asyncio.gather(*(fetcher.fetch(url) for _ in range(5)))
    assert server.connections == 5


@pytest.mark.parametrize("breaks", [lambda writer: writer.close(), reset], ids=["closed", "reset"])
async def test_a_kept_connection_that_the_server_gave_up_is_made_anew(breaks: Callable[[asyncio.StreamWriter], None]) -> None:
    """As an engine's HTTP server does after some idle seconds: the request may be on its way already."""

    async def once(connection: int, number: int, writer: asyncio.StreamWriter) -> None:
        if number == 2:
            breaks(writer)
            raise ConnectionError
        writer.write(answer())

    async with serving(once) as (url, server), LeanFetcher(5.0) as fetcher:
        for _ in range(4):
            assert (await fetcher.fetch(url)).body == PAGE
    assert (server.connections, len(server.requests)) == (4, 7)


async def test_it_is_made_anew_once_only() -> None:
    async def never_twice(connection: int, number: int, writer: asyncio.StreamWriter) -> None:
        if connection > 1 or number > 1:
            reset(writer)
            raise ConnectionError
        writer.write(answer())

    async with serving(never_twice) as (url, server), LeanFetcher(5.0) as fetcher:
        await fetcher.fetch(url)
        with pytest.raises(EndpointUnreachableError):
            await fetcher.fetch(url)
    assert len(server.requests) == 3


async def test_an_answer_that_breaks_off_is_not_asked_for_again() -> None:
    async def half(connection: int, number: int, writer: asyncio.StreamWriter) -> None:
        writer.write(answer() if number == 1 else answer()[:-3])
        if number == 2:
            await writer.drain()
            writer.close()

    async with serving(half) as (url, server), LeanFetcher(5.0) as fetcher:
        await fetcher.fetch(url)
        with pytest.raises(EndpointUnreachableError, match="middle of the answer"):
            await fetcher.fetch(url)
    assert len(server.requests) == 2


async def test_a_server_that_closes_each_connection() -> None:
    async def closing(connection: int, number: int, writer: asyncio.StreamWriter) -> None:
        writer.write(answer(headers="Connection: close\r\n"))
        await writer.drain()
        writer.close()

    async with serving(closing) as (url, server), LeanFetcher(5.0) as fetcher:
        for _ in range(3):
            assert (await fetcher.fetch(url)).body == PAGE
    assert server.connections == 3


async def test_a_length_that_is_too_small_spoils_no_later_answer() -> None:
    async def lying(connection: int, number: int, writer: asyncio.StreamWriter) -> None:
        writer.write(answer(PAGE + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", length=len(PAGE)))

    async with serving(lying) as (url, server), LeanFetcher(5.0) as fetcher:
        for _ in range(3):
            assert (await fetcher.fetch(url)).body == PAGE
    assert server.connections == 3


async def test_what_nobody_asked_for_closes_the_connection() -> None:
    async def talkative(connection: int, number: int, writer: asyncio.StreamWriter) -> None:
        writer.write(answer())
        await writer.drain()
        await asyncio.sleep(0.02)
        writer.write(answer(b"evil 1\n"))

    async with serving(talkative) as (url, _), LeanFetcher(5.0) as fetcher:
        for _ in range(2):
            assert (await fetcher.fetch(url)).body == PAGE
            await asyncio.sleep(0.05)


async def test_a_length_that_is_too_large_is_a_timeout_and_leaves_no_connection() -> None:
    async def short(connection: int, number: int, writer: asyncio.StreamWriter) -> None:
        writer.write(answer(length=1000))

    async with serving(short) as (url, server), LeanFetcher(0.2) as fetcher:
        for _ in range(2):
            with pytest.raises(EndpointTimeoutError):
                await fetcher.fetch(url)
    assert server.connections == 2


async def test_chunks() -> None:
    async def chunked(connection: int, number: int, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for index in range(0, len(PAGE), 5):
            piece = PAGE[index : index + 5]
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            await writer.drain()
        writer.write(b"0\r\n\r\n")

    async with serving(chunked) as (url, server), LeanFetcher(5.0) as fetcher:
        for _ in range(2):
            assert (await fetcher.fetch(url)).body == PAGE
    assert server.connections == 1


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_gzip_bomb_costs_no_memory(chunked: bool) -> None:
    bomb = gzip.compress(bytes(16 * 1024 * 1024))
    head = "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n"

    async def bombing(connection: int, number: int, writer: asyncio.StreamWriter) -> None:
        if chunked:
            writer.write(f"{head}Transfer-Encoding: chunked\r\n\r\n{len(bomb):x}\r\n".encode() + bomb + b"\r\n0\r\n\r\n")
        else:
            writer.write(f"{head}Content-Length: {len(bomb)}\r\n\r\n".encode() + bomb)

    async with serving(bombing) as (url, _), LeanFetcher(5.0, max_body_bytes=1_000_000) as fetcher:
        begun = time.process_time()
        with pytest.raises(CollectError) as error:
            await fetcher.fetch(url)
    assert error.value.reason is ErrorReason.BODY_TOO_LARGE
    assert time.process_time() - begun < 1.0


async def test_a_cancelled_scrape_leaves_no_half_read_answer_behind() -> None:
    asked = asyncio.Event()

    async def slow(connection: int, number: int, writer: asyncio.StreamWriter) -> None:
        asked.set()
        if connection == 1:
            await asyncio.Event().wait()
        writer.write(answer())

    async with serving(slow) as (url, server), LeanFetcher(5.0) as fetcher:
        task = asyncio.create_task(fetcher.fetch(url))
        await asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await fetcher.fetch(url)).body == PAGE
    assert server.connections == 2


async def test_a_scrape_that_is_cancelled_as_its_answer_comes_leaves_no_connection_open() -> None:
    class Transport(asyncio.Transport):
        aborted = False

        def write(self, data: object) -> None:
            pass

        def abort(self) -> None:
            self.aborted = True

    connection, transport = Connection(), Transport()
    connection.connection_made(transport)
    task = asyncio.create_task(connection.exchange(b"GET / HTTP/1.1\r\n\r\n", 1000))
    await asyncio.sleep(0)
    connection.data_received(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\na\n")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert transport.aborted
    assert not connection.is_open


@pytest.mark.parametrize("host", ["a..b", "x" * 64])
async def test_a_name_that_cannot_be_one_is_a_failure_to_resolve(host: str) -> None:
    for fetcher in (LeanFetcher(5.0), Fetcher(5.0)):
        async with fetcher:
            with pytest.raises(EndpointUnreachableError, match="cannot be resolved"):
                await fetcher.fetch(f"http://{host}:8000")


async def test_packed_pages_where_the_operator_wants_them() -> None:
    async def packing(connection: int, number: int, writer: asyncio.StreamWriter) -> None:
        writer.write(answer(gzip.compress(PAGE), "Content-Encoding: gzip\r\n"))

    async with serving(packing) as (url, server), LeanFetcher(5.0, compressed=True) as fetcher:
        assert (await fetcher.fetch(url)).body == PAGE
    assert "Accept-Encoding: gzip\r\n" in server.requests[0]


async def test_a_large_packed_page_is_unpacked_off_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    large = PAGE + random.Random(1).randbytes(40_000).hex().encode()
    threads: list[str] = []
    packed = [gzip.compress(PAGE), gzip.compress(large), gzip.compress(large)[:-4]]

    def told(body: bytes, encoding: str, limit: int) -> bytes:
        threads.append(threading.current_thread().name.partition("_")[0])
        return decoded(body, encoding, limit)

    async def packing(connection: int, number: int, writer: asyncio.StreamWriter) -> None:
        writer.write(answer(packed[number - 1], "Content-Encoding: gzip\r\n"))

    monkeypatch.setattr(lean, "decoded", told)
    async with serving(packing) as (url, _), LeanFetcher(5.0, compressed=True) as fetcher:
        assert [(await fetcher.fetch(url)).body for _ in range(2)] == [PAGE, large]
        with pytest.raises(CollectError, match="too early"):
            await fetcher.fetch(url)
    assert threads == ["MainThread", "unpack", "unpack"]


async def test_an_address_is_checked_at_every_connection() -> None:
    async with serving(good) as (url, server):
        port = url.rpartition(":")[2]
        for endpoint in (url, f"http://localhost:{port}", f"http://[::ffff:127.0.0.1]:{port}", f"http://0x7f.1:{port}"):
            async with LeanFetcher(5.0, policy=NetworkPolicy.of(denied=["127.0.0.0/8", "::1/128"])) as fetcher:
                with pytest.raises(CollectError) as error:
                    await fetcher.fetch(endpoint)
            assert error.value.reason is ErrorReason.ENDPOINT_FORBIDDEN
    assert server.connections == 0


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1 that only its own holder trusts, with its key."""
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=test"]
    subprocess.run(
        [*made, "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(path), "-out", str(path) + ".crt"], check=True, capture_output=True
    )
    path.write_text(path.read_text() + Path(str(path) + ".crt").read_text())
    return path


async def test_https(certificate: Path) -> None:
    own = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    own.load_cert_chain(certificate)
    async with serving(good, own) as (url, server):
        async with LeanFetcher(5.0, tls=ssl.create_default_context(cafile=str(certificate))) as fetcher:
            for _ in range(2):
                assert (await fetcher.fetch(url)).body == PAGE
        assert server.connections == 1
        async with LeanFetcher(5.0) as fetcher:
            with pytest.raises(EndpointUnreachableError, match="certificate"):
                await fetcher.fetch(url)
    assert len(server.requests) == 2
