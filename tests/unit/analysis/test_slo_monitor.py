"""Objectives against measurements: both directions, quantiles at the ends, attainment, burn."""

from __future__ import annotations

import math

import pytest

from perf_service.analysis.slo_monitor import evaluate, likely_missed, miss_ratio
from perf_service.models.analysis import SLOState
from perf_service.models.metrics import Counter, Engine, Gauge, Hist, Histogram
from perf_service.models.slo import SLOTarget
from perf_service.models.window import GaugeStats, Window

BOUNDS = (0.1, 0.5, 1.0)


def win(
    *counts: int, total: float = 50.0, counters: dict[Counter, float] | None = None, gauges: dict[Gauge, GaugeStats] | None = None
) -> Window:
    """TTFT counts per bucket (the last beyond 1 s)."""
    cumulative = tuple(float(sum(counts[: i + 1])) for i in range(3))
    found = {Hist.TTFT_SECONDS: Histogram(float(sum(counts)), total, BOUNDS, cumulative)} if counts else {}
    return Window("w", Engine.VLLM, 0.0, 100.0, 100.0, 2, gauges or {}, counters or {}, found)


def one(window: Window, *args: object, **kwargs: object):  # type: ignore[no-untyped-def]
    return evaluate(window, [SLOTarget(*args, **kwargs)])[0]  # type: ignore[arg-type]


def test_absent_is_not_measured() -> None:
    status = one(win(), "ttft", 0.1)
    assert (status.state, status.current_value, status.compliant) == (SLOState.NOT_MEASURED, None, False)


def test_answers_of_one_token_have_no_time_between_tokens() -> None:
    """vLLM counts them in the time per output token, with 0 s."""

    def window(total: float) -> Window:
        return Window(
            "w", Engine.VLLM, 0.0, 1.0, 1.0, 2, histograms={Hist.TPOT_SECONDS: Histogram(10.0, total, BOUNDS, (10.0, 10.0, 10.0))}
        )

    assert [one(window(0.0), name, 0.05).state for name in ("itl", "tpot", "itl_p95")] == [SLOState.NOT_MEASURED] * 3
    assert one(window(0.2), "itl", 0.05).state is SLOState.MET


def test_quantile_below_the_lowest_bound_is_met_when_the_bound_is() -> None:
    assert one(win(100, 0, 0, 0), "ttft_p95", 0.1).compliant
    status = one(win(100, 0, 0, 0), "ttft_p95", 0.05)
    assert status.state is SLOState.UNDECIDED  # it may be met; that is not known
    assert "TTFT p95 is at most 100 ms (the lowest bucket tells no more)" in status.message


def test_quantile_above_the_highest_bound_is_at_least_that() -> None:
    missed, undecided = one(win(10, 0, 0, 90), "ttft_p50", 1.0), one(win(10, 0, 0, 90), "ttft_p50", 5.0)
    assert (missed.state, undecided.state) == (SLOState.MISSED, SLOState.UNDECIDED)
    assert missed.high == math.inf
    assert "more than 1.00 s" in missed.message


def test_a_target_inside_the_bucket_of_the_quantile_is_undecided() -> None:
    status = one(win(40, 30, 30, 0), "ttft_p95", 0.7)
    assert (status.state, status.low, status.high) == (SLOState.UNDECIDED, 0.5, 1.0)
    assert "exact targets beside it: 500 ms and 1.00 s" in status.message
    assert [one(win(40, 30, 30, 0), "ttft_p95", bound).state for bound in (0.5, 1.0)] == [SLOState.MISSED, SLOState.MET]


def test_quantile_needs_buckets() -> None:
    bare = Window("w", Engine.VLLM, 0.0, 1.0, 1.0, 2, histograms={Hist.TTFT_SECONDS: Histogram(10, 1.0)})
    assert one(bare, "ttft_p95", 0.5).state is SLOState.NOT_MEASURED
    assert one(bare, "ttft", 0.5).compliant


def test_attainment_is_exact_at_bounds_and_bounded_elsewhere() -> None:
    exact, inside = (one(win(40, 50, 5, 5), "ttft", bound, objective_ratio=0.8) for bound in (0.5, 0.3))
    assert (exact.attainment_low, exact.attainment_high, exact.state) == (0.9, 0.9, SLOState.MET)
    assert "90.0 % of 100 requests had TTFT within 500 ms, wanted 80.0 %: met." in exact.message
    assert (inside.attainment_low, inside.attainment_high, inside.state) == (0.4, 0.9, SLOState.UNDECIDED)
    assert "40.0 to 90.0 % of 100 requests" in inside.message
    assert "exact targets beside it: 100 ms and 500 ms" in inside.message
    certain = [one(win(40, 50, 5, 5), "ttft", 0.3, objective_ratio=wanted).state for wanted in (0.39, 0.95)]
    assert certain == [SLOState.MET, SLOState.MISSED]


def test_floor_objective() -> None:
    window = win(10, 0, 0, 0, counters={Counter.GENERATION_TOKENS: 1000.0})
    assert one(window, "throughput", 5.0, "greater_than").compliant
    missed = one(window, "throughput", 40.0, "greater_than")
    assert miss_ratio(missed) == pytest.approx(4.0)


def test_error_and_cache_ratios() -> None:
    counters = {
        Counter.REQUESTS_SUCCEEDED: 90.0,
        Counter.REQUESTS_FAILED: 10.0,
        Counter.PREFIX_CACHE_HITS_TOKENS: 3.0,
        Counter.PREFIX_CACHE_QUERIES_TOKENS: 4.0,
    }
    assert one(win(counters=counters), "error_ratio", 0.05).current_value == pytest.approx(0.1)
    assert one(win(counters=counters), "prefix_cache_hit_ratio", 0.5, "greater_than").compliant
    assert one(win(), "prefix_cache_hit_ratio", 0.5, "greater_than").state is SLOState.NOT_MEASURED


def test_below_the_lowest_bound_nothing_is_likely() -> None:
    """What is told there is the bucket's bound: an upper limit is no sign of a miss."""
    window = win(100, 0, 0, 0)
    for status in (one(window, "ttft_p95", 0.05), one(window, "ttft", 0.05, objective_ratio=0.95)):
        assert (status.state, likely_missed(status)) == (SLOState.UNDECIDED, False)
    higher = win(10, 90, 0, 0)
    for status in (one(higher, "ttft_p95", 0.3), one(higher, "ttft", 0.3, objective_ratio=0.95)):
        assert (status.state, likely_missed(status)) == (SLOState.UNDECIDED, True)
