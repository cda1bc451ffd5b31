"""What `doctor` predicts from."""

from __future__ import annotations

from dataclasses import replace

import pytest

from perf_service.cli.doctor import diagnose
from perf_service.models.config import EngineConfig
from perf_service.models.metrics import Counter, Engine, Gauge, Hist, Histogram, Snapshot
from perf_service.models.slo import parse_slo
from perf_service.optimization.predictor import parts_of


def page(at: float, done: float, *, started: float, sequences: int, waiting: float, ttft: float) -> Snapshot:
    """A page with `done` requests of 20 tokens so far, each with `ttft` seconds to its first token, 90 % of it in the queue."""
    means = {
        Hist.TTFT_SECONDS: ttft, Hist.QUEUE_SECONDS: 0.9 * ttft, Hist.PREFILL_SECONDS: 0.1 * ttft, Hist.DECODE_SECONDS: 1.0,
        Hist.INFERENCE_SECONDS: 1.0 + 0.1 * ttft, Hist.E2E_SECONDS: 1.0 + ttft, Hist.PROMPT_TOKENS: 100.0, Hist.GENERATION_TOKENS: 20.0,
    }  # fmt: skip
    return Snapshot(
        "i", Engine.VLLM, at, process_start_time=started, config=EngineConfig.of({"max_num_seqs": sequences}),
        gauges={Gauge.RUNNING_REQUESTS: sequences, Gauge.WAITING_REQUESTS: waiting, Gauge.KV_CACHE_USAGE_RATIO: 0.01},
        counters={Counter.GENERATION_TOKENS: 20 * done, Counter.REQUESTS_SUCCEEDED: done},
        histograms={hist: Histogram(done, mean * done) for hist, mean in means.items()},
    )  # fmt: skip


BEFORE = [page(10.0 * k, 60 * k, started=1, sequences=12, waiting=0, ttft=0.03) for k in range(20)]
SINCE = [page(300 + 10.0 * k, 20 * k, started=290, sequences=4, waiting=12, ttft=3.0) for k in range(12)]


def test_a_plan_and_a_what_if_stand_on_what_was_judged() -> None:
    """Not on the life before a restart: another config, another load."""
    found = diagnose([*BEFORE, *SINCE], [parse_slo("ttft<0.5")], changes=EngineConfig.of({"max_num_seqs": 8}))
    assert found.analysis.window is not None
    assert found.what_if is not None
    for baseline in (found.plan.baseline, found.what_if[0]):
        assert baseline is not None
        assert baseline.ttft_seconds is not None
        assert baseline.ttft_seconds.mean.value == pytest.approx(3.0)
        assert baseline.config.get("max_num_seqs") == 4


def test_the_parts_are_of_one_life_and_of_the_time_that_was_judged() -> None:
    pages = [*BEFORE, *SINCE]
    assert [w.start for w in parts_of(pages)] == [p.collected_at for p in SINCE[:-1]]
    judged = diagnose(SINCE).analysis.window
    assert judged is not None
    assert [w.start for w in parts_of(pages, replace(judged, start=340.0, end=360.0))] == [340.0, 350.0]
    assert parts_of(pages, replace(judged, lifetime=True)) == []
    assert parts_of(pages, replace(judged, start=None, end=None)) == []
