"""Numbers as a person reads them: three significant digits, always with the unit."""

from __future__ import annotations

import math

from perf_service.models.slo import Comparison, SLOTarget

__all__ = [
    "MISSING",
    "amount",
    "amount_range",
    "count_of",
    "goal",
    "number",
    "of_target",
    "percent",
    "percent_range",
    "rounded_days",
    "seconds",
]

MISSING = "-"
_LATENCIES = ("ttft", "itl", "tpot", "e2e", "queue", "prefill", "decode")


def number(value: float | None) -> str:
    """Three significant digits, no exponent where it can be helped: 0.0123, 1.24, 141, 12,400."""
    if value is None or not math.isfinite(value):
        return MISSING
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}" if digits < 8 else f"{value:.3g}"


def seconds(value: float | None) -> str:
    """A duration: 12.3 ms, 8.33 s, 4 min 10 s, 2 h 5 min, 3.2 days."""
    if value is None or not math.isfinite(value):
        return MISSING
    if abs(value) < 1e-6:  # nothing that an engine does is shorter
        return "0 s"
    if abs(value) >= 2 * 86_400:
        return rounded_days(value)
    if abs(value) >= 7200 or abs(value) == 3600:
        hours, minutes = divmod(round(value / 60), 60)
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    if abs(value) >= 120:
        minutes, rest = divmod(round(value), 60)
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    return f"{number(value)} s" if abs(value) >= 1 else f"{number(value * 1000)} ms"


def rounded_days(value: float) -> str:
    """Seconds as days with one digit, none where it is a whole number: 3.2 days, 30 days."""
    days = round(value / 86_400, 1)
    return f"{days:.0f} days" if days == int(days) else f"{days:.1f} days"


def percent(value: float | None) -> str:
    """A ratio as percent."""
    return MISSING if value is None or not math.isfinite(value) else f"{number(100 * value)} %"


def percent_range(low: float, high: float) -> str:
    """One share, or the two bounds of one: `12 %`, `12 to 30 %`."""
    first, last = percent(low), percent(high)
    return last if first == last else f"{first.removesuffix(' %')} to {last}"


def amount(metric: str, value: float | None) -> str:
    """A value with the unit that the metric's name carries; alias names (ttft, itl, ...) are seconds."""
    if value is None:
        return MISSING
    if "per_second" in metric or metric.startswith("throughput"):
        return f"{number(value)}/s"
    if "ratio" in metric:
        return percent(value)
    if "seconds" in metric or metric.split("_")[0] in _LATENCIES:
        return seconds(value)
    return number(value)


def amount_range(metric: str, low: float, high: float) -> str:
    """The bounds of a value: `250 to 500 ms`, `at most 100 ms`, `more than 80.0 s`."""
    if not math.isfinite(high):
        return f"more than {amount(metric, low)}"
    if low <= 0:
        return f"at most {amount(metric, high)}"
    first, last = amount(metric, low), amount(metric, high)
    unit = last.rpartition(" ")[2]
    return f"{first.removesuffix(f' {unit}') if ' ' in last else first} to {last}"


def count_of(value: float, noun: str) -> str:
    """`1 request`, `24 requests`, `1,204 requests`."""
    return f"{value:,.0f} {noun}{'' if round(value) == 1 else 's'}"


def goal(target: SLOTarget) -> str:
    """An objective with its unit: `ttft_p95 < 1.00 s`, `95 % of ttft < 500 ms`."""
    sign = "<" if target.comparison is Comparison.LESS_THAN else ">"
    share = f"{100 * target.objective_ratio:g} % of " if target.objective_ratio is not None else ""
    return f"{share}{target.metric_name} {sign} {of_target(target, target.target_value)}"


def of_target(target: SLOTarget, value: float | None) -> str:
    """A value of an objective's metric with its unit."""
    return amount(target.base_metric if target.histogram else target.metric_name, value)
