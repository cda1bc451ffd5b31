"""The trust gate: what fails is named, and what depends on it is not concluded."""

from __future__ import annotations

from collections.abc import Callable

from perf_service.analysis.engine import AnalysisEngine
from perf_service.models.analysis import Cause
from perf_service.models.metrics import Counter, Gauge, Hist, Histogram, IssueCode
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
