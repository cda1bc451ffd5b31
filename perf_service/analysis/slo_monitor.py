"""Objectives against what was measured: mean, quantile, attainment, rate; error budget and burn rate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from perf_service.models.analysis import SLOState, SLOStatus
from perf_service.models.metrics import Counter, Gauge, Hist
from perf_service.models.slo import Comparison, SLOTarget
from perf_service.models.window import Attainment, QuantileKind, Window

# Where a page lacks the histogram that an objective names, the next best one of the same meaning.
_SUBSTITUTES: dict[Hist, tuple[Hist, ...]] = {Hist.ITL_SECONDS: (Hist.TPOT_SECONDS,), Hist.TPOT_SECONDS: (Hist.ITL_SECONDS,)}


def evaluate(window: Window, targets: Sequence[SLOTarget]) -> tuple[SLOStatus, ...]:
    """One status per target, in order. Nothing is assumed where nothing was measured."""
    return tuple(_status(window, target) for target in targets)


def _status(window: Window, target: SLOTarget) -> SLOStatus:
    hist = target.histogram
    if hist is None:
        return _rate_status(window, target)
    source = next((h for h in (hist, *_SUBSTITUTES.get(hist, ())) if window.count(h) > 0 and not _only_first_tokens(window, h)), None)
    if source is None:
        return _not_measured(target, f"{target.base_metric} was not measured in this window.")
    if target.objective_ratio is not None:
        return _attainment_status(window, target, source)
    attainment = window.attainment(source, target.target_value)
    samples = window.count(source)
    if target.quantile is None:
        mean = window.mean(source)
        if mean is None:
            return _not_measured(target, f"{target.base_metric} was not measured in this window.")
        return _judged(target, mean, met=target.met_by(mean), samples=samples, attainment=attainment)
    quantile = window.quantile(source, target.quantile)
    if quantile is None:
        return _not_measured(target, f"{target.base_metric} came without buckets: only its mean is known, not a quantile.")
    return _judged(
        target,
        quantile.value,
        met=_quantile_met(target, quantile.kind, quantile.low, quantile.high, quantile.value),
        samples=samples,
        attainment=attainment,
        low=quantile.low,
        high=quantile.high,
        kind=quantile.kind,
    )


def _only_first_tokens(window: Window, hist: Hist) -> bool:
    """Answers of one token count in the time per token, with 0 seconds: they have no time between tokens to judge."""
    return hist in _SUBSTITUTES and window.mean(hist) == 0


def _quantile_met(target: SLOTarget, kind: QuantileKind, low: float, high: float, value: float) -> bool:
    """Below the lowest bound only "<= high" is known, above the highest only ">= low": judged on what is certain."""
    if kind is QuantileKind.AT_MOST:
        return target.met_by(high) if target.comparison is Comparison.LESS_THAN else target.met_by(low)
    if kind is QuantileKind.AT_LEAST:
        return False if target.comparison is Comparison.LESS_THAN else target.met_by(low)
    return target.met_by(value)


def _attainment_status(window: Window, target: SLOTarget, hist: Hist) -> SLOStatus:
    attainment = window.attainment(hist, target.target_value)
    if attainment is None:
        return _not_measured(target, f"{target.base_metric} came without buckets: the share within a bound is unknown.")
    share, low, high = attainment.ratio, attainment.low, attainment.high
    if target.comparison is Comparison.GREATER_THAN:
        share, low, high = 1.0 - share, 1.0 - high, 1.0 - low
    met = share >= (target.objective_ratio or 0.0)
    exact = "" if low == high else f" (between {low:.1%} and {high:.1%}: the target is not a bucket bound)"
    text = f"{share:.1%} of {attainment.samples:.0f} within {target.target_value:g}, wanted {target.objective_ratio:.1%}{exact}."
    return SLOStatus(
        target=target,
        state=SLOState.MET if met else SLOState.MISSED,
        current_value=window.mean(hist),
        samples=attainment.samples,
        attainment_ratio=share,
        attainment_low=low,
        attainment_high=high,
        message=text,
    )


def _rate_status(window: Window, target: SLOTarget) -> SLOStatus:
    value, samples = measure_rate(window, target.base_metric)
    if value is None:
        return _not_measured(target, f"{target.metric_name} was not measured in this window.")
    return _judged(target, value, met=target.met_by(value), samples=samples)


def measure_rate(window: Window, name: str) -> tuple[float | None, float]:
    """Value and sample count of a rate or ratio that an objective may name; None where it was not measured."""
    finished = window.counters.get(Counter.REQUESTS_SUCCEEDED, 0.0) or window.count(Hist.E2E_SECONDS)
    if name == "throughput_tokens_per_second":
        rate = window.rate(Counter.GENERATION_TOKENS)
        if rate is None and (gauge := window.gauge(Gauge.GENERATION_TOKENS_PER_SECOND)) is not None:
            return gauge.mean, gauge.samples
        return rate, finished
    if name == "requests_per_second":
        rate = window.rate(Counter.REQUESTS_SUCCEEDED)
        if rate is None and window.duration_seconds and Hist.E2E_SECONDS in window.histograms:
            rate = window.count(Hist.E2E_SECONDS) / window.duration_seconds
        return rate, finished
    if name == "error_ratio":
        failed = error_count(window)
        total = finished + failed
        return (failed / total, total) if total > 0 else (None, 0.0)
    if name == "prefix_cache_hit_ratio":
        hits, queries = window.delta(Counter.PREFIX_CACHE_HITS_TOKENS), window.delta(Counter.PREFIX_CACHE_QUERIES_TOKENS)
        if hits is not None and queries:
            return hits / queries, queries
        gauge = window.gauge(Gauge.PREFIX_CACHE_HIT_RATIO)
        return (gauge.mean, gauge.samples) if gauge else (None, 0.0)
    if name == "kv_cache_usage_ratio" and (gauge := window.gauge(Gauge.KV_CACHE_USAGE_RATIO)) is not None:
        return gauge.mean, gauge.samples
    return None, 0.0


def error_count(window: Window) -> float:
    """Requests that failed on the server's side: the engine's own count, or HTTP 5xx where that is larger; and rejections."""
    failed = window.counters.get(Counter.REQUESTS_FAILED, 0.0)
    rejected = window.counters.get(Counter.REQUESTS_REJECTED, 0.0)
    return max(failed + rejected, window.counters.get(Counter.HTTP_5XX_RESPONSES, 0.0))


def _judged(
    target: SLOTarget,
    value: float,
    *,
    met: bool,
    samples: float,
    attainment: Attainment | None = None,
    low: float | None = None,
    high: float | None = None,
    kind: QuantileKind | None = None,
) -> SLOStatus:
    sign = {QuantileKind.AT_MOST: "<= ", QuantileKind.AT_LEAST: ">= "}.get(kind, "") if kind else ""
    word = "met" if met else "missed"
    side = "<" if target.comparison is Comparison.LESS_THAN else ">"
    text = f"{target.metric_name} is {sign}{value:.4g}, target {side} {target.target_value:g}: {word}."
    return SLOStatus(
        target=target,
        state=SLOState.MET if met else SLOState.MISSED,
        current_value=value,
        low=low,
        high=high,
        samples=samples,
        attainment_ratio=attainment.ratio if attainment else None,
        attainment_low=attainment.low if attainment else None,
        attainment_high=attainment.high if attainment else None,
        message=text,
    )


def _not_measured(target: SLOTarget, message: str) -> SLOStatus:
    return SLOStatus(target=target, state=SLOState.NOT_MEASURED, current_value=None, message=message)


def miss_ratio(status: SLOStatus) -> float:
    """How far an objective is missed: value / target (or target / value for a floor), at least 1; 1 where it is met or unknown.

    For an attainment objective it is the burn rate: share of bad events over the share that the objective allows.
    """
    if status.state is not SLOState.MISSED:
        return 1.0
    target = status.target
    if target.objective_ratio is not None and status.attainment_ratio is not None:
        return max(1.0, (1.0 - status.attainment_ratio) / (1.0 - target.objective_ratio))
    if status.current_value is None:
        return 1.0
    if target.comparison is Comparison.LESS_THAN:
        return max(1.0, status.current_value / target.target_value) if target.target_value > 0 else float("inf")
    return max(1.0, target.target_value / status.current_value) if status.current_value > 0 else float("inf")


@dataclass(frozen=True, slots=True)
class BurnRate:
    """How fast an attainment objective uses up its error budget over a long and a short window."""

    target: SLOTarget
    long_rate: float  # 1: exactly the budget over the whole period
    short_rate: float
    threshold: float
    samples: float

    @property
    def alerting(self) -> bool:
        """Both windows burn faster than the threshold: it is bad, and it still is."""
        return self.long_rate >= self.threshold and self.short_rate >= self.threshold


def burn_rate(target: SLOTarget, long: Window, short: Window, threshold: float) -> BurnRate | None:
    """Multi-window burn rate (Google SRE Workbook, ch. 5); None where either window has no observation or the target is no attainment."""
    if target.objective_ratio is None:
        return None
    first, second = (_status(window, target) for window in (long, short))
    if first.attainment_ratio is None or second.attainment_ratio is None:
        return None
    budget = 1.0 - target.objective_ratio
    return BurnRate(target, (1.0 - first.attainment_ratio) / budget, (1.0 - second.attainment_ratio) / budget, threshold, first.samples)


def budget_left_ratio(target: SLOTarget, windows: Sequence[Window]) -> float | None:
    """Share of the error budget left over the windows of one period; negative when overspent, None without observations."""
    statuses = [status for window in windows if (status := _status(window, target)).attainment_ratio is not None]
    total = sum(status.samples for status in statuses)
    if target.objective_ratio is None or total <= 0:
        return None
    bad = sum((1.0 - (status.attainment_ratio or 0.0)) * status.samples for status in statuses)
    return 1.0 - bad / total / (1.0 - target.objective_ratio)
