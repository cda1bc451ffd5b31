"""Error budgets: what an objective still allows over 30 days, and how fast it is used up.

Source: The Site Reliability Workbook (Google, 2018), ch. 5 "Alerting on SLOs": a burn rate of 1 uses up exactly the budget in its
period; a page where it is 14.4 or more over 1 h and over 5 min (2 % of a 30-day budget in an hour), a ticket where it is 6 or more
over 6 h and over 30 min (5 % in six hours). The short window ends the alert soon after the trouble.

Everything is read from pairs of pages, because counters and buckets are cumulative: two pages of one life of the process tell
exactly what happened between them, however many pages in between were thinned away. After a restart the page's own totals count
(they began at 0 in between); what the process did between the last page before a restart and the restart is lost, and told as not
covered. Nothing is guessed for time that is not known. A target inside a bucket gives a lower and an upper bound of the bad requests.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final, NamedTuple

from perf_service.analysis import slo_monitor
from perf_service.analysis import thresholds as t
from perf_service.collectors.window import START_TIME_TOLERANCE_SECONDS, is_reset
from perf_service.models.analysis import BudgetState, BurnRate, ErrorBudget
from perf_service.models.metrics import Counter, Hist, Snapshot
from perf_service.models.slo import Comparison, SLOTarget
from perf_service.models.units import count_of, number, percent, rounded_days, seconds
from perf_service.models.window import histogram_attainment

PERIOD_SECONDS: Final = 30 * 86_400.0


class BurnAlert(NamedTuple):
    """A pair of windows with the rate from which both together are worth an alert."""

    long_seconds: float
    short_seconds: float
    threshold: float
    state: BudgetState


ALERTS: Final = (
    BurnAlert(3600.0, 300.0, t.BURN_CRITICAL.value, BudgetState.FAST_BURN),
    BurnAlert(21_600.0, 1800.0, t.BURN_HIGH.value, BudgetState.SLOW_BURN),
)
HORIZONS: Final = (PERIOD_SECONDS, *sorted({s for alert in ALERTS for s in alert[:2]}, reverse=True))
"""How far back pages are needed, in seconds before now: one page at each of these ages is enough while the process does not restart."""


@dataclass(frozen=True, slots=True)
class Events:
    """Requests of one or more instances, the bad ones within bounds, and the spans of time that are known."""

    requests: float = 0.0
    bad_low: float = 0.0
    bad_high: float = 0.0
    spans: tuple[tuple[float, float], ...] = ()

    def plus(self, other: Events) -> Events:
        """Of both together."""
        return Events(
            self.requests + other.requests, self.bad_low + other.bad_low, self.bad_high + other.bad_high, (*self.spans, *other.spans)
        )

    @property
    def covered_seconds(self) -> float:
        """Length of the time that is known of one instance or more."""
        total, until = 0.0, float("-inf")
        for start, end in sorted(self.spans):
            total += max(0.0, end - max(start, until))
            until = max(until, end)
        return total


class _Reading(NamedTuple):
    """Cumulative counts of one page."""

    requests: float
    bad_low: float
    bad_high: float
    layout: object = None  # readings of different layouts give no difference


_ZERO = _Reading(0.0, 0.0, 0.0)


def has_budget(target: SLOTarget) -> bool:
    """Whether the objective is about a share of events."""
    return slo_monitor.wanted_share(target) is not None


def error_budget(target: SLOTarget, histories: Mapping[str, Iterable[Snapshot]], now: float) -> ErrorBudget | None:
    """The budget of an objective from the pages of each replica, up to `now` (unix seconds). None for an objective without a budget.

    Pages may be as sparse as `HORIZONS`; pages around restarts sharpen the result. Pages without a time are left out.
    """
    wanted = slo_monitor.wanted_share(target)
    if wanted is None:
        return None
    ordered = [_ordered(pages, now) for pages in histories.values()]

    def since(horizon: float) -> Events:
        found = Events()
        for pages in ordered:
            found = found.plus(events_since(pages, target, now - horizon, horizon))
        return found

    allowed = 1.0 - wanted
    burns = tuple(_burn(alert, since(alert.long_seconds), since(alert.short_seconds), allowed) for alert in ALERTS)
    return _budget(target, wanted, since(PERIOD_SECONDS), burns)


def _ordered(pages: Iterable[Snapshot], now: float) -> list[Snapshot]:
    usable = [page for page in pages if page.collected_at is not None and page.collected_at <= now and page.quality.usable]
    return sorted(usable, key=lambda page: page.collected_at or 0.0)


def events_since(pages: Sequence[Snapshot], target: SLOTarget, start: float, horizon: float) -> Events:
    """What happened from `start` (unix seconds) to the last page of one instance; pages in the order of time.

    The page nearest to `start` is the base, at most a horizon before it. Where the process itself began after `start`, its totals
    tell all of it.
    """
    base = _base(pages, start, horizon)
    if base is None:
        return Events()
    found = Events()
    first = pages[base]
    begun = first.process_start_time
    if begun is not None and start <= begun <= _time(first) and (reading := _reading(first, target)) is not None:
        found = found.plus(Events(reading.requests, reading.bad_low, reading.bad_high, ((begun, _time(first)),)))
    for earlier, later in pairwise(pages[base:]):
        found = found.plus(_between(earlier, later, target))
    return found


def _base(pages: Sequence[Snapshot], start: float, horizon: float) -> int | None:
    """The page nearest to `start`; with one page only, that one. A base as old as two horizons would answer another question."""
    near = [i for i, page in enumerate(pages) if _time(page) >= start - horizon]
    usable = near[:-1] or near
    return min(usable, key=lambda i: abs(_time(pages[i]) - start), default=None)


def _between(earlier: Snapshot, later: Snapshot, target: SLOTarget) -> Events:
    after, before = _reading(later, target), _reading(earlier, target)
    if after is None:
        return Events()
    start, end = _time(earlier), _time(later)
    if is_reset(earlier, later):
        begun = later.process_start_time
        is_known = begun is not None and start - START_TIME_TOLERANCE_SECONDS <= begun <= end
        spans = ((max(start, begun), end),) if is_known and begun is not None else ()
        return Events(after.requests, after.bad_low, after.bad_high, spans)
    if before is None:
        if not earlier.counters:
            return Events()
        before = _ZERO  # a labelled series appears with its first event: what a complete page does not carry yet is still zero
    elif before.layout != after.layout:
        return Events()
    requests, low, high = after.requests - before.requests, after.bad_low - before.bad_low, after.bad_high - before.bad_high
    if min(requests, low, high) < 0:
        return Events()
    return Events(requests, low, max(low, high), ((start, end),))


def _reading(page: Snapshot, target: SLOTarget) -> _Reading | None:
    hist = target.histogram
    if hist is None:
        return _counted(page, target)
    for name in (hist, *slo_monitor.substitutes(hist)):
        found = page.histograms.get(name)
        if found is None or not found.bounds:
            continue
        share = histogram_attainment(found, target.target_value)
        if share is None:
            return _Reading(0.0, 0.0, 0.0, (name, found.bounds))
        low, high = found.count * share.low, found.count * share.high
        if target.comparison is Comparison.LESS_THAN:
            low, high = found.count - high, found.count - low
        return _Reading(found.count, low, high, (name, found.bounds))
    return None


def _counted(page: Snapshot, target: SLOTarget) -> _Reading | None:
    """Objectives on a ratio of counters: failed requests, prefix cache misses (in tokens)."""
    get = page.counters.get
    if target.base_metric == "prefix_cache_hit_ratio":
        asked, hits = get(Counter.PREFIX_CACHE_QUERIES_TOKENS), get(Counter.PREFIX_CACHE_HITS_TOKENS)
        return None if asked is None or hits is None else _Reading(asked, asked - hits, asked - hits)
    whole = page.histograms.get(Hist.E2E_SECONDS)
    done = get(Counter.REQUESTS_SUCCEEDED, whole.count if whole else None)
    if done is None:
        return None
    bad = max(get(Counter.REQUESTS_FAILED, 0.0) + get(Counter.REQUESTS_REJECTED, 0.0), get(Counter.HTTP_5XX_RESPONSES, 0.0))
    return _Reading(done + bad, bad, bad)


def _time(page: Snapshot) -> float:
    return page.collected_at or 0.0


def _burn(alert: BurnAlert, long: Events, short: Events, allowed: float) -> BurnRate:
    def rate(bad: float, requests: float) -> float | None:
        return bad / requests / allowed if requests > 0 else None

    low, high = rate(long.bad_low, long.requests), rate(long.bad_high, long.requests)
    short_low, short_high = rate(short.bad_low, short.requests), rate(short.bad_high, short.requests)
    return BurnRate(
        long_seconds=alert.long_seconds,
        short_seconds=alert.short_seconds,
        threshold=alert.threshold,
        long_rate=low,
        short_rate=short_low,
        long_rate_high=high,
        short_rate_high=short_high,
        covered_seconds=min(alert.long_seconds, long.covered_seconds),
        requests=long.requests,
        # Of a few requests one bad one is a large share: fewer than EVENTS_MIN are chance. And what is known for a moment only,
        # as after a start, is not the long window's rate.
        alerting=_both(low, short_low, alert) and long.bad_low >= t.EVENTS_MIN.value and long.covered_seconds >= alert.short_seconds,
    )


def _both(long: float | None, short: float | None, alert: BurnAlert) -> bool:
    return long is not None and short is not None and min(long, short) >= alert.threshold


def _budget(target: SLOTarget, wanted: float, known: Events, burns: tuple[BurnRate, ...]) -> ErrorBudget:
    allowed, covered = (1.0 - wanted) * known.requests, min(PERIOD_SECONDS, known.covered_seconds)
    left = (1.0 - known.bad_high / allowed, 1.0 - known.bad_low / allowed) if allowed > 0 else None
    rate = next((burn.long_rate_high for burn in burns if burn.long_rate_high is not None), None)
    budget = ErrorBudget(
        objective_ratio=wanted,
        period_seconds=PERIOD_SECONDS,
        covered_seconds=covered,
        requests=known.requests,
        bad_low=known.bad_low,
        bad_high=known.bad_high,
        left_low=left[0] if left else None,
        left_high=left[1] if left else None,
        exhausted_in_seconds=_exhausted_in(left[0], covered, rate) if left and rate is not None else None,
        burns=burns,
        state=_state(known, left, burns),
    )
    return _told(budget, rate, slo_monitor.event_of(target))


def _exhausted_in(left: float, covered: float, rate: float) -> float | None:
    """Seconds until the budget is spent at this rate and the traffic known so far, if no bad request leaves the period before.

    While less than the period is known, each further second allows more too: left x covered / (rate - 1). From then on it does not:
    (period - covered x (1 - left)) / rate.
    """
    if left <= 0:
        return 0.0
    if rate <= 1.0:
        return None
    growing = left * covered / (rate - 1.0)
    return growing if covered + growing <= PERIOD_SECONDS else (PERIOD_SECONDS - covered * (1.0 - left)) / rate


def _state(known: Events, left: tuple[float, float] | None, burns: tuple[BurnRate, ...]) -> BudgetState:
    if left is None:
        return BudgetState.NOT_MEASURED
    pairs = list(zip(ALERTS, burns, strict=True))
    alerting = next((alert.state for alert, burn in pairs if burn.alerting), None)
    if alerting is not None:
        return alerting
    if left[1] <= 0 and known.bad_low >= t.EVENTS_MIN.value:
        return BudgetState.EXHAUSTED
    is_enough = known.bad_high >= t.EVENTS_MIN.value
    may_burn = any(_both(burn.long_rate_high, burn.short_rate_high, alert) and not _both(burn.long_rate, burn.short_rate, alert)
                   for alert, burn in pairs)  # fmt: skip
    if is_enough and known.bad_low != known.bad_high and (may_burn or left[0] <= 0 < left[1]):
        return BudgetState.UNDECIDED
    return BudgetState.OK


def _told(budget: ErrorBudget, rate: float | None, event: str) -> ErrorBudget:
    """The budget with its sentence."""
    if budget.left_low is None or budget.left_high is None:
        return replace(budget, message=f"No {event} is known in the last {rounded_days(budget.period_seconds)}.")
    known = rounded_days(budget.period_seconds)
    if budget.covered_seconds < 0.98 * budget.period_seconds:
        known = f"the {seconds(budget.covered_seconds)} that are known of {known}"
    is_exact = budget.bad_low == budget.bad_high
    bad = f"{budget.bad_low:,.0f}" if is_exact else f"{budget.bad_low:,.0f} to {budget.bad_high:,.0f}"
    used = f"{bad} of {count_of(budget.requests, event)} bad, {100 * (1 - budget.objective_ratio):.3g} % allowed"
    if budget.left_high <= 0:
        head = f"the error budget is overspent: {1.0 - budget.left_high:.3g} times what is allowed over {known}"
    elif budget.left_low < 0:
        head = (
            f"anything from an overspent error budget to {_share(budget.left_high)} left over {known}, as the target lies inside a bucket"
        )
    else:
        low, high = _share(budget.left_low), _share(budget.left_high)
        head = f"{high if low == high else f'{low} to {high}'} of the error budget left over {known}"
    head = f"{head[0].upper()}{head[1:]} ({used})"
    if budget.state in (BudgetState.FAST_BURN, BudgetState.SLOW_BURN) or (rate is not None and rate > 1.0):
        head += f"; it burns {number(rate)} times as fast as allowed"
        if budget.exhausted_in_seconds:
            head += f" and is spent in {seconds(budget.exhausted_in_seconds)} at this rate"
    return replace(budget, message=f"{head}.")


def _share(value: float) -> str:
    """Whole percents, and finer only below ten."""
    return f"{100 * value:.0f} %" if abs(value) >= 0.1 or value == 0 else percent(value)
