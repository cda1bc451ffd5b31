"""From the text of one page to a typed `Snapshot`: absent stays absent, and what is doubtful is said, not guessed."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Final

from perf_service.collectors.dialects import DIALECTS, detect_engine, dialect_of
from perf_service.collectors.dialects.base import MAX_SPELLINGS, Binding, Dialect, Merge, Rule, Slot, group_of
from perf_service.collectors.exposition import (
    DEFAULT_MAX_BODY_BYTES,
    DEFAULT_MAX_SERIES,
    ExpositionParser,
    Page,
)
from perf_service.collectors.histograms import HistogramReader
from perf_service.models.config import EngineConfig, KnobValue, Source
from perf_service.models.errors import CollectError, ErrorReason
from perf_service.models.metrics import (
    Counter,
    DataIssue,
    DataQuality,
    Engine,
    Gauge,
    Hist,
    Histogram,
    IssueCode,
    IssueLevel,
    Snapshot,
)

_LISTED_NAMES: Final = 20
_Entries = list[tuple[Slot, float]]


class SnapshotBuilder:
    """Makes snapshots of pages of one engine. Keep one per engine: its parser remembers the series of earlier pages.

    Not for use by several threads at once.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        max_body_bytes: int = DEFAULT_MAX_BODY_BYTES,
        max_series: int = DEFAULT_MAX_SERIES,
    ) -> None:
        self.engine = engine
        self._dialect = dialect_of(engine)
        self._parser = ExpositionParser(self._dialect.bind, max_body_bytes=max_body_bytes, max_series=max_series)

    def build(
        self,
        body: bytes | str,
        instance_id: str,
        collected_at: float | None,
        *,
        endpoint: str = "",
        config: EngineConfig | None = None,
        engine_version: str = "",
    ) -> Snapshot:
        """The typed content of a page. `collected_at` is unix seconds, None where a saved page's time is unknown.

        `config` holds what is known from elsewhere; it wins over what the page tells.

        Raises:
            CollectError: BODY_TOO_LARGE or TOO_MANY_SERIES when the page exceeds the limits.
        """
        page = self._parser.parse(body)
        reading = _Reading(self._dialect, page)
        issues = [*_page_issues(page), *reading.issues]
        known = len(reading.gauges) + len(reading.counters) + len(reading.histograms)
        if not reading.own_series:
            issues.insert(0, _nothing_known(self.engine, body))
            known = 0
        else:
            issues += _missing(self._dialect, reading)
        page_config = EngineConfig.of(reading.config, Source.PAGE)
        return Snapshot(
            instance_id=instance_id,
            engine=self.engine,
            collected_at=collected_at,
            gauges=reading.gauges,
            counters=reading.counters,
            histograms=reading.histograms,
            ranks=reading.ranks,
            config=config.over(page_config) if config else page_config,
            engine_version=engine_version,
            model_name=reading.model_name,
            process_start_time=reading.process_start_time,
            endpoint=endpoint,
            derived=tuple(dict.fromkeys(reading.derived)),
            quality=DataQuality(tuple(dict.fromkeys(issues)), known),
        )


def snapshot_of(
    body: bytes | str,
    instance_id: str,
    *,
    engine: Engine | None = None,
    collected_at: float | None = None,
    endpoint: str = "",
    config: EngineConfig | None = None,
    engine_version: str = "",
    strict: bool = False,
) -> Snapshot:
    """One page's snapshot, for callers without a series of pages. `engine` None detects it from the page.

    Raises:
        CollectError: ENGINE_UNKNOWN when the engine was to be detected and no engine's metric is on the page; with
            `strict`, ENGINE_MISMATCH or BODY_NOT_METRICS when the page is not one of the told engine; BODY_TOO_LARGE,
            TOO_MANY_SERIES beyond the limits.
    """
    if engine is None:
        engine = detect_engine(body)
        if engine is None:
            raise CollectError(
                ErrorReason.ENGINE_UNKNOWN,
                "The page has no metric of vLLM, SGLang or TGI, so its engine cannot be told. "
                "Check that it is the engine's /metrics page and that metrics are on (SGLang needs --enable-metrics).",
            )
    snapshot = SnapshotBuilder(engine).build(
        body, instance_id, collected_at, endpoint=endpoint, config=config, engine_version=engine_version
    )
    if strict:
        require_engine(snapshot)
    return snapshot


def require_engine(snapshot: Snapshot) -> None:
    """Raise where the page was not one of the told engine.

    Raises:
        CollectError: ENGINE_MISMATCH for another engine's page, BODY_NOT_METRICS for a page of no engine.
    """
    for issue in snapshot.quality.blocking:
        if issue.code is IssueCode.ENGINE_MISMATCH:
            raise CollectError(ErrorReason.ENGINE_MISMATCH, issue.message, {"engine": snapshot.engine.value})
        if issue.code is IssueCode.NO_KNOWN_METRICS:
            raise CollectError(ErrorReason.BODY_NOT_METRICS, issue.message, {"engine": snapshot.engine.value})


class _Reading:
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
            key = (slot.rank, slot.replica)
            sums[key] = sums.get(key, 0.0) + value
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


def _page_issues(page: Page) -> list[DataIssue]:
    issues = []
    if page.malformed_count:
        lines = "; ".join(f"line {entry.number}: {entry.text!r}" for entry in page.malformed_lines)
        text = f"{page.malformed_count} line(s) make no sense and are left out ({lines})."
        issues.append(DataIssue(IssueCode.MALFORMED_LINES, IssueLevel.WARNING, text))
    if page.is_truncated:
        text = "The page ends in the middle of a line: it was cut, and metrics at its end are missing."
        issues.append(DataIssue(IssueCode.TRUNCATED, IssueLevel.WARNING, text))
    elif page.is_unterminated and page.types:
        text = "The page does not end with a line feed: its last value may be cut."
        issues.append(DataIssue(IssueCode.TRUNCATED, IssueLevel.INFO, text))
    if page.duplicates:
        names = _listed(dict.fromkeys(series.name for series in page.duplicates))
        text = f"{len(page.duplicates)} series stand on the page twice; the first value of each is taken ({names})."
        issues.append(DataIssue(IssueCode.DUPLICATE_SERIES, IssueLevel.WARNING, text))
    if page.unknown_names:
        text = f"Names that no known version of the engine has are ignored: {_listed(page.unknown_names)}."
        issues.append(DataIssue(IssueCode.UNKNOWN_METRICS, IssueLevel.INFO, text))
    return issues


def _nothing_known(engine: Engine, body: bytes | str) -> DataIssue:
    other = detect_engine(body)
    if other is not None and other is not engine:
        text = f"The page is one of {other.value}, not of {engine.value}: set the instance's engine to {other.value}."
        return DataIssue(IssueCode.ENGINE_MISMATCH, IssueLevel.BLOCKING, text)
    hint = " Metrics are off unless it was started with --enable-metrics." if engine is Engine.SGLANG else ""
    what = "The page is empty" if not body.strip() else "The page has no metric of the engine that is known"
    text = f"{what}: nothing can be said about this {engine.value} server.{hint}"
    return DataIssue(IssueCode.NO_KNOWN_METRICS, IssueLevel.BLOCKING, text)


def _missing(dialect: Dialect, reading: _Reading) -> list[DataIssue]:
    present = {*reading.gauges, *reading.counters, *reading.histograms}
    issues = []
    for target in dialect.core:
        if target not in present:
            spellings = next(rule.names for rule in dialect.rules if rule.target is target)
            text = f"The page has no {' or '.join(spellings)}: {target.value} is unknown."
            issues.append(DataIssue(IssueCode.MISSING_METRIC, IssueLevel.WARNING, text, target.value))
    return issues


def _listed(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - _LISTED_NAMES} more" if len(listed) > _LISTED_NAMES else ""
    return ", ".join(listed[:_LISTED_NAMES]) + more


__all__ = ["DIALECTS", "SnapshotBuilder", "derived_histograms", "require_engine", "snapshot_of"]
