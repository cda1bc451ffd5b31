"""The collectors read each dialect's simulated pages as they read real ones."""

from __future__ import annotations

import pytest

from perf_service.collectors.exposition import parse
from perf_service.collectors.snapshot import snapshot_of
from perf_service.collectors.window import window_over
from perf_service.models.metrics import Counter, Engine, Gauge, IssueLevel
from perf_service.simulator.args import flags_from_native
from perf_service.simulator.flags import StepTimes
from perf_service.simulator.virtual import simulate
from perf_service.simulator.workload import Lengths, Workload
from tests.support.exposition_oracle import equal, text_values, values_of

LOAD = Workload(prompt=Lengths.uniform(50, 150), output=Lengths.uniform(20, 60), concurrency=8)


@pytest.mark.parametrize(("engine", "limit"), [("vllm", "max_num_seqs"), ("sglang", "max_running_requests"), ("tgi", "max_batch_size")])
def test_windows_hold_what_the_engine_did(engine: str, limit: str) -> None:
    flags = flags_from_native(engine, {limit: 3})  # type: ignore[arg-type]
    run = simulate(flags, StepTimes(), LOAD, 40, 1, scrape_every_s=5)
    snapshots = [snapshot_of(page, "i", collected_at=when) for when, page in run.pages]
    assert {s.engine for s in snapshots} == {Engine(engine)}
    assert equal(values_of(parse(run.pages[-1][1])), text_values(run.pages[-1][1])), "prometheus_client reads the same"
    assert not [i for i in snapshots[-1].quality.issues if i.level is IssueLevel.BLOCKING]
    assert snapshots[-1].gauges[Gauge.RUNNING_REQUESTS] == 3
    assert snapshots[-1].gauges[Gauge.WAITING_REQUESTS] in (4, 5), "vLLM and SGLang learn of the last one after their step"
    window = window_over(snapshots)
    assert window.counters[Counter.REQUESTS_SUCCEEDED] == run.report.succeeded
