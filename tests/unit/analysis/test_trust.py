"""The trust gate: what fails is named, and what depends on it is not concluded."""

from __future__ import annotations

from collections.abc import Callable

from perf_service.analysis.engine import AnalysisEngine
from perf_service.models.analysis import Cause, Verdict
from perf_service.models.metrics import Counter, Engine, Gauge, Hist, Histogram, IssueCode, Snapshot
from perf_service.models.window import Window

PHASES = {Hist.QUEUE_SECONDS: 5.0, Hist.PREFILL_SECONDS: 0.1, Hist.DECODE_SECONDS: 1.0, Hist.E2E_SECONDS: 6.1, Hist.TTFT_SECONDS: 5.1}


def test_phases_longer_than_the_whole_are_not_used(window: Callable[..., Window]) -> None:
    analysis = AnalysisEngine().analyze(window({**PHASES, Hist.E2E_SECONDS: 2.0, Hist.TTFT_SECONDS: 0.2}))
    assert analysis.quality.has(IssueCode.CONSERVATION)
    assert Cause.BATCH_LIMIT not in {b.cause for b in analysis.bottlenecks}
    assert all(s.phases is None for s in analysis.slo_statuses)


def test_phases_of_part_of_the_requests_are_not_used(window: Callable[..., Window]) -> None:
    part = window(PHASES, histograms={Hist.QUEUE_SECONDS: Histogram(50, 250.0)})
    assert AnalysisEngine().analyze(part).quality.has(IssueCode.UNDERCOUNT)


def test_gauge_at_zero_under_traffic_is_stale(window: Callable[..., Window]) -> None:
    stale = window({**PHASES, Hist.INFERENCE_SECONDS: 5.0}, {Gauge.RUNNING_REQUESTS: [0] * 6, Gauge.WAITING_REQUESTS: [0] * 6})
    assert AnalysisEngine().analyze(stale).quality.has(IssueCode.STALE)


def test_gauge_far_above_the_finished_requests_is_an_undercount(window: Callable[..., Window]) -> None:
    gauges = {Gauge.RUNNING_REQUESTS: [40] * 6, Gauge.WAITING_REQUESTS: [0] * 6}
    assert AnalysisEngine().analyze(window({**PHASES, Hist.INFERENCE_SECONDS: 1.1}, gauges)).quality.has(IssueCode.UNDERCOUNT)


def test_sound_window_has_no_issue(window: Callable[..., Window]) -> None:
    gauges = {Gauge.RUNNING_REQUESTS: [2, 2, 1, 2, 2], Gauge.WAITING_REQUESTS: [8] * 5}
    assert AnalysisEngine().analyze(window({**PHASES, Hist.INFERENCE_SECONDS: 1.1}, gauges)).quality.issues == ()


def test_few_requests_are_told(window: Callable[..., Window]) -> None:
    assert AnalysisEngine().analyze(window(PHASES, requests=3)).quality.has(IssueCode.FEW_REQUESTS)


def test_page_without_latency_is_told(window: Callable[..., Window]) -> None:
    quality = AnalysisEngine().analyze(window(gauges={Gauge.RUNNING_REQUESTS: [1, 1]}, counters={Counter.GENERATION_TOKENS: 10})).quality
    assert quality.has(IssueCode.MISSING_METRIC)


def test_tokens_that_nobody_asked_for_are_an_undercount(window: Callable[..., Window]) -> None:
    gauges = {Gauge.RUNNING_REQUESTS: [2] * 5}
    means = {**PHASES, Hist.GENERATION_TOKENS: 100}
    whole, half = (
        AnalysisEngine().analyze(window(means, gauges, {Counter.GENERATION_TOKENS: tokens})).quality for tokens in (10_000, 25_000)
    )
    assert not whole.has(IssueCode.UNDERCOUNT)
    assert half.has(IssueCode.UNDERCOUNT)


def test_a_told_limit_that_nothing_ever_reaches_is_refuted_and_not_worked_around(window: Callable[..., Window]) -> None:
    gauges = {Gauge.RUNNING_REQUESTS: [8] * 6, Gauge.WAITING_REQUESTS: [20] * 6, Gauge.KV_CACHE_USAGE_RATIO: [0.1] * 6}
    means = {**PHASES, Hist.INFERENCE_SECONDS: 1.1, Hist.PROMPT_TOKENS: 100, Hist.GENERATION_TOKENS: 100}
    told = {"max_num_seqs": 256, "max_num_batched_tokens": 2048}
    root = AnalysisEngine().analyze(window(means, gauges, requests=440, config=told)).bottlenecks[0]
    assert (root.cause, root.alternative, root.verdict) == (Cause.UNKNOWN, Cause.BATCH_LIMIT, Verdict.NOT_ENOUGH_EVIDENCE)
    assert "contradicted" in root.description
    assert "running process" in root.would_settle
    true = AnalysisEngine().analyze(window(means, gauges, requests=440, config={**told, "max_num_seqs": 8})).bottlenecks[0]
    assert true.cause is Cause.BATCH_LIMIT


def pages_of(*values: tuple[float, float], cpu: bool = True) -> list[Snapshot]:
    """Snapshots with a start time and a number of generated tokens each."""
    return [
        Snapshot(
            "p", Engine.VLLM, 1000.0 + 5 * i,
            gauges={Gauge.RUNNING_REQUESTS: 2.0, Gauge.WAITING_REQUESTS: 0.0},
            counters={Counter.GENERATION_TOKENS: tokens, **({Counter.PROCESS_CPU_SECONDS: tokens} if cpu else {})},
            process_start_time=start,
        )
        for i, (start, tokens) in enumerate(values)
    ]  # fmt: skip


def test_pages_of_several_processes_in_turn_are_not_compared() -> None:
    mixed = AnalysisEngine().analyze(pages_of((1, 500), (90, 100), (1, 600), (90, 150), (1, 700)))
    restarted = AnalysisEngine().analyze(pages_of((1, 500), (1, 600), (90, 10), (90, 150), (90, 300)))
    assert mixed.quality.has(IssueCode.UNDERCOUNT)
    assert (mixed.verdict, mixed.bottlenecks) == (Verdict.NOT_ENOUGH_EVIDENCE, ())
    assert not restarted.quality.has(IssueCode.UNDERCOUNT)


def test_copies_at_the_end_are_stale_and_no_hang() -> None:
    frozen = AnalysisEngine().analyze(pages_of((1, 100), (1, 200), (1, 300), (1, 300), (1, 300), (1, 300)))
    assert frozen.quality.has(IssueCode.STALE)
    assert (frozen.verdict, frozen.bottlenecks) == (Verdict.NOT_ENOUGH_EVIDENCE, ())
