"""A thousand replicas at a short interval, from one process on one core: nothing missed, nothing stalled, nothing that grows.

    python benchmarks/fleet_scrape.py [--replicas 1000] [--interval 5] [--minutes 10] [--hang 20] [--database-url URL]

The service runs on one core; the page server (replicas on ports of their own, real pages whose counters grow) and this program on the
other. Lateness is told by the page server: how far each scrape arrived from its replica's own even beat. For the second half of the
time the first `--hang` replicas accept requests and never answer; the lateness of the others is told for both halves.
"""

from __future__ import annotations

import argparse
import os
import sqlite3
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from scraping.processes import cores, python, running

WARM_UP_INTERVALS = 4
"""Connecting to all at once, asking each engine for its configuration, and filling the parser's memory."""

COLUMNS = (("stall_p999_ms", 15), ("stall_max_ms", 6), ("own_stall_p999_ms", 18), ("own_stall_max_ms", 6))


def lateness(arrivals: list[float], interval: float, begin: float, end: float) -> tuple[list[float], int]:
    """Seconds after the even beat of one replica, and how many beats were missed, between two times."""
    times = [time for time in arrivals if begin <= time < end]
    if not times:
        return [], round((end - begin) / interval)
    beats = [round((time - times[0]) / interval) for time in times]
    offsets = [time - beat * interval for time, beat in zip(times, beats, strict=True)]
    # The beat as it is without delay. Not the very earliest: a scrape that came more than half an interval late looks early for the next.
    anchor = quantile(sorted(offsets), 0.1)
    late = [max(0.0, offset - anchor) for offset in offsets]
    missed = sum(max(0, b - a - 1) for a, b in pairwise(beats))
    # A beat that fell due just before either end is on the other side of it when it came late: missed is what stays out for half a beat.
    missed += sum(max(0, int(gap / interval - 0.5)) for gap in (times[0] - begin, end - times[-1]))
    return late, missed


def quantile(values: list[float], share: float) -> float:
    """Of sorted values."""
    return values[min(len(values) - 1, int(len(values) * share))] if values else 0.0


def half(name: str, fleet: list[dict[str, list[float]]], interval: float, begin: float, end: float) -> None:
    """Print one line on a part of the run."""
    late: list[float] = []
    missed = 0
    for arrivals in fleet:
        some, few = lateness(arrivals.get("perf-service", []), interval, begin, end)
        late += some
        missed += few
    late.sort()
    shares = ", ".join(f"{label} {quantile(late, share) * 1e3:.0f} ms" for label, share in (("p50", 0.5), ("p99", 0.99), ("max", 1.0)))
    print(f"{name:<28} {len(late):7} scrapes of {len(fleet)} replicas, lateness {shares}, missed intervals: {missed}")


def storage(path: Path, interval: float) -> None:
    """Print what a stored snapshot takes."""
    with sqlite3.connect(path) as connection:
        (rows,) = connection.execute("select count(*) from snapshots").fetchone()
        (document,) = connection.execute("select avg(length(document)) from snapshots").fetchone()
        (shapes,) = connection.execute("select count(*) from snapshot_shapes").fetchone()
    size = sum(file.stat().st_size for file in (path, path.with_name(path.name + "-wal")) if file.exists())
    each = size / max(rows, 1)
    per_day = each * 86_400 / interval / 1e6
    print(
        f"stored {rows} snapshots ({shapes} shapes): {document:.0f} bytes each, {each:.0f} with tables and indexes, "
        f"{per_day:.1f} MB per replica and day before thinning"
    )


def run(options: argparse.Namespace, folder: Path) -> None:
    """The whole run."""
    measured, rest = cores()
    os.sched_setaffinity(0, {rest})
    interval, minutes = options.interval, options.minutes
    count = int(minutes * 60 / interval) + WARM_UP_INTERVALS + 8
    url = options.database_url or f"sqlite:///{folder}/store.db"
    server_command = python("page_server.py", "--replicas", options.replicas, "--versions", count)
    with running(server_command, core=rest) as server:
        ports = server.line()["ports"]
        with running(python("collector.py", url, interval, "watched", *ports), core=measured) as ours:
            ours.line()
            time.sleep(WARM_UP_INTERVALS * interval)
            ours.ask(do="stats")
            begin, cpu = time.monotonic(), ours.cpu_seconds()
            hung_at = begin + minutes * 30
            print("minute       RSS  CPU of a core  stall ms p99.9   max   of it own p99.9   max   gc max   failed running")
            sizes: list[tuple[float, float]] = []
            worst: list[dict[str, Any]] = []
            is_hung = False
            for step in range(1, round(minutes * 2) + 1):
                time.sleep(max(0.0, begin + step * 30 - time.monotonic()))
                if not is_hung and time.monotonic() >= hung_at:
                    hung_at, is_hung = server.ask(do="hang", first=options.hang)["at"], True
                if step % 2 and minutes > 1:
                    continue
                told, used = ours.ask(do="stats"), ours.cpu_seconds()
                worst.append(told)
                sizes.append((step / 2, ours.rss_bytes() / 1e6))
                share = (used - cpu) / (60 if minutes > 1 else 30) * 100
                cpu = used
                stalls = "".join(f"{told[name]:{width}.1f}" for name, width in COLUMNS)
                pause = max(told["gc_max_ms"].values())
                print(
                    f"{step / 2:6.1f} {sizes[-1][1]:6.1f} MB {share:12.1f} % {stalls} {pause:8.1f} {told['failed']:8} {told['running']:7}",
                    flush=True,
                )
            end = time.monotonic()
            fleet = server.ask(do="stats")
        half("all answer", fleet, interval, begin, hung_at)
        half(f"others, while {options.hang} hang", fleet[options.hang :], interval, hung_at, end)
    print(
        f"event loop: longest stall {max(t['stall_max_ms'] for t in worst):.1f} ms, own {max(t['own_stall_max_ms'] for t in worst):.1f} ms"
    )
    if len(sizes) > 2:
        # The first minute still fills memories that are bounded.
        (x0, y0), (x1, y1) = sizes[1], sizes[-1]
        slope = (y1 - y0) / (x1 - x0)
        print(f"resident memory: {y0:.1f} MB at minute {x0:g}, {y1:.1f} MB at minute {x1:g}: {slope:+.2f} MB a minute")
    if not options.database_url:
        storage(folder / "store.db", interval)


def main() -> None:
    """Run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicas", type=int, default=1000)
    parser.add_argument("--interval", type=float, default=5.0)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--hang", type=int, default=20)
    parser.add_argument("--database-url", default="", help="default: a SQLite file in a temporary folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run(options, Path(folder))


if __name__ == "__main__":
    main()
