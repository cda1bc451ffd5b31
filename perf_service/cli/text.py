"""Numbers and names as a person reads them."""

from __future__ import annotations

import math
from datetime import UTC, datetime

from perf_service.models.plan import Estimate
from perf_service.models.units import MISSING, amount, number, percent, seconds
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
    sign = {QuantileKind.AT_MOST: "<= ", QuantileKind.AT_LEAST: ">= "}.get(value.kind, "~ ")
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
