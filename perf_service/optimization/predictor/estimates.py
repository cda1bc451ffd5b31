"""Weighted samples to estimates with an interval, and measured histograms to estimates."""

from __future__ import annotations

import math
from collections.abc import Sequence

from perf_service.models.metrics import Hist, Histogram
from perf_service.models.plan import Estimate, LatencyEstimate
from perf_service.models.window import Window, histogram_quantile

COVERAGE = 0.9  # of every interval
_Z = 1.645  # standard deviations to either side of a 90 % interval


def weighted_quantile(pairs: Sequence[tuple[float, float]], q: float) -> float:
    """The value below which the share q of the weight lies; pairs are (weight, value)."""
    ordered = sorted(pairs, key=lambda p: p[1])
    total = sum(w for w, _ in ordered)
    seen = 0.0
    for weight, value in ordered:
        seen += weight
        if seen >= q * total:
            return value
    return ordered[-1][1]


def interval(pairs: Sequence[tuple[float, float]], error: float, *, top: float = math.inf) -> Estimate | None:
    """Median and 90 % interval of positive samples, widened by a model error (standard deviation of the log). None without samples."""
    if not pairs:
        return None
    value, low, high = (weighted_quantile(pairs, q) for q in (0.5, 0.05, 0.95))
    if value <= 0:
        return Estimate(0.0, 0.0, min(top, max(0.0, high) * math.exp(_Z * error)), COVERAGE)
    down = math.hypot(math.log(value / low), _Z * error) if low > 0 else math.inf
    up = math.hypot(math.log(max(high, value) / value), _Z * error)
    return Estimate(min(top, value), min(top, value * math.exp(-down)), min(top, value * math.exp(up)), COVERAGE)


def ratio_of(before: Estimate, after: Estimate) -> Estimate:
    """after / before (which must be positive). The prediction's interval holds the model error; the measurement's adds its own."""
    value = after.value / before.value
    noise = math.log(max(before.high, before.value) / before.value)
    low = after.low / before.value * math.exp(-noise) if after.low > 0 else 0.0
    return Estimate(value, low, after.high / before.value * math.exp(noise), COVERAGE)


def observed(windows: Sequence[Window], hist: Hist) -> LatencyEstimate | None:
    """A measured latency: mean with its sampling error, quantiles with the bounds of their bucket."""
    parts = [h for w in windows if (h := w.histograms.get(hist)) and h.count > 0]
    if not parts:
        return None
    count, total = sum(p.count for p in parts), sum(p.sum for p in parts)
    mean = total / count
    spread = min(0.9, 0.02 + _Z * 0.7 / math.sqrt(count))
    whole = merged(windows, hist)
    p50, p95, p99 = (_quantile(whole, q) for q in (0.5, 0.95, 0.99))
    return LatencyEstimate(Estimate(mean, mean * (1 - spread), mean * (1 + spread)), p50, p95, p99)


def observed_quantile(windows: Sequence[Window], hist: Hist, q: float) -> Estimate | None:
    """A measured quantile with the bounds of its bucket; None without buckets, and in the open one."""
    return _quantile(merged(windows, hist), q)


def _quantile(whole: Histogram | None, q: float) -> Estimate | None:
    found = histogram_quantile(whole, q) if whole else None
    return Estimate(found.value, found.low, found.high) if found and math.isfinite(found.high) else None


def merged(windows: Sequence[Window], hist: Hist) -> Histogram | None:
    """The windows' histograms added up (differences of one cumulative histogram have equal bounds)."""
    parts = [h for w in windows if (h := w.histograms.get(hist)) and h.count > 0]
    if not parts:
        return None
    bounds = parts[0].bounds
    same = [p for p in parts if p.bounds == bounds]
    summed = tuple(map(sum, zip(*(p.cumulative for p in same), strict=True))) if bounds else ()
    return Histogram(sum(p.count for p in same), sum(p.sum for p in same), bounds, summed)
