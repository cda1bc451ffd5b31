from __future__ import annotations

import math

import pytest

from perf_service.models.metrics import Counter, Engine, Hist, Histogram
from perf_service.models.window import (
    QuantileKind,
    Window,
    histogram_attainment,
    histogram_quantile,
)

HISTOGRAM = Histogram(count=10, sum=5.0, bounds=(0.1, 0.5, 1.0), cumulative=(2.0, 8.0, 9.0))


def test_quantile_interpolates_within_its_bucket_and_tells_the_bounds() -> None:
    quantile = histogram_quantile(HISTOGRAM, 0.5)
    assert quantile is not None
    assert (quantile.low, quantile.high, quantile.kind) == (0.1, 0.5, QuantileKind.INTERPOLATED)
    assert quantile.value == pytest.approx(0.1 + 0.4 * 3 / 6)


def test_quantile_in_the_lowest_bucket_says_at_most_instead_of_a_made_up_number() -> None:
    quantile = histogram_quantile(HISTOGRAM, 0.1)
    assert quantile is not None
    assert quantile.kind is QuantileKind.AT_MOST
    assert (quantile.value, quantile.low, quantile.high) == (0.1, 0.0, 0.1)


def test_quantile_above_the_highest_bound_says_at_least() -> None:
    quantile = histogram_quantile(HISTOGRAM, 0.99)
    assert quantile is not None
    assert quantile.kind is QuantileKind.AT_LEAST
    assert quantile.value == 1.0
    assert math.isinf(quantile.high)


@pytest.mark.parametrize("histogram", [Histogram(0, 0.0, (1.0,), (0.0,)), Histogram(3, 1.0)])
def test_no_quantile_without_observations_or_buckets(histogram: Histogram) -> None:
    assert histogram_quantile(histogram, 0.5) is None
    assert histogram_attainment(histogram, 1.0) is None


def test_quantile_refuses_a_share_outside_0_to_1() -> None:
    with pytest.raises(ValueError, match=r"within 0\.\.1"):
        histogram_quantile(HISTOGRAM, 1.5)


def test_attainment_is_exact_at_a_bucket_bound_and_bounded_elsewhere() -> None:
    exact = histogram_attainment(HISTOGRAM, 0.5)
    assert exact is not None
    assert exact.exact
    assert exact.ratio == 0.8
    between = histogram_attainment(HISTOGRAM, 0.3)
    assert between is not None
    assert not between.exact
    assert (between.low, between.high) == (0.2, 0.8)
    assert between.ratio == pytest.approx(0.5)
    beyond = histogram_attainment(HISTOGRAM, 5.0)
    assert beyond is not None
    assert (beyond.low, beyond.high) == (0.9, 1.0)


def test_a_window_without_known_time_has_no_rates() -> None:
    window = Window("a", Engine.VLLM, None, None, None, 2, counters={Counter.GENERATION_TOKENS: 100.0})
    assert window.rate(Counter.GENERATION_TOKENS) is None
    assert window.delta(Counter.GENERATION_TOKENS) == 100.0


def test_absent_is_not_zero() -> None:
    window = Window("a", Engine.VLLM, 0.0, 10.0, 10.0, 2)
    assert window.rate(Counter.PREEMPTIONS) is None
    assert window.mean(Hist.TTFT_SECONDS) is None
    assert window.quantile(Hist.TTFT_SECONDS, 0.5) is None
    assert window.attainment(Hist.TTFT_SECONDS, 0.5) is None
