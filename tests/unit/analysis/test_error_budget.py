"""Error budgets from pairs of pages: thinning loses nothing, restarts are counted, what is not known is told."""

from __future__ import annotations

import pytest

from perf_service.analysis.error_budget import ALERTS, HORIZONS, PERIOD_SECONDS, Events, error_budget, events_since
from perf_service.models.analysis import BudgetState, ErrorBudget
from perf_service.models.metrics import Counter, Engine, Hist, Histogram, Snapshot
from perf_service.models.slo import SLOTarget

DAY, NOW = 86_400.0, 1_800_000_000.0
BOUNDS = (0.1, 0.5, 1.0)
TARGET = SLOTarget("ttft_p99", 0.5)  # 99 % within 0.5 s: one in a hundred may be slower


def page(at: float, good: float, bad: float, *, begun: float | None = NOW - 90 * DAY, middle: float = 0.0, **more: object) -> Snapshot:
    """Cumulative TTFT: `good` within 0.1 s, `middle` within 0.5 to 1 s, `bad` beyond 1 s."""
    histogram = Histogram(good + middle + bad, 1.0, BOUNDS, (good, good, good + middle))
    counters = {Counter.GENERATION_TOKENS: 10 * (good + middle + bad), Counter.REQUESTS_SUCCEEDED: good + middle + bad}
    return Snapshot("i", Engine.VLLM, at, counters=counters, histograms={Hist.TTFT_SECONDS: histogram}, process_start_time=begun, **more)  # type: ignore[arg-type]


def steady(bad_share: float, *, seconds: float, step: float = 60.0, per_step: float = 100.0) -> list[Snapshot]:
    """Pages up to now of a process that serves so many requests in each step."""
    count = int(seconds / step)
    return [page(NOW - (count - i) * step, per_step * (1 - bad_share) * i, per_step * bad_share * i) for i in range(count + 1)]


def budget_of(*pages: Snapshot, target: SLOTarget = TARGET) -> ErrorBudget:
    found = error_budget(target, {"i": pages}, NOW)
    assert found is not None
    return found


def test_two_pages_of_thirty_days_tell_the_whole_budget() -> None:
    found = budget_of(page(NOW - PERIOD_SECONDS, 0, 0), page(NOW, 99_750, 250))
    assert (found.requests, found.bad_low, found.bad_high, found.covered_seconds) == (100_000, 250, 250, PERIOD_SECONDS)
    assert found.left_low == found.left_high == pytest.approx(0.75)
    assert found.state is BudgetState.OK
    assert "75 % of the error budget left over 30 days (250 of 100,000 requests bad" in found.message


def test_a_restart_does_not_lose_the_requests_after_it() -> None:
    before, after = page(NOW - 2 * DAY, 5000, 50), page(NOW, 900, 100, begun=NOW - DAY)
    found = budget_of(before, after)
    assert (found.requests, found.bad_low, found.covered_seconds) == (1000, 100, DAY)
    assert "over the 24 h that are known of 30 days" in found.message


def test_a_process_younger_than_the_period_is_known_from_its_start() -> None:
    found = budget_of(page(NOW, 990, 10, begun=NOW - 3.2 * DAY))
    assert (found.requests, found.bad_low) == (1000, 10)
    assert "3.2 days that are known of 30 days" in found.message


def test_one_page_of_an_old_process_tells_nothing() -> None:
    found = budget_of(page(NOW, 990, 10))
    assert (found.state, found.left_low, found.exhausted_in_seconds) == (BudgetState.NOT_MEASURED, None, None)


def test_a_target_inside_a_bucket_gives_bounds() -> None:
    pages = page(NOW - PERIOD_SECONDS, 0, 0), page(NOW, 9_800, 40, middle=160)
    found = budget_of(*pages, target=SLOTarget("ttft_p99", 0.75))
    assert (found.bad_low, found.bad_high) == (40, 200)
    assert found.left_low == pytest.approx(-1.0)
    assert found.left_high == pytest.approx(0.6)
    assert found.state is BudgetState.UNDECIDED
    assert "overspent error budget to 60 % left over 30 days" in found.message
    assert "(40 to 200 of 10,000 requests bad, 1 % allowed)" in found.message


def test_a_page_and_a_ticket() -> None:
    """Burning at 20 pages, at 8 warns, at 2 does neither; all of it from the same traffic."""
    states = [budget_of(*steady(share, seconds=7 * 3600)).state for share in (0.2, 0.08)]
    assert states == [BudgetState.FAST_BURN, BudgetState.SLOW_BURN]
    calm = [*steady(0.0, seconds=PERIOD_SECONDS, step=6 * 3600, per_step=36_000.0)][:-1]
    assert budget_of(*calm, page(NOW, 36_000 * 120 - 720, 720)).state is BudgetState.OK


def test_an_alert_ends_soon_after_the_trouble() -> None:
    bad = steady(0.3, seconds=3000.0)
    last = bad[-1].histograms[Hist.TTFT_SECONDS]
    quiet = [page(NOW + 60.0 * i, last.cumulative[0] + 100.0 * i, last.count - last.cumulative[0]) for i in range(1, 12)]
    at = NOW + 660.0
    found = error_budget(TARGET, {"i": [*bad, *quiet]}, at)
    assert found is not None
    assert found.burns[0].long_rate is not None
    assert found.burns[0].long_rate > ALERTS[0].threshold
    assert found.burns[0].short_rate == 0
    assert not found.burns[0].alerting


def test_few_requests_do_not_page() -> None:
    pages = [page(NOW - 600 + 60 * i, 0, 0.2 * i) for i in range(11)]  # two bad ones, of two
    found = budget_of(*pages)
    assert found.burns[0].long_rate == pytest.approx(100.0)
    assert (found.burns[0].alerting, found.state) == (False, BudgetState.OK)


@pytest.mark.parametrize(
    ("covered", "left", "rate", "days"),
    [
        (30.0, 0.5, 5.0, 3.0),  # half of 30 days' budget at 5 times the pace
        (30.0, 0.5, 1.0, None),
        (10.0, 0.5, 6.0, 1.0),  # each further day allows a tenth more
        (30.0, -0.2, 6.0, 0.0),
    ],
)
def test_time_to_exhaustion(covered: float, left: float, rate: float, days: float | None) -> None:
    per_day, allowed = 100_000.0, 0.01
    past = covered - 1 / 24
    bad_last = per_day / 24 * allowed * rate
    bad_past = allowed * per_day * covered * (1 - left) - bad_last
    base = page(NOW - covered * DAY, 0, 0)
    hour = page(NOW - 3600.0, per_day * past - bad_past, bad_past)
    found = budget_of(base, hour, page(NOW, per_day * covered - bad_past - bad_last, bad_past + bad_last))
    assert found.left_low == pytest.approx(left)
    assert found.exhausted_in_seconds == (None if days is None else pytest.approx(days * DAY, rel=1e-6))


def test_a_fleet_is_judged_on_the_sum_of_its_buckets() -> None:
    """One replica alone is over its budget; the fleet, by its requests, is not."""
    pages = {
        "busy": [page(NOW - PERIOD_SECONDS, 0, 0), page(NOW, 9990, 10)],
        "slow": [page(NOW - DAY, 0, 0), page(NOW, 480, 20)],
    }
    found = error_budget(TARGET, pages, NOW)
    assert found is not None
    assert (found.requests, found.bad_low, found.covered_seconds) == (10_500, 30, PERIOD_SECONDS)
    assert found.left_low == pytest.approx(1 - 30 / 105)


def test_errors_and_cache_misses_have_budgets_and_means_and_rates_have_not() -> None:
    def counted(at: float, ok: float, failed: float) -> Snapshot:
        counters = {
            Counter.REQUESTS_SUCCEEDED: ok,
            Counter.REQUESTS_FAILED: failed,
            Counter.PREFIX_CACHE_QUERIES_TOKENS: 100 * ok,
            Counter.PREFIX_CACHE_HITS_TOKENS: 80 * ok,
        }
        return Snapshot("i", Engine.SGLANG, at, counters=counters)

    pages = {"i": [counted(NOW - DAY, 0, 0), counted(NOW, 990, 10)]}
    errors = error_budget(SLOTarget("error_ratio", 0.02), pages, NOW)
    cache = error_budget(SLOTarget("prefix_cache_hit_ratio", 0.5, "greater_than"), pages, NOW)
    assert errors is not None
    assert cache is not None
    assert errors.left_low == pytest.approx(0.5)
    assert cache.left_low == pytest.approx(0.6)
    for target in (SLOTarget("ttft", 0.5), SLOTarget("throughput", 5.0, "greater_than"), SLOTarget("ttft_p100", 0.5)):
        assert error_budget(target, pages, NOW) is None


def test_other_buckets_give_no_difference() -> None:
    moved = Snapshot(
        "i", Engine.VLLM, NOW, counters={Counter.GENERATION_TOKENS: 99.0}, histograms={Hist.TTFT_SECONDS: Histogram(9, 1, (0.2,), (9,))}
    )
    found = events_since([page(NOW - DAY, 5, 0, begun=None), moved], TARGET, NOW - DAY, DAY)
    assert found == Events()


def test_horizons_are_those_of_the_alerts() -> None:
    assert HORIZONS == (PERIOD_SECONDS, 21_600.0, 3600.0, 1800.0, 300.0)
