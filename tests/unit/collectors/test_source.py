"""Snapshots from a scrape and from pages that were pushed."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from perf_service.collectors.fetch import FetchedPage
from perf_service.collectors.snapshot import SnapshotBuilder
from perf_service.collectors.source import DirectScrape, ImportedText, SharedScrape
from perf_service.models.config import EngineConfig
from perf_service.models.errors import CollectError, ErrorReason
from perf_service.models.fleet import Instance
from perf_service.models.metrics import Engine, Gauge, IssueCode, Snapshot

PAGE = b"vllm:num_requests_running 3\nvllm:generation_tokens_total 5\n"
INSTANCE = Instance("i", Engine.VLLM, "http://h:1", config=EngineConfig.of({"max_num_seqs": 4}), engine_version="0.32.0")


def reason_of(error: pytest.ExceptionInfo[CollectError]) -> ErrorReason:
    return error.value.reason


class FakeFetcher:
    def __init__(self, body: bytes) -> None:
        self.body = body

    async def fetch(self, endpoint: str) -> FetchedPage:
        return FetchedPage(endpoint, self.body)


async def test_a_scrape_carries_what_is_known_of_the_instance() -> None:
    fetcher: Any = FakeFetcher(PAGE)
    snapshot = await DirectScrape(fetcher).snapshot(INSTANCE, 42.0)
    assert (snapshot.instance_id, snapshot.collected_at, snapshot.endpoint) == ("i", 42.0, "http://h:1")
    assert (snapshot.config.get("max_num_seqs"), snapshot.engine_version) == (4, "0.32.0")


async def test_a_scrape_of_another_engine_is_an_error() -> None:
    fetcher: Any = FakeFetcher(b"tgi_queue_size 1\n")
    with pytest.raises(CollectError) as error:
        await DirectScrape(fetcher).snapshot(INSTANCE, 42.0)
    assert reason_of(error) is ErrorReason.ENGINE_MISMATCH


async def test_a_large_page_is_read_in_a_thread_with_a_builder_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: dict[int, list[tuple[str, object]]] = {}
    real = SnapshotBuilder.build

    def told(self: SnapshotBuilder, body: bytes, *args: Any, **more: Any) -> Snapshot:
        threads.setdefault(len(body), []).append((threading.current_thread().name, self))
        return real(self, body, *args, **more)

    monkeypatch.setattr(SnapshotBuilder, "build", told)
    fetcher: Any = FakeFetcher(PAGE)
    scrape = DirectScrape(fetcher)
    small = await scrape.snapshot(INSTANCE, 1.0)
    fetcher.body = PAGE + b"# HELP x y\n" * 30_000
    first, second = await asyncio.gather(scrape.snapshot(INSTANCE, 1.0), scrape.snapshot(INSTANCE, 1.0))
    assert small.gauges == first.gauges == second.gauges
    [(here, on_loop)] = threads[len(PAGE)]
    (one, apart), (two, same) = threads[len(fetcher.body)]
    assert (here, one == two, one.startswith("large-pages")) == (threading.current_thread().name, True, True)
    assert apart is same is not on_loop
    fetcher.body = b"tgi_queue_size 1\n" * 30_000
    with pytest.raises(CollectError) as error:
        await scrape.snapshot(INSTANCE, 1.0)
    assert reason_of(error) is ErrorReason.ENGINE_MISMATCH


def test_imported_text_is_read_or_refused() -> None:
    source = ImportedText(max_body_bytes=1000)
    snapshot = source.read(INSTANCE, PAGE.decode(), None)
    assert snapshot.gauges[Gauge.RUNNING_REQUESTS] == 3
    assert snapshot.collected_at is None
    assert not snapshot.quality.has(IssueCode.ENGINE_MISMATCH)
    for text, reason in (
        ("  \n", ErrorReason.BODY_EMPTY),
        ("<html>", ErrorReason.BODY_NOT_METRICS),
        ("sglang:num_running_reqs 1\n", ErrorReason.ENGINE_MISMATCH),
        ("what 1\n", ErrorReason.BODY_NOT_METRICS),
        ("vllm:a 1\n" * 1000, ErrorReason.BODY_TOO_LARGE),
    ):
        with pytest.raises(CollectError) as error:
            source.read(INSTANCE, text, 1.0)
        assert reason_of(error) is reason


class _SlowSource:
    def __init__(self) -> None:
        self.begun: list[float] = []
        self.go = asyncio.Event()

    async def snapshot(self, instance: Instance, now: float) -> Snapshot:
        self.begun.append(now)
        await self.go.wait()
        if now < 0:
            raise CollectError(ErrorReason.ENDPOINT_UNREACHABLE, "nobody there")
        return Snapshot(instance.instance_id, instance.engine, now)


async def test_who_asks_during_a_scrape_gets_its_page() -> None:
    slow = _SlowSource()
    shared = SharedScrape(slow)
    one, other = Instance("a", Engine.VLLM, "http://a"), Instance("b", Engine.VLLM, "http://b")
    asked = [asyncio.create_task(shared.snapshot(i, t)) for i, t in ((one, 1.0), (one, 2.0), (other, 3.0))]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    asked[0].cancel()
    slow.go.set()
    first, second, third = await asyncio.gather(*asked, return_exceptions=True)
    assert isinstance(first, asyncio.CancelledError)
    assert isinstance(second, Snapshot)
    assert isinstance(third, Snapshot)
    assert (second.collected_at, third.collected_at) == (1.0, 3.0), "the cancelled caller took nobody's page away"
    assert slow.begun == [1.0, 3.0]
    assert (await shared.snapshot(one, 4.0)).collected_at == 4.0
    with pytest.raises(CollectError, match="nobody there"):
        await shared.snapshot(one, -1.0)


async def test_a_scrape_of_where_an_instance_was_is_not_joined() -> None:
    slow = _SlowSource()
    shared = SharedScrape(slow)
    before, after = Instance("a", Engine.VLLM, "http://a"), Instance("a", Engine.VLLM, "http://b")
    asked = [asyncio.create_task(shared.snapshot(i, t)) for i, t in ((before, 1.0), (after, 2.0), (after, 3.0), (before, 4.0))]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    slow.go.set()
    assert [snapshot.collected_at for snapshot in await asyncio.gather(*asked)] == [1.0, 2.0, 2.0, 4.0]
    assert (await shared.snapshot(after, 5.0)).collected_at == 5.0
