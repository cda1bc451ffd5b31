"""One window for a fleet: the windows of its replicas added up, with each replica's own gauges kept beside them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from perf_service.collectors.histograms import added
from perf_service.models.errors import InvalidArgumentError
from perf_service.models.metrics import Counter, DataIssue, DataQuality, Gauge, Hist, Histogram, IssueCode, IssueLevel
from perf_service.models.window import GaugeStats, Window

DURATION_TOLERANCE_RATIO: Final = 0.2
"""Replicas are scraped at different moments; windows that differ by more do not add up to one rate."""

_LEVELS: Final = (IssueLevel.INFO, IssueLevel.WARNING, IssueLevel.BLOCKING)

NOT_ADDITIVE: Final = frozenset(
    {
        Gauge.KV_CACHE_USAGE_RATIO,
        Gauge.PREFIX_CACHE_HIT_RATIO,
        Gauge.NEW_TOKEN_RATIO,
        Gauge.FORWARD_OCCUPANCY_RATIO,
        Gauge.CUDA_GRAPH_ENABLED,
        Gauge.SPEC_ACCEPT_LENGTH_TOKENS,
        Gauge.ENGINE_AWAKE,
        Gauge.STARTUP_AVAILABLE_GPU_MEMORY_BYTES,
    }
)
"""Gauges of which a fleet has a mean, not a sum."""

LARGEST: Final = frozenset({Gauge.LORA_ADAPTERS_SEEN})
"""Gauges of which the replica with the most counts: the same adapter on each of them is one adapter."""


def fleet_window(fleet_id: str, windows: Sequence[Window]) -> Window:
    """The replicas' windows as one: differences added, histograms added, gauges added or averaged by their nature.

    Additive gauges: `mean` and `last` are sums over replicas; `min` and `max` the sums of the replicas' extremes, which bound
    the fleet's. `ranks` maps each instance id to its own gauges, for telling imbalance. Replicas whose window is not usable are
    left out and named, as long as one is usable.

    Raises:
        InvalidArgumentError: for no windows, or windows of different engines.
    """
    if not windows:
        raise InvalidArgumentError("a fleet window needs the window of one replica or more", field="windows")
    first = windows[0]
    if any(window.engine is not first.engine for window in windows):
        raise InvalidArgumentError("a fleet window needs replicas of one engine", field="windows")
    sound = [window for window in windows if window.quality.usable] or list(windows)
    issues = [
        DataIssue(
            issue.code,
            # What is left out weakens the fleet's window, it does not forbid it.
            issue.level if window in sound else min(issue.level, IssueLevel.WARNING, key=_LEVELS.index),
            f"{window.instance_id}: {issue.message}",
            issue.metric,
        )
        for window in windows
        for issue in window.quality.issues
    ]
    windows = sound
    return Window(
        instance_id=fleet_id,
        engine=first.engine,
        start=_extreme(min, [window.start for window in windows]),
        end=_extreme(max, [window.end for window in windows]),
        duration_seconds=_duration(windows, issues),
        scrapes=sum(window.scrapes for window in windows),
        gauges=_gauges([window.gauges for window in windows]),
        counters=_counters(windows, issues),
        histograms=_histograms(windows),
        ranks={window.instance_id: window.gauges for window in windows},
        config=first.config,
        engine_version=first.engine_version,
        model_name=first.model_name,
        lifetime=any(window.lifetime for window in windows),
        replicas=sum(window.replicas for window in windows),
        derived=tuple(sorted({name for window in windows for name in window.derived})),
        quality=DataQuality(tuple(issues), min(window.quality.known_metrics for window in windows)),
    )


def _extreme(pick: Callable[[list[float]], float], values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return pick(known) if len(known) == len(values) else None


def _duration(windows: Sequence[Window], issues: list[DataIssue]) -> float | None:
    durations = [window.duration_seconds for window in windows if window.duration_seconds]
    if len(durations) < len(windows):
        return None
    if max(durations) - min(durations) > DURATION_TOLERANCE_RATIO * max(durations):
        text = f"The replicas' windows last from {min(durations):.0f} to {max(durations):.0f} s: the fleet's rates are rough."
        issues.append(DataIssue(IssueCode.GAP, IssueLevel.WARNING, text))
    return math.fsum(durations) / len(durations)


def _counters(windows: Sequence[Window], issues: list[DataIssue]) -> dict[Counter, float]:
    totals: dict[Counter, float] = {}
    present: dict[Counter, int] = {}
    for window in windows:
        for counter, value in window.counters.items():
            totals[counter] = totals.get(counter, 0.0) + value
            present[counter] = present.get(counter, 0) + 1
    for counter, replicas in present.items():
        if replicas < len(windows):
            text = f"{counter.value} is known of {replicas} of {len(windows)} replicas: the sum is too low."
            issues.append(DataIssue(IssueCode.UNDERCOUNT, IssueLevel.WARNING, text, counter.value))
    return totals


def _histograms(windows: Sequence[Window]) -> dict[Hist, Histogram]:
    names = dict.fromkeys(hist for window in windows for hist in window.histograms)
    return {hist: added(window.histograms[hist] for window in windows if hist in window.histograms) for hist in names}


def _gauges(parts: Sequence[Mapping[Gauge, GaugeStats]]) -> dict[Gauge, GaugeStats]:
    names = dict.fromkeys(gauge for part in parts for gauge in part)
    merged = {}
    for gauge in names:
        stats = [part[gauge] for part in parts if gauge in part]
        is_mean = gauge in NOT_ADDITIVE
        weight = len(stats) if is_mean else 1
        merged[gauge] = GaugeStats(
            mean=math.fsum(stat.mean for stat in stats) / weight,
            min=min(stat.min for stat in stats) if is_mean else math.fsum(stat.min for stat in stats),
            max=max(stat.max for stat in stats) if is_mean else math.fsum(stat.max for stat in stats),
            last=max(stat.last for stat in stats) if gauge in LARGEST else math.fsum(stat.last for stat in stats) / weight,
            samples=sum(stat.samples for stat in stats),
            nonzero_share=max(stat.nonzero_share for stat in stats),
        )
    return merged
