"""From the stored pages of each replica to one measurement of a group of replicas."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from perf_service.collectors.fleet_window import fleet_window
from perf_service.collectors.window import overall_window, spans_of, window_over
from perf_service.models.metrics import Snapshot
from perf_service.models.window import Window
from perf_service.workflows import measures
from perf_service.workflows.types import Measured

Series = Mapping[str, Sequence[Snapshot]]
"""Pages of each replica in the order of time."""


def measure_sample(series: Series, keys: Iterable[str], *, need_all: bool) -> Measured | None:
    """A group's measurement over one sampling interval, from the first to the last page of each replica.

    A replica without two pages, or one that restarted or stopped counting in between, gives nothing. With `need_all` such a replica
    makes the whole sample void: among the changed replicas the silent one may be the sick one.
    """
    windows = []
    for pages in series.values():
        window = _sound_window(pages)
        if window is not None:
            windows.append(window)
        elif need_all:
            return None
    return _group(windows, keys)


def measure_range(series: Series, keys: Iterable[str], *, need_all: bool = False) -> Measured | None:
    """A group's measurement over a longer range: one span of each replica without a restart (`overall_window`).

    With `need_all` a replica without one makes it void: rates are sums over the replicas.
    """
    windows = [window for pages in series.values() if (window := overall_window(pages)) is not None and not window.lifetime]
    return _group(windows, keys) if len(windows) == len(series) or not need_all else None


def from_base(pages: Sequence[Snapshot], start: float) -> Sequence[Snapshot]:
    """The pages after `start` with the last one at or before it, which their differences start from.

    Pages are stamped when their scrape begins, each replica's at a moment of its own; so one sample joins the next without a gap.
    """
    before = sum((page.collected_at or 0.0) <= start + 1e-6 for page in pages)
    return pages[max(0, before - 1) :]


def covered_seconds(series: Series) -> float:
    """The time that the pages of every replica that has any span together (the shortest of them); 0 without."""
    spans = [(pages[-1].collected_at or 0.0) - (pages[0].collected_at or 0.0) for pages in series.values() if pages]
    return min(spans, default=0.0)


def _sound_window(pages: Sequence[Snapshot]) -> Window | None:
    spans = spans_of(pages)
    if len(spans) != 1 or len(spans[0]) < 2:
        return None
    window = window_over(spans[0])
    return window if window.quality.usable else None


def _group(windows: Sequence[Window], keys: Iterable[str]) -> Measured | None:
    starts = [w.start for w in windows if w.start is not None]
    ends = [w.end for w in windows if w.end is not None]
    if not starts or not ends:
        return None
    whole = windows[0] if len(windows) == 1 else fleet_window("group", windows)
    return measures.measured(whole, keys, start=min(starts), end=max(ends))
