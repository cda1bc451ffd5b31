"""The load generator against simulated engines in their own processes."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from perf_service.models.errors import InvalidArgumentError
from perf_service.simulator.loadgen import LoadGenerator, run_load
from perf_service.simulator.workload import Lengths, Workload

StartEngine = Any  # conftest.StartEngine; a conftest cannot be imported

SHORT = {"prompt": Lengths.uniform(10, 30), "output": Lengths.uniform(5, 10)}
FAST = ("--step-base-ms", "2", "--step-per-seq-ms", "0.02", "--step-per-prefill-token-us", "5")


async def sent_at_least(generator: LoadGenerator, count: int) -> None:
    async with asyncio.timeout(20):
        while generator.ledger.sent < count:  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.01)


async def test_closed_loop_over_two_replicas(start_engine: StartEngine) -> None:
    engines = [await start_engine(*FAST) for _ in range(2)]
    load = Workload(concurrency=8, shared_prefix_tokens=16, **SHORT)  # type: ignore[arg-type]
    generator = LoadGenerator([e.url for e in engines], load, duration_seconds=20, seed=1, model="sim")
    stop = asyncio.Event()
    task = asyncio.create_task(generator.run(stop))
    await sent_at_least(generator, 60)
    stop.set()
    report = await task
    assert (report.errors, report.cancelled) == ({}, 0)
    assert report.succeeded == report.sent >= 60
    assert report.itl_seconds.count == report.output_tokens - report.succeeded
    assert report.e2e_seconds.mean > 5 * 0.002  # at least five steps each
    served = []
    async with httpx.AsyncClient(trust_env=False) as client:
        for engine in engines:
            page = (await client.get(f"{engine.url}/metrics")).text
            line = next(x for x in page.splitlines() if x.startswith("vllm:e2e_request_latency_seconds_count"))
            served.append(float(line.split()[-1]))
    assert sum(served) == report.succeeded
    assert abs(served[0] - served[1]) <= 1


async def test_open_loop_sends_at_its_rate(start_engine: StartEngine) -> None:
    engine = await start_engine(*FAST)
    report = await run_load([engine.url], Workload(rate=40, **SHORT), 2.0, seed=4)  # type: ignore[arg-type]
    assert 55 < report.sent < 105
    assert report.succeeded == report.sent


async def test_hundreds_of_streams_at_once(start_engine: StartEngine) -> None:
    engine = await start_engine("--step-base-ms", "10", "--step-per-seq-ms", "0.05", "--max-num-seqs", "512")
    load = Workload(concurrency=300, prompt=Lengths.fixed(4), output=Lengths.fixed(6))
    report = await run_load([engine.url], load, 1.0, seed=1)
    assert report.errors == {}
    assert report.succeeded == report.sent >= 300


async def test_a_replica_that_restarts_only_yields_counted_errors(start_engine: StartEngine) -> None:
    steady, restarted = await start_engine(*FAST), await start_engine(*FAST)
    load = Workload(concurrency=6, **SHORT)  # type: ignore[arg-type]
    generator = LoadGenerator([steady.url, restarted.url], load, duration_seconds=20, seed=1)
    stop = asyncio.Event()
    task = asyncio.create_task(generator.run(stop))

    await sent_at_least(generator, 20)
    assert await restarted.stop() == 0
    await sent_at_least(generator, generator.ledger.sent + 20)
    await start_engine(*FAST, port=restarted.port)
    await sent_at_least(generator, generator.ledger.sent + 20)
    stop.set()
    report = await task
    assert report.errors
    assert set(report.errors) <= {"connection refused", "connection reset"}
    assert report.succeeded > 30
    assert report.sent == report.succeeded + report.failed + report.cancelled


async def test_http_errors_are_counted_by_status(start_engine: StartEngine) -> None:
    engine = await start_engine(*FAST, "--max-num-queued-reqs", "1")
    report = await run_load([engine.url], Workload(concurrency=4, **SHORT), 0.6, seed=1)  # type: ignore[arg-type]
    assert report.errors["http 503"] > 0
    assert report.succeeded > 0


async def test_the_run_is_bounded_by_its_drain_time(start_engine: StartEngine) -> None:
    engine = await start_engine("--step-base-ms", "500")
    load = Workload(concurrency=2, prompt=Lengths.fixed(5), output=Lengths.fixed(500))
    report = await run_load([engine.url], load, 0.2, drain_seconds=0.2)
    assert (report.succeeded, report.cancelled) == (0, 2)
    assert report.duration_seconds < 5


@pytest.mark.parametrize(("urls", "seconds"), [([], 1.0), (["ftp://x"], 1.0), (["127.0.0.1:80"], 1.0), (["http://127.0.0.1:1"], 0.0)])
def test_nonsense_is_refused(urls: list[str], seconds: float) -> None:
    with pytest.raises(InvalidArgumentError):
        LoadGenerator(urls, Workload(rate=1), duration_seconds=seconds)
