"""Pages of several processes, written by prometheus_client's own multiprocess mode, as SGLang and vLLM with API servers write them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from perf_service.collectors.snapshot import snapshot_of
from perf_service.models.metrics import Counter, Gauge, Hist

# What each process does; the last one only reads. The modes are those that the engines declare.
PROGRAM = """
import sys
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, multiprocess
engine, role = sys.argv[1:]
if role == "collect":
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry)
    sys.stdout.write(generate_latest(registry).decode())
else:
    share = int(role)
    if engine == "sglang":
        for tp_rank in ("0", "1"):
            labels = {"model_name": "m", "engine_type": "unified", "tp_rank": tp_rank, "dp_rank": str(share)}
            running = Gauge("sglang:num_running_reqs", "d", labels.keys(), multiprocess_mode="mostrecent", registry=None)
            retracted = Gauge("sglang:num_retracted_reqs", "d", labels.keys(), registry=None)
            running.labels(**labels).set(10 + share)
            retracted.labels(**labels).set(2 + share)
    else:
        Gauge("vllm:num_requests_running", "d", ["engine"], multiprocess_mode="mostrecent").labels("0").set(10 + share)
    tokens = Counter(f"{engine}:generation_tokens", "d", ["model_name"])
    tokens.labels("m").inc(100 * (share + 1))
    ttft = Histogram(f"{engine}:time_to_first_token_seconds", "d", ["model_name"], buckets=(0.1, 1.0))
    ttft.labels("m").observe(0.05 + share)
"""


def page(engine: str, folder: Path) -> str:
    text = ""
    for role in ("0", "1", "collect"):
        command = [sys.executable, "-c", PROGRAM, engine, role]
        environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(folder)}
        text = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    return text


@pytest.mark.parametrize(("engine", "running", "retracted"), [("sglang", 21, 5), ("vllm", 11, None)])
def test_processes_are_one_instance(tmp_path: Path, engine: str, running: float, retracted: float | None) -> None:
    text = page(engine, tmp_path)
    # As the engines' pages are described: a gauge without a mode carries its process, and nothing says when it was created.
    assert ("pid=" in text) is (engine == "sglang")
    assert "_created" not in text
    snapshot = snapshot_of(text, "i")
    # SGLang: two data-parallel ranks, each told by two tensor-parallel ones. vLLM: the last process to write.
    assert snapshot.gauges[Gauge.RUNNING_REQUESTS] == running
    assert snapshot.gauges.get(Gauge.RETRACTED_REQUESTS) == retracted
    assert snapshot.counters[Counter.GENERATION_TOKENS] == 300
    ttft = snapshot.histograms[Hist.TTFT_SECONDS]
    assert (ttft.count, ttft.cumulative) == (2, (1, 1))
    assert ttft.sum == pytest.approx(1.1)
