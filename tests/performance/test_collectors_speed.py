"""The parser's speed against prometheus_client's, in the same process on the same real page.

Ratios, not times: the machine may be slow or shared, and coverage slows our Python more than the oracle's regular expressions. The
bounds lie well below what benchmarks/parser.py measures, so that they fail when the fast path is lost and not when the machine is busy.
"""

from __future__ import annotations

import gzip
import math
import time
from collections.abc import Callable
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from perf_service.collectors.dialects import dialect_of
from perf_service.collectors.exposition import ExpositionParser
from perf_service.collectors.snapshot import SnapshotBuilder
from perf_service.models.metrics import Engine

PAGE = Path(__file__).parents[1] / "fixtures/captures/b_queue_bad_r2/010.prom.gz"


def best_cpu_seconds(run: Callable[[], object], rounds: int) -> float:
    times = []
    for _ in range(rounds):
        start = time.process_time_ns()
        run()
        times.append((time.process_time_ns() - start) / 1e9)
    return min(times)


def test_parser_and_snapshot_are_on_the_fast_path() -> None:
    body = gzip.decompress(PAGE.read_bytes())
    text = body.decode()
    parser, builder = ExpositionParser(dialect_of(Engine.VLLM).bind), SnapshotBuilder(Engine.VLLM)
    oracle = parsing = building = math.inf
    # In turn, so that a slow spell of the machine meets all of them.
    for _ in range(10):
        oracle = min(oracle, best_cpu_seconds(lambda: list(text_string_to_metric_families(text)), 1))
        parsing = min(parsing, best_cpu_seconds(lambda: parser.parse(body), 20))
        building = min(building, best_cpu_seconds(lambda: builder.build(body, "i", 0.0), 10))
    assert oracle / parsing > 40
    assert oracle / building > 20


def test_a_page_of_many_new_series_takes_linear_time() -> None:
    def seconds(series: int) -> float:
        body = "".join(f'vllm:x{{id="{number}",a="b"}} {number}\n' for number in range(series)).encode()
        return best_cpu_seconds(lambda: ExpositionParser().parse(body), 3)

    # Ten times the series; quadratic work would take a hundred times as long.
    assert seconds(20_000) < 30 * seconds(2_000)
