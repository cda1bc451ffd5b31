"""CPU per scrape, ours against Prometheus', over the same pages in the same seconds.

    python benchmarks/collect_cost.py [--replicas 200] [--interval 2] [--seconds 60] [--gzip] [--prometheus prometheus]

Both scrape the same page server, which plays N engines with real vLLM pages whose counters grow. Ours is the whole service (GET, parse,
typed snapshot, stored in a SQLite file), Prometheus a server of its own with its data in a temporary folder. CPU is user and system
time of each process with all of its threads. After that, what the parts of ours cost, one after the other in one thread.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

from scraping.pages import SCENARIOS, versions
from scraping.processes import Child, free_port, python, running

from perf_service.collectors.dialects import dialect_of
from perf_service.collectors.exposition import ExpositionParser
from perf_service.collectors.lean import LeanFetcher
from perf_service.collectors.snapshot import SnapshotBuilder
from perf_service.models.metrics import Engine
from perf_service.storage.store import SqlStore, random_id

WARM_UP_INTERVALS = 4
CLIENTS = ("perf-service", "prometheus")


def prometheus_config(ports: list[int], interval: float) -> str:
    """Scrape every replica, and nothing else."""
    targets = ", ".join(f"'127.0.0.1:{port}'" for port in ports)
    return (
        f"global: {{scrape_interval: {interval:g}s, scrape_timeout: {interval:g}s}}\n"
        f"scrape_configs:\n- job_name: engines\n  static_configs:\n  - targets: [{targets}]\n"
    )


def scrapes(server: Child) -> dict[str, int]:
    """Scrapes so far, by client."""
    totals: dict[str, int] = {}
    for arrivals in server.ask(do="stats"):
        for client, times in arrivals.items():
            totals[client] = totals.get(client, 0) + len(times)
    return totals


def warm_up(server: Child, replicas: int, interval: float) -> None:
    """Until both are past their start: connections made, engines asked for their configuration, memories filled."""
    deadline = time.monotonic() + 120
    time.sleep(WARM_UP_INTERVALS * interval)
    while min(scrapes(server).get(client, 0) for client in CLIENTS) < WARM_UP_INTERVALS * replicas and time.monotonic() < deadline:
        time.sleep(interval)


def compare(options: argparse.Namespace, folder: Path) -> None:
    """Run both beside each other and print CPU per scrape."""
    count = int(options.seconds / options.interval) + 10 * WARM_UP_INTERVALS
    arguments = ["--replicas", options.replicas, "--versions", count, *(["--gzip"] if options.gzip else [])]
    with running(python("page_server.py", *arguments)) as server:
        hello = server.line()
        config = folder / "prometheus.yml"
        config.write_text(prometheus_config(hello["ports"], options.interval))
        prometheus = [
            options.prometheus,
            f"--config.file={config}",
            f"--storage.tsdb.path={folder}/tsdb",
            f"--web.listen-address=127.0.0.1:{free_port()}",
        ]
        collector = python("collector.py", f"sqlite:///{folder}/store.db", options.interval, "alone", *hello["ports"])
        with running(collector) as ours, running(prometheus, log=folder / "prometheus.log") as theirs:
            ours.line()
            warm_up(server, options.replicas, options.interval)
            begun, cpu = scrapes(server), {"perf-service": ours.cpu_seconds(), "prometheus": theirs.cpu_seconds()}
            time.sleep(options.seconds)
            ended = scrapes(server)
            cpu = {"perf-service": ours.cpu_seconds() - cpu["perf-service"], "prometheus": theirs.cpu_seconds() - cpu["prometheus"]}
            failed = ours.ask(do="stats")["failed"]
            memory = {"perf-service": ours.rss_bytes(), "prometheus": theirs.rss_bytes()}
    each = {}
    size = hello["page_bytes"]
    print(f"{options.replicas} replicas every {options.interval:g} s for {options.seconds:g} s, {size} bytes a page, {failed} failed")
    for client, used in cpu.items():
        done = ended[client] - begun[client]
        each[client] = used / done * 1e3
        print(
            f"{client:<14} {done:7} scrapes {used:8.2f} s CPU {each[client]:7.3f} ms CPU per scrape {memory[client] / 1e6:7.0f} MB resident"
        )
    print(f"ratio ours / Prometheus: {each['perf-service'] / each['prometheus']:.2f}")


def cost(work: Callable[[int], object], rounds: int = 200) -> float:
    """CPU milliseconds of one call: the median of five runs."""
    taken = []
    for _ in range(5):
        begun = time.process_time()
        for index in range(rounds):
            work(index)
        taken.append((time.process_time() - begun) / rounds * 1e3)
    return median(taken)


async def breakdown(folder: Path) -> None:
    """What the parts of ours cost, alone in this process."""
    pages = [page for name in SCENARIOS for page in versions(name, 20)]
    parser, builder = ExpositionParser(dialect_of(Engine.VLLM).bind), SnapshotBuilder(Engine.VLLM)
    parse = cost(lambda index: parser.parse(pages[index % len(pages)]))
    build = cost(lambda index: builder.build(pages[index % len(pages)], "r", 1.0 + index))
    with running(python("page_server.py", "--replicas", 1, "--versions", 5)) as server:
        (port,) = server.line()["ports"]
        async with LeanFetcher() as fetcher:
            await fetcher.fetch(f"127.0.0.1:{port}")
            begun = time.process_time()
            for _ in range(500):
                await fetcher.fetch(f"127.0.0.1:{port}")
            fetch = (time.process_time() - begun) / 500 * 1e3
    snapshots = [builder.build(page, f"replica-{index:04}", 1.0, endpoint="http://127.0.0.1:1") for index, page in enumerate(pages)]
    store = SqlStore.open(f"sqlite:///{folder}/parts.db")
    taken = []
    for round_ in range(20):
        group = [replace(snapshot, collected_at=1.0 + round_, snapshot_id=random_id("snap")) for snapshot in snapshots[:50]]
        begun = time.process_time()
        await store.add_snapshots(group)
        taken.append((time.process_time() - begun) / len(group) * 1e3)
    await store.close()
    rows = {"fetch": fetch, "parse": parse, "snapshot": build - parse, "store (50 in a group)": median(taken)}
    print("\nparts of ours, CPU ms per scrape (without scheduling and the rest of the service)")
    for name, milliseconds in (rows | {"sum": sum(rows.values())}).items():
        print(f"  {name:<24} {milliseconds:7.3f}")


def main() -> None:
    """Compare, then the parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicas", type=int, default=200)
    parser.add_argument("--interval", type=float, default=2.0)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--gzip", action="store_true", help="packed pages for clients that ask (Prometheus does)")
    parser.add_argument("--prometheus", default="prometheus", help="the program; without it only the parts are measured")
    options = parser.parse_args()
    os.environ.pop("PERF_SERVICE_SETTINGS_FILE", None)
    with tempfile.TemporaryDirectory() as folder:
        if shutil.which(options.prometheus):
            compare(options, Path(folder))
        else:
            print(f"there is no program {options.prometheus!r}: install Prometheus (Debian: apt-get install prometheus) to compare")
        asyncio.run(breakdown(Path(folder)))


if __name__ == "__main__":
    main()
