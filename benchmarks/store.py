"""How fast a store keeps and reads what a rollout and a scrape write.

    python benchmarks/store.py [--url sqlite:///FILE] [--rows 300]

Prints microseconds of wall time for each operation: median over the rows. Without --url: a file in a temporary folder.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

from perf_service.collectors.snapshot import snapshot_of
from perf_service.models.metrics import Engine
from perf_service.models.workflow import Event, EventKind, Gate, Workflow, WorkflowRequest, WorkflowStatus
from perf_service.storage.store import SqlStore

PAGE = Path(__file__).parent.parent / "tests/fixtures/captures/b_queue_bad_r2/010.prom.gz"


async def timed(rows: int, work: Callable[[int], Awaitable[object]]) -> float:
    """Median microseconds of one call."""
    taken = []
    for index in range(rows):
        begun = time.perf_counter()
        await work(index)
        taken.append((time.perf_counter() - begun) * 1e6)
    return median(taken)


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
    parser.add_argument("--rows", type=int, default=300)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = asyncio.run(measure(options.url or f"sqlite:///{folder}/store.db", options.rows))
    for name, microseconds in figures.items():
        print(f"{name:<36} {microseconds:10.0f} us")


if __name__ == "__main__":
    main()
