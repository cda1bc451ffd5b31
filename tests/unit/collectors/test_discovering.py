"""What an engine tells about itself completes its snapshots, once for each start of its process."""

from __future__ import annotations

from typing import Any

import pytest

from perf_service.collectors import discovering
from perf_service.collectors.discovering import DiscoveringScrape
from perf_service.collectors.discovery import Discovery
from perf_service.models.config import EngineConfig, Source
from perf_service.models.errors import CollectError, ErrorReason
from perf_service.models.fleet import Instance
from perf_service.models.metrics import Engine, Snapshot

TOLD = Discovery("0.11.0", "told-model", EngineConfig.of({"max_num_seqs": 64, "block_size": 32}, Source.SERVER_INFO), ("/version",))
INSTANCE = Instance("i", Engine.VLLM, "http://h:1", config=EngineConfig.of({"max_num_seqs": 8}))


class Page:
    """A source whose process may restart."""

    started = 1.0

    async def snapshot(self, instance: Instance, now: float) -> Snapshot:
        config = EngineConfig.of({"block_size": 16, "num_gpu_blocks": 100}, Source.PAGE)
        return Snapshot(instance.instance_id, Engine.VLLM, now, config=config, process_start_time=self.started)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Answers of the engine, the next one last; how often it was asked is told by what is left."""
    answers: list[Any] = []

    async def discover(*args: Any) -> Discovery:
        answer = answers.pop()
        if isinstance(answer, Exception):
            raise answer
        return TOLD if answer is None else answer

    monkeypatch.setattr(discovering, "discover", discover)
    return answers


async def test_the_operator_wins_over_the_engine_and_that_over_the_page(asked: list[Any]) -> None:
    asked += [None]
    snapshot = await DiscoveringScrape(Page(), None).snapshot(INSTANCE, 1.0)  # type: ignore[arg-type]
    assert snapshot.config.values() == {"max_num_seqs": 8, "block_size": 32, "num_gpu_blocks": 100}
    assert [snapshot.config.source(name) for name in ("max_num_seqs", "block_size", "num_gpu_blocks")] == [
        Source.USER,
        Source.SERVER_INFO,
        Source.PAGE,
    ]
    assert (snapshot.engine_version, snapshot.model_name) == ("0.11.0", "told-model")


async def test_it_is_asked_once_for_each_start(asked: list[Any]) -> None:
    page = Page()
    source = DiscoveringScrape(page, None)  # type: ignore[arg-type]
    asked += [None] * 5
    for now in (1.0, 2.0, 10_000.0):
        await source.snapshot(INSTANCE, now)
    assert len(asked) == 4
    page.started = 5.0
    await source.snapshot(INSTANCE, 10_001.0)
    assert len(asked) == 3


async def test_an_engine_that_tells_nothing_fails_no_scrape_and_is_asked_again_later(asked: list[Any]) -> None:
    source = DiscoveringScrape(Page(), None)  # type: ignore[arg-type]
    asked += [None, CollectError(ErrorReason.ENDPOINT_UNREACHABLE, "gone"), Discovery()]
    for now in (0.0, 1.0, 599.0):
        snapshot = await source.snapshot(INSTANCE, now)
        assert snapshot.engine_version == ""
    assert len(asked) == 2
    assert (await source.snapshot(INSTANCE, 601.0)).engine_version == ""
    assert (await source.snapshot(INSTANCE, 1300.0)).engine_version == "0.11.0"
