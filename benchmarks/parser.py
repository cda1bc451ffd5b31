"""Time of the exposition parser against prometheus_client's, on a real page, in one process.

Run: python benchmarks/parser.py [PAGE]     (PAGE: a metrics page, plain or .gz)
"""

from __future__ import annotations

import gzip
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from prometheus_client.parser import text_string_to_metric_families

from perf_service.collectors.dialects import dialect_of
from perf_service.collectors.exposition import ExpositionParser
from perf_service.collectors.snapshot import SnapshotBuilder
from perf_service.models.metrics import Engine

DEFAULT_PAGE = Path(__file__).parent.parent / "tests/fixtures/captures/b_queue_bad_r2/010.prom.gz"


def measure(run: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Best and median wall time of `run` in milliseconds."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        times.append((time.perf_counter() - start) * 1e3)
    return min(times), median(times)


def main() -> None:
    """Print one line per parser."""
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT_PAGE
    raw = path.read_bytes()
    body = gzip.decompress(raw) if path.suffix == ".gz" else raw
    text = body.decode()
    everything = ExpositionParser()
    selective = ExpositionParser(dialect_of(Engine.VLLM).bind)
    builder = SnapshotBuilder(Engine.VLLM)
    rows = {
        "prometheus_client.parser": measure(lambda: list(text_string_to_metric_families(text)), 15),
        "exposition, every series": measure(lambda: everything.parse(body), 300),
        "exposition, dialect's series": measure(lambda: selective.parse(body), 300),
        "exposition + typed snapshot": measure(lambda: builder.build(body, "bench", 0.0), 300),
    }
    oracle = rows["prometheus_client.parser"]
    print(f"{path.name}: {len(body)} bytes, {text.count(chr(10))} lines")
    print(f"{'parser':<30} {'best ms':>8} {'median ms':>10} {'x best':>8} {'x median':>9}")
    for name, (best, middle) in rows.items():
        print(f"{name:<30} {best:8.3f} {middle:10.3f} {oracle[0] / best:8.1f} {oracle[1] / middle:9.1f}")


if __name__ == "__main__":
    main()
