"""What holds for any window."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from perf_service.analysis.engine import AnalysisEngine
from perf_service.models.analysis import Severity
from perf_service.models.config import EngineConfig
from perf_service.models.metrics import Counter, Engine, Gauge, Hist, Histogram
from perf_service.models.window import GaugeStats, Window

BOUNDS = (0.01, 0.1, 1.0, 10.0)
amounts = st.one_of(st.just(0.0), st.floats(1e-6, 1e6))


@st.composite
def histograms(draw: st.DrawFn) -> Histogram:
    counts = draw(st.lists(st.integers(0, 500), min_size=5, max_size=5))
    cumulative = [float(sum(counts[: i + 1])) for i in range(4)]
    total = float(sum(counts))
    mean = draw(st.floats(1e-4, 100.0))
    if draw(st.booleans()):
        return Histogram(total, total * mean)
    return Histogram(total, total * mean, BOUNDS, tuple(cumulative))


@st.composite
def gauge_stats(draw: st.DrawFn) -> GaugeStats:
    values = draw(st.lists(st.one_of(st.just(0.0), st.floats(0, 500)), min_size=1, max_size=5))
    return GaugeStats(
        sum(values) / len(values), min(values), max(values), values[-1], len(values), sum(v > 0 for v in values) / len(values)
    )


@st.composite
def windows(draw: st.DrawFn) -> Window:
    return Window(
        instance_id="x",
        engine=draw(st.sampled_from(Engine)),
        start=None,
        end=None,
        duration_seconds=draw(st.one_of(st.none(), st.floats(1, 1000))),
        scrapes=draw(st.integers(1, 20)),
        gauges=draw(st.dictionaries(st.sampled_from(Gauge), gauge_stats(), max_size=5)),
        counters=draw(st.dictionaries(st.sampled_from(Counter), amounts, max_size=5)),
        histograms=draw(st.dictionaries(st.sampled_from(Hist), histograms(), max_size=7)),
        config=EngineConfig.of(
            draw(st.dictionaries(st.sampled_from(("max_num_seqs", "max_num_batched_tokens", "block_size")), st.integers(1, 4096)))
        ),
        lifetime=draw(st.booleans()),
    )


@settings(max_examples=20, deadline=None)
@given(windows())
def test_any_subset_of_metrics_is_judged_without_a_crash(window: Window) -> None:
    analysis = AnalysisEngine().analyze(window)
    assert analysis.overall_health_score is None or 0.0 <= analysis.overall_health_score <= 100.0
    assert analysis.summary
    for finding in analysis.bottlenecks:
        assert 0.0 <= finding.confidence_ratio <= 1.0
        assert finding.description
        assert finding.recommendation


@settings(max_examples=15, deadline=None)
@given(st.floats(0.001, 1000), st.floats(0.001, 10), st.integers(1, 500))
def test_latency_alone_is_never_high_without_an_objective(ttft: float, itl: float, count: int) -> None:
    found = {Hist.TTFT_SECONDS: Histogram(count, ttft * count), Hist.ITL_SECONDS: Histogram(count, itl * count)}
    analysis = AnalysisEngine().analyze(Window("x", Engine.VLLM, 0.0, 60.0, 60.0, 2, histograms=found))
    assert all(b.severity.rank <= Severity.MEDIUM.rank for b in analysis.bottlenecks)
