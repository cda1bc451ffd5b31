"""Two faults at once, launch arguments unknown: both are named, the one that holds requests back first."""

from __future__ import annotations

from perf_service.analysis.engine import AnalysisEngine
from perf_service.collectors.snapshot import SnapshotBuilder
from perf_service.models.analysis import Analysis, Cause
from perf_service.models.metrics import Engine
from perf_service.simulator.flags import EngineFlags, StepTimes
from perf_service.simulator.virtual import simulate
from perf_service.simulator.workload import Lengths, Workload

STEP = StepTimes(base=0.011, per_seq=0.0005, per_prefill_token=0.0002)


def _causes(flags: EngineFlags, load: Workload, step: StepTimes = STEP) -> list[Cause]:
    builder = SnapshotBuilder(Engine.VLLM)
    result = simulate(flags, step, load, 40.0, scrape_every_s=2.0)
    pages = [builder.build(text, "s", time) for time, text in result.pages]
    found: Analysis = AnalysisEngine().analyze(pages[3:])
    return [b.cause for b in found.bottlenecks if b.symptom_of is None]


def test_few_sequences_and_a_small_budget() -> None:
    load = Workload(Lengths.uniform(250, 340), Lengths.uniform(44, 52), concurrency=14)
    assert _causes(EngineFlags(max_num_seqs=3, max_num_batched_tokens=48), load) == [Cause.BATCH_LIMIT, Cause.TOKEN_BUDGET_TOO_SMALL]
    assert _causes(EngineFlags(max_num_seqs=3, max_num_batched_tokens=2048), load) == [Cause.BATCH_LIMIT]


def test_few_sequences_and_no_prefix_cache() -> None:
    """Of a request's own time the prompt is a small part; of the engine's time it is most, beside the answers of the others."""
    load = Workload(Lengths.uniform(720, 760), Lengths.uniform(60, 68), concurrency=16, shared_prefix_tokens=700)
    off = EngineFlags(max_num_seqs=4, max_num_batched_tokens=2048, enable_prefix_caching=False)
    assert _causes(off, load) == [Cause.BATCH_LIMIT, Cause.PREFIX_CACHE_OFF]
    assert _causes(EngineFlags(max_num_seqs=4, max_num_batched_tokens=2048), load) == [Cause.BATCH_LIMIT]
