"""The background scraper on a clock that the test moves."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from perf_service.collectors.scheduler import ScrapeScheduler
from perf_service.models.config import EngineConfig
from perf_service.models.errors import CollectError, ErrorReason
from perf_service.models.fleet import Instance
from perf_service.models.metrics import Engine, Snapshot


class VirtualClock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now + 1e9


class FakeSource:
    """Answers at once, but for instances that hang or fail."""

    def __init__(self) -> None:
        self.hung: dict[str, asyncio.Event] = {}
        self.failing: dict[str, Exception] = {}

    async def snapshot(self, instance: Instance, now: float) -> Snapshot:
        if instance.instance_id in self.hung:
            await self.hung[instance.instance_id].wait()
        if instance.instance_id in self.failing:
            raise self.failing[instance.instance_id]
        return Snapshot(instance.instance_id, instance.engine, now)


class Bench:
    def __init__(self, concurrency: int = 10, on_snapshot: Callable[[Instance, Snapshot], Awaitable[None]] | None = None) -> None:
        self.clock = VirtualClock()
        self.source = FakeSource()
        self.seen: list[tuple[str, float | None]] = []
        self.failures: list[tuple[str, ErrorReason]] = []
        self.scheduler = ScrapeScheduler(
            self.source, on_snapshot or self.keep, self.fail, clock=self.clock, rng=random.Random(1), concurrency=concurrency
        )

    async def keep(self, instance: Instance, snapshot: Snapshot) -> None:
        self.seen.append((instance.instance_id, snapshot.collected_at))

    async def fail(self, instance: Instance, error: CollectError) -> None:
        self.failures.append((instance.instance_id, error.reason))

    async def step(self, seconds: float) -> None:
        """Move the clock, start what is due, let it run."""
        self.clock.now += seconds
        self.scheduler.start_due()
        await self.settle()

    async def settle(self) -> None:
        for _ in range(10):
            await asyncio.sleep(0)

    def count(self, instance_id: str) -> int:
        return sum(seen == instance_id for seen, _ in self.seen)


def instance(name: str, interval: float = 10.0) -> Instance:
    return Instance(name, Engine.VLLM, f"http://{name}", scrape_interval_seconds=interval)


@asynccontextmanager
async def running(bench: Bench) -> AsyncIterator[None]:
    task = asyncio.create_task(bench.scheduler.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_every_instance_is_scraped_once_an_interval() -> None:
    bench = Bench()
    for name, interval in (("a", 10.0), ("b", 5.0)):
        bench.scheduler.add(instance(name, interval))
    for _ in range(200):
        await bench.step(0.5)
    assert (bench.count("a"), bench.count("b")) == (10, 20)
    assert all(at is not None and at > 1e9 for _, at in bench.seen)
    assert bench.scheduler.counts.succeeded == 30


async def test_a_hung_target_delays_no_other() -> None:
    bench = Bench()
    bench.source.hung["a"] = asyncio.Event()
    bench.scheduler.add(instance("a"))
    bench.scheduler.add(instance("b"))
    for _ in range(100):
        await bench.step(1.0)
    assert (bench.count("a"), bench.count("b")) == (0, 10)
    assert bench.scheduler.counts.running == 1
    bench.source.hung.pop("a").set()
    await bench.settle()
    assert bench.count("a") == 1


async def test_no_more_than_the_bound_run_at_a_time() -> None:
    bench = Bench(concurrency=2)
    for name in "abcd":
        bench.source.hung[name] = asyncio.Event()
        bench.scheduler.add(instance(name))
    for _ in range(5):
        await bench.step(10.0)
        assert bench.scheduler.counts.running == 2
    for event in bench.source.hung.values():
        event.set()
    await bench.settle()
    await bench.step(0.0)
    assert {seen for seen, _ in bench.seen} == set("abcd")


async def test_failures_are_told_and_backed_off() -> None:
    bench = Bench()
    bench.source.failing["a"] = CollectError(ErrorReason.ENDPOINT_UNREACHABLE, "refused")
    bench.scheduler.add(instance("a"))
    for _ in range(100):
        await bench.step(1.0)
    assert {reason for _, reason in bench.failures} == {ErrorReason.ENDPOINT_UNREACHABLE}
    assert 2 <= len(bench.failures) <= 4
    assert bench.scheduler.counts.failed == len(bench.failures)
    del bench.source.failing["a"]
    bench.scheduler.hurry("a")
    await bench.step(0.0)
    assert bench.count("a") == 1


async def test_what_breaks_is_contained() -> None:
    async def broken(instance: Instance, snapshot: Snapshot) -> None:
        raise RuntimeError("store")

    bench = Bench(on_snapshot=broken)
    bench.source.failing["b"] = ValueError("bug")
    bench.scheduler.add(instance("a"))
    bench.scheduler.add(instance("b"))
    await bench.step(10.0)
    assert sorted(bench.failures) == [("a", ErrorReason.INTERNAL), ("b", ErrorReason.INTERNAL)]


async def test_a_removed_instance_is_not_reported_any_more() -> None:
    bench = Bench()
    bench.source.hung["a"] = asyncio.Event()
    bench.scheduler.add(instance("a"))
    await bench.step(10.0)
    bench.scheduler.remove("a")
    bench.source.hung["a"].set()
    await bench.settle()
    await bench.step(100.0)
    assert bench.seen == []


async def test_one_that_is_registered_anew_is_never_scraped_twice_at_a_time() -> None:
    """The first registration's scrape hangs, the second one's too; the first one's end frees nothing of the second."""
    bench = Bench()
    first, second = asyncio.Event(), asyncio.Event()
    bench.source.hung["a"] = first
    bench.scheduler.add(instance("a"))
    await bench.step(10.0)
    bench.source.hung["a"] = second
    bench.source.failing["a"] = CollectError(ErrorReason.ENDPOINT_TIMEOUT, "gone")
    bench.scheduler.add(instance("a"))
    await bench.step(10.0)
    assert bench.scheduler.counts.running == 2
    first.set()
    await bench.settle()
    assert bench.failures == []  # of what is registered no more
    for _ in range(10):
        await bench.step(10.0)
        assert bench.scheduler.counts.running == 1
    second.set()
    await bench.settle()
    assert len(bench.failures) == 1


async def test_the_task_wakes_for_new_instances_and_stops_when_cancelled() -> None:
    bench = Bench()
    async with running(bench):
        await bench.settle()
        bench.clock.now += 5.0
        bench.scheduler.add(instance("a"))
        bench.scheduler.hurry("a")
        await bench.settle()
        assert bench.count("a") == 1
        bench.source.hung["b"] = asyncio.Event()
        bench.scheduler.add(instance("b"))
        bench.scheduler.hurry("b")
        await bench.settle()
        assert bench.scheduler.counts.running == 1
    assert bench.scheduler.counts.running == 0


async def test_a_bad_interval_is_refused() -> None:
    bench = Bench()
    with pytest.raises(ValueError, match="interval_seconds"):
        bench.scheduler.add(instance("a", 0.0))


async def test_one_that_is_renewed_while_its_scrape_fails_is_told_as_failed() -> None:
    bench = Bench()
    bench.source.hung["a"] = asyncio.Event()
    bench.source.failing["a"] = CollectError(ErrorReason.ENDPOINT_TIMEOUT, "gone")
    bench.scheduler.add(instance("a"))
    await bench.step(10.0)
    bench.scheduler.renew(replace(instance("a"), config=EngineConfig.of({"max_num_seqs": 64})))
    bench.source.hung["a"].set()
    await bench.settle()
    assert bench.failures == [("a", ErrorReason.ENDPOINT_TIMEOUT)]


async def test_what_a_rollout_changed_is_carried_by_later_scrapes_in_the_same_rhythm() -> None:
    seen: list[tuple[float, object]] = []

    async def keep(instance: Instance, snapshot: Snapshot) -> None:
        seen.append((bench.clock.now, instance.config.get("max_num_seqs")))

    bench = Bench(on_snapshot=keep)
    before = Instance("a", Engine.VLLM, "http://a", config=EngineConfig.of({"max_num_seqs": 2}), scrape_interval_seconds=10.0)
    bench.scheduler.add(before)
    while not seen:
        await bench.step(1.0)
    bench.scheduler.renew(replace(before, config=EngineConfig.of({"max_num_seqs": 64})))
    bench.scheduler.renew(replace(before, instance_id="unknown"))
    for _ in range(10):
        await bench.step(1.0)
    assert seen == [(seen[0][0], 2), (seen[0][0] + 10.0, 64)]
