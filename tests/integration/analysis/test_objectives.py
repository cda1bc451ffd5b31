"""Objectives and budgets over drawn histograms and histories."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perf_service.analysis.error_budget import _exhausted_in, events_since
from perf_service.analysis.slo_monitor import evaluate, wanted_share
from perf_service.models.analysis import SLOState, SLOStatus
from perf_service.models.metrics import Counter, Engine, Hist, Histogram, Snapshot
from perf_service.models.slo import SLOTarget
from perf_service.models.window import Window

DAY, NOW = 86_400.0, 1_800_000_000.0
BOUNDS = (0.1, 0.5, 1.0)
TARGET = SLOTarget("ttft_p99", 0.5)


def page(at: float, good: float, bad: float, *, begun: float | None = NOW - 90 * DAY, middle: float = 0.0, **more: object) -> Snapshot:
    """Cumulative TTFT: `good` within 0.1 s, `middle` within 0.5 to 1 s, `bad` beyond 1 s."""
    histogram = Histogram(good + middle + bad, 1.0, BOUNDS, (good, good, good + middle))
    counters = {Counter.GENERATION_TOKENS: 10 * (good + middle + bad), Counter.REQUESTS_SUCCEEDED: good + middle + bad}
    return Snapshot("i", Engine.VLLM, at, counters=counters, histograms={Hist.TTFT_SECONDS: histogram}, process_start_time=begun, **more)  # type: ignore[arg-type]


def win(*counts: int) -> Window:
    """TTFT counts per bucket (the last beyond 1 s)."""
    cumulative = tuple(float(sum(counts[: i + 1])) for i in range(3))
    return Window(
        "w", Engine.VLLM, 0.0, 100.0, 100.0, 2, histograms={Hist.TTFT_SECONDS: Histogram(float(sum(counts)), 50.0, BOUNDS, cumulative)}
    )


def one(window: Window, *args: object, **kwargs: object) -> SLOStatus:
    return evaluate(window, [SLOTarget(*args, **kwargs)])[0]  # type: ignore[arg-type]


@settings(max_examples=80, deadline=None)
@given(
    counts=st.tuples(*[st.integers(0, 40)] * 4).filter(any),
    bound=st.sampled_from([0.05, 0.1, 0.3, 0.5, 0.7, 1.0, 3.0]),
    percent=st.sampled_from([1, 50, 90, 95, 99]),
    side=st.sampled_from(["less_than", "greater_than"]),
)
def test_a_quantile_is_judged_as_the_attainment_that_it_is(counts: tuple[int, ...], bound: float, percent: int, side: str) -> None:
    """`ttft_p95 < 0.5` says that 95 % lie within 0.5 s. Where a share is exactly the wanted one rounding may decide."""
    window = win(*counts)
    wanted = percent / 100 if side == "less_than" else 1 - percent / 100
    quantile = one(window, f"ttft_p{percent}", bound, side)
    share = one(window, "ttft", bound, side, objective_ratio=wanted)
    edge = any(abs(sum(counts[: i + 1]) / sum(counts) - percent / 100) < 1e-9 for i in range(4))
    assert quantile.state is share.state or edge
    assert wanted_share(quantile.target) == pytest.approx(wanted)
    if bound in BOUNDS:
        assert share.state is not SLOState.UNDECIDED
        assert share.attainment_low == share.attainment_high


@settings(max_examples=40, deadline=None)
@given(kept=st.sets(st.integers(1, 39)), restarts=st.sets(st.integers(2, 38), max_size=3))
def test_thinning_loses_nothing_as_long_as_the_pages_around_restarts_stay(kept: set[int], restarts: set[int]) -> None:
    pages, good, bad, begun = [], 0.0, 0.0, NOW - 99 * DAY
    for i in range(41):
        at = NOW - (40 - i) * 3600.0
        if i in restarts:
            good, bad, begun = 0.0, 0.0, at - 1800.0
        good, bad = good + 90.0, bad + 10.0
        pages.append(page(at, good, bad, begun=begun))
    around = {i - 1 for i in restarts} | restarts | {0, 40}
    thinned = [p for i, p in enumerate(pages) if i in kept | around]
    full, thin = (events_since(some, TARGET, NOW - DAY * 3, DAY * 3) for some in (pages, thinned))
    assert (thin.requests, thin.bad_low) == (full.requests, full.bad_low) == (4000.0, 400.0)
    # Half an hour around each restart is not covered: nobody saw the end of the old process.
    assert thin.covered_seconds == full.covered_seconds == pytest.approx(40 * 3600.0 - 1800.0 * len(restarts))


@settings(max_examples=60, deadline=None)
@given(left=st.floats(0.01, 1.0), covered=st.floats(0.1, 30.0), rate=st.floats(1.01, 50.0))
def test_exhaustion_is_when_the_budget_is_spent(left: float, covered: float, rate: float) -> None:
    """Checked against the budget itself, in days: bad requests grow at `rate`, what is allowed grows until the period is full."""
    found = _exhausted_in(left, covered * DAY, rate)
    assert found is not None
    days = found / DAY
    bad, allowed = covered * (1 - left) + rate * days, min(30.0, covered + days)
    assert math.isclose(bad, allowed, rel_tol=1e-6)
