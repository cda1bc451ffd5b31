"""Objectives against what was measured: mean, quantile, attainment, rate. The error budget over days is in `error_budget`.

A histogram tells exactly how many requests lie within a bucket bound, and only bounds for any other value. So an objective whose
target is a bucket bound is met or missed for certain; elsewhere it is UNDECIDED where the requests that would decide share the
target's bucket. Interpolated values are told as estimates and decide nothing. A quantile objective (`ttft_p95 < 0.5`) is the
attainment objective "95 % within 0.5 s", and is judged as that.
"""

from __future__ import annotations

from collections.abc import Sequence

from perf_service.models.analysis import SLOState, SLOStatus
from perf_service.models.metrics import Counter, Gauge, Hist
from perf_service.models.slo import Comparison, SLOTarget
from perf_service.models.units import amount, amount_range, count_of, percent, percent_range
from perf_service.models.window import Attainment, Quantile, QuantileKind, Window

# Where a page lacks the histogram that an objective names, the next best one of the same meaning.
_SUBSTITUTES: dict[Hist, tuple[Hist, ...]] = {Hist.ITL_SECONDS: (Hist.TPOT_SECONDS,), Hist.TPOT_SECONDS: (Hist.ITL_SECONDS,)}


def evaluate(window: Window, targets: Sequence[SLOTarget]) -> tuple[SLOStatus, ...]:
    """One status per target, in order. Nothing is assumed where nothing was measured."""
    return tuple(_status(window, target) for target in targets)


def wanted_share(target: SLOTarget) -> float | None:
    """The share of events (requests, or tokens for a cache) that must be good; None for objectives on a mean or a rate.

    `ttft_p95 < 0.5` wants 95 % within 0.5 s, `error_ratio < 0.01` wants 99 % without an error.
    """
    is_below = target.comparison is Comparison.LESS_THAN
    if target.histogram is None:
        value = {("error_ratio", True): 1.0 - target.target_value, ("prefix_cache_hit_ratio", False): target.target_value}
        share = value.get((target.base_metric, is_below))
    elif target.objective_ratio is not None:
        share = target.objective_ratio
    elif target.quantile is not None:
        share = target.quantile if is_below else 1.0 - target.quantile
    else:
        share = None
    return share if share is not None and 0.0 < share < 1.0 else None


def event_of(target: SLOTarget) -> str:
    """What is counted: requests, or tokens for the time between tokens and the prefix cache."""
    return "token" if target.base_metric in ("itl", "prefix_cache_hit_ratio") else "request"


def source_of(window: Window, target: SLOTarget) -> Hist | None:
    """The histogram that a latency objective is read from: its own, else one of the same meaning; None where none was measured."""
    hist = target.histogram
    if hist is None:
        return None
    known = (hist, *substitutes(hist))
    return next((h for h in known if window.count(h) > 0 and not _only_first_tokens(window, h)), None)


def substitutes(hist: Hist) -> tuple[Hist, ...]:
    """Histograms of the same meaning, for pages that lack this one."""
    return _SUBSTITUTES.get(hist, ())


def _status(window: Window, target: SLOTarget) -> SLOStatus:
    if target.histogram is None:
        return _rate_status(window, target)
    source = source_of(window, target)
    if source is None:
        return _not_measured(target, f"{_name(target)} was not measured in this window.")
    if target.objective_ratio is not None:
        return _attainment_status(window, target, source)
    attainment = _good_share(window, target, source)
    samples = window.count(source)
    if target.quantile is None:
        mean = window.mean(source)
        if mean is None:
            return _not_measured(target, f"{_name(target)} was not measured in this window.")
        state = SLOState.MET if target.met_by(mean) else SLOState.MISSED
        text = f"Mean {_name(target)} is {_amount(target, mean)}{_judgement(target, state)}."
        return _judged(target, mean, state, text, samples=samples, attainment=attainment)
    quantile = window.quantile(source, target.quantile)
    if quantile is None:
        return _not_measured(target, f"{_name(target)} came without buckets: only its mean is known, not a quantile.")
    state = _quantile_state(target, quantile)
    text = f"{_name(target)} p{100 * target.quantile:g} is {_quantile_text(target, quantile)}{_judgement(target, state)}"
    if state is SLOState.UNDECIDED:
        text += f", which lies inside that bucket{_nearest(window, source, target)}"
    return _judged(target, quantile.value, state, f"{text}.", samples=samples, attainment=attainment, low=quantile.low, high=quantile.high)


def _name(target: SLOTarget) -> str:
    return target.base_metric.upper() if target.base_metric in ("ttft", "itl", "tpot", "e2e") else target.base_metric.replace("_", " ")


def _amount(target: SLOTarget, value: float) -> str:
    return amount(target.base_metric, value)


def _judgement(target: SLOTarget, state: SLOState) -> str:
    """`, over the target of 100 ms`. `within` and `over` for ceilings, `at least` and `below` for floors."""
    goal = _amount(target, target.target_value)
    if state is SLOState.UNDECIDED:
        return f"; undecided against the target of {goal}"
    is_ceiling = target.comparison is Comparison.LESS_THAN
    word = ("within" if is_ceiling else "above") if state is SLOState.MET else ("over" if is_ceiling else "below")
    return f", {word} the target of {goal}"


def _quantile_text(target: SLOTarget, quantile: Quantile) -> str:
    bounds = amount_range(target.base_metric, quantile.low, quantile.high)
    if quantile.kind is not QuantileKind.INTERPOLATED:
        return f"{bounds} (the {'lowest' if quantile.kind is QuantileKind.AT_MOST else 'highest'} bucket tells no more)"
    return f"about {_amount(target, quantile.value)} (in the bucket {bounds})"


def _nearest(window: Window, source: Hist, target: SLOTarget) -> str:
    """The targets beside this one that could be judged exactly."""
    bounds = window.histograms[source].bounds
    beside = [*[b for b in bounds if b < target.target_value][-1:], *[b for b in bounds if b > target.target_value][:1]]
    return f" (exact targets beside it: {' and '.join(_amount(target, b) for b in beside)})" if beside else ""


def _only_first_tokens(window: Window, hist: Hist) -> bool:
    """Answers of one token count in the time per token, with 0 seconds: they have no time between tokens to judge."""
    return hist in _SUBSTITUTES and window.mean(hist) == 0


def _quantile_state(target: SLOTarget, quantile: Quantile) -> SLOState:
    """The truth lies above `low` and at `high` or below: judged on that alone."""
    if target.comparison is Comparison.LESS_THAN:
        met, missed = quantile.high <= target.target_value, quantile.low >= target.target_value
    else:
        met, missed = quantile.low >= target.target_value, quantile.high <= target.target_value
    return SLOState.MET if met else SLOState.MISSED if missed else SLOState.UNDECIDED


def _good_share(window: Window, target: SLOTarget, hist: Hist) -> Attainment | None:
    found = window.attainment(hist, target.target_value)
    if found is None or target.comparison is Comparison.LESS_THAN:
        return found
    return Attainment(1.0 - found.ratio, 1.0 - found.high, 1.0 - found.low, found.samples)


def _attainment_status(window: Window, target: SLOTarget, hist: Hist) -> SLOStatus:
    attainment = _good_share(window, target, hist)
    if attainment is None:
        return _not_measured(target, f"{_name(target)} came without buckets: the share within a bound is unknown.")
    share, low, high = attainment.ratio, attainment.low, attainment.high
    is_ceiling = target.comparison is Comparison.LESS_THAN
    wanted = target.objective_ratio or 0.0
    state = SLOState.MET if low >= wanted else SLOState.MISSED if high < wanted else SLOState.UNDECIDED
    goal = _amount(target, target.target_value)
    word = {SLOState.MET: "met", SLOState.MISSED: "missed", SLOState.UNDECIDED: "undecided"}[state]
    text = (
        f"{percent_range(low, high)} of {count_of(attainment.samples, event_of(target))} had {_name(target)} "
        f"{'within' if is_ceiling else 'above'} {goal}, wanted {percent(wanted)}: {word}"
    )
    if low != high:
        text += f"; {goal} lies inside a bucket{_nearest(window, hist, target)}"
    return SLOStatus(
        target=target,
        state=state,
        current_value=window.mean(hist),
        samples=attainment.samples,
        attainment_ratio=share,
        attainment_low=low,
        attainment_high=high,
        message=f"{text}.",
    )


def _rate_status(window: Window, target: SLOTarget) -> SLOStatus:
    value, samples = measure_rate(window, target.base_metric)
    if value is None:
        return _not_measured(target, f"{_name(target)} was not measured in this window.")
    state = SLOState.MET if target.met_by(value) else SLOState.MISSED
    return _judged(target, value, state, f"{_rate_name(target)} is {_amount(target, value)}{_judgement(target, state)}.", samples=samples)


_RATE_NAMES = {
    "throughput_tokens_per_second": "Output tokens per second",
    "requests_per_second": "Finished requests per second",
    "error_ratio": "The share of failed requests",
    "prefix_cache_hit_ratio": "The share of prompt tokens found in the prefix cache",
    "kv_cache_usage_ratio": "KV cache use",
}


def _rate_name(target: SLOTarget) -> str:
    return _RATE_NAMES.get(target.base_metric, target.metric_name)


def measure_rate(window: Window, name: str) -> tuple[float | None, float]:
    """Value and sample count of a rate or ratio that an objective may name; None where it was not measured."""
    succeeded = window.delta(Counter.REQUESTS_SUCCEEDED)  # latencies are of those that fail, too
    finished = succeeded if succeeded is not None else window.count(Hist.E2E_SECONDS)
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
    state: SLOState,
    text: str,
    *,
    samples: float,
    attainment: Attainment | None = None,
    low: float | None = None,
    high: float | None = None,
) -> SLOStatus:
    return SLOStatus(
        target=target,
        state=state,
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
    return SLOStatus(target=target, state=SLOState.NOT_MEASURED, current_value=None, message=message[:1].upper() + message[1:])


def likely_missed(status: SLOStatus) -> bool:
    """Missed; or undecided, with the interpolated estimate on the wrong side: no verdict, but worth an explanation.

    Below the lowest bucket bound there is no estimate (what is told there is the bound itself), so nothing is likely.
    """
    target = status.target
    if status.state is not SLOState.UNDECIDED:
        return status.state is SLOState.MISSED
    if target.objective_ratio is not None:
        return bool(status.attainment_low) and (status.attainment_ratio or 0.0) < target.objective_ratio
    is_bound = status.low == 0.0 and status.current_value == status.high
    return status.current_value is not None and not is_bound and not target.met_by(status.current_value)


def miss_ratio(status: SLOStatus) -> float:
    """How far an objective is missed, or likely is: value / target (or target / value for a floor), at least 1; else 1.

    For an attainment objective it is the burn rate: share of bad events over the share that the objective allows.
    """
    if not likely_missed(status):
        return 1.0
    target = status.target
    if target.objective_ratio is not None and status.attainment_ratio is not None:
        return max(1.0, (1.0 - status.attainment_ratio) / (1.0 - target.objective_ratio))
    if status.current_value is None:
        return 1.0
    if target.comparison is Comparison.LESS_THAN:
        return max(1.0, status.current_value / target.target_value) if target.target_value > 0 else float("inf")
    return max(1.0, target.target_value / status.current_value) if status.current_value > 0 else float("inf")
