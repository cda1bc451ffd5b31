"""A `Window`: the difference of two snapshots of one instance (or of a fleet's), as rates, means and quantiles."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from perf_service.models.config import EngineConfig
from perf_service.models.metrics import Counter, DataQuality, Engine, Gauge, Hist, Histogram


class QuantileKind(StrEnum):
    """How far a histogram quantile can be trusted."""

    INTERPOLATED = "interpolated"  # linear inside its bucket; the truth lies in [low, high]
    AT_MOST = "at_most"  # inside the lowest bucket: only "<= high" is known
    AT_LEAST = "at_least"  # above the highest finite bound: only ">= low" is known


@dataclass(frozen=True, slots=True)
class Quantile:
    """A quantile read off histogram buckets, with the bounds of its bucket."""

    q: float
    value: float
    low: float
    high: float  # math.inf in the open bucket
    kind: QuantileKind
    samples: float


def histogram_quantile(histogram: Histogram, q: float) -> Quantile | None:
    """Quantile by linear interpolation within the bucket, as Prometheus' `histogram_quantile`, but honest at both ends.

    In the lowest bucket the value is the bucket's bound (nothing finer is known) and the kind AT_MOST; above the highest finite
    bound it is that bound and AT_LEAST. None without buckets or observations. `q` in [0, 1], else ValueError.
    """
    if not 0.0 <= q <= 1.0:
        raise ValueError(f"q must be within 0..1, not {q}")
    if not histogram.bounds or histogram.count <= 0:
        return None
    rank = q * histogram.count
    index = bisect_left(histogram.cumulative, rank)
    # Skip empty leading buckets for q = 0, whose rank 0 is "reached" by every one of them.
    while index < len(histogram.bounds) and histogram.cumulative[index] <= 0:
        index += 1
    if index >= len(histogram.bounds):
        top = histogram.bounds[-1]
        return Quantile(q, top, top, float("inf"), QuantileKind.AT_LEAST, histogram.count)
    high = histogram.bounds[index]
    if index == 0:
        return Quantile(q, high, 0.0, high, QuantileKind.AT_MOST, histogram.count)
    low = histogram.bounds[index - 1]
    below = histogram.cumulative[index - 1]
    inside = histogram.cumulative[index] - below
    share = min(1.0, max(0.0, (rank - below) / inside)) if inside > 0 else 1.0
    return Quantile(q, low + (high - low) * share, low, high, QuantileKind.INTERPOLATED, histogram.count)


@dataclass(frozen=True, slots=True)
class Attainment:
    """Share of observations <= a bound: exact at bucket bounds, else between `low` and `high` ratios."""

    ratio: float
    low: float
    high: float
    samples: float

    @property
    def exact(self) -> bool:
        """Whether the bound is a bucket bound."""
        return self.low == self.high


def histogram_attainment(histogram: Histogram, bound: float) -> Attainment | None:
    """Share of observations within `bound` (same unit as the histogram); None without buckets or observations."""
    if not histogram.bounds or histogram.count <= 0:
        return None
    n = histogram.count
    index = bisect_left(histogram.bounds, bound)
    if index < len(histogram.bounds) and histogram.bounds[index] == bound:
        ratio = histogram.cumulative[index] / n
        return Attainment(ratio, ratio, ratio, n)
    below = histogram.cumulative[index - 1] / n if index > 0 else 0.0
    above = histogram.cumulative[index] / n if index < len(histogram.bounds) else 1.0
    if index >= len(histogram.bounds):
        return Attainment(below, below, 1.0, n)
    low_bound = histogram.bounds[index - 1] if index > 0 else 0.0
    share = (bound - low_bound) / (histogram.bounds[index] - low_bound)
    return Attainment(below + (above - below) * max(0.0, share), below, above, n)


@dataclass(frozen=True, slots=True)
class GaugeStats:
    """A gauge over the scrapes inside a window."""

    mean: float
    min: float
    max: float
    last: float
    samples: int
    nonzero_share: float = 1.0  # share of scrapes at which the gauge was > 0


@dataclass(frozen=True, slots=True)
class Window:
    """What happened between two scrapes of one instance, or (`lifetime`) since its start, seen from one scrape.

    `counters` and `histograms` are differences, never negative. `duration_seconds` is None where the times are unknown: then there
    are no rates. `gauges` summarise every scrape inside the window, both ends included.
    """

    instance_id: str
    engine: Engine
    start: float | None  # unix seconds
    end: float | None
    duration_seconds: float | None
    scrapes: int
    gauges: Mapping[Gauge, GaugeStats] = field(default_factory=dict)
    counters: Mapping[Counter, float] = field(default_factory=dict)
    histograms: Mapping[Hist, Histogram] = field(default_factory=dict)
    ranks: Mapping[str, Mapping[Gauge, GaugeStats]] = field(default_factory=dict)
    config: EngineConfig = field(default_factory=EngineConfig)
    engine_version: str = ""
    model_name: str = ""
    lifetime: bool = False
    replicas: int = 1  # > 1: a fleet's windows added up
    derived: tuple[str, ...] = ()
    quality: DataQuality = field(default_factory=DataQuality)

    def delta(self, counter: Counter) -> float | None:
        """Increase of a counter, None where the page did not carry it."""
        return self.counters.get(counter)

    def rate(self, counter: Counter) -> float | None:
        """Increase per second, None where the counter or the time is unknown."""
        delta = self.counters.get(counter)
        if delta is None or not self.duration_seconds:
            return None
        return delta / self.duration_seconds

    def mean(self, hist: Hist) -> float | None:
        """Mean of the observations in the window."""
        histogram = self.histograms.get(hist)
        return histogram.mean if histogram else None

    def count(self, hist: Hist) -> float:
        """Number of observations in the window (0 where absent)."""
        histogram = self.histograms.get(hist)
        return histogram.count if histogram else 0.0

    def quantile(self, hist: Hist, q: float) -> Quantile | None:
        """Quantile of the observations in the window."""
        histogram = self.histograms.get(hist)
        return histogram_quantile(histogram, q) if histogram else None

    def attainment(self, hist: Hist, bound: float) -> Attainment | None:
        """Share of the observations in the window that are <= bound."""
        histogram = self.histograms.get(hist)
        return histogram_attainment(histogram, bound) if histogram else None

    def gauge(self, gauge: Gauge) -> GaugeStats | None:
        """A gauge's summary over the scrapes of the window."""
        return self.gauges.get(gauge)
