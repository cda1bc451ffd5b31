"""Collecting over a real connection from servers that behave, misbehave, hang, lie or flood."""

from __future__ import annotations

import asyncio
import gzip
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from perf_service.collectors.discovery import discover
from perf_service.collectors.fetch import EndpointStatusError, EndpointTimeoutError, EndpointUnreachableError, Fetcher
from perf_service.collectors.lean import LeanFetcher
from perf_service.collectors.scheduler import ScrapeScheduler
from perf_service.collectors.source import DirectScrape
from perf_service.collectors.transport import NetworkPolicy
from perf_service.collectors.vllm_collector import VLLMCollector
from perf_service.models.errors import CollectError, ErrorReason
from perf_service.models.fleet import Instance
from perf_service.models.metrics import Counter, Engine, Gauge, IssueCode, Snapshot

Kind = type[Fetcher] | type[LeanFetcher]
Handler = Callable[[str, asyncio.StreamWriter], Awaitable[None]]
FIXTURES = Path(__file__).parents[2] / "fixtures"
PAGE = gzip.decompress((FIXTURES / "captures/c_kv_bad_r2/010.prom.gz").read_bytes())


def http(body: bytes, status: str = "200 OK", headers: str = "Content-Type: text/plain\r\n") -> bytes:
    return f"HTTP/1.1 {status}\r\n{headers}Content-Length: {len(body)}\r\n\r\n".encode() + body


def answering(response: bytes, counter: list[str] | None = None) -> Handler:
    async def handle(request: str, writer: asyncio.StreamWriter) -> None:
        if counter is not None:
            counter.append(request)
        writer.write(response)
        await writer.drain()

    return handle


@asynccontextmanager
async def serving(handle: Handler) -> AsyncIterator[str]:
    """A server on a free port, keep-alive; yields its base URL."""
    tasks: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                await handle(head.decode(), writer)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            tasks.discard(task)
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture(params=[Fetcher, LeanFetcher])
def kind(request: pytest.FixtureRequest) -> Kind:
    """Both fetchers hold the same promises."""
    chosen: Kind = request.param
    return chosen


async def reason_from(kind: Kind, endpoint: str, **options: float | int) -> CollectError:
    async with kind(timeout=float(options.get("timeout", 5.0)), max_body_bytes=int(options.get("max_body_bytes", 1_000_000))) as fetcher:
        with pytest.raises(CollectError) as error:
            await DirectScrape(fetcher).snapshot(Instance("i", Engine.VLLM, endpoint), 1.0)
        return error.value


async def test_a_real_page_over_a_kept_connection() -> None:
    requests: list[str] = []
    async with serving(answering(http(PAGE), requests)) as url, VLLMCollector(timeout=5) as collector:
        for endpoint in (url, url + "/metrics"):
            snapshot = await collector.collect("i", endpoint)
            assert snapshot.counters[Counter.PREEMPTIONS] == 17
            assert snapshot.quality.issues == ()
    assert [request.splitlines()[0] for request in requests] == ["GET /metrics HTTP/1.1"] * 2
    assert "accept-encoding: gzip" in requests[0].lower()


@pytest.mark.parametrize("parts", [[PAGE], [PAGE[:5000], b"", PAGE[5000:]]], ids=["one member", "several members"])
async def test_a_packed_page(parts: list[bytes]) -> None:
    packed = b"".join(map(gzip.compress, parts))
    async with serving(answering(http(packed, headers="Content-Type: text/plain\r\nContent-Encoding: gzip\r\n"))) as url:
        snapshot = await VLLMCollector().collect("i", url)
    assert snapshot.counters[Counter.PREEMPTIONS] == 17


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        (http(b"", "302 Found", "Location: http://169.254.169.254/\r\n"), ErrorReason.ENDPOINT_REDIRECTED),
        (http(b"nothing", "404 Not Found"), ErrorReason.ENDPOINT_HTTP_STATUS),
        (http(b"oh", "500 Internal Server Error"), ErrorReason.ENDPOINT_HTTP_STATUS),
        (http(b"<!doctype html><html></html>", headers="Content-Type: text/html\r\n"), ErrorReason.BODY_NOT_METRICS),
        (http(b""), ErrorReason.BODY_EMPTY),
        (http(b"\x00\x01\xfe\xff" * 1000), ErrorReason.BODY_NOT_METRICS),
        (http(b"tgi_queue_size 1\n"), ErrorReason.ENGINE_MISMATCH),
        (http(b"not gzip", headers="Content-Encoding: gzip\r\n"), ErrorReason.BODY_NOT_METRICS),
        (http(gzip.compress(PAGE)[:-100], headers="Content-Encoding: gzip\r\n"), ErrorReason.BODY_NOT_METRICS),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", ErrorReason.ENDPOINT_UNREACHABLE),
        (http(b"vllm:x_total 1\n" * 100_000), ErrorReason.BODY_TOO_LARGE),
    ],
    ids=["redirect", "404", "500", "html", "empty", "binary", "other engine", "false gzip", "cut gzip", "not http", "large"],
)
async def test_bad_answers_have_a_reason(kind: Kind, response: bytes, reason: ErrorReason) -> None:
    async with serving(answering(response)) as url:
        error = await reason_from(kind, url)
    assert error.reason is reason
    assert url in error.message or reason in (ErrorReason.ENGINE_MISMATCH, ErrorReason.BODY_TOO_LARGE, ErrorReason.BODY_NOT_METRICS)


async def test_a_redirect_is_not_followed(kind: Kind) -> None:
    reached: list[str] = []
    async with (
        serving(answering(http(PAGE), reached)) as target,
        serving(answering(http(b"", "301 Moved", f"Location: {target}/metrics\r\n"))) as url,
    ):
        assert isinstance(await reason_from(kind, url), EndpointStatusError)
    assert reached == []


async def test_nobody_listens(kind: Kind) -> None:
    async with serving(answering(b"")) as url:
        pass
    error = await reason_from(kind, url)
    assert isinstance(error, EndpointUnreachableError)
    assert isinstance(error, ConnectionError)


@pytest.mark.parametrize("begins", [False, True])
async def test_a_server_that_hangs_is_left_in_time(kind: Kind, begins: bool) -> None:
    async def hang(request: str, writer: asyncio.StreamWriter) -> None:
        if begins:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nvllm:num")
        await asyncio.Event().wait()

    async with serving(hang) as url:
        start = time.monotonic()
        error = await reason_from(kind, url, timeout=0.2)
    assert isinstance(error, EndpointTimeoutError)
    assert isinstance(error, TimeoutError)
    assert time.monotonic() - start < 2.0


async def test_a_server_that_drips_is_left_in_time(kind: Kind) -> None:
    async def drip(request: str, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(b"a")
            await writer.drain()
            await asyncio.sleep(0.02)

    async with serving(drip) as url:
        assert isinstance(await reason_from(kind, url, timeout=0.3), EndpointTimeoutError)


async def test_a_connection_that_breaks_off(kind: Kind) -> None:
    async def break_off(request: str, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nvllm:num_requests_running 1\n")
        await writer.drain()
        writer.close()

    async with serving(break_off) as url:
        assert (await reason_from(kind, url)).reason is ErrorReason.ENDPOINT_UNREACHABLE


@pytest.mark.parametrize("is_packed", [False, True])
async def test_a_hundred_megabytes_are_cut_off(kind: Kind, is_packed: bool) -> None:
    """Neither the plain flood nor the packed one is read to its end."""
    sent = 0

    async def flood(request: str, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        head = "HTTP/1.1 200 OK\r\nContent-Length: 104857600\r\n" + ("Content-Encoding: gzip\r\n" if is_packed else "")
        writer.write(head.encode() + b"\r\n")
        chunk = gzip.compress(b"a" * 50_000_000) if is_packed else b"vllm:x 1\n" * 5000
        for start in range(0, 104857600, len(chunk)):
            writer.write(chunk[: 104857600 - start])
            sent += len(chunk)
            await writer.drain()

    async with serving(flood) as url:
        error = await reason_from(kind, url, max_body_bytes=500_000)
    assert error.reason is ErrorReason.BODY_TOO_LARGE
    assert sent < 20_000_000


async def test_a_truncated_page_is_read_and_marked() -> None:
    async with serving(answering(http(PAGE[: len(PAGE) // 2]))) as url:
        snapshot = await VLLMCollector().collect("i", url)
    assert snapshot.quality.has(IssueCode.TRUNCATED)
    assert snapshot.gauges[Gauge.RUNNING_REQUESTS] == 4


async def test_doubtful_values_are_marked_not_fatal() -> None:
    body = b"vllm:num_requests_running NaN\nvllm:num_preemptions_total -4\nvllm:num_requests_waiting 1\nvllm:num_requests_waiting 2\n"
    async with serving(answering(http(body))) as url:
        snapshot = await VLLMCollector().collect("i", url)
    assert snapshot.gauges == {Gauge.WAITING_REQUESTS: 1}
    assert snapshot.counters == {}
    for code in (IssueCode.NOT_FINITE, IssueCode.NEGATIVE_COUNTER, IssueCode.DUPLICATE_SERIES):
        assert snapshot.quality.has(code)


async def test_a_name_is_checked_by_what_it_resolves_to(kind: Kind) -> None:
    async with serving(answering(http(PAGE))) as url:
        port = url.rsplit(":", 1)[1]
        async with kind(timeout=5) as fetcher:
            assert (await fetcher.fetch(f"http://localhost:{port}")).body == PAGE
        async with kind(timeout=5, policy=NetworkPolicy.of(denied=["127.0.0.0/8", "::1/128"])) as fetcher:
            with pytest.raises(CollectError) as error:
                await fetcher.fetch(f"http://localhost:{port}")
    assert error.value.reason is ErrorReason.ENDPOINT_FORBIDDEN
    assert error.value.metadata["host"] == "localhost"


async def test_metadata_services_are_refused_without_a_connection(kind: Kind) -> None:
    for endpoint in ("http://169.254.169.254", "http://[fe80::1]:80", "http://[::ffff:a9fe:a9fe]"):
        assert (await reason_from(kind, endpoint, timeout=1.0)).reason is ErrorReason.ENDPOINT_FORBIDDEN


async def test_an_engine_is_asked_for_its_configuration(kind: Kind) -> None:
    answers = {
        "/version": b'{"version": "0.32.0"}',
        "/v1/models": b'{"data": [{"id": "tiny", "max_model_len": 2048}]}',
    }

    async def handle(request: str, writer: asyncio.StreamWriter) -> None:
        body = answers.get(request.split()[1])
        writer.write(http(body) if body else http(b"{}", "404 Not Found"))
        await writer.drain()

    async with serving(handle) as url, kind(timeout=5) as fetcher:
        found = await discover(fetcher, Engine.VLLM, url + "/metrics")
    assert (found.engine_version, found.model_name, found.config.get("max_model_len")) == ("0.32.0", "tiny", 2048)


class RealClock:
    monotonic = staticmethod(time.monotonic)
    time = staticmethod(time.time)


async def test_the_scheduler_scrapes_real_servers_beside_a_hung_one(kind: Kind) -> None:
    seen: dict[str, int] = {}
    enough = asyncio.Event()

    async def keep(instance: Instance, snapshot: Snapshot) -> None:
        assert snapshot.counters[Counter.PREEMPTIONS] == 17
        seen[instance.instance_id] = seen.get(instance.instance_id, 0) + 1
        if len(seen) == 5 and min(seen.values()) >= 2:
            enough.set()

    async def hang(request: str, writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    async with serving(answering(http(PAGE))) as good, serving(hang) as bad, kind(timeout=5) as fetcher:
        scheduler = ScrapeScheduler(DirectScrape(fetcher), keep, clock=RealClock(), rng=random.Random(1), concurrency=3)
        scheduler.add(Instance("hung", Engine.VLLM, bad, scrape_interval_seconds=0.05))
        for number in range(5):
            scheduler.add(Instance(f"i{number}", Engine.VLLM, good, scrape_interval_seconds=0.05))
        task = asyncio.create_task(scheduler.run())
        async with asyncio.timeout(10):
            await enough.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert "hung" not in seen
