"""What comes through a real Prometheus against what was served to it, and against direct scrapes of the same engines."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from perf_service.collectors.fetch import Fetcher
from perf_service.collectors.prometheus.client import Answer, PrometheusClient
from perf_service.collectors.prometheus.history import only_target, read_history, read_raw
from perf_service.collectors.prometheus.source import EitherSource, PrometheusScrape
from perf_service.collectors.source import DirectScrape
from perf_service.collectors.window import overall_window, spans_of, windows_of
from perf_service.models.errors import CollectError, ErrorReason
from perf_service.models.fleet import Instance, PrometheusSource
from perf_service.models.metrics import Counter, Engine, Gauge, Hist, IssueCode, Snapshot
from perf_service.models.window import Window
from tests.support.prometheus_rig import ENGINES, FAILING, HOLDS, SAVED, Rig

QUANTILES = (0.5, 0.9, 0.95, 0.99)
SAME = ("gauges", "counters", "histograms", "ranks", "config", "model_name", "process_start_time", "derived")


class CountingClient(PrometheusClient):
    """Counts the queries."""

    asked: int = 0

    async def __aenter__(self) -> CountingClient:
        return self

    async def _ask(self, *arguments: Any) -> Answer:
        self.asked += 1
        return await super()._ask(*arguments)


@pytest.fixture
async def client() -> AsyncIterator[CountingClient]:
    async with CountingClient() as found:
        yield found


def instance(scraped: Rig, match: str, job: str = "vllm", **more: Any) -> Instance:
    return Instance("i", ENGINES.get(job, Engine.VLLM), "", prometheus=scraped.source(match), **more)


async def history(client: PrometheusClient, scraped: Rig, job: str) -> list[Snapshot]:
    told = instance(scraped, (HOLDS | SAVED)[job], job)
    return await all_of(PrometheusScrape(client), told, scraped.began, scraped.ended)


async def all_of(source: PrometheusScrape, told: Instance, start: float, end: float) -> list[Snapshot]:
    return [snapshot async for group in source.history(told, start, end) for snapshot in group]


@pytest.mark.parametrize("job", [*HOLDS, *SAVED])
async def test_every_scrape_is_the_page_that_was_served(scraped: Rig, client: CountingClient, job: str) -> None:
    found = await history(client, scraped, job)
    at = [snapshot.collected_at or 0.0 for snapshot in found]
    served = scraped.direct(job, at)
    assert len(found) >= 6
    for ours, theirs in zip(found, served, strict=True):
        for name in SAME:
            assert getattr(ours, name) == getattr(theirs, name), name
        # Prometheus stamps the moment at which it began the scrape, to the millisecond; what takes a second has failed.
        assert -0.002 <= (theirs.collected_at or 0) - (ours.collected_at or 0) < 1.1
    assert {issue.code for issue in found[-1].quality.issues} <= {issue.code for issue in served[-1].quality.issues} | {IssueCode.GAP}


@pytest.mark.parametrize("job", HOLDS)
async def test_the_same_windows_come_out(scraped: Rig, client: CountingClient, job: str) -> None:
    found = await history(client, scraped, job)
    served = scraped.direct(job, [snapshot.collected_at or 0.0 for snapshot in found])
    pairs = list(zip([*windows_of(found), whole(found)], [*windows_of(served), whole(served)], strict=True))
    assert len(pairs) >= 6
    assert any(window.count(Hist.E2E_SECONDS) for window, _ in pairs)
    for ours, theirs in pairs:
        assert ours.counters == theirs.counters
        assert ours.histograms == theirs.histograms
        assert ours.gauges == theirs.gauges
        for hist in ours.histograms:
            assert ours.mean(hist) == theirs.mean(hist)
            assert [ours.quantile(hist, q) for q in QUANTILES] == [theirs.quantile(hist, q) for q in QUANTILES]
    # Rates differ by what the times differ: some milliseconds, on a busy machine more.
    ours, theirs = pairs[-1]
    assert ours.duration_seconds == pytest.approx(theirs.duration_seconds, rel=0.1)
    assert {name: ours.rate(name) for name in ours.counters} == pytest.approx({name: theirs.rate(name) for name in ours.counters}, rel=0.1)


def whole(snapshots: list[Snapshot]) -> Window:
    window = overall_window(snapshots)
    assert window is not None
    return window


async def test_a_direct_scrape_after_the_load_says_the_same(scraped: Rig, client: CountingClient) -> None:
    """The load lies between idle times, so what it added is the same for both, whenever each of them looked."""
    found = await history(client, scraped, "vllm")
    async with Fetcher() as fetcher:
        direct = await DirectScrape(fetcher).snapshot(Instance("i", Engine.VLLM, scraped.engines["vllm"]), time.time())
    assert found[0].counters[Counter.REQUESTS_SUCCEEDED] == 0
    assert {k: v for k, v in direct.counters.items() if k is not Counter.PROCESS_CPU_SECONDS} == {
        k: v for k, v in found[-1].counters.items() if k is not Counter.PROCESS_CPU_SECONDS
    }
    assert direct.histograms == found[-1].histograms
    assert direct.counters[Counter.REQUESTS_SUCCEEDED] > 10


async def test_labels_of_the_target_make_no_ranks(scraped: Rig, client: CountingClient) -> None:
    for job in ("vllm", "honor", "renamed"):
        assert all(not snapshot.ranks for snapshot in await history(client, scraped, job))
    assert set((await history(client, scraped, "ranks"))[-1].ranks) == {"0", "1"}


async def test_failed_scrapes_are_a_gap_and_a_restart_is_a_restart(scraped: Rig, client: CountingClient) -> None:
    found = await history(client, scraped, "flaky")
    gaps = [issue.message for issue in found[-1].quality.issues if issue.code is IssueCode.GAP]
    assert f"could not scrape the engine {len(FAILING)} of" in gaps[0]
    assert len(spans_of(found)) == 2


async def test_steps_say_the_same_where_raw_samples_are_refused(scraped: Rig) -> None:
    class Refusing(PrometheusClient):
        async def query(self, source: PrometheusSource, expression: str, at: float | None) -> Answer:
            if "ms]" in expression:
                raise CollectError(ErrorReason.INVALID_ARGUMENT, "range selectors are not allowed here")
            return await super().query(source, expression, at)

    span = scraped.began, scraped.ended
    async with Refusing() as refusing, PrometheusClient() as usual:
        for job in ("vllm", "flaky"):
            stepped, _ = await read_history(refusing, scraped.source(HOLDS.get(job) or SAVED[job]), *span)
            raw, _ = await read_history(usual, scraped.source(HOLDS.get(job) or SAVED[job]), *span)
            one, other = only_target(stepped, scraped.source("")), only_target(raw, scraped.source(""))
            # A step shows one scrape at most, and two may lie within one.
            assert set(one.failed) <= set(other.failed)
            assert len(one.scrapes) >= len(other.scrapes) - 3
            bodies = {scrape.at: set(scrape.body.splitlines()) for scrape in other.scrapes}
            for scrape in one.scrapes:
                # Raw, a recording rule is told by its times; at a step it looks like the engine's, as a name that is not known.
                lines = {line for line in scrape.body.splitlines() if not line.startswith(b"vllm:busy")}
                assert (scrape.at, lines ^ bodies[scrape.at]) == (scrape.at, set())


async def test_many_instances_are_read_by_one_query(scraped: Rig, client: CountingClient) -> None:
    source = PrometheusScrape(client)
    targets = [scraped.targets[job].address for job in ("vllm", "honor", "ranks")]
    group = [replace(instance(scraped, f'job=~".+",instance="{address}"'), instance_id=address) for address in targets]
    for round_ in range(2):  # in the first round nobody is known yet
        client.asked = 0
        now = time.time() + 20 * round_  # as if the interval had passed; the data is then older by as much
        found = await asyncio.gather(*(source.snapshot(each, now) for each in group), return_exceptions=True)
        assert client.asked == (1 if round_ else 2)  # the first who comes asks alone, and the others together
        if not round_:
            assert [s.instance_id for s in found if isinstance(s, Snapshot)] == targets
    assert all(isinstance(error, CollectError) and error.reason is ErrorReason.SERIES_NOT_FOUND for error in found)


async def test_the_present_is_the_newest_scrape(scraped: Rig, client: CountingClient) -> None:
    source = EitherSource(DirectScrape(Fetcher()), PrometheusScrape(client))
    now = time.time()
    snapshot = await source.snapshot(instance(scraped, HOLDS["vllm"]), now)
    assert snapshot.collected_at is not None
    assert now - 10 < snapshot.collected_at <= time.time()
    assert Gauge.KV_CACHE_USAGE_RATIO in snapshot.gauges
    assert not snapshot.quality.issues


@pytest.mark.parametrize(
    ("match", "engine", "reason", "words"),
    [
        ('job="nope"', Engine.VLLM, ErrorReason.SERIES_NOT_FOUND, 'Now there are: job="flaky"; job="honor"'),
        ('job="dead"', Engine.VLLM, ErrorReason.ENDPOINT_UNREACHABLE, "`up` is 0"),
        ('job=~"vllm|honor"', Engine.VLLM, ErrorReason.SERIES_AMBIGUOUS, "selects 2 engines: add one of these"),
        ('job=~"("', Engine.VLLM, ErrorReason.INVALID_ARGUMENT, "missing closing )"),
        ('job="sglang"', Engine.VLLM, ErrorReason.SERIES_NOT_FOUND, "no series of vllm"),
    ],
)
async def test_what_cannot_be_read_is_said(
    scraped: Rig, client: CountingClient, match: str, engine: Engine, reason: ErrorReason, words: str
) -> None:
    source = PrometheusScrape(client)
    told = replace(instance(scraped, match), engine=engine)
    now = time.time()
    for ask in (lambda: source.snapshot(told, now), lambda: all_of(source, told, now - 60, now)):
        with pytest.raises(CollectError) as error:
            await ask()
        assert error.value.reason is reason
        assert words in error.value.message


async def test_a_colliding_answer_is_of_no_use_to_other_servers(scraped: Rig, client: CountingClient) -> None:
    """An address that is no Prometheus: the engine itself."""
    with pytest.raises(CollectError) as error:
        await read_raw(client, PrometheusSource(scraped.engines["vllm"]), (), 10, None)
    assert error.value.reason is ErrorReason.ENDPOINT_HTTP_STATUS
    assert "no Prometheus API at this path" in error.value.message


def test_doctor_reads_the_past_of_an_engine(scraped: Rig, capsys: pytest.CaptureFixture[str]) -> None:
    from perf_service.cli.main import run

    assert run(["doctor", "--prometheus", scraped.prometheus.url, "--match", HOLDS["vllm"], "--range", "5m", "--output", "json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["analysis"]["bottlenecks"][0]["cause"] == "batch_limit"
    assert said["plan"]["optimizations"][0]["config_changes"][0]["parameter"] == "max_num_seqs"
    assert run(["doctor", "--prometheus", scraped.prometheus.url]) == 1
    assert "selects" in capsys.readouterr().err
