"""Numbers and names as a person reads them."""

from __future__ import annotations

import math
from datetime import UTC, datetime

from perf_service.models.plan import Estimate
from perf_service.models.window import Quantile, QuantileKind

__all__ = [
    "ago",
    "amount",
    "clock_time",
    "estimate",
    "interval",
    "metric_title",
    "number",
    "percent",
    "quantile",
    "ratio",
    "seconds",
    "title_of",
]

MISSING = "-"


def number(value: float | None) -> str:
    """Three significant digits, no exponent where it can be helped: 0.0123, 1.24, 141, 12,400."""
    if value is None or not math.isfinite(value):
        return MISSING
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}" if digits < 8 else f"{value:.3g}"


def seconds(value: float | None) -> str:
    """A duration: 12.3 ms, 8.33 s, 4 min 10 s, 2 h 5 min."""
    if value is None or not math.isfinite(value):
        return MISSING
    if abs(value) < 1e-6:  # nothing that an engine does is shorter
        return "0 s"
    if abs(value) >= 7200:
        return f"{value // 3600:.0f} h {value % 3600 // 60:.0f} min"
    if abs(value) >= 120:
        return f"{value // 60:.0f} min {value % 60:.0f} s"
    return f"{number(value)} s" if abs(value) >= 1 else f"{number(value * 1000)} ms"


def percent(value: float | None) -> str:
    """A ratio as percent."""
    return MISSING if value is None or not math.isfinite(value) else f"{number(100 * value)} %"


def amount(metric: str, value: float | None) -> str:
    """A value with the unit that the metric's name carries; alias names (ttft, itl, ...) are seconds."""
    if value is None:
        return MISSING
    if "per_second" in metric or metric.startswith("throughput"):
        return f"{number(value)}/s"
    if "ratio" in metric:
        return percent(value)
    base = metric.split("_")[0]
    if "seconds" in metric or base in ("ttft", "itl", "tpot", "e2e", "queue", "prefill", "decode"):
        return seconds(value)
    return number(value)


def interval(metric: str, low: float, high: float) -> str:
    """A range in the metric's unit, the unit once where both ends have the same."""
    first, last = amount(metric, low), amount(metric, high)
    unit = last.rpartition(" ")[2]
    if " " in last and first.endswith(f" {unit}"):
        first = first.removesuffix(f" {unit}")
    elif last.endswith("/s") and first.endswith("/s"):
        first = first.removesuffix("/s")
    return f"{first} .. {last}"


def estimate(metric: str, value: Estimate | None) -> str:
    """A value with its interval."""
    return MISSING if value is None else f"{amount(metric, value.value)} ({interval(metric, value.low, value.high)})"


def quantile(value: Quantile | None) -> str:
    """A histogram quantile in seconds, honest at both ends of the buckets."""
    if value is None:
        return MISSING
    sign = {QuantileKind.AT_MOST: "<= ", QuantileKind.AT_LEAST: ">= "}.get(value.kind, "")
    return sign + seconds(value.value)


def ratio(value: float | None) -> str:
    """after / before: 'x 0.12', 'x 3.9', or 'as before'."""
    if value is None or not math.isfinite(value):
        return MISSING
    return "as before" if abs(value - 1) < 0.005 else f"x {number(value)}"


def metric_title(metric: str) -> str:
    """`ttft_seconds_mean` -> `ttft mean`, `throughput_tokens_per_second` -> `throughput`: units stand in the values."""
    if metric == "throughput_tokens_per_second":
        return "output tokens"
    return title_of(metric.replace("_per_second", "").replace("_seconds", "").replace("_ratio", ""))


def title_of(name: str) -> str:
    """`token_budget_too_small` -> `token budget too small`."""
    return name.replace("_", " ")


def clock_time(unix_seconds: float | None) -> str:
    """UTC time of day with the date."""
    return MISSING if not unix_seconds else datetime.fromtimestamp(unix_seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")


def ago(unix_seconds: float | None, now: float) -> str:
    """How long ago."""
    return MISSING if not unix_seconds else f"{seconds(round(max(0.0, now - unix_seconds)))} ago"
