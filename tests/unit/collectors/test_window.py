"""Windows: additive, never negative, and silent where nothing can be said."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from perf_service.collectors.snapshot import snapshot_of
from perf_service.collectors.window import is_reset, lifetime_window, overall_window, spans_of, window_between, window_over
from perf_service.models.config import EngineConfig
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
)
from perf_service.models.window import QuantileKind
from tests.support.small_pages import page


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


def test_what_differs_over_a_restart_is_told() -> None:
    old = [replace(page(1100 + n, tokens=n), model_name="small", config=EngineConfig.of({"block_size": 16})) for n in range(2)]
    new = [replace(page(1200 + n, tokens=n, start=1190), model_name="big", config=EngineConfig.of({"block_size": 32})) for n in range(3)]
    window = overall_window([*old, *new])
    assert window is not None
    (note,) = [issue.message for issue in window.quality.issues if issue.code is IssueCode.RESET]
    assert (
        "the model (small -> big), block_size (16 -> 32), the start of the process (1970-01-01 00:16:40 -> 1970-01-01 00:19:50 UTC)" in note
    )


def test_the_time_since_a_restart_is_what_is_now_once_it_tells_enough() -> None:
    """An engine that was restarted with other flags is judged by these, however long it ran with the old ones."""
    before = [page(1100 + 10 * n, tokens=100 * n, done=10 * n) for n in range(9)]
    for done, start in ((30, 1200), (10, 1100)):
        after = [page(1200 + 10 * n, tokens=100 * n, done=done * n // 2, start=1190) for n in range(3)]
        window = overall_window([*before, *after])
        assert window is not None
        assert window.start == start
        assert window.quality.has(IssueCode.RESET)
