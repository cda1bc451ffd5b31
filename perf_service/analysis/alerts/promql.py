"""Engine-neutral metrics as PromQL, made from the dialect tables that also read the pages.

Every expression ends in one value per replica (target labels and `model_name`), whatever labels the engine's version adds: ranks are
merged as the dialect says, processes that report the same requests count once, of several spellings the newest that is there is taken.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from perf_service.analysis.alerts.rules import PackOptions
from perf_service.collectors.dialects import Dialect, Merge, Rule, dialect_of
from perf_service.models.metrics import Counter, Gauge, Hist

RANGE = "5m"
"""Five samples at the slowest sensible scrape interval of 60 s."""

SERVED = "llm:served"
"""1 for each replica of the engine: the first series that a pack records."""

_Wrap = Callable[[str], str]
_MERGES = {Merge.SUM: "sum", Merge.MEAN: "avg", Merge.MAX: "max", Merge.MIN: "min"}


def _alternatives(values: frozenset[str]) -> str:
    """A regular expression for these label values; a whole class of status codes as one."""
    first = {value[:1] for value in values}
    if len(values) == 100 and len(first) == 1 and all(len(value) == 3 for value in values):
        return f"{first.pop()}.."
    return "|".join(sorted(values))


@dataclass(frozen=True, slots=True)
class Source:
    """The series of one engine, restricted to the operator's selector."""

    options: PackOptions

    @property
    def dialect(self) -> Dialect:
        """The engine's tables."""
        return dialect_of(self.options.engine)

    @property
    def replica(self) -> str:
        """Labels that every recorded series of a replica has."""
        return ", ".join((*self.options.target_labels, "model_name"))

    @property
    def target(self) -> str:
        """Labels that tell a scrape target."""
        return ", ".join(self.options.target_labels)

    def gauge(self, metric: Gauge, function: str, span: str = RANGE) -> str | None:
        """A gauge's statistic over time (`avg_over_time`, `max_over_time`, ...); its present value where `function` is empty."""
        return self._any(metric, "", (lambda s: f"{function}({s}[{span}])") if function else (lambda s: s))

    def rate(self, metric: Counter, span: str = RANGE, function: str = "rate") -> str | None:
        """A counter's increase per second (or another function of a range)."""
        return self._any(metric, "", lambda s: f"{function}({s}[{span}])")

    def hist(self, metric: Hist, part: str, span: str = RANGE, function: str = "rate") -> str | None:
        """Increase per second of a histogram's `_sum` or `_count`."""
        return self._any(metric, f"_{part}", lambda s: f"{function}({s}[{span}])")

    def mean(self, metric: Hist) -> str | None:
        """Mean of a histogram's observations; absent where there were none."""
        total, count = self.hist(metric, "sum"), self.hist(metric, "count")
        return f"({total})\n/\n(({count}) > 0)" if total and count else None

    def buckets(self, metric: Hist, by: tuple[str, ...]) -> str | None:
        """Bucket rates of a service, by `le`."""
        # First by replica: in the middle of an upgrade some have the old name and some the new one.
        own = ", ".join(dict.fromkeys(("le", *self.options.target_labels, *by)))
        parts = [f"sum by ({own}) (rate({s}[{RANGE}]))" for rule in self._rules(metric) for s in self._series(rule, "_bucket")]
        return f"sum by (le, {', '.join(by)}) (\n  " + "\n  or\n  ".join(parts) + "\n)" if parts else None

    def identity(self) -> str:
        """1 for each replica whose page carries any of the engine's core families, so that the rename of one does not hide it."""
        series = [self._series(rule, "")[0] for m in (Gauge.RUNNING_REQUESTS, Gauge.WAITING_REQUESTS) for rule in self._rules(m)]
        for metric in (Counter.GENERATION_TOKENS, Counter.REQUESTS_SUCCEEDED):
            series += [self._series(rule, "")[0] for rule in self._rules(metric)]
        return f"group by ({self.replica}) (\n  " + "\n  or\n  ".join(series) + "\n)"

    def plain(self, name: str, *matchers: str) -> str:
        """A series by its own name (`up`, `process_start_time_seconds`, an info metric)."""
        return self._selected(name, list(matchers))

    def foreign(self, expr: str) -> str:
        """A value by target that also other programs export, kept for the engine's targets only and given their labels."""
        served = f'{SERVED}{{pack="{self.options.pack}"}}'
        return f"sum by ({self.replica}) (\n  {served} * on ({self.target}) group_left () {expr}\n)"

    # -- how a rule becomes an expression ---------------------------------------------------------

    def _any(self, metric: Gauge | Counter | Hist, suffix: str, wrap: _Wrap) -> str | None:
        is_gauge = isinstance(metric, Gauge)
        parts = [self._merged(rule, wrap(series), gauge=is_gauge) for rule in self._rules(metric) for series in self._series(rule, suffix)]
        return "\nor\n".join(parts) or None

    def _rules(self, metric: Gauge | Counter | Hist) -> list[Rule]:
        return [rule for rule in self.dialect.rules if rule.target is metric]

    def _merged(self, rule: Rule, expr: str, *, gauge: bool) -> str:
        # Only gauges of a multi-process page carry the process; the other labels tell ranks that report the same requests.
        same = [label for label in self.dialect.replica_labels if gauge or label != "pid"]
        if same and not rule.foreign:
            expr = f"max without ({', '.join(same)}) ({expr})"
        if rule.scale != 1.0:
            expr = f"{expr} * {rule.scale:g}"
        how = _MERGES[rule.merge]
        if rule.foreign:
            return self.foreign(f"sum by ({self.target}) ({expr})")
        return f"{how} by ({self.replica}) ({expr})"

    def _series(self, rule: Rule, suffix: str) -> list[str]:
        tests = [f'{label}{"=~" if wanted else "!~"}"{_alternatives(values)}"' for label, values, wanted in rule.where]
        return [self._selected(name + suffix, tests + ([] if rule.foreign else self._totals(name))) for name in rule.names]

    def _totals(self, name: str) -> list[str]:
        """Where a label carries a total beside its parts, only the total."""
        return [
            f'{label}=~"|{total}"' if total else f'{label}=""'
            for label, total in self.dialect.totals.items()
            if label != "cache_source" or "cached_tokens" in name
        ]

    def _selected(self, name: str, matchers: list[str]) -> str:
        prefix = self.options.metric_prefix
        if prefix and name.startswith(self.dialect.prefix):
            name = prefix + name[len(self.dialect.prefix) :]
        inside = ",".join((*matchers, *filter(None, (self.options.selector,))))
        return f"{name}{{{inside}}}" if inside else name
