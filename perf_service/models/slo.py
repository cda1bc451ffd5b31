"""Service-level objectives: what the operator wants of a metric."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from perf_service.models.errors import InvalidArgumentError
from perf_service.models.metrics import Hist


class Comparison(StrEnum):
    """On which side of the target the good values lie."""

    LESS_THAN = "less_than"
    GREATER_THAN = "greater_than"


# Metric names an SLO may use, besides the engine-neutral histogram and rate names themselves.
SLO_METRICS: dict[str, Hist] = {
    "ttft": Hist.TTFT_SECONDS,
    "itl": Hist.ITL_SECONDS,
    "tpot": Hist.TPOT_SECONDS,
    "e2e": Hist.E2E_SECONDS,
    "queue": Hist.QUEUE_SECONDS,
    "prefill": Hist.PREFILL_SECONDS,
    "decode": Hist.DECODE_SECONDS,
}
# Rates and ratios: value per second or 0..1, computed from counters.
SLO_RATES: tuple[str, ...] = (
    "throughput_tokens_per_second",
    "requests_per_second",
    "error_ratio",
    "prefix_cache_hit_ratio",
    "kv_cache_usage_ratio",
)
_ALIASES = {
    "time_to_first_token": "ttft",
    "inter_token_latency": "itl",
    "time_per_output_token": "tpot",
    "latency": "e2e",
    "e2e_latency": "e2e",
    "request_latency": "e2e",
    "throughput": "throughput_tokens_per_second",
    "tokens_per_second": "throughput_tokens_per_second",
    "error_rate": "error_ratio",
    "queue_time": "queue",
    "prefill_time": "prefill",
    "decode_time": "decode",
}
_BARE_SECONDS_MAX = 100.0
"""From here on a time without a unit is far likelier to be meant in milliseconds: `ttft_p95<500`."""
_LONGEST_SECONDS = {"itl": 10.0, "tpot": 10.0, "ttft": 100.0, "queue": 100.0, "prefill": 100.0, "e2e": 3600.0, "decode": 3600.0}
"""From here on a time is no objective that anybody has, whatever it is told in: far likelier milliseconds that were meant."""
_SUFFIX = re.compile(r"^(?P<name>.+?)(?:_(?P<stat>mean|avg|p(?P<q>\d{1,2}(?:\.\d+)?|100|999)))?$")
_EXPRESSION = re.compile(r"^\s*(?P<metric>[a-zA-Z][\w.]*)\s*(?P<op><=|>=|<|>)\s*(?P<value>[0-9.eE+-]+)\s*(?P<unit>ms|s|%)?\s*$")


_DIRECTIONS = {
    "error_ratio": Comparison.LESS_THAN,
    "throughput_tokens_per_second": Comparison.GREATER_THAN,
    "requests_per_second": Comparison.GREATER_THAN,
    "prefix_cache_hit_ratio": Comparison.GREATER_THAN,
}
"""The way in which a rate is better; KV cache use may be wanted high or low."""


@dataclass(frozen=True, slots=True)
class SLOTarget:
    """One objective, e.g. `SLOTarget("ttft_p95", 0.5, "less_than")`: the 95th percentile of TTFT below 0.5 s.

    `metric_name` is a name of `SLO_METRICS` (unit seconds; suffix `_mean` or `_pNN`, mean without a suffix) or of `SLO_RATES`.
    `objective_ratio`, where set, makes it an attainment objective: this share of requests within `target_value`.
    """

    metric_name: str
    target_value: float
    comparison: Comparison | str = Comparison.LESS_THAN
    objective_ratio: float | None = None
    builtin: bool = False  # one of the service's defaults, not the operator's own wish

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "comparison", Comparison(self.comparison))
        except ValueError as error:
            raise InvalidArgumentError(
                f"comparison must be 'less_than' or 'greater_than', not {self.comparison!r}", field="comparison"
            ) from error
        if not (self.target_value == self.target_value and abs(self.target_value) != float("inf")):
            raise InvalidArgumentError(f"target_value must be a finite number, not {self.target_value}", field="target_value")
        if self.objective_ratio is not None and not 0 < self.objective_ratio < 1:
            raise InvalidArgumentError(f"objective_ratio must lie between 0 and 1, not {self.objective_ratio}", field="objective_ratio")

    @property
    def base_metric(self) -> str:
        """Canonical name without alias, unit suffix `_seconds` and statistic."""
        name = (_SUFFIX.match(self.metric_name.lower()) or re.match("(?P<name>.*)", ""))["name"]  # type: ignore[index]
        name = name.removesuffix("_seconds") if name.removesuffix("_seconds") in (*SLO_METRICS, *_ALIASES) else name
        return _ALIASES.get(name, name)

    @property
    def quantile(self) -> float | None:
        """The quantile asked for (0.95 for `_p95`), None for the mean or a rate."""
        match = _SUFFIX.match(self.metric_name.lower())
        if not match or not match["q"]:
            return None
        return 0.999 if match["q"] == "999" else float(match["q"]) / 100.0

    @property
    def histogram(self) -> Hist | None:
        """The histogram it is read from, None for a rate or ratio."""
        return SLO_METRICS.get(self.base_metric)

    @property
    def is_backwards(self) -> bool:
        """Whether the worst values would meet it: a floor under a latency or errors, a ceiling over a throughput or a hit ratio."""
        wanted = Comparison.LESS_THAN if self.histogram is not None else _DIRECTIONS.get(self.base_metric)
        return wanted is not None and self.comparison is not wanted

    def met_by(self, value: float) -> bool:
        """Whether a measured value meets the objective."""
        return value <= self.target_value if self.comparison is Comparison.LESS_THAN else value >= self.target_value

    def __str__(self) -> str:
        sign = "<" if self.comparison is Comparison.LESS_THAN else ">"
        return f"{self.metric_name} {sign} {self.target_value:g}"


def parse_slo(text: str) -> SLOTarget:
    """An objective from `ttft_p95<0.5`, `itl<50ms`, `throughput>1000`.

    Raises InvalidArgumentError: not of this form, no such metric, a value that no measurement could miss or meet, as a slip of
    unit or sign makes it (a time of 100 and more needs its unit, a ratio lies within 0 and 1, a rate has no unit), or the wrong way
    round (`ttft_p95>0.5`).
    """
    match = _EXPRESSION.match(text)
    if not match:
        raise InvalidArgumentError(f"{text!r} is not an objective; write for example 'ttft_p95<0.5' or 'throughput>1000'", field="slo")
    try:
        value = float(match["value"])
    except ValueError as error:
        raise InvalidArgumentError(f"{match['value']!r} in {text!r} is not a number", field="slo") from error
    value *= {"ms": 1e-3, "%": 1e-2}.get(match["unit"] or "", 1.0)
    target = SLOTarget(match["metric"], value, Comparison.LESS_THAN if match["op"].startswith("<") else Comparison.GREATER_THAN)
    if target.histogram is None and target.base_metric not in SLO_RATES:
        known = ", ".join((*SLO_METRICS, *SLO_RATES))
        raise InvalidArgumentError(f"{match['metric']!r} is not a metric that an objective can name; known: {known}", field="slo")
    if why := _slip(target, match["value"], match["unit"] or ""):
        raise InvalidArgumentError(f"{text!r} is not an objective: {why}", field="slo")
    return target


def why_not_meant(target: SLOTarget, written: str = "") -> str:
    """Why an objective cannot be meant, whoever told it: a slip of the unit, of the sign or of the side. Empty where it can.

    `written` is the value as it was told, with its unit where it had one.
    """
    name, value = target.metric_name, target.target_value
    if value < 0:
        return f"{name} is never below zero"
    if target.is_backwards:
        sign, word = ("<", "at most") if target.comparison is Comparison.GREATER_THAN else (">", "at least")
        return f"it would be met by the worst; {name} is to be {word} so much: write {name}{sign}{written or format(value, 'g')}"
    if target.histogram is not None and value >= _LONGEST_SECONDS[target.base_metric]:
        return f"{name} is in seconds, and {value:g} s is longer than anybody wants; is {value:g}ms meant, which is {value / 1000:g}?"
    if target.base_metric.endswith("_ratio") and value > 1:
        return f"{target.base_metric} lies between 0 and 1; is {value:g}% meant, which is {value / 100:g}?"
    return ""


def _slip(target: SLOTarget, value: str, unit: str) -> str:
    """As `why_not_meant`, of one that was written with a unit or without."""
    if target.histogram is not None:
        if unit == "%":
            return f"{target.metric_name} is a time; write for example {target.metric_name}<500ms"
        if not unit and target.target_value >= _BARE_SECONDS_MAX and not target.is_backwards:
            return f"a time without a unit is in seconds; write {value}ms or {value}s"
        return why_not_meant(target, value + unit)
    is_ratio = target.base_metric.endswith("_ratio")
    if unit in ("ms", "s") or (unit == "%" and not is_ratio):
        return f"{target.base_metric} is {'a ratio' if is_ratio else 'a number per second'}, not in {unit}"
    return why_not_meant(target, value + unit)
