"""How the values of one layout of a page make up engine-neutral metrics: worked out once, followed on every page of that layout."""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf
from operator import itemgetter

from perf_service.collectors.dialects.base import (
    LARGEST_INTEGER,
    MAX_TEXT_CHARS,
    PART_SUFFIXES,
    Binding,
    Dialect,
    Part,
    Rule,
    Slot,
    group_of,
)
from perf_service.collectors.series_syntax import Series
from perf_service.models.config import EngineConfig, KnobValue, Source
from perf_service.models.metrics import Counter, Gauge, Hist, Histogram

Entries = list[tuple[Slot, int]]
"""Slots with the position of their value on the page."""
Values = Sequence[float]


class Plan:
    """What to read where. `series` are those of a page; positions are into the page's values."""

    __slots__ = (
        "_told",
        "compound",
        "histograms",
        "model_name",
        "named",
        "own_series",
        "plain_counters",
        "plain_gauges",
        "scalars",
        "special",
    )

    def __init__(self, dialect: Dialect, series: Iterable[Series]) -> None:
        self._told: tuple[list[float], Told] | None = None
        self.own_series = 0
        self.model_name = ""
        self.special: list[tuple[Binding, int]] = []
        # By spelling of a rule and by what the page has for it: a relay may have `vllm_x` beside `vllm:x`, or `x` beside `x_total`.
        groups: defaultdict[int, dict[str, Entries]] = defaultdict(dict)
        for position, one in enumerate(series):
            binding = one.binding
            if not isinstance(binding, Binding):
                continue
            self.own_series += binding.own
            for slot in binding.slots:
                literal = one.name.removesuffix(PART_SUFFIXES.get(slot.part, ""))
                groups[slot.group].setdefault(literal, []).append((slot, position))
            if binding.info is not None or binding.facts or binding.is_start:
                self.special.append((binding, position))
            elif not self.model_name:
                self.model_name = binding.model_name[:MAX_TEXT_CHARS]
        self.scalars: list[tuple[Rule, Gauge | Counter, tuple[Origins, ...]]] = []
        self.histograms: list[tuple[Rule, Hist, tuple[Spelling, ...]]] = []
        for index, rule in enumerate(dialect.rules):
            target = rule.target
            there = [
                (literal, without_classes(entries))
                for spelling, name in enumerate(rule.names)
                for literal, entries in sorted(groups.get(group_of(index, spelling), {}).items(), key=lambda item: item[0] != name)
            ]
            if not there:
                continue
            if isinstance(target, Hist):
                self.histograms.append((rule, target, tuple(Spelling(name, entries) for name, entries in there)))
            else:
                self.scalars.append((rule, target, tuple(origins_of(entries) for _, entries in there)))
        # Names are in the labels: the values may change, the number of names can't.
        self.named: dict[Gauge, float] = {}
        for names in dialect.name_lists:
            infos = [binding.info for binding, _ in self.special if binding.info and not binding.info.keys().isdisjoint(names.labels)]
            if infos:
                self.named[names.target] = float(len(set().union(*map(names.names, infos))))
        # Most are one series under one name: those need no more than its value, where that is sound.
        self.plain_gauges: list[tuple[Gauge, int, float]] = []
        self.plain_counters: list[tuple[Counter, int, float]] = []
        self.compound: list[tuple[Rule, Gauge | Counter, tuple[Origins, ...]]] = []
        for rule, target, spellings in self.scalars:
            positions = [position for origins in spellings for _, found in origins for position in found]
            if len(positions) > 1 or rule.derived:
                self.compound.append((rule, target, spellings))
            elif isinstance(target, Gauge):
                self.plain_gauges.append((target, positions[0], rule.scale))
            else:
                self.plain_counters.append((target, positions[0], rule.scale))

    def told(self, dialect: Dialect, values: Values) -> Told:
        """What the page's info metrics tell; worked out again only when one of their values changed."""
        special = [values[position] for _, position in self.special]
        if self._told is None or self._told[0] != special:
            self._told = special, _told(dialect, zip([binding for binding, _ in self.special], special, strict=True))
        return self._told[1]


@dataclass(frozen=True, slots=True)
class Told:
    """What info metrics and the process tell: configuration, capacity of the KV cache in tokens (0 unknown), start in unix seconds."""

    config: EngineConfig
    capacity_tokens: float
    process_start_time: float | None


def _told(dialect: Dialect, special: Iterable[tuple[Binding, float]]) -> Told:
    config: dict[str, KnobValue] = {}
    # A rank tells its cache once; what a process left behind in a multiprocess folder that was not wiped is not a second cache.
    capacities: dict[str, float] = {}
    start: float | None = None
    for binding, value in special:
        if not abs(value) <= LARGEST_INTEGER:
            continue
        if binding.is_start:
            start = max(value, start or value)
        for fact in binding.facts:
            config[fact.knob] = fact.convert(value)
        if binding.info is not None:
            for label in dialect.info_labels:
                told = label.convert(binding.info[label.label]) if label.label in binding.info else None
                if told is not None:
                    config[label.knob] = told
            if dialect.capacity_tokens is not None:
                tokens = dialect.capacity_tokens(binding.info) or 0.0
                capacities[binding.rank] = max(tokens, capacities.get(binding.rank, 0.0))
    return Told(EngineConfig.of(config, Source.PAGE), sum(capacities.values()), start)


Origins = tuple[tuple[str, tuple[int, ...]], ...]
"""Positions of the values to be added, per rank and process: several entries of one rank are processes that report the same."""


def without_classes(entries: Entries) -> Entries:
    """Leave out the parts where the page also carries their total (SGLang's priority classes, cache sources)."""
    if len(entries) < 2 or not any(slot.is_class for slot, _ in entries):
        return entries
    totals = [entry for entry in entries if not entry[0].is_class]
    return totals or entries


def origins_of(entries: Entries) -> Origins:
    """The positions by rank and process, in page order."""
    positions: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    for slot, position in entries:
        positions[slot.origin].append(position)
    return tuple((rank, tuple(found)) for (rank, _), found in positions.items())


class Spelling:
    """The series of one histogram under one of its names. `parts` is None where they do not make one the plain way."""

    __slots__ = ("entries", "name", "parts")

    def __init__(self, name: str, entries: Entries) -> None:
        self.name = name
        self.entries = entries
        by_origin: defaultdict[tuple[str, str], Entries] = defaultdict(list)
        for slot, position in entries:
            by_origin[slot.origin].append((slot, position))
        parts = [(rank, HistogramParts.of(found)) for (rank, _), found in by_origin.items()]
        whole = tuple((rank, part) for rank, part in parts if part is not None)
        self.parts = whole if len(whole) == len(parts) else None

    def quick(self, values: Values) -> dict[str, Histogram] | None:
        """The histogram of each rank, from values none of which is negative or not finite; None where its buckets do not add up."""
        if self.parts is None:
            return None
        ranks: dict[str, Histogram] = {}
        for rank, parts in self.parts:
            histogram = parts.read(values)
            if histogram is None:
                return None
            if rank not in ranks or histogram.count > ranks[rank].count:
                ranks[rank] = histogram
        return ranks


class HistogramParts:
    """The positions of one rank's histogram: complete sets of series, which differ in labels other than `le` and are added."""

    __slots__ = ("_bounds", "_counts", "_rows", "_sums")

    def __init__(self, counts: tuple[int, ...], sums: tuple[int, ...], bounds: tuple[float, ...], rows: Sequence[Sequence[int]]) -> None:
        self._counts = counts
        self._sums = sums
        self._bounds = bounds
        self._rows = tuple(row_picker(row) for row in rows)

    @classmethod
    def of(cls, entries: Entries) -> HistogramParts | None:
        """The parts; None where the series are not `_sum`, `_count` and the same buckets for each."""
        counts: list[int] = []
        sums: list[int] = []
        buckets: defaultdict[float, list[int]] = defaultdict(list)
        for slot, position in entries:
            if slot.part is Part.BARE:
                return None
            if slot.bound is not None:
                buckets[slot.bound].append(position)
            else:
                (sums if slot.part is Part.SUM else counts).append(position)
        last = buckets.pop(inf, [])
        bounds = sorted(buckets)
        rows = list(zip(*(buckets[bound] for bound in bounds), strict=False)) if bounds else []
        if not sums or not (counts or last) or any(len(found) != len(rows) for found in buckets.values()):
            return None
        return cls(tuple(counts or last), tuple(sums), tuple(bounds), rows)

    def read(self, values: Values) -> Histogram | None:
        """The histogram; None where its buckets do not rise up to its count."""
        if len(self._counts) == len(self._sums) == len(self._rows) == 1:
            count, total, row = values[self._counts[0]], values[self._sums[0]], self._rows[0](values)
        else:
            count, total = added_up(self._counts, values), added_up(self._sums, values)
            if not self._rows:
                return Histogram(count, total)
            row = self._rows[0](values)
            for other in self._rows[1:]:
                row = tuple(map(operator.add, row, other(values)))
        # A row that rises is as it is when sorted.
        if row[-1] > count or sorted(row) != list(row):
            return None
        return Histogram(count, total, self._bounds, row)


def added_up(positions: tuple[int, ...], values: Values) -> float:
    """The sum of the values at these positions."""
    if len(positions) == 1:
        return values[positions[0]]
    return sum([values[position] for position in positions])


def row_picker(positions: Sequence[int]) -> Callable[[Values], tuple[float, ...]]:
    """A function that takes the values at these positions."""
    if all(later == earlier + 1 for earlier, later in pairwise(positions)):
        span = slice(positions[0], positions[-1] + 1)
        return lambda values: tuple(values[span])
    return itemgetter(*positions)
