"""How fast a store keeps and reads what a rollout and a scrape write, and how much room a replica's history takes.

    python benchmarks/store.py [--url sqlite:///FILE | --postgres] [--rows 300] [--replicas 4] [--interval 5] [--hours 6]

Prints microseconds of wall time for each operation: median over the rows. Then bytes: hours of real pages whose counters grow, as it is
stored at first, with one per five minutes, and with one per hour. Without --url: a file in a temporary folder; with --postgres a
PostgreSQL of its own, started for it from the installed package and removed (its commits do not wait for the disk).
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

from scraping.pages import SCENARIOS, versions
from sqlalchemy import create_engine

from perf_service.collectors.snapshot import SnapshotBuilder, snapshot_of
from perf_service.models.metrics import Engine, Snapshot
from perf_service.models.workflow import Event, EventKind, Gate, Workflow, WorkflowRequest, WorkflowStatus
from perf_service.storage.store import SqlStore

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "tests/fixtures/captures/b_queue_bad_r2/010.prom.gz"


async def timed(rows: int, work: Callable[[int], Awaitable[object]]) -> float:
    """Median microseconds of one call."""
    taken = []
    for index in range(rows):
        begun = time.perf_counter()
        await work(index)
        taken.append((time.perf_counter() - begun) * 1e6)
    return median(taken)


def group(snapshot: Snapshot, size: int, index: int) -> list[Snapshot]:
    """Scrapes of many replicas at one time."""
    return [replace(snapshot, instance_id=f"g{n}", collected_at=1.0 + index) for n in range(size)]


def used_bytes(url: str) -> int:
    """What snapshots take in the store, indexes and shapes included; free pages are left out."""
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
            names = ("page_count", "freelist_count", "page_size")
            pages, free, size = (connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in names)
            used = (pages - free) * size
        else:
            connection.exec_driver_sql("VACUUM FULL snapshots")
            names = ("snapshots", "snapshot_shapes")
            used = sum(connection.exec_driver_sql(f"SELECT pg_total_relation_size('{name}')").scalar() for name in names)
    engine.dispose()
    return int(used)


async def history(url: str, replicas: int, interval: float, hours: float) -> None:
    """Print what a history takes, dense and thinned."""
    store = SqlStore.open(url, clock=time.time)
    begin, steps = 1.8e9, int(hours * 3600 / interval)
    empty = used_bytes(url)
    streams = [moving(name, 100) for name in SCENARIOS[:replicas]]
    for step in range(steps):
        at = begin + step * interval
        stream = [streams[index % len(streams)][step * 100 // steps] for index in range(replicas)]
        named = [replace(s, instance_id=f"replica-{n:04}", collected_at=at) for n, s in enumerate(stream)]
        await store.add_snapshots(named)
    print(f"\n{replicas} replicas, one page each {interval:g} s for {hours:g} h")
    days = replicas * hours / 24
    for name, every in (("every snapshot", 0.0), ("one per 5 minutes", 300.0), ("one per hour", 3600.0)):
        if every:
            await store.thin_snapshots(before=begin + hours * 3600 + 1, keep_every_seconds=every)
        used = used_bytes(url) - empty
        rows = sum([len(await store.snapshots_between(f"replica-{n:04}", 0.0, 1e10, limit=10**9)) for n in range(replicas)])
        print(f"  {name:<20} {rows:8} snapshots {used / rows:8.0f} bytes each {used / days / 1e6:10.3f} MB per replica and day")
    await store.close()


def moving(scenario: str, count: int) -> list[Snapshot]:
    """Snapshots of one server in the order of time."""
    builder = SnapshotBuilder(Engine.VLLM)
    return [builder.build(page, scenario, float(n), endpoint="http://10.0.0.1:8000") for n, page in enumerate(versions(scenario, count))]


async def measure(url: str, rows: int) -> dict[str, float]:
    """Microseconds by operation."""
    import gzip

    store = SqlStore.open(url, clock=time.time)
    try:
        snapshot = snapshot_of(gzip.decompress(PAGE.read_bytes()), "r0", collected_at=1.0)
        workflow = await store.create_workflow(Workflow("wf", WorkflowRequest(), Engine.VLLM, fleet_id="f"), ())

        async def transition(index: int) -> None:
            nonlocal workflow
            event = Event("wf", index + 1, float(index), EventKind.STATE_CHANGED, WorkflowStatus.BAKING, Gate.OPEN, "a transition")
            changed = replace(workflow, status=WorkflowStatus.BAKING, last_sequence=index + 1)
            workflow = await store.save_workflow(changed, (event,), expect_version=workflow.version, fence=None)

        return {
            "keep a snapshot": await timed(rows, lambda i: store.add_snapshot(replace(snapshot, collected_at=1.0 + i))),
            "keep 100 snapshots in a group": await timed(rows // 10, lambda i: store.add_snapshots(group(snapshot, 100, i))),
            "latest snapshot": await timed(rows, lambda i: store.latest_snapshot("r0")),
            "a transition with its event": await timed(rows, transition),
            "the last event of a long history": await timed(rows, lambda i: store.events_after("wf", rows - 1)),
            "the first event of a long history": await timed(rows, lambda i: store.events_after("wf", 0, limit=1)),
        }
    finally:
        await store.close()


def main() -> None:
    """Print one line for each operation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="")
    parser.add_argument("--postgres", action="store_true")
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--replicas", type=int, default=4)
    parser.add_argument("--interval", type=float, default=5.0)
    parser.add_argument("--hours", type=float, default=6.0)
    options = parser.parse_args()
    if options.postgres:
        sys.path.insert(0, str(ROOT))
        from tests.support import postgres

        if not postgres.is_installed():
            print("not measured: initdb and pg_ctl are not installed (apt-get install postgresql)")
            return
        with postgres.cluster() as url:
            report(url.format(database="postgres"), url.format(database="template1"), options)
        return
    with tempfile.TemporaryDirectory() as folder:
        report(options.url or f"sqlite:///{folder}/store.db", options.url or f"sqlite:///{folder}/history.db", options)


def report(url: str, history_url: str, options: argparse.Namespace) -> None:
    """Print one line for each operation, and what a history takes."""
    for name, microseconds in asyncio.run(measure(url, options.rows)).items():
        print(f"{name:<36} {microseconds:10.0f} us", flush=True)
    if options.hours:
        asyncio.run(history(history_url, options.replicas, options.interval, options.hours))


if __name__ == "__main__":
    main()
