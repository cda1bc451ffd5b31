"""One page read through one dialect: which values make up which engine-neutral metric."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping

from perf_service.collectors.dialects import dialect_of
from perf_service.collectors.dialects.base import LARGEST_VALUE, Dialect, Merge, Rule
from perf_service.collectors.exposition import Page
from perf_service.collectors.histograms import HistogramReader
from perf_service.collectors.plan import Origins, Plan, Spelling, added_up
from perf_service.models.metrics import Counter, DataIssue, Engine, Gauge, Hist, Histogram, IssueCode, IssueLevel


class Reading:
    """One page read through one dialect, as a plan made for the page's series says."""

    def __init__(self, dialect: Dialect, page: Page, plan: Plan) -> None:
        self.gauges: dict[Gauge, float] = dict(plan.named)
        self.counters: dict[Counter, float] = {}
        self.histograms: dict[Hist, Histogram] = {}
        self.ranks: dict[str, dict[Gauge, float]] = {}
        self.derived: list[str] = []
        self.issues: list[DataIssue] = []
        self._dialect = dialect
        self._values = values = page.values
        self.model_name = plan.model_name
        self.own_series = plan.own_series
        # Nearly always true, and then no value needs to be looked at on its own. (A sum is not a number where one of its parts is not.)
        self._is_sound = sum(values) < LARGEST_VALUE and min(values, default=0.0) >= 0.0
        told = plan.told(dialect, values)
        self.config, self.process_start_time = told.config, told.process_start_time
        if self._is_sound:
            for gauge, position, scale in plan.plain_gauges:
                self.gauges[gauge] = values[position] * scale
            for counter, position, scale in plan.plain_counters:
                self.counters[counter] = self.counters.get(counter, 0.0) + values[position] * scale
        for rule, target, spellings in plan.compound if self._is_sound else plan.scalars:
            self._read_scalar(rule, target, spellings)
        for rule, hist, names in plan.histograms:
            self._read_histogram(rule, hist, names)
        self._derive(told.capacity_tokens)

    def _read_scalar(self, rule: Rule, target: Gauge | Counter, spellings: Iterable[Origins]) -> None:
        best: dict[str, float] = {}
        for origins in spellings:
            ranks = self._by_rank(rule, origins)
            if any(ranks.values()):
                best = ranks
                break
            best = best or ranks
        if not best:
            return
        value = _merged(rule.merge, best.values()) * rule.scale
        if isinstance(target, Gauge):
            self.gauges[target] = value
            if len(best) > 1:
                for rank, rank_value in best.items():
                    self.ranks.setdefault(rank, {})[target] = rank_value * rule.scale
        else:
            self.counters[target] = self.counters.get(target, 0.0) + value
            if target is Counter.GENERATION_TOKENS and len(best) > 1:  # a rank that hangs beside others is seen in no sum
                for rank, rank_value in best.items():
                    self.ranks.setdefault(rank, {})[Gauge.RANK_GENERATION_TOKENS] = rank_value * rule.scale
        if rule.derived:
            self.derived.append(target.value)

    def _by_rank(self, rule: Rule, origins: Origins) -> dict[str, float]:
        """The value of each rank: over its other labels by the rule, the largest over processes that report the same."""
        values = self._values
        ranks: dict[str, float] = {}
        for rank, positions in origins:
            if not self._is_sound:
                positions = tuple(position for position in positions if self._accepts(rule, values[position]))
                if not positions:
                    continue
            value = added_up(positions, values) if rule.merge is Merge.SUM else _merged(rule.merge, [values[p] for p in positions])
            if rank not in ranks or value > ranks[rank]:
                ranks[rank] = value
        return ranks

    def _accepts(self, rule: Rule, value: float) -> bool:
        # Of gauges only vLLM's V0 hit rate is ever negative, and means "off".
        if 0.0 <= value < LARGEST_VALUE:
            return True
        level = IssueLevel.WARNING if isinstance(rule.target, Counter) else IssueLevel.INFO
        if -LARGEST_VALUE < value < 0.0:
            code, text = IssueCode.NEGATIVE_COUNTER, f"{rule.names[0]} is {value:g}, which cannot be; it is left out."
        else:
            code, text = IssueCode.NOT_FINITE, f"{rule.names[0]} is {value}; it is left out."
        self.issues.append(DataIssue(code, level, text, rule.target.value))
        return False

    def _read_histogram(self, rule: Rule, target: Hist, spellings: Iterable[Spelling]) -> None:
        best: Histogram | None = None
        for spelling in spellings:
            found = self._histogram(target, spelling)
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

    def _histogram(self, target: Hist, spelling: Spelling) -> Histogram | None:
        ranks = spelling.quick(self._values) if self._is_sound else None
        if ranks is not None and len(ranks) == 1:
            return next(iter(ranks.values()))
        reader = HistogramReader(spelling.name, target)
        if ranks is not None:
            found = reader.combined(ranks)
        else:
            # Something is wrong with it: the reader says what, and makes of it what can be made.
            found = reader.read([(slot, self._values[position]) for slot, position in spelling.entries])
        self.issues += reader.issues
        return found

    def _derive(self, capacity_tokens: float) -> None:
        gauges = self.gauges
        if capacity_tokens and Gauge.KV_CAPACITY_TOKENS not in gauges:
            gauges[Gauge.KV_CAPACITY_TOKENS] = capacity_tokens
        used, capacity = gauges.get(Gauge.KV_USED_TOKENS), gauges.get(Gauge.KV_CAPACITY_TOKENS)
        if Gauge.KV_CACHE_USAGE_RATIO not in gauges and used is not None and capacity:
            gauges[Gauge.KV_CACHE_USAGE_RATIO] = used / capacity
            self.derived.append(Gauge.KV_CACHE_USAGE_RATIO.value)
        for hist, histogram in derived_histograms(self._dialect.engine, self.histograms).items():
            self.histograms[hist] = histogram
            self.derived.append(hist.value)


def derived_histograms(engine: Engine, histograms: Mapping[Hist, Histogram]) -> dict[Hist, Histogram]:
    """Histograms that the engine has no metric for and that can be approximated from the others (TGI's TTFT).

    Applied to a page's lifetime totals and, again, to a window's differences: an approximation made of means is not additive.
    """
    derive = dialect_of(engine).derive_histograms
    return derive(histograms) if derive else {}


def _merged(merge: Merge, numbers: Collection[float]) -> float:
    if len(numbers) == 1:
        return next(iter(numbers))
    if merge is Merge.SUM:
        return math.fsum(numbers)
    if merge is Merge.MEAN:
        return math.fsum(numbers) / len(numbers)
    return max(numbers) if merge is Merge.MAX else min(numbers)
