"""The service itself, scraping a fleet, in a process of its own that watches its event loop.

Program: `collector.py DATABASE_URL INTERVAL watched|alone PORT...`. Reads commands from standard input (JSON lines); ends with its input.
  {"do": "stats"}  what happened since the last command: stalls of the event loop, garbage collections, scrapes
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import tempfile
import time
from pathlib import Path

from perf_service.app import build_app
from perf_service.cli.process import settle
from perf_service.cli.serve import run_loop
from perf_service.models.fleet import Instance
from perf_service.models.metrics import Engine
from perf_service.settings import load_settings

TICK_SECONDS = 0.005


class Watch:
    """How late a task that only sleeps is woken, and how long garbage collections take.

    Of a stall that part is our own in which this process used the processor; for the rest others had it.
    """

    def __init__(self) -> None:
        self.reset()
        gc.callbacks.append(self._collected)

    def reset(self) -> None:
        """Begin anew."""
        self.late: list[float] = []
        self.own: list[float] = []
        self.collections: dict[int, list[float]] = {0: [], 1: [], 2: []}

    def _collected(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._began = time.perf_counter()
        else:
            self.collections[info["generation"]].append(time.perf_counter() - self._began)

    async def tick(self) -> None:
        """For ever."""
        due, used = time.perf_counter(), time.process_time()
        while True:
            due += TICK_SECONDS
            await asyncio.sleep(due - time.perf_counter())
            now, before, used = time.perf_counter(), used, time.process_time()
            self.late.append(now - due)
            self.own.append(min(now - due, used - before))
            due = max(due, now - TICK_SECONDS)

    def stats(self) -> dict[str, object]:
        """Milliseconds."""
        late, own = sorted(self.late) or [0.0], sorted(self.own) or [0.0]
        return {
            "stall_max_ms": late[-1] * 1e3,
            "stall_p999_ms": late[int(len(late) * 0.999)] * 1e3,
            "stall_p99_ms": late[int(len(late) * 0.99)] * 1e3,
            "own_stall_max_ms": own[-1] * 1e3,
            "own_stall_p999_ms": own[int(len(own) * 0.999)] * 1e3,
            "gc_count": {generation: len(pauses) for generation, pauses in self.collections.items()},
            "gc_max_ms": {generation: max(pauses, default=0.0) * 1e3 for generation, pauses in self.collections.items()},
            "gc_total_ms": sum(map(sum, self.collections.values())) * 1e3,
        }


async def collect(url: str, interval: float, is_watched: bool, ports: list[int]) -> None:
    """Until standard input ends."""
    with tempfile.TemporaryDirectory() as folder:
        app = build_app(load_settings(port=0, database_url=url, state_dir=Path(folder), log_level="error" if is_watched else "warning"))
        for index, port in enumerate(ports):
            endpoint = f"http://127.0.0.1:{port}"
            await app.store.create_instance(Instance(f"replica-{index:04}", Engine.VLLM, endpoint, scrape_interval_seconds=interval))
        await app.start()
        watch = Watch()
        settle()
        ticking = asyncio.create_task(watch.tick() if is_watched else asyncio.sleep(0))
        commands = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
        print(json.dumps({"started": time.monotonic()}), flush=True)
        try:
            while await commands.readline():
                counts = app.scheduler.counts
                told = watch.stats() | {"succeeded": counts.succeeded, "failed": counts.failed, "running": counts.running}
                watch.reset()
                print(json.dumps(told), flush=True)
        finally:
            ticking.cancel()
            await app.stop(0)


def main() -> None:
    """Collect."""
    url, interval, watched, *ports = sys.argv[1:]
    run_loop(collect(url, float(interval), watched == "watched", [int(port) for port in ports]))


if __name__ == "__main__":
    main()
