"""Windows of real runs and of any run: additive and never negative."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perf_service.collectors.window import overall_window, spans_of, window_between, window_over, windows_of
from perf_service.models.metrics import (
    Counter,
    Gauge,
    Hist,
    IssueCode,
    Snapshot,
)
from tests.support.examples import examples
from tests.support.real_runs import snapshots
from tests.support.small_pages import page


@pytest.mark.parametrize(
    "name",
    [
        "a_healthy",
        "b_queue_bad_r2",
        "c_kv_bad_r2",
        "d_prefill_bad_r2",
        "e_decode_bad",
        "f_prefix_on",
        "g_idle",
        "h_restart",
    ],
)
def test_real_runs_have_no_negative_value_and_add_up(name: str) -> None:
    pages = snapshots(name)
    windows = windows_of(pages)
    spans = spans_of(pages)
    assert len(windows) == sum(len(span) - 1 for span in spans)
    for window in windows:
        assert all(value >= 0 for value in window.counters.values())
        assert window.quality.usable
        for histogram in window.histograms.values():
            assert histogram.sum >= 0
            assert list(histogram.cumulative) == sorted(histogram.cumulative)
            assert not histogram.cumulative or histogram.cumulative[-1] <= histogram.count
    overall = overall_window(pages)
    assert overall is not None
    if len(spans) == 1:
        for counter, value in overall.counters.items():
            assert value == pytest.approx(sum(window.counters[counter] for window in windows))


def test_the_restart_of_a_real_engine_is_seen() -> None:
    spans = spans_of(snapshots("h_restart"))
    assert [len(span) for span in spans] == [5, 5]
    overall = overall_window(snapshots("h_restart"))
    assert overall is not None
    assert overall.quality.has(IssueCode.RESET)


def test_memory_pressure_of_a_real_engine_is_in_the_gauges() -> None:
    window = overall_window(snapshots("c_kv_bad_r2"))
    assert window is not None
    assert window.gauges[Gauge.KV_CACHE_USAGE_RATIO].max > 0.9
    assert window.gauges[Gauge.WAITING_REQUESTS].max >= 10
    assert window.counters[Counter.PREEMPTIONS] > 10


steps = st.lists(
    st.tuples(st.floats(0.1, 60), st.integers(0, 500), st.integers(0, 20), st.integers(0, 5), st.booleans()), min_size=2, max_size=7
)


def run_of(data: list[tuple[float, int, int, int, bool]], restarts: bool) -> list[Snapshot]:
    pages, at, tokens, done, fast, start = [], 2000.0, 0.0, 0.0, 0.0, 1000.0
    for step, more_tokens, more_done, more_fast, restart in data:
        at += step
        if restart and restarts:
            tokens = done = fast = 0.0
            start = at - 0.05
        tokens, done, fast = tokens + more_tokens, done + more_done, fast + min(more_fast, more_done)
        pages.append(page(at, tokens=tokens, done=done, fast=fast, start=start))
    return pages


@given(steps)
@settings(max_examples=examples(25), deadline=None)
def test_windows_add_up(data: list[tuple[float, int, int, int, bool]]) -> None:
    pages = run_of(data, restarts=False)
    whole, parts = window_over(pages), windows_of(pages)
    total: Callable[[Counter], float] = lambda counter: sum(part.counters[counter] for part in parts)  # noqa: E731
    assert whole.counters == pytest.approx({counter: total(counter) for counter in whole.counters})
    histogram = whole.histograms[Hist.E2E_SECONDS]
    assert histogram.count == sum(part.count(Hist.E2E_SECONDS) for part in parts)
    assert histogram.cumulative[0] == sum(part.histograms[Hist.E2E_SECONDS].cumulative[0] for part in parts)
    assert whole.duration_seconds == pytest.approx(sum(part.duration_seconds or 0 for part in parts))


@given(steps, st.randoms(use_true_random=False))
@settings(max_examples=examples(25), deadline=None)
def test_nothing_is_ever_negative(data: list[tuple[float, int, int, int, bool]], random: object) -> None:
    pages = run_of(data, restarts=True)
    getattr(random, "shuffle")(pages)  # noqa: B009
    overall = overall_window(pages)
    assert overall is not None
    for window in [overall, *windows_of(pages), *(window_between(a, b) for a in pages for b in pages[:2])]:
        assert all((window.rate(counter) or 0) >= 0 for counter in Counter)
        assert all(histogram.count >= 0 and histogram.sum >= 0 for histogram in window.histograms.values())
