"""One page read through one dialect: which values make up which engine-neutral metric."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping

from perf_service.collectors.dialects import dialect_of
from perf_service.collectors.dialects.base import MAX_SPELLINGS, Binding, Dialect, Merge, Rule, Slot, group_of
from perf_service.collectors.exposition import Page
from perf_service.collectors.histograms import HistogramReader
from perf_service.models.config import KnobValue
from perf_service.models.metrics import Counter, DataIssue, Engine, Gauge, Hist, Histogram, IssueCode, IssueLevel

_Entries = list[tuple[Slot, float]]


class Reading:
    """One page read through one dialect."""

    def __init__(self, dialect: Dialect, page: Page) -> None:
        self.gauges: dict[Gauge, float] = {}
        self.counters: dict[Counter, float] = {}
        self.histograms: dict[Hist, Histogram] = {}
        self.ranks: dict[str, dict[Gauge, float]] = {}
        self.config: dict[str, KnobValue] = {}
        self.derived: list[str] = []
        self.issues: list[DataIssue] = []
        self.model_name = ""
        self.process_start_time: float | None = None
        self.own_series = 0
        self._dialect = dialect
        self._capacity = 0.0
        groups = self._sort_out(page)
        self._read_rules(groups)
        self._derive()

    def _sort_out(self, page: Page) -> dict[int, _Entries]:
        groups: defaultdict[int, _Entries] = defaultdict(list)
        special: list[tuple[Binding, float]] = []
        own = 0
        for series, value in page.samples.items():
            binding = series.binding
            if not isinstance(binding, Binding):
                continue
            if binding.own:
                own += 1
            for slot in binding.slots:
                groups[slot.group].append((slot, value))
            if binding.info is not None or binding.facts or binding.is_start:
                special.append((binding, value))
            elif not self.model_name:
                self.model_name = binding.model_name
        self.own_series = own
        for binding, value in special:
            self._read_special(binding, value)
        return groups

    def _read_special(self, binding: Binding, value: float) -> None:
        if not math.isfinite(value):
            return
        if binding.is_start:
            self.process_start_time = max(value, self.process_start_time or value)
        for fact in binding.facts:
            self.config[fact.knob] = fact.convert(value)
        if binding.info is not None:
            for label in self._dialect.info_labels:
                told = label.convert(binding.info[label.label]) if label.label in binding.info else None
                if told is not None:
                    self.config[label.knob] = told
            if self._dialect.capacity_tokens is not None:
                self._capacity += self._dialect.capacity_tokens(binding.info) or 0.0

    def _read_rules(self, groups: Mapping[int, _Entries]) -> None:
        for index, rule in enumerate(self._dialect.rules):
            target = rule.target
            if isinstance(target, Hist):
                self._read_histogram(index, rule, target, groups)
                continue
            best: dict[str, float] | None = None
            for spelling in range(min(len(rule.names), MAX_SPELLINGS)):
                entries = groups.get(group_of(index, spelling))
                values = self._by_rank(rule, entries) if entries else None
                if not values:
                    continue
                if best is None or any(values.values()):
                    best = values
                if any(best.values()):
                    break
            if best is None:
                continue
            value = _merged(rule.merge, best.values()) * rule.scale
            if isinstance(target, Gauge):
                self.gauges[target] = value
                if len(best) > 1:
                    for rank, rank_value in best.items():
                        self.ranks.setdefault(rank, {})[target] = rank_value * rule.scale
            else:
                self.counters[target] = self.counters.get(target, 0.0) + value
            if rule.derived:
                self.derived.append(target.value)

    def _by_rank(self, rule: Rule, entries: _Entries) -> dict[str, float]:
        """The value of each rank: the sum over its other labels, the largest over processes that report the same."""
        is_counter = isinstance(rule.target, Counter)
        entries = _without_classes(entries)
        sums: dict[tuple[str, str], float] = {}
        for slot, value in entries:
            if not math.isfinite(value):
                level = IssueLevel.WARNING if is_counter else IssueLevel.INFO
                self._note(IssueCode.NOT_FINITE, level, rule, f"{rule.names[0]} is {value}; it is left out.")
                continue
            if value < 0:
                # Of gauges only vLLM's V0 hit rate is ever negative, and means "off".
                level = IssueLevel.WARNING if is_counter else IssueLevel.INFO
                text = f"{rule.names[0]} is {value:g}, which cannot be; it is left out."
                self._note(IssueCode.NEGATIVE_COUNTER, level, rule, text)
                continue
            sums[slot.origin] = sums.get(slot.origin, 0.0) + value
        ranks: dict[str, float] = {}
        for (rank, _), value in sums.items():
            ranks[rank] = max(value, ranks.get(rank, value))
        return ranks

    def _read_histogram(self, index: int, rule: Rule, target: Hist, groups: Mapping[int, _Entries]) -> None:
        best: Histogram | None = None
        for spelling, name in enumerate(rule.names):
            entries = groups.get(group_of(index, spelling))
            if not entries:
                continue
            reader = HistogramReader(name, target)
            found = reader.read(_without_classes(entries))
            self.issues += reader.issues
            if found is None:
                continue
            if best is None or found.count > 0:
                best = found
            if best.count > 0:
                break
        if best is not None:
            self.histograms[target] = best
            if rule.derived:
                self.derived.append(target.value)

    def _derive(self) -> None:
        gauges = self.gauges
        if self._capacity and Gauge.KV_CAPACITY_TOKENS not in gauges:
            gauges[Gauge.KV_CAPACITY_TOKENS] = self._capacity
        used, capacity = gauges.get(Gauge.KV_USED_TOKENS), gauges.get(Gauge.KV_CAPACITY_TOKENS)
        if Gauge.KV_CACHE_USAGE_RATIO not in gauges and used is not None and capacity:
            gauges[Gauge.KV_CACHE_USAGE_RATIO] = used / capacity
            self.derived.append(Gauge.KV_CACHE_USAGE_RATIO.value)
        for hist, histogram in derived_histograms(self._dialect.engine, self.histograms).items():
            self.histograms[hist] = histogram
            self.derived.append(hist.value)

    def _note(self, code: IssueCode, level: IssueLevel, rule: Rule, message: str) -> None:
        self.issues.append(DataIssue(code, level, message, rule.target.value))


def derived_histograms(engine: Engine, histograms: Mapping[Hist, Histogram]) -> dict[Hist, Histogram]:
    """Histograms that the engine has no metric for and that can be approximated from the others (TGI's TTFT).

    Applied to a page's lifetime totals and, again, to a window's differences: an approximation made of means is not additive.
    """
    derive = dialect_of(engine).derive_histograms
    return derive(histograms) if derive else {}


def _without_classes(entries: _Entries) -> _Entries:
    """Leave out the parts where the page also carries their total (SGLang's priority classes, cache sources)."""
    if len(entries) < 2 or not any(slot.is_class for slot, _ in entries):
        return entries
    totals = [entry for entry in entries if not entry[0].is_class]
    return totals or entries


def _merged(merge: Merge, values: Iterable[float]) -> float:
    numbers = list(values)
    if merge is Merge.SUM:
        return math.fsum(numbers)
    if merge is Merge.MEAN:
        return math.fsum(numbers) / len(numbers)
    return max(numbers) if merge is Merge.MAX else min(numbers)
