"""Windows: what happened between scrapes of one instance. Pure; knows restarts, gaps, stale pages and lost times.

A counter says something only as a difference, and a difference only between two pages of one life of the process. So a
series of pages is first split into spans without a restart; a window never reaches over one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from statistics import median
from typing import Final

from perf_service.collectors.histograms import is_behind, subtracted
from perf_service.collectors.reading import derived_histograms
from perf_service.collectors.restarts import what_changed
from perf_service.models.errors import InvalidArgumentError
from perf_service.models.metrics import (
    Counter,
    DataIssue,
    DataQuality,
    Gauge,
    Hist,
    Histogram,
    IssueCode,
    IssueLevel,
    Snapshot,
)
from perf_service.models.window import GaugeStats, Window

START_TIME_TOLERANCE_SECONDS: Final = 2.0
"""process_start_time_seconds is boot time plus ticks; a clock correction moves it by up to a second without a restart."""
REQUESTS_TELLING: Final = 20.0
"""Finished requests from which the time since a restart is judged, and not a longer one before it."""
GAP_FACTOR: Final = 3.0
"""A pause longer than this many usual intervals is told as a gap."""
_ANCHORS: Final = frozenset(
    {
        Counter.GENERATION_TOKENS,
        Counter.PROMPT_TOKENS,
        Counter.REQUESTS_SUCCEEDED,
        Hist.E2E_SECONDS,
        Hist.TTFT_SECONDS,
        Hist.ITERATION_TOKENS,
    }
)
"""Metrics that cannot fall while the engine lives. Others can when the page's spelling changes under them."""


def window_between(earlier: Snapshot, later: Snapshot) -> Window:
    """The difference of two snapshots of one instance.

    After a restart in between, or when `later` is not later, there are no counters and histograms, and the quality says why.

    Raises:
        InvalidArgumentError: when the snapshots are of different instances or engines.
    """
    return window_over([earlier, later])


def window_over(snapshots: Sequence[Snapshot]) -> Window:
    """One window over consecutive snapshots: counters from the ends, gauges from every page.

    Raises:
        InvalidArgumentError: for fewer than two snapshots, or snapshots of different instances or engines.
    """
    return _window_over(snapshots, any(is_reset(a, b) for a, b in pairwise(snapshots)))


def _window_over(snapshots: Sequence[Snapshot], restarted: bool) -> Window:
    if len(snapshots) < 2:
        raise InvalidArgumentError("a window needs two snapshots or more; see lifetime_window for one", field="snapshots")
    first, last = snapshots[0], snapshots[-1]
    if any(page.instance_id != first.instance_id or page.engine is not first.engine for page in snapshots):
        raise InvalidArgumentError("a window needs snapshots of one instance and one engine", field="snapshots")
    issues = _page_issues(snapshots)
    duration = _duration(snapshots, issues)
    counters: dict[Counter, float] = {}
    histograms: dict[Hist, Histogram] = {}
    derived = {name for page in snapshots for name in page.derived}
    is_ordered = not any(issue.code is IssueCode.OUT_OF_ORDER for issue in issues)
    if restarted:
        text = "The engine restarted inside the window: its counters began anew and give no difference."
        issues.append(DataIssue(IssueCode.RESET, IssueLevel.BLOCKING, text))
    elif is_ordered:
        counters, histograms = _differences(first, last, issues)
        if _is_stale(snapshots):
            text = "Every page of the window has the same values: the page is stale, not the engine quiet."
            issues.append(DataIssue(IssueCode.STALE, IssueLevel.BLOCKING, text))
    return Window(
        instance_id=first.instance_id,
        engine=first.engine,
        start=first.collected_at,
        end=last.collected_at,
        duration_seconds=duration,
        scrapes=len(snapshots),
        gauges=_gauge_stats([page.gauges for page in snapshots]),
        counters=counters,
        histograms=histograms,
        ranks=_rank_stats(snapshots),
        config=last.config.over(first.config),
        engine_version=last.engine_version or first.engine_version,
        model_name=last.model_name or first.model_name,
        derived=tuple(sorted(derived)),
        quality=DataQuality(tuple(issues), last.quality.known_metrics),
    )


def lifetime_window(snapshot: Snapshot) -> Window:
    """What one page tells of the whole time since its process started. Weaker than a window of two pages, and marked so."""
    start, end = snapshot.process_start_time, snapshot.collected_at
    duration = end - start if start is not None and end is not None and end > start else None
    issues = [
        *snapshot.quality.issues,
        DataIssue(
            IssueCode.LIFETIME_ONLY,
            IssueLevel.WARNING,
            "There is one page only: totals cover the whole life of the process, not the present. Take a second page.",
        ),
    ]
    if duration is None:
        text = "The page's time is unknown, so there are no rates."
        issues.append(DataIssue(IssueCode.TIME_UNKNOWN, IssueLevel.WARNING, text))
    return Window(
        instance_id=snapshot.instance_id,
        engine=snapshot.engine,
        start=start if duration is not None else None,
        end=end,
        duration_seconds=duration,
        scrapes=1,
        gauges=_gauge_stats([snapshot.gauges]),
        counters=dict(snapshot.counters),
        histograms=dict(snapshot.histograms),
        ranks=_rank_stats([snapshot]),
        config=snapshot.config,
        engine_version=snapshot.engine_version,
        model_name=snapshot.model_name,
        lifetime=True,
        derived=snapshot.derived,
        quality=DataQuality(tuple(issues), snapshot.quality.known_metrics),
    )


def is_reset(earlier: Snapshot, later: Snapshot) -> bool:
    """Whether the engine restarted between two pages: another start time, or a counter that cannot fall fell."""
    was, now = earlier.process_start_time, later.process_start_time
    if was is not None and now is not None and abs(now - was) > START_TIME_TOLERANCE_SECONDS:
        return True
    fallen = _fallen(earlier, later)
    if not fallen:
        return False
    anchored = _ANCHORS & {*earlier.counters, *earlier.histograms} & {*later.counters, *later.histograms}
    return bool(fallen & _ANCHORS) or not anchored


def spans_of(snapshots: Iterable[Snapshot]) -> list[list[Snapshot]]:
    """The snapshots in the order of time, split where the engine restarted; pages without any known metric are left out.

    Where a time is unknown the given order is kept. A page at the same time as its predecessor is left out.
    """
    pages = [page for page in snapshots if page.quality.usable]
    if all(page.collected_at is not None for page in pages):
        pages.sort(key=lambda page: page.collected_at or 0.0)
    spans: list[list[Snapshot]] = []
    for page in pages:
        previous = spans[-1][-1] if spans else None
        if previous is None or is_reset(previous, page):
            spans.append([page])
        elif page.collected_at is None or page.collected_at != previous.collected_at:
            spans[-1].append(page)
    return spans


def windows_of(snapshots: Iterable[Snapshot]) -> list[Window]:
    """The windows between neighbouring snapshots, none over a restart."""
    return [_window_over(pair, restarted=False) for span in spans_of(snapshots) for pair in pairwise(span)]


def overall_window(snapshots: Iterable[Snapshot]) -> Window | None:
    """One window over the time since the last restart where enough requests finished in it to tell what is now; else over the longest
    span without a restart (the later of two equal ones).

    A lifetime window where no span has two pages, None where no page is usable.
    """
    found = overall_span(snapshots)
    return None if found is None else found[0]


def overall_span(snapshots: Iterable[Snapshot]) -> tuple[Window, list[Snapshot]] | None:
    """As `overall_window`, with the pages that it was made of."""
    given = list(snapshots)
    spans = spans_of(given)
    if not spans:
        return None
    longest = max(spans, key=lambda span: (len(span) > 1, _span_seconds(span), len(span), spans.index(span)))
    tells_enough = len(spans[-1]) > 1 and _finished(spans[-1]) >= REQUESTS_TELLING
    best = spans[-1] if tells_enough else longest
    window = _window_over(best, restarted=False) if len(best) > 1 else lifetime_window(best[-1])
    notes = []
    if len(spans) > 1:
        text = (
            f"The engine restarted {'once' if len(spans) == 2 else f'{len(spans) - 1} times'} between the pages; "
            f"the {'time since' if tells_enough else 'longest span without a restart'} is used, "
            f"{len(best)} of {sum(map(len, spans))} pages."
        )
        changed = next((told for a, b in pairwise(spans) if (told := what_changed(a[-1], b[0]))), "")
        if changed:
            text += f" What differs from one page to the next: {changed}."
        notes.append(DataIssue(IssueCode.RESET, IssueLevel.WARNING, text))
    times = [page.collected_at for page in given if page.collected_at is not None]
    if len(times) == len(given) and times != sorted(times):
        text = "The pages were not in the order of time; they were put in order."
        notes.append(DataIssue(IssueCode.OUT_OF_ORDER, IssueLevel.INFO, text))
    return _with_issues(window, notes), best


def _with_issues(window: Window, issues: list[DataIssue]) -> Window:
    if not issues:
        return window
    return replace(window, quality=window.quality.plus(*issues))


def _finished(span: Sequence[Snapshot]) -> float:
    """Requests that finished within a span, by whichever metric counts most of them."""
    counted = (span[-1].counters.get(Counter.REQUESTS_SUCCEEDED, 0.0) - span[0].counters.get(Counter.REQUESTS_SUCCEEDED, 0.0),)
    timed = (page.histograms[Hist.E2E_SECONDS].count if Hist.E2E_SECONDS in page.histograms else 0.0 for page in (span[-1], span[0]))
    return max(*counted, next(timed) - next(timed))


def _span_seconds(span: Sequence[Snapshot]) -> float:
    start, end = span[0].collected_at, span[-1].collected_at
    return end - start if start is not None and end is not None else 0.0


def _page_issues(snapshots: Sequence[Snapshot]) -> list[DataIssue]:
    """What was wrong with the pages, each kind once. What the last page has was not missing, only not there yet."""
    last = snapshots[-1]
    present = {key.value for key in (*last.gauges, *last.counters, *last.histograms)}
    seen: dict[tuple[IssueCode, str], DataIssue] = {}
    for page in snapshots:
        for issue in page.quality.issues:
            if issue.code is not IssueCode.MISSING_METRIC or issue.metric not in present:
                seen.setdefault((issue.code, issue.metric), issue)
    return list(seen.values())


def _duration(snapshots: Sequence[Snapshot], issues: list[DataIssue]) -> float | None:
    times = [page.collected_at for page in snapshots]
    known = [time for time in times if time is not None]
    if len(known) < len(times):
        text = "The time of the pages is unknown, so there are no rates. Give the interval between them."
        issues.append(DataIssue(IssueCode.TIME_UNKNOWN, IssueLevel.WARNING, text))
        return None
    steps = [b - a for a, b in pairwise(known)]
    if any(step <= 0 for step in steps):
        text = "A page is not later than the one before it: the window has no duration and no differences."
        issues.append(DataIssue(IssueCode.OUT_OF_ORDER, IssueLevel.BLOCKING, text))
        return None
    if len(steps) > 2 and max(steps) > GAP_FACTOR * median(steps):
        text = f"Pages are missing for {max(steps):.0f} s (usually one every {median(steps):.0f} s): gauges were not seen then."
        issues.append(DataIssue(IssueCode.GAP, IssueLevel.WARNING, text))
    return known[-1] - known[0]


def _own(snapshot: Snapshot) -> Mapping[Hist, Histogram]:
    """The histograms that the page carries itself, without those made of others."""
    made = derived_histograms(snapshot.engine, snapshot.histograms)
    if not made:
        return snapshot.histograms
    return {hist: value for hist, value in snapshot.histograms.items() if hist not in made}


def _fallen(earlier: Snapshot, later: Snapshot) -> set[Counter | Hist]:
    fallen: set[Counter | Hist] = {counter for counter, value in earlier.counters.items() if later.counters.get(counter, value) < value}
    now = _own(later)
    for hist, value in _own(earlier).items():
        if hist in now and is_behind(now[hist], value):
            fallen.add(hist)
    return fallen


def _differences(first: Snapshot, last: Snapshot, issues: list[DataIssue]) -> tuple[dict[Counter, float], dict[Hist, Histogram]]:
    before, now = _own(first), _own(last)
    # A labelled series appears with its first event: what a complete page does not carry yet is still zero.
    cut = any(issue.code in (IssueCode.TRUNCATED, IssueCode.MALFORMED_LINES) for issue in first.quality.issues)
    is_complete = bool(first.counters) and not cut
    counters: dict[Counter, float] = {}
    histograms: dict[Hist, Histogram] = {}
    fallen: list[str] = []
    for counter, value in last.counters.items():
        if counter not in first.counters and not is_complete:
            continue
        increase = value - first.counters.get(counter, 0.0)
        if increase < 0:
            fallen.append(counter.value)
        else:
            counters[counter] = increase
    for hist, histogram in now.items():
        base = before.get(hist)
        if base is None and not is_complete:
            continue
        difference = histogram if base is None else subtracted(histogram, base)
        if difference is None:
            fallen.append(hist.value)
            continue
        histograms[hist] = difference
        if base is not None and base.bounds != histogram.bounds:
            text = f"{hist.value} has other buckets than before: only its mean and count are known."
            issues.append(DataIssue(IssueCode.BUCKETS_CHANGED, IssueLevel.WARNING, text, hist.value))
    for name in fallen:
        text = f"{name} fell although the engine did not restart: it is left out."
        issues.append(DataIssue(IssueCode.RESET, IssueLevel.WARNING, text, name))
    for name in [key.value for key in first.counters if key not in last.counters] + [key.value for key in before if key not in now]:
        text = f"{name} is on the first page and not on the last: it is left out."
        issues.append(DataIssue(IssueCode.MISSING_METRIC, IssueLevel.WARNING, text, name))
    histograms.update(derived_histograms(last.engine, histograms))
    return counters, histograms


def _is_stale(snapshots: Sequence[Snapshot]) -> bool:
    """Whether the pages are copies of one page.

    A living process uses CPU for each scrape, so equal CPU seconds settle it. Without that metric (several API processes)
    an idle engine's pages are equal too; then only requests that run without any progress tell.
    """
    first = snapshots[0]
    for page in snapshots[1:]:
        if (page.counters, page.histograms, page.gauges) != (first.counters, first.histograms, first.gauges):
            return False
    if Counter.PROCESS_CPU_SECONDS in first.counters:
        return True
    return first.gauges.get(Gauge.RUNNING_REQUESTS, 0.0) > 0


def _gauge_stats(pages: Sequence[Mapping[Gauge, float]]) -> dict[Gauge, GaugeStats]:
    values: dict[Gauge, list[float]] = {}
    for page in pages:
        for gauge, value in page.items():
            values.setdefault(gauge, []).append(value)
    return {
        gauge: GaugeStats(
            mean=math.fsum(seen) / len(seen),
            min=min(seen),
            max=max(seen),
            last=seen[-1],
            samples=len(seen),
            nonzero_share=sum(value > 0 for value in seen) / len(seen),
        )
        for gauge, seen in values.items()
    }


def _rank_stats(snapshots: Sequence[Snapshot]) -> dict[str, dict[Gauge, GaugeStats]]:
    ranks = dict.fromkeys(rank for page in snapshots for rank in page.ranks)
    return {rank: _gauge_stats([page.ranks[rank] for page in snapshots if rank in page.ranks]) for rank in ranks}
