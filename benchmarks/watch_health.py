"""What one look at a fleet's health costs (WatchHealth looks at each interval): CPU seconds of the server, and of which kind.

    python benchmarks/watch_health.py [--replicas 1000] [--interval 15] [--looks 4] [--profile] [--url sqlite:///FILE]

Replicas with real pages that grow stand in a store of some minutes. Between two looks each gets a new page, as the scraper would store
it; that is not counted. The first look has everything to read; the later ones are those of a watch that goes on.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import pstats
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace

from scraping.pages import SCENARIOS, versions

from perf_service.collectors.snapshot import SnapshotBuilder
from perf_service.collectors.source import DirectScrape
from perf_service.models.fleet import Fleet, Instance
from perf_service.models.metrics import Engine, Snapshot
from perf_service.models.slo import SLOTarget
from perf_service.storage.store import SqlStore, random_id
from perf_service.workflows.collecting import Collecting
from perf_service.workflows.pipeline import ANALYZED_SECONDS, Pipeline

PAGES = 40


def streams() -> list[list[Snapshot]]:
    """Snapshots of servers in the order of time, that all the replicas have in turn."""
    found = []
    for scenario in SCENARIOS:
        builder = SnapshotBuilder(Engine.VLLM)
        found.append([builder.build(page, scenario, float(n)) for n, page in enumerate(versions(scenario, PAGES))])
    return found


class Run:
    """A fleet in a store, and looks at it."""

    def __init__(self, store: SqlStore, replicas: int, interval: float) -> None:
        self.store = store
        self.interval = interval
        self.now = 1.8e9
        self.step = 0
        self.streams = streams()
        self.names = [f"replica-{n:04}" for n in range(replicas)]
        source = DirectScrape(None)  # type: ignore[arg-type]  # nothing is scraped here
        self.pipeline = Pipeline(store, Collecting(store, source, clock=lambda: self.now), clock=lambda: self.now, new_id=random_id)

    async def begin(self) -> None:
        """Register the replicas and store the pages of the analyzed time."""
        await self.store.create_fleet(Fleet("fleet", Engine.VLLM))
        for name in self.names:
            await self.store.create_instance(
                Instance(name, Engine.VLLM, "http://127.0.0.1:9", "fleet", scrape_interval_seconds=self.interval)
            )
        for _ in range(int(ANALYZED_SECONDS / self.interval) + 1):
            await self.scrape()

    async def scrape(self) -> None:
        """One more page of each replica."""
        self.now += self.interval
        self.step += 1
        pages = [self.streams[n % len(self.streams)][min(self.step, PAGES - 1)] for n in range(len(self.names))]
        group = [replace(page, instance_id=name, collected_at=self.now) for name, page in zip(self.names, pages, strict=True)]
        await self.store.add_snapshots(group)

    async def look(self, targets: Sequence[SLOTarget]) -> None:
        """As WatchHealth does."""
        instances = await self.pipeline.pages.members("fleet")
        await self.pipeline.analyze_range(
            instances,
            fleet_id="fleet",
            start=self.now - ANALYZED_SECONDS,
            end=self.now,
            slo_targets=targets,
            keep=False,
            budgets_age_seconds=None,
            bounded=True,
        )


async def run(url: str, replicas: int, interval: float, looks: int, profile: bool) -> None:
    """Print what each look cost."""
    store = SqlStore.open(url)
    fleet = Run(store, replicas, interval)
    await fleet.begin()
    profiler = cProfile.Profile() if profile else None
    for number in range(1, looks + 1):
        cpu, wall = time.process_time(), time.perf_counter()
        if profiler is not None and number == looks:
            profiler.enable()
        await fleet.look([SLOTarget("ttft_p95", 0.5)])
        if profiler is not None:
            profiler.disable()
        print(f"look {number}: {time.process_time() - cpu:6.2f} s CPU, {time.perf_counter() - wall:6.2f} s", flush=True)
        await fleet.scrape()
    await store.close()
    if profiler is not None:
        pstats.Stats(profiler).sort_stats("cumulative").print_stats(45)


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicas", type=int, default=1000)
    parser.add_argument("--interval", type=float, default=15.0)
    parser.add_argument("--looks", type=int, default=4)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--url", default="")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(run(options.url or f"sqlite:///{folder}/store.db", options.replicas, options.interval, options.looks, options.profile))


if __name__ == "__main__":
    main()
