"""Windows: additive, never negative, and silent where nothing can be said."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perf_service.collectors.snapshot import SnapshotBuilder, snapshot_of
from perf_service.collectors.window import is_reset, lifetime_window, overall_window, spans_of, window_between, window_over, windows_of
from perf_service.models.errors import InvalidArgumentError
from perf_service.models.metrics import (
    Counter,
    DataIssue,
    DataQuality,
    Engine,
    Gauge,
    Hist,
    Histogram,
    IssueCode,
    IssueLevel,
    Snapshot,
)
from perf_service.models.window import QuantileKind
from tests.support.examples import examples

TEXT = """
vllm:num_requests_running {running}
vllm:generation_tokens_total {tokens}
vllm:request_success_total{{finished_reason="stop"}} {done}
vllm:e2e_request_latency_seconds_bucket{{le="1"}} {fast}
vllm:e2e_request_latency_seconds_bucket{{le="+Inf"}} {done}
vllm:e2e_request_latency_seconds_sum {seconds}
vllm:e2e_request_latency_seconds_count {done}
process_cpu_seconds_total {cpu}
process_start_time_seconds {start}
"""


def page(
    at: float | None,
    *,
    tokens: float = 0,
    done: float = 0,
    fast: float = 0,
    running: float = 1,
    cpu: float | None = None,
    start: float = 1000.0,
) -> Snapshot:
    text = TEXT.format(
        running=running,
        tokens=tokens,
        done=done,
        fast=min(fast, done),
        seconds=done * 2.0,
        cpu=(at or 0) / 10 if cpu is None else cpu,
        start=start,
    )
    return snapshot_of(text, "i", engine=Engine.VLLM, collected_at=at)


def load(folder: Path) -> list[Snapshot]:
    builder = SnapshotBuilder(Engine.VLLM)
    entries = [json.loads(line) for line in (folder / "scrapes.jsonl").read_text().splitlines()]
    return [
        builder.build(gzip.decompress((folder / entry["file"]).read_bytes()), folder.name, entry["t_unix"])
        for entry in entries
        if entry["file"]
    ]


def codes(issues: tuple[DataIssue, ...]) -> set[IssueCode]:
    return {issue.code for issue in issues} - {IssueCode.MISSING_METRIC}


def test_a_difference_has_rates_means_and_quantiles() -> None:
    window = window_between(page(1100, tokens=100, done=10, fast=4), page(1110, tokens=600, done=30, fast=14, running=3))
    assert window.duration_seconds == 10
    assert window.rate(Counter.GENERATION_TOKENS) == 50
    assert window.delta(Counter.REQUESTS_SUCCEEDED) == 20
    assert window.mean(Hist.E2E_SECONDS) == 2.0
    assert window.histograms[Hist.E2E_SECONDS].cumulative == (10.0,)
    median = window.quantile(Hist.E2E_SECONDS, 0.5)
    assert median is not None
    assert (median.kind, median.high) == (QuantileKind.AT_MOST, 1.0)
    tail = window.quantile(Hist.E2E_SECONDS, 0.99)
    assert tail is not None
    assert (tail.kind, tail.low, tail.high) == (QuantileKind.AT_LEAST, 1.0, math.inf)
    running = window.gauges[Gauge.RUNNING_REQUESTS]
    assert (running.mean, running.min, running.max, running.last, running.samples) == (2, 1, 3, 3, 2)
    assert codes(window.quality.issues) == set()
    assert not window.lifetime


def test_gauges_are_taken_from_every_page_of_a_span() -> None:
    pages = [page(1100 + 10 * n, tokens=n, running=running) for n, running in enumerate((0, 4, 2, 0))]
    running = window_over(pages).gauges[Gauge.RUNNING_REQUESTS]
    assert (running.mean, running.max, running.last, running.samples, running.nonzero_share) == (1.5, 4, 0, 4, 0.5)


def test_a_restart_gives_no_differences() -> None:
    window = window_between(page(1100, tokens=100, done=10), page(1200, tokens=700, done=12, start=1150.0))
    assert window.counters == {}
    assert window.histograms == {}
    assert window.rate(Counter.GENERATION_TOKENS) is None
    assert not window.quality.usable
    assert window.quality.has(IssueCode.RESET)


def test_a_fallen_counter_is_a_restart_even_without_start_times() -> None:
    earlier, later = (replace(snapshot, process_start_time=None) for snapshot in (page(1100, tokens=100), page(1110, tokens=50)))
    assert is_reset(earlier, later)
    assert not is_reset(earlier, replace(later, counters=earlier.counters))


def test_a_moved_clock_is_not_a_restart() -> None:
    assert not is_reset(page(1100, tokens=1), page(1110, tokens=2, start=1000.9))


def test_one_side_metric_that_falls_is_left_out_alone() -> None:
    earlier = replace(page(1100, tokens=1), counters={Counter.GENERATION_TOKENS: 1.0, Counter.PREFIX_CACHE_QUERIES_TOKENS: 50.0})
    later = replace(page(1110, tokens=2), counters={Counter.GENERATION_TOKENS: 2.0, Counter.PREFIX_CACHE_QUERIES_TOKENS: 40.0})
    window = window_between(earlier, later)
    assert window.counters == {Counter.GENERATION_TOKENS: 1.0}
    assert [issue.metric for issue in window.quality.issues if issue.code is IssueCode.RESET] == ["prefix_cache_queries_tokens"]
    assert window.quality.usable


def test_unknown_times_give_differences_without_rates() -> None:
    window = window_between(page(None, tokens=100, cpu=1), page(None, tokens=150, cpu=2))
    assert window.delta(Counter.GENERATION_TOKENS) == 50
    assert window.rate(Counter.GENERATION_TOKENS) is None
    assert window.duration_seconds is None
    assert window.quality.has(IssueCode.TIME_UNKNOWN)


@pytest.mark.parametrize("second", [1100.0, 1090.0])
def test_time_that_does_not_advance_gives_nothing(second: float) -> None:
    window = window_between(page(1100, tokens=100), page(second, tokens=150, cpu=200))
    assert window.counters == {}
    assert window.duration_seconds is None
    assert window.quality.has(IssueCode.OUT_OF_ORDER)
    assert not window.quality.usable


def test_copies_of_one_page_are_stale() -> None:
    assert window_between(page(1100, tokens=5, cpu=7), page(1110, tokens=5, cpu=7)).quality.has(IssueCode.STALE)


def test_an_idle_engine_is_not_stale() -> None:
    assert not window_between(page(1100, running=0, cpu=7.0), page(1110, running=0, cpu=7.01)).quality.has(IssueCode.STALE)


@pytest.mark.parametrize(("running", "is_stale"), [(0, False), (2, True)])
def test_without_cpu_seconds_only_requests_without_progress_tell(running: float, is_stale: bool) -> None:
    text = f"vllm:num_requests_running {running}\nvllm:generation_tokens_total 5\n"
    pages = [snapshot_of(text, "i", collected_at=at) for at in (1.0, 2.0)]
    assert window_over(pages).quality.has(IssueCode.STALE) is is_stale


def test_a_gap_is_told() -> None:
    times = [1100, 1102, 1104, 1106, 1160, 1162]
    window = window_over([page(at, tokens=at) for at in times])
    (gap,) = [issue for issue in window.quality.issues if issue.code is IssueCode.GAP]
    assert "54 s" in gap.message
    assert "every 2 s" in gap.message


def test_changed_buckets_leave_mean_and_count() -> None:
    earlier, later = page(1100, tokens=1, done=10), page(1110, tokens=2, done=30)
    other = Histogram(30, 60.0, (5.0,), (30.0,))
    window = window_between(earlier, replace(later, histograms={Hist.E2E_SECONDS: other}))
    assert window.mean(Hist.E2E_SECONDS) == 2.0
    assert window.quantile(Hist.E2E_SECONDS, 0.5) is None
    assert window.quality.has(IssueCode.BUCKETS_CHANGED)


def test_a_metric_that_appears_began_at_zero_and_one_that_vanishes_is_left_out() -> None:
    earlier = replace(page(1100, tokens=1), counters={Counter.GENERATION_TOKENS: 1.0, Counter.PREEMPTIONS: 4.0})
    later = replace(page(1110, tokens=2), counters={Counter.GENERATION_TOKENS: 2.0, Counter.REQUESTS_ABORTED: 3.0})
    window = window_between(earlier, later)
    assert window.counters == {Counter.GENERATION_TOKENS: 1.0, Counter.REQUESTS_ABORTED: 3.0}
    assert [issue.metric for issue in window.quality.issues if "not on the last" in issue.message] == ["preemptions"]


def test_what_the_first_page_did_not_have_yet_is_not_missing() -> None:
    empty = snapshot_of("vllm:num_requests_running 0\nvllm:prompt_tokens_total 0\n", "i", collected_at=1000.0)
    window = window_between(empty, page(1110, tokens=2, done=10))
    missing = {issue.metric for issue in window.quality.issues if issue.code is IssueCode.MISSING_METRIC}
    assert "generation_tokens" not in missing
    assert {"kv_cache_usage_ratio", "prompt_tokens"} <= missing


def test_a_metric_after_a_cut_page_is_not_invented() -> None:
    cut = DataQuality((DataIssue(IssueCode.TRUNCATED, IssueLevel.WARNING, "cut"),))
    earlier = replace(page(1100, tokens=1), counters={Counter.PROMPT_TOKENS: 1.0}, histograms={}, quality=cut)
    window = window_between(earlier, page(1110, tokens=900, done=5))
    assert Counter.GENERATION_TOKENS not in window.counters
    assert window.histograms == {}


def test_derived_histograms_are_made_of_differences(fixtures: Path) -> None:
    text = (fixtures / "dialects/tgi-3.3.7.prom").read_text()
    earlier = snapshot_of(text, "i", collected_at=1.0)
    later = snapshot_of(
        text.replace("tgi_request_queue_duration_count 9.0", "tgi_request_queue_duration_count 19.0")
        .replace("tgi_request_queue_duration_sum 1.8", "tgi_request_queue_duration_sum 31.8")
        .replace('tgi_request_queue_duration_bucket{le="+Inf"} 9.0', 'tgi_request_queue_duration_bucket{le="+Inf"} 19.0'),
        "i",
        collected_at=2.0,
    )
    window = window_between(earlier, later)
    # Ten requests that waited 3 s each; nothing else happened, so nothing else is in it.
    assert window.mean(Hist.TTFT_SECONDS) == pytest.approx(3.0)
    assert "ttft_seconds" in window.derived


def test_windows_need_two_pages_of_one_instance() -> None:
    with pytest.raises(InvalidArgumentError, match="two snapshots"):
        window_over([page(1.0)])
    with pytest.raises(InvalidArgumentError, match="one instance"):
        window_between(page(1.0), replace(page(2.0), instance_id="other"))


def test_a_single_page_gives_lifetime_totals_marked_as_such() -> None:
    window = lifetime_window(page(1100, tokens=500, done=10))
    assert window.lifetime
    assert window.duration_seconds == 100
    assert window.rate(Counter.GENERATION_TOKENS) == 5
    assert window.quality.has(IssueCode.LIFETIME_ONLY)
    unknown = lifetime_window(page(None, tokens=500))
    assert unknown.rate(Counter.GENERATION_TOKENS) is None
    assert unknown.quality.has(IssueCode.TIME_UNKNOWN)


def test_spans_are_ordered_split_and_cleaned() -> None:
    unusable = snapshot_of("nothing 1\n", "i", engine=Engine.VLLM, collected_at=1105.0)
    pages = [page(1110, tokens=2), page(1100, tokens=1), unusable, page(1110, tokens=2), page(1200, tokens=1, start=1190)]
    assert [[snapshot.collected_at for snapshot in span] for span in spans_of(pages)] == [[1100, 1110], [1200]]
    assert spans_of([]) == []


def test_overall_picks_the_longest_span_and_tells() -> None:
    before = [page(1100 + n, tokens=n) for n in range(3)]
    after = [page(1200 + n, tokens=n, start=1190) for n in range(6)]
    window = overall_window([*after, *before])
    assert window is not None
    assert (window.start, window.scrapes) == (1200, 6)
    assert window.quality.usable
    assert {IssueCode.RESET, IssueCode.OUT_OF_ORDER} <= codes(window.quality.issues)


def test_overall_falls_back_to_one_page_and_to_nothing() -> None:
    only = overall_window([page(1100, tokens=5)])
    assert only is not None
    assert only.lifetime
    assert overall_window([snapshot_of("nothing 1\n", "i", engine=Engine.VLLM)]) is None


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
def test_real_runs_have_no_negative_value_and_add_up(captures: Path, name: str) -> None:
    pages = load(captures / name)
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


def test_the_restart_of_a_real_engine_is_seen(captures: Path) -> None:
    spans = spans_of(load(captures / "h_restart"))
    assert [len(span) for span in spans] == [5, 5]
    overall = overall_window(load(captures / "h_restart"))
    assert overall is not None
    assert overall.quality.has(IssueCode.RESET)


def test_memory_pressure_of_a_real_engine_is_in_the_gauges(captures: Path) -> None:
    window = overall_window(load(captures / "c_kv_bad_r2"))
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
