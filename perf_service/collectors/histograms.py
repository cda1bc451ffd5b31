"""Histograms: from the series of a page, added over ranks, and subtracted between two pages."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping
from itertools import accumulate, pairwise
from typing import Final

from perf_service.collectors.dialects.base import LARGEST_VALUE, Part, Slot
from perf_service.models.metrics import DataIssue, Hist, Histogram, IssueCode, IssueLevel

_TOLERANCE: Final = 1e-6
"""Relative slack when comparing sums of floats: `_sum` is a running float addition inside the engine."""


class HistogramReader:
    """Puts one histogram together from the slots and values of one page; what is wrong with it is in `issues`."""

    def __init__(self, name: str, target: Hist) -> None:
        self.issues: list[DataIssue] = []
        self._name = name
        self._target = target

    def read(self, entries: list[tuple[Slot, float]]) -> Histogram | None:
        """The histogram, added over ranks; None where the page's series do not make one."""
        parts: dict[tuple[str, str], _Parts] = {}
        origin: tuple[str, str] | None = None
        collected = _Parts()
        for slot, value in entries:
            if slot.part is Part.BARE:
                self._note(
                    IssueCode.WRONG_TYPE,
                    f"{self._name} has the plain value {value:g}, but it is a histogram: without _sum and _count "
                    "it says nothing and is left out.",
                )
                continue
            if not 0.0 <= value < LARGEST_VALUE:
                code = IssueCode.NEGATIVE_COUNTER if -LARGEST_VALUE < value < 0.0 else IssueCode.NOT_FINITE
                self._note(code, f"{self._name}_{slot.part.value} is {value:g}, which cannot be; it is left out.")
                return None
            if slot.origin != origin:
                origin = slot.origin
                collected = parts.setdefault(origin, _Parts())
            bound = slot.bound
            if bound is not None:
                buckets = collected.buckets
                buckets[bound] = buckets[bound] + value if bound in buckets else value
            elif slot.part is Part.SUM:
                collected.sum = value + (collected.sum or 0.0)
            else:
                collected.count = value + (collected.count or 0.0)
        ranks: dict[str, Histogram] = {}
        for (rank, _), collected in parts.items():
            histogram = self._assemble(collected)
            if histogram is not None and (rank not in ranks or histogram.count > ranks[rank].count):
                ranks[rank] = histogram
        return self.combined(ranks)

    def combined(self, ranks: Mapping[str, Histogram]) -> Histogram | None:
        """The histograms of several ranks added up; None where there is none."""
        if not ranks:
            return None
        if len(ranks) == 1:
            return next(iter(ranks.values()))
        total = added(ranks.values())
        if not total.bounds and all(histogram.bounds for histogram in ranks.values()):
            self._note(IssueCode.BUCKETS_CHANGED, f"{self._name} has other buckets on other ranks: only means are known.")
        return total

    def _assemble(self, parts: _Parts) -> Histogram | None:
        count = parts.count if parts.count is not None else parts.buckets.pop(math.inf, None)
        parts.buckets.pop(math.inf, None)
        if count is None or parts.sum is None:
            lacking = "_sum" if parts.sum is None else "_count"
            self._note(IssueCode.TRUNCATED, f"{self._name} has no {lacking}: it is left out.")
            return None
        bounds = tuple(sorted(parts.buckets))
        cumulative = tuple(parts.buckets[bound] for bound in bounds)
        if any(a > b for a, b in pairwise((*cumulative, count))):
            self._note(IssueCode.CONSERVATION, f"{self._name}'s buckets do not add up: only its mean is known.")
            return Histogram(count, parts.sum)
        return Histogram(count, parts.sum, bounds, cumulative)

    def _note(self, code: IssueCode, message: str) -> None:
        self.issues.append(DataIssue(code, IssueLevel.WARNING, message, self._target.value))


class _Parts:
    __slots__ = ("buckets", "count", "sum")

    def __init__(self) -> None:
        self.buckets: dict[float, float] = {}
        self.sum: float | None = None
        self.count: float | None = None


def added(histograms: Iterable[Histogram]) -> Histogram:
    """The sum of histograms. Where their buckets differ only count and sum are left."""
    parts = list(histograms)
    count = math.fsum(part.count for part in parts)
    total = math.fsum(part.sum for part in parts)
    layouts = {part.bounds for part in parts if part.bounds or part.count > 0}
    if len(layouts) != 1:
        return Histogram(count, total)
    (bounds,) = layouts
    rows = [part.cumulative for part in parts if part.bounds]
    return Histogram(count, total, bounds, tuple(math.fsum(column) for column in zip(*rows, strict=True)))


def is_behind(later: Histogram, earlier: Histogram) -> bool:
    """Whether the later one holds less than the earlier one: a reset."""
    if later.count < earlier.count or later.sum - earlier.sum < -_TOLERANCE * max(1.0, earlier.sum):
        return True
    return later.bounds == earlier.bounds and any(map(operator.lt, later.cumulative, earlier.cumulative))


def subtracted(later: Histogram, earlier: Histogram) -> Histogram | None:
    """What was observed in between. None where the later one is behind the earlier one: a reset.

    Where the bucket bounds changed only count and sum are left.
    """
    if is_behind(later, earlier):
        return None
    count, total = later.count - earlier.count, max(0.0, later.sum - earlier.sum)
    if later.bounds != earlier.bounds:
        return Histogram(count, total)
    # A scrape is not atomic: buckets of one histogram may be one observation apart. Counts stay cumulative.
    rising = accumulate(map(operator.sub, later.cumulative, earlier.cumulative), max)
    return Histogram(count, total, later.bounds, tuple(min(count, value) for value in rising))
