"""Reading a fleet from a real Prometheus: queries, CPU and stalls, beside what Prometheus itself spends on scraping it.

    python benchmarks/prometheus_source.py [--targets 300] [--interval 5] [--seconds 40] [--per-query 40]

Needs Debian's package `prometheus`. One process serves a real vLLM page for every target, Prometheus scrapes them, and this one reads them
from it, through the scheduler and at the same interval. The CPU of Prometheus covers its scrapes and our queries.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from scraping.processes import cpu_seconds, free_port

from perf_service.collectors.prometheus.client import Answer, PrometheusClient
from perf_service.collectors.prometheus.source import PrometheusScrape
from perf_service.collectors.scheduler import ScrapeScheduler, WallClock
from perf_service.models.errors import CollectError
from perf_service.models.fleet import Instance, PrometheusSource
from perf_service.models.metrics import Engine, Snapshot

PAGE = Path(__file__).parents[1] / "tests/fixtures/captures/b_queue_bad_r2/000.prom.gz"
TICK_SECONDS = 0.005


async def serve_pages(port: int) -> None:
    """One page for every path, keep-alive."""
    page = gzip.decompress(PAGE.read_bytes())
    answer = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: %d\r\n\r\n%b" % (len(page), page)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", port)
    await server.serve_forever()


class Counting(PrometheusClient):
    """Counts queries and their bytes of series."""

    queries = 0

    async def query(self, source: PrometheusSource, expression: str, at: float | None) -> Answer:
        self.queries += 1
        return await super().query(source, expression, at)


async def read(url: str, targets: int, interval: float, seconds: float, per_query: int, prometheus_pid: int) -> None:
    """Read all targets for a while and say what it took."""
    fresh: dict[str, set[float]] = {}
    failures: list[str] = []
    late: list[float] = []

    async def keep(instance: Instance, snapshot: Snapshot) -> None:
        fresh.setdefault(instance.instance_id, set()).add(snapshot.collected_at or 0.0)

    async def failed(instance: Instance, error: CollectError) -> None:
        failures.append(error.message)

    async def watch() -> None:
        while True:
            due = time.perf_counter() + TICK_SECONDS
            used = time.process_time()
            await asyncio.sleep(TICK_SECONDS)
            late.append(min(time.perf_counter() - due, time.process_time() - used))

    async with Counting() as client:
        source = PrometheusScrape(client, engines_per_query=per_query)
        scheduler = ScrapeScheduler(source, keep, failed, clock=WallClock(), rng=random.Random(1))
        for index in range(targets):
            match = f'job="vllm",instance="replica-{index}"'
            told = PrometheusSource(url, match)
            scheduler.add(Instance(f"r{index}", Engine.VLLM, "", prometheus=told, scrape_interval_seconds=interval))
        task = asyncio.create_task(scheduler.run())
        await asyncio.sleep(2 * interval)  # the first round learns who is there
        before, queries, theirs = scheduler.counts.succeeded, client.queries, cpu_seconds(prometheus_pid)
        fresh.clear()
        mine = time.process_time()
        watcher = asyncio.create_task(watch())
        began = time.perf_counter()
        await asyncio.sleep(seconds)
        took = time.perf_counter() - began
        mine, theirs = time.process_time() - mine, cpu_seconds(prometheus_pid) - theirs
        reads, asked = scheduler.counts.succeeded - before, client.queries - queries
        for each in (task, watcher):
            each.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)
    late.sort()
    beats = took / interval
    print(
        json.dumps(
            {
                "targets": targets,
                "interval_seconds": interval,
                "reads": reads,
                "reads_expected": round(targets * beats),
                "failures": len(failures),
                "queries": asked,
                "queries_per_interval": round(asked / beats, 1),
                "distinct_scrapes_per_target_and_interval": round(sum(map(len, fresh.values())) / targets / beats, 2),
                "cpu_ms_per_read": round(1e3 * mine / max(1, reads), 2),
                "prometheus_cpu_ms_per_scrape_with_queries": round(1e3 * theirs / (targets * beats), 2),
                "own_stall_p999_ms": round(1e3 * late[int(len(late) * 0.999)], 1),
                "own_stall_max_ms": round(1e3 * late[-1], 1),
                "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            },
            indent=2,
        )
    )
    for message in failures[:3]:
        print(message, file=sys.stderr)


def configuration(pages: int, targets: int, interval: float) -> dict[str, Any]:
    relabel = [{"source_labels": ["replica"], "target_label": "instance"}, {"regex": "replica", "action": "labeldrop"}]
    static = [
        {"targets": [f"127.0.0.1:{pages}"], "labels": {"replica": f"replica-{index}", "__metrics_path__": f"/{index}"}}
        for index in range(targets)
    ]
    job = {"job_name": "vllm", "static_configs": static, "relabel_configs": relabel}
    return {"global": {"scrape_interval": f"{interval:g}s", "scrape_timeout": f"{interval:g}s"}, "scrape_configs": [job]}


def wait_until(url: str, expression: str, targets: int) -> None:
    deadline = time.monotonic() + 120
    while True:
        try:
            with urllib.request.urlopen(f"{url}/api/v1/query?query={expression}", timeout=5) as response:
                result = json.load(response)["data"]["result"]
            if result and float(result[0]["value"][1]) >= targets:
                return
        except OSError:
            pass
        if time.monotonic() > deadline:
            raise SystemExit("prometheus did not come to scrape every target in 120 s")
        time.sleep(0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", type=int, default=300)
    parser.add_argument("--interval", type=float, default=5.0)
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--per-query", type=int, default=40)
    parser.add_argument("--serve-pages", type=int, help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.serve_pages:
        asyncio.run(serve_pages(told.serve_pages))
        return
    program = shutil.which("prometheus")
    if program is None:
        raise SystemExit("prometheus is not installed (Debian: apt-get install --no-install-recommends prometheus)")
    with tempfile.TemporaryDirectory() as folder:
        pages, port = free_port(), free_port()
        config = Path(folder) / "prometheus.yml"
        config.write_text(json.dumps(configuration(pages, told.targets, told.interval)))
        words = [program, f"--config.file={config}", f"--storage.tsdb.path={folder}/data", f"--web.listen-address=127.0.0.1:{port}"]
        started = [
            subprocess.Popen([sys.executable, __file__, "--serve-pages", str(pages)]),
            subprocess.Popen([*words, "--log.level=error"]),
        ]
        try:
            url = f"http://127.0.0.1:{port}"
            wait_until(url, 'count(count_over_time(up{job="vllm"}[5m])>=2)', told.targets)
            asyncio.run(read(url, told.targets, told.interval, told.seconds, told.per_query, started[1].pid))
        finally:
            for process in started:
                process.terminate()
                process.wait()


if __name__ == "__main__":
    main()
