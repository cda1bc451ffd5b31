"""Two pages out of the middle, the beginning or the end of a run, with and without their times: the same cause."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations, pairwise

import pytest

from perf_service.analysis.engine import AnalysisEngine
from perf_service.collectors.snapshot import SnapshotBuilder
from perf_service.models.analysis import Analysis, Cause, Verdict
from perf_service.models.config import EngineConfig
from perf_service.models.metrics import Engine, Gauge, Hist, Snapshot
from perf_service.simulator.flags import EngineFlags, StepTimes
from perf_service.simulator.virtual import simulate
from perf_service.simulator.workload import Lengths, Workload

BUILDERS = {engine: SnapshotBuilder(engine) for engine in Engine}  # they remember the series
Run = Callable[[str], tuple[Snapshot, ...]]


def judged(pages: Sequence[Snapshot], *, timed: bool = True, config: EngineConfig | None = None) -> Analysis:
    given = list(pages) if timed else [replace(page, collected_at=None) for page in pages]
    return AnalysisEngine().analyze(given, config=config)


def root(analysis: Analysis) -> Cause | None:
    return analysis.bottlenecks[0].cause if analysis.bottlenecks else None


@pytest.mark.parametrize(
    ("scenario", "cause"),
    [
        ("b_queue_bad_r2", Cause.BATCH_LIMIT),
        ("c_kv_bad_r2", Cause.KV_EXHAUSTED),
        ("d_prefill_bad_r2", Cause.TOKEN_BUDGET_TOO_SMALL),
        ("d_prefill_bad_r3", Cause.TOKEN_BUDGET_TOO_SMALL),
        ("e_decode_seqs8", Cause.BATCH_LIMIT),
        ("f_prefix_off", Cause.PREFIX_CACHE_OFF),
    ],
)
def test_any_two_pages_with_enough_requests_between_them_name_the_cause(run: Run, scenario: str, cause: Cause) -> None:
    tried = 0
    for pair in combinations(run(scenario), 2):
        analysis = judged(pair)
        finished = analysis.window.count(Hist.E2E_SECONDS) if analysis.window else 0.0
        if finished >= 5:
            tried += 1
            assert root(analysis) is cause, [page.collected_at for page in pair]
    assert tried >= 5


def test_a_queue_seen_by_no_scrape_and_without_times_is_no_prefill_taken_for_a_limit(run: Run) -> None:
    first, *_, last = run("d_prefill_bad_r2")
    assert root(judged([first, last], timed=False)) is not Cause.BATCH_LIMIT
    first, *_, last = run("b_queue_bad_r2")
    analysis = judged([first, last], timed=False)
    assert root(analysis) is Cause.BATCH_LIMIT
    assert not any("0.0 requests wait" in e.text for e in analysis.bottlenecks[0].evidence)


def pages_of(workload: Workload, flags: EngineFlags, step: StepTimes, seconds: float) -> list[Snapshot]:
    builder = BUILDERS[Engine(flags.engine)]
    return [builder.build(text, "s", time) for time, text in simulate(flags, step, workload, seconds, scrape_every_s=5.0).pages]


def test_a_told_limit_is_at_work_though_the_gauge_stays_one_below_it() -> None:
    """The gauge is written when those that finished in a step have left."""
    workload = Workload(Lengths.uniform(20, 60), Lengths.uniform(5, 20), concurrency=60)
    pages = pages_of(workload, EngineFlags(max_num_seqs=8), StepTimes(base=0.02, per_prefill_token=0.0002), 20)
    below = [page for page in pages if page.gauges[Gauge.RUNNING_REQUESTS] == 7]
    assert len(below) >= 2
    analysis = judged([below[0], below[-1]], config=EngineConfig.of({"max_num_seqs": 8, "max_num_batched_tokens": 2048}))
    assert root(analysis) is Cause.BATCH_LIMIT


def test_less_than_one_running_is_no_batch_limit() -> None:
    workload = Workload(Lengths.uniform(1000, 3000), Lengths.uniform(1, 8), rate=0.9)
    pages = pages_of(workload, EngineFlags(max_num_batched_tokens=64, max_num_seqs=64), StepTimes(), 60)
    analysis = judged([pages[2], pages[-1]])
    assert root(analysis) in (Cause.TOKEN_BUDGET_TOO_SMALL, Cause.PREFILL_COMPUTE)


def test_retraction_is_not_taken_for_a_slower_machine_nor_its_wait_for_prefill() -> None:
    workload = Workload(Lengths.uniform(50, 100), Lengths.uniform(400, 900), concurrency=30)
    flags = EngineFlags(engine="sglang", max_total_tokens=4000, max_model_len=2000, schedule_conservativeness=0.1)
    pages = pages_of(workload, flags, StepTimes(), 70)
    assert root(judged(pages)) is Cause.KV_EXHAUSTED
    assert root(judged([pages[2], pages[-1]])) is Cause.KV_EXHAUSTED


def test_two_requests_are_too_few_for_any_advice(run: Run) -> None:
    pages = run("d_prefill_fixed_r2")
    analyses = [judged(pair) for pair in pairwise(pages)]
    few = [a for a in analyses if a.window and 0 < a.window.count(Hist.E2E_SECONDS) < 5 and a.bottlenecks]
    assert all(a.verdict in (Verdict.WAIT, Verdict.NOTHING_TO_DO, Verdict.NOT_ENOUGH_EVIDENCE) for a in few)


def test_a_single_page_with_one_running_names_no_sequence_limit(run: Run) -> None:
    queued = [page for page in run("d_prefill_bad_r2") if page.gauges[Gauge.WAITING_REQUESTS] >= 3]
    assert queued
    for page in queued:
        analysis = AnalysisEngine().analyze(page)
        assert analysis.bottlenecks
        assert root(analysis) is not Cause.BATCH_LIMIT
