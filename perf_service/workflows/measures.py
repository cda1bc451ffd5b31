"""Metric keys ("ttft_seconds_p95", "error_ratio") and how each is read off a window: the vocabulary of gates and outcomes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from perf_service.models.metrics import Counter, Gauge, Hist
from perf_service.models.slo import SLOTarget
from perf_service.models.window import Window
from perf_service.workflows.types import Measured

COMPARED: tuple[str, ...] = (
    "ttft_seconds_mean",
    "ttft_seconds_p95",
    "itl_seconds_mean",
    "itl_seconds_p95",
    "e2e_seconds_mean",
    "e2e_seconds_p95",
)
"""Latencies that are always compared; few on purpose, every further one costs power (Google's canary practice)."""
ERROR_RATIO = "error_ratio"
PROMPT_TOKENS = "prompt_tokens_per_request_mean"
OUTPUT_TOKENS = "generation_tokens_per_request_mean"
REQUEST_RATE = "requests_per_second"
THROUGHPUT = "throughput_tokens_per_second"
MIX: tuple[str, ...] = (PROMPT_TOKENS, OUTPUT_TOKENS)
"""What must be alike before and after, or a shift of the workload would pass for an effect."""
_ALWAYS = (*COMPARED, ERROR_RATIO, *MIX, REQUEST_RATE, THROUGHPUT)
_HISTOGRAM_KEY = re.compile(r"^(?P<hist>.+?)_(?:(?P<mean>mean)|p(?P<q>\d+(?:\.\d+)?)|within_(?P<bound>[0-9.eE+-]+))$")
_LOOSE = re.compile(r"(_seconds)?(_(mean|avg|p\d+(\.\d+)?|within_[0-9.eE+-]+))?$")
_HISTS = {hist.value: hist for hist in Hist}


def slo_key(target: SLOTarget) -> str:
    """The key of an objective's metric. An attainment objective's is the share of requests within its bound."""
    histogram = target.histogram
    if histogram is None:
        return target.base_metric
    if target.objective_ratio is not None:
        return f"{histogram.value}_within_{target.target_value:g}"
    if target.quantile is None:
        return f"{histogram.value}_mean"
    return f"{histogram.value}_p{target.quantile * 100:g}"


def slo_limit(target: SLOTarget) -> float:
    """The bound of an objective in its key's unit."""
    return target.objective_ratio if target.objective_ratio is not None and target.histogram else target.target_value


def slo_met(target: SLOTarget, value: float) -> bool:
    """Whether a value of the objective's key meets it."""
    if target.objective_ratio is not None and target.histogram:
        return value >= target.objective_ratio
    return target.met_by(value)


def loose_name(metric: str) -> str:
    """A metric without unit and statistic ("itl" of "itl_seconds_p95"), as hypotheses name what they expect to worsen."""
    return _LOOSE.sub("", metric.lower())


def is_latency(key: str) -> bool:
    """Whether lower is better and the unit is seconds."""
    return "_seconds_" in f"{key}_" and "_per_second" not in key and "_within_" not in key


def requests_of(window: Window) -> float:
    """Requests that ended in the window."""
    finished = window.count(Hist.E2E_SECONDS) or (window.delta(Counter.REQUESTS_SUCCEEDED) or 0.0)
    return finished + _failed(window)


def read(window: Window, key: str) -> tuple[float, float] | None:
    """Value and number of observations of a key, None where the window does not carry it."""
    if key == ERROR_RATIO:
        total = requests_of(window)
        known = any(c in window.counters for c in (Counter.REQUESTS_SUCCEEDED, Counter.REQUESTS_FAILED, Counter.HTTP_5XX_RESPONSES))
        return (_failed(window) / total, total) if total > 0 and known else None
    if key == REQUEST_RATE:
        total = requests_of(window)
        return (total / window.duration_seconds, total) if window.duration_seconds else None
    if key == THROUGHPUT:
        rate = window.rate(Counter.GENERATION_TOKENS)
        return None if rate is None else (rate, window.counters[Counter.GENERATION_TOKENS])
    if key == "prefix_cache_hit_ratio":
        queries = window.delta(Counter.PREFIX_CACHE_QUERIES_TOKENS)
        if queries:
            return (window.delta(Counter.PREFIX_CACHE_HITS_TOKENS) or 0.0) / queries, queries
        return _gauge(window, Gauge.PREFIX_CACHE_HIT_RATIO)
    if key == "kv_cache_usage_ratio":
        return _gauge(window, Gauge.KV_CACHE_USAGE_RATIO)
    return _read_histogram(window, key)


def keys_for(targets: Iterable[SLOTarget]) -> tuple[str, ...]:
    """Every key that a rollout with these objectives looks at."""
    return tuple(dict.fromkeys((*_ALWAYS, *(slo_key(target) for target in targets))))


def measured(window: Window, keys: Iterable[str], *, start: float, end: float) -> Measured:
    """The keys that the window carries."""
    found = {key: reading for key in keys if (reading := read(window, key)) is not None}
    return Measured(start, end, {key: value for key, (value, _) in found.items()}, {key: n for key, (_, n) in found.items()})


def mix_shift(before: Mapping[str, float], after: Mapping[str, float], *, tolerance_ratio: float = 0.2) -> str:
    """Why two measurements are not of the same workload: a sentence, empty where they are alike."""
    for key, name in ((PROMPT_TOKENS, "prompt"), (OUTPUT_TOKENS, "output")):
        was, now = before.get(key), after.get(key)
        if was and now and abs(now / was - 1.0) > tolerance_ratio:
            return f"requests changed: the mean {name} has {now:.0f} tokens now and had {was:.0f}"
    return ""


def _failed(window: Window) -> float:
    failed = window.delta(Counter.REQUESTS_FAILED) or 0.0
    return max(failed, window.delta(Counter.HTTP_5XX_RESPONSES) or 0.0)


def _gauge(window: Window, gauge: Gauge) -> tuple[float, float] | None:
    stats = window.gauge(gauge)
    return (stats.mean, float(stats.samples)) if stats else None


def _read_histogram(window: Window, key: str) -> tuple[float, float] | None:
    match = _HISTOGRAM_KEY.match(key)
    hist = _HISTS.get(match["hist"]) if match else None
    if match is None or hist is None or window.count(hist) <= 0:
        return None
    if match["mean"]:
        mean = window.mean(hist)
        return None if mean is None else (mean, window.count(hist))
    if match["bound"]:
        attainment = window.attainment(hist, float(match["bound"]))
        return None if attainment is None else (attainment.ratio, attainment.samples)
    quantile = window.quantile(hist, float(match["q"]) / 100.0)
    return None if quantile is None else (quantile.value, quantile.samples)
