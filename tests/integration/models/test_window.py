"""Quantiles and attainment of any histogram."""

from hypothesis import given
from hypothesis import strategies as st

from perf_service.models.metrics import Histogram
from perf_service.models.window import (
    histogram_attainment,
    histogram_quantile,
)


@st.composite
def histograms(draw: st.DrawFn) -> Histogram:
    bounds = sorted(draw(st.sets(st.floats(0.001, 1000, allow_nan=False), min_size=1, max_size=8)))
    inside = draw(st.lists(st.integers(0, 50), min_size=len(bounds), max_size=len(bounds)))
    cumulative = [float(sum(inside[: i + 1])) for i in range(len(bounds))]
    count = cumulative[-1] + draw(st.integers(0, 20))
    return Histogram(count, count * 0.5, tuple(bounds), tuple(cumulative))


@given(histograms(), st.floats(0, 1), st.floats(0, 1))
def test_quantiles_grow_with_q_and_lie_within_their_bounds(histogram: Histogram, p: float, q: float) -> None:
    low, high = histogram_quantile(histogram, min(p, q)), histogram_quantile(histogram, max(p, q))
    if low is None or high is None:
        assert histogram.count == 0
        return
    assert low.value <= high.value
    assert low.low <= low.value <= low.high


@given(histograms(), st.floats(0.0001, 2000))
def test_attainment_bounds_hold_the_estimate(histogram: Histogram, bound: float) -> None:
    share = histogram_attainment(histogram, bound)
    if share is not None:
        assert 0.0 <= share.low <= share.ratio + 1e-12
        assert share.ratio <= share.high + 1e-12 <= 1.0 + 2e-12
