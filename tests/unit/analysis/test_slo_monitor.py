"""Objectives against measurements: both directions, quantiles at the ends, attainment, burn."""

from __future__ import annotations

import math

import pytest

from perf_service.analysis.slo_monitor import budget_left_ratio, burn_rate, evaluate, miss_ratio
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
    assert status.state is SLOState.MISSED  # it may be met; that is not known
    assert "<= 0.1" in status.message


def test_quantile_above_the_highest_bound_is_at_least_that() -> None:
    status = one(win(10, 0, 0, 90), "ttft_p50", 5.0)
    assert status.state is SLOState.MISSED
    assert status.high == math.inf


def test_quantile_needs_buckets() -> None:
    bare = Window("w", Engine.VLLM, 0.0, 1.0, 1.0, 2, histograms={Hist.TTFT_SECONDS: Histogram(10, 1.0)})
    assert one(bare, "ttft_p95", 0.5).state is SLOState.NOT_MEASURED
    assert one(bare, "ttft", 0.5).compliant


@pytest.mark.parametrize(("bound", "exact", "ratio"), [(0.5, True, 0.9), (0.3, False, 0.65)])
def test_attainment_is_exact_at_bounds(bound: float, exact: bool, ratio: float) -> None:
    status = one(win(40, 50, 5, 5), "ttft", bound, objective_ratio=0.8)
    assert (status.attainment_low == status.attainment_high) is exact
    assert status.attainment_ratio == pytest.approx(ratio)
    assert status.compliant is (ratio >= 0.8)


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


def test_burn_rate_needs_both_windows() -> None:
    target = SLOTarget("ttft", 0.5, objective_ratio=0.99)
    bad, good = win(0, 50, 0, 50), win(0, 100, 0, 0)
    burning = burn_rate(target, bad, bad, 14.4)
    assert burning is not None
    assert burning.alerting
    assert burning.long_rate == pytest.approx(50.0)
    over = burn_rate(target, bad, good, 14.4)
    assert over is not None
    assert not over.alerting
    assert burn_rate(target, bad, win(), 14.4) is None
    assert burn_rate(SLOTarget("ttft", 0.5), bad, bad, 14.4) is None


def test_error_budget_over_windows() -> None:
    target = SLOTarget("ttft", 0.5, objective_ratio=0.9)
    assert budget_left_ratio(target, [win(0, 95, 0, 5), win(0, 95, 0, 5)]) == pytest.approx(0.5)
    assert budget_left_ratio(target, [win(0, 50, 0, 50)]) == pytest.approx(-4.0)
    assert budget_left_ratio(target, []) is None
