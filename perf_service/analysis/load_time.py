"""When there was load: of pages that reach beyond it, only those under load are judged, and it is told that it is over."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from perf_service.analysis import thresholds as t
from perf_service.collectors.window import window_over
from perf_service.models.analysis import Analysis, Cause, Verdict
from perf_service.models.metrics import Counter, DataIssue, Gauge, Hist, IssueCode, IssueLevel, Snapshot
from perf_service.models.units import seconds
from perf_service.models.window import Window

_MOVES: tuple[Counter | Hist, ...] = (
    Counter.GENERATION_TOKENS,
    Counter.PROMPT_TOKENS,
    Counter.REQUESTS_SUCCEEDED,
    Counter.REQUESTS_FAILED,
    Counter.REQUESTS_ABORTED,
    Counter.REQUESTS_REJECTED,
    Counter.HTTP_4XX_RESPONSES,
    Counter.HTTP_5XX_RESPONSES,
    Hist.TTFT_SECONDS,
    Hist.E2E_SECONDS,
)


@dataclass(frozen=True, slots=True)
class LoadTime:
    """Unix seconds of the last page before any load and of the first one after it; `ended_seconds_ago` before the last page of all,
    None where load lasted until then."""

    start: float
    end: float
    ended_seconds_ago: float | None

    def of(self, window: Window, pages: list[Snapshot]) -> tuple[Window, list[Snapshot]]:
        """The pages of that time and the window over them, with what was said of the whole; as they are where fewer than two are left."""
        some = [page for page in pages if page.collected_at is not None and self.start <= page.collected_at <= self.end]
        if len(some) < 2:
            return window, pages
        part = window_over(some)
        return replace(part, quality=part.quality.plus(*(i for i in window.quality.issues if i not in part.quality.issues))), some

    def told(self, analysis: Analysis) -> Analysis:
        """The analysis of that time with the word that it is over; nobody is sent for capacity afterwards."""
        note = self.note
        analysis = replace(analysis, quality=analysis.quality.plus(note))
        if self.ended_seconds_ago is None:
            return analysis
        too_large = analysis.root_cause is not None and analysis.root_cause.cause is Cause.UNDER_USE  # an idle one all the more
        if analysis.verdict is Verdict.SCALE and not too_large:
            return replace(analysis, verdict=Verdict.WAIT, summary=f"Wait: {note.message} {analysis.summary}")
        return replace(analysis, summary=f"{analysis.summary} {note.message}")

    @property
    def note(self) -> DataIssue:
        """What to tell beside the analysis."""
        if self.ended_seconds_ago is None:
            text = f"Nothing was asked before; the {seconds(self.end - self.start)} under load are judged."
            return DataIssue(IssueCode.IDLE, IssueLevel.INFO, text)
        ended, lasted = seconds(self.ended_seconds_ago), seconds(self.end - self.start)
        text = f"The load ended {ended} before the last page, and nothing runs now; judged are the {lasted} under load."
        return DataIssue(IssueCode.IDLE, IssueLevel.WARNING, text)


def load_time(replicas: Collection[Sequence[Snapshot]]) -> LoadTime | None:
    """The time in which any of the replicas had work. None where times are unknown, nothing was asked at all, or the idle time at
    neither end is longer than any pause that this load makes."""
    busy: list[tuple[float, float]] = []
    for pages in replicas:
        for before, after in pairwise(pages):
            if before.collected_at is None or after.collected_at is None:
                return None
            if _worked(before, after):
                busy.append((before.collected_at, after.collected_at))
    times = [page.collected_at for pages in replicas for page in pages if page.collected_at is not None]
    if not busy:
        return None
    busy.sort()
    start, end, pause = busy[0][0], busy[0][1], 0.0
    for since, until in busy[1:]:
        pause = max(pause, since - end)
        end = max(end, until)
    least = max(t.IDLE_SECONDS.value, t.IDLE_PAUSES.value * pause)
    idle_before, idle_after = start - min(times) >= least, max(times) - end >= least
    if not idle_before and not idle_after:
        return None
    return LoadTime(start if idle_before else min(times), end if idle_after else max(times), max(times) - end if idle_after else None)


def _worked(before: Snapshot, after: Snapshot) -> bool:
    if any(page.gauges.get(g, 0.0) > 0 for page in (before, after) for g in (Gauge.RUNNING_REQUESTS, Gauge.WAITING_REQUESTS)):
        return True
    return any(_count(after, name) != _count(before, name) for name in _MOVES)


def _count(page: Snapshot, name: Counter | Hist) -> float | None:
    if isinstance(name, Counter):
        return page.counters.get(name)
    return page.histograms[name].count if name in page.histograms else None
