"""Snapshots from saved pages and from a scrape."""

from __future__ import annotations

import asyncio
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from perf_service.collectors.fetch import FetchedPage
from perf_service.collectors.source import DirectScrape, ImportedText, SavedPage, SharedScrape, read_saved, snapshots_of, with_interval
from perf_service.models.config import EngineConfig
from perf_service.models.errors import CollectError, ErrorReason
from perf_service.models.fleet import Instance
from perf_service.models.metrics import Engine, Gauge, IssueCode, Snapshot

PAGE = b"vllm:num_requests_running 3\nvllm:generation_tokens_total 5\n"
INSTANCE = Instance("i", Engine.VLLM, "http://h:1", config=EngineConfig.of({"max_num_seqs": 4}), engine_version="0.32.0")


def reason_of(error: pytest.ExceptionInfo[CollectError]) -> ErrorReason:
    return error.value.reason


def test_a_directory_is_read_in_the_order_of_its_index(captures: Path) -> None:
    pages = read_saved(captures / "h_restart")
    index = [json.loads(line) for line in (captures / "h_restart/scrapes.jsonl").read_text().splitlines()]
    assert [(page.name, page.t_unix) for page in pages] == [(entry["file"], entry["t_unix"]) for entry in index]
    snapshots = snapshots_of(pages, "i", config=EngineConfig.of({"max_num_seqs": 4}))
    assert {snapshot.engine for snapshot in snapshots} == {Engine.VLLM}
    assert snapshots[0].config.get("max_num_seqs") == 4
    assert snapshots[0].collected_at == index[0]["t_unix"]


def test_without_an_index_files_are_read_by_name(tmp_path: Path) -> None:
    for name in ("002.prom", "001.txt", "truth.txt", "command.txt", "client.json"):
        (tmp_path / name).write_bytes(PAGE)
    (tmp_path / "003.prom.gz").write_bytes(gzip.compress(PAGE))
    pages = read_saved(tmp_path)
    assert [(page.name, page.body, page.t_unix) for page in pages] == [
        ("001.txt", PAGE, None),
        ("002.prom", PAGE, None),
        ("003.prom.gz", PAGE, None),
    ]
    assert [page.t_unix for page in read_saved(tmp_path, interval_seconds=2.5)] == [0.0, 2.5, 5.0]


def test_failed_scrapes_and_lost_times_in_the_index(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(PAGE)
    lines = ['{"file": "a", "t_unix": 5}', "", '{"file": null, "error": "refused"}', '{"file": "a"}', '{"file": "a", "t_unix": true}']
    (tmp_path / "scrapes.jsonl").write_text("\n".join(lines))
    assert [page.t_unix for page in read_saved(tmp_path)] == [5.0, None, None]


def test_times_that_are_known_are_not_overwritten() -> None:
    known = [SavedPage("a", PAGE, 5.0), SavedPage("b", PAGE, 6.0)]
    assert with_interval(known, 10.0) is known
    assert [page.t_unix for page in with_interval([known[0], SavedPage("b", PAGE, None)], 10.0)] == [0.0, 10.0]


@pytest.mark.parametrize("line", ["nonsense", "[]", '{"file": "../secret"}', '{"file": "/etc/hostname"}', '{"file": "missing"}'])
def test_a_bad_index_is_an_error(tmp_path: Path, line: str) -> None:
    folder = tmp_path / "pages"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(PAGE)
    (folder / "scrapes.jsonl").write_text(line)
    with pytest.raises(CollectError) as error:
        read_saved(folder)
    assert reason_of(error) is ErrorReason.BODY_NOT_METRICS


def test_files_that_cannot_be_read_are_errors(tmp_path: Path) -> None:
    with pytest.raises(CollectError, match="cannot be read"):
        read_saved(tmp_path / "missing")
    with pytest.raises(CollectError, match="has no pages") as empty:
        read_saved(tmp_path)
    assert reason_of(empty) is ErrorReason.BODY_EMPTY
    damaged = tmp_path / "cut.gz"
    damaged.write_bytes(gzip.compress(PAGE * 100)[:-12])
    with pytest.raises(CollectError, match="is damaged"):
        read_saved(damaged)


def test_large_files_are_refused_packed_or_not(tmp_path: Path) -> None:
    (tmp_path / "big.prom").write_bytes(PAGE * 1000)
    (tmp_path / "bomb.prom.gz").write_bytes(gzip.compress(b"\0" * 5_000_000))
    for name in ("big.prom", "bomb.prom.gz"):
        with pytest.raises(CollectError) as error:
            read_saved(tmp_path / name, max_body_bytes=20_000)
        assert reason_of(error) is ErrorReason.BODY_TOO_LARGE


@pytest.mark.parametrize(
    ("bodies", "engine", "reason"),
    [
        ([b""], None, ErrorReason.BODY_EMPTY),
        ([b"<html></html>"], None, ErrorReason.BODY_NOT_METRICS),
        ([b"other 1\n"], None, ErrorReason.ENGINE_UNKNOWN),
        ([b"other 1\n"], Engine.VLLM, ErrorReason.BODY_NOT_METRICS),
        ([PAGE], Engine.SGLANG, ErrorReason.ENGINE_MISMATCH),
        ([PAGE, b"tgi_queue_size 1\n"], None, ErrorReason.ENGINE_MISMATCH),
    ],
)
def test_pages_of_no_or_another_engine_are_errors(bodies: list[bytes], engine: Engine | None, reason: ErrorReason) -> None:
    with pytest.raises(CollectError) as error:
        snapshots_of([SavedPage(f"{n}", body, None) for n, body in enumerate(bodies)], "i", engine=engine)
    assert reason_of(error) is reason


def test_one_bad_page_among_good_ones_is_kept_and_marked() -> None:
    snapshots = snapshots_of([SavedPage("a", PAGE, 1.0), SavedPage("b", b"", 2.0), SavedPage("c", PAGE, 3.0)], "i")
    assert [snapshot.quality.usable for snapshot in snapshots] == [True, False, True]


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
