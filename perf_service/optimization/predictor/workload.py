"""The demand on an instance as its own windows tell it: lengths, rates, and whether it comes from a fixed number of clients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from perf_service.models.metrics import Counter, Gauge, Hist, Histogram
from perf_service.models.window import GaugeStats, Window
from perf_service.optimization.predictor.estimates import merged


@dataclass(frozen=True, slots=True)
class Workload:
    """Mean request and how requests arrive. Lengths in tokens, times in seconds."""

    prompt: float
    computed: float  # prompt tokens that are not served from the prefix cache
    output: float
    output_cv: float  # standard deviation over mean of the output length
    prompt_cv: float
    requests: float  # finished in the windows
    requests_per_second: float | None  # finished, while busy
    tokens_per_second: float | None  # generated, while busy
    arrivals_per_second: float | None  # finished plus what the queue grew by
    users: float  # requests in the system at a time: the number of clients, where they come from a closed loop
    closed_weight: float  # 0: arrivals do not depend on the answers; 1: a fixed number of clients
    running: float  # mean while busy
    running_max: float
    waiting: float
    hit_ratio: float | None  # of prompt tokens, None where the cache is off or was not asked
    preemptions_per_request: float
    frontend: float  # seconds of TTFT outside queue and prefill: parsing, tokenizing, sending


_ADDITIVE = (Gauge.RUNNING_REQUESTS, Gauge.WAITING_REQUESTS, Gauge.KV_CAPACITY_TOKENS, Gauge.KV_USED_TOKENS)


def one_engine(window: Window) -> Window:
    """The mean engine of a window that adds up several replicas or data-parallel ranks; the window itself where it is one engine's.

    Limits and step times are those of one engine, so what is predicted is predicted for one.
    """
    count = window.replicas if window.replicas > 1 else max(1, len(window.ranks))
    if count == 1:
        return window
    gauges = {
        name: replace(g, mean=g.mean / count, min=g.min / count, max=g.max / count, last=g.last / count) if name in _ADDITIVE else g
        for name, g in window.gauges.items()
    }
    histograms = {
        name: Histogram(h.count / count, h.sum / count, h.bounds, tuple(c / count for c in h.cumulative))
        for name, h in window.histograms.items()
    }
    counters = {name: value / count for name, value in window.counters.items()}
    return replace(window, gauges=gauges, counters=counters, histograms=histograms, ranks={}, replicas=1)


def read_workload(windows: Sequence[Window]) -> Workload | None:
    """The workload of windows of one instance that follow each other; None where they hold no finished request."""
    prompt, output = merged(windows, Hist.PROMPT_TOKENS), merged(windows, Hist.GENERATION_TOKENS)
    finished = output.count if output else 0.0
    if prompt is None or output is None or finished < 1 or prompt.mean is None or output.mean is None:
        return None
    computed = merged(windows, Hist.PREFILL_COMPUTED_TOKENS)
    queries, hits = _sum(windows, Counter.PREFIX_CACHE_QUERIES_TOKENS), _sum(windows, Counter.PREFIX_CACHE_HITS_TOKENS)
    hit_ratio = hits / queries if queries and hits is not None else None
    own = computed.mean if computed and computed.mean is not None else prompt.mean * (1.0 - (hit_ratio or 0.0))
    busy = [w for w in windows if _is_busy(w)] or list(windows)
    totals = [_last(w, Gauge.RUNNING_REQUESTS) + _last(w, Gauge.WAITING_REQUESTS) for w in busy]
    running, waiting = _busy_mean(busy, Gauge.RUNNING_REQUESTS), _busy_mean(busy, Gauge.WAITING_REQUESTS)
    # Scrapes at the edges of a burst see it fill or drain; of a single window only mean and maximum are known.
    users = _median(totals) if len(totals) >= 3 else max(running + waiting, 0.9 * _most_total(windows))
    ceiling = _ceiling([_last(w, Gauge.RUNNING_REQUESTS) + _last(w, Gauge.WAITING_REQUESTS) for w in windows])
    users = ceiling or users
    seconds = sum(w.duration_seconds or 0.0 for w in busy)
    rate = _rate(busy, Counter.REQUESTS_SUCCEEDED, seconds)
    if rate is None and seconds:
        rate = finished / seconds
    growth = (totals[-1] - totals[0]) / seconds if seconds and len(totals) >= 3 else 0.0
    return Workload(
        prompt=prompt.mean,
        computed=min(own, prompt.mean),
        output=output.mean,
        output_cv=_cv(output),
        prompt_cv=_cv(prompt),
        requests=finished,
        requests_per_second=rate,
        tokens_per_second=_rate(busy, Counter.GENERATION_TOKENS, seconds) or (rate * output.mean if rate else None),
        arrivals_per_second=rate + max(0.0, growth) if rate is not None else None,
        users=max(1.0, users),
        closed_weight=1.0 if ceiling else _closed_weight(totals, waiting, running + waiting, _most_total(windows)),
        running=running,
        running_max=max((g.max for w in windows if (g := w.gauge(Gauge.RUNNING_REQUESTS))), default=0.0),
        waiting=waiting,
        hit_ratio=hit_ratio,
        preemptions_per_request=(_sum(windows, Counter.PREEMPTIONS) or 0.0) / finished,
        frontend=_frontend(windows),
    )


def _ceiling(totals: Sequence[float]) -> float | None:
    """A number of requests that is reached again and again but never passed: that many clients there are. Independent arrivals
    seldom tie at their maximum when it is large."""
    most = max(totals, default=0.0)
    return most if most >= 8 and sum(t == most for t in totals) >= 3 else None


def _closed_weight(totals: Sequence[float], waiting: float, mean: float, most: float) -> float:
    """How likely the demand is a fixed number of clients: their number in the system hardly varies, while independent arrivals
    scatter at least as a Poisson number does (variance = mean) and pile up when the server is slower than they are."""
    if len(totals) < 5:
        share = mean / most if most >= 3 else 0.0
        if waiting > 1 and share > 0.6:
            return 0.9  # a queue that neither grows nor empties: arrivals of their own seldom keep that balance
        return 0.9 if share > 0.8 else (0.5 if share > 0.5 else 0.2)
    middle = _median(totals)
    if middle < 2:
        return 0.2
    scatter = 1.4826 * _median([abs(t - middle) for t in totals])
    third = max(1, len(totals) // 3)
    early, late = sum(totals[:third]) / third, sum(totals[-third:]) / third
    if waiting > 0.5 and late > 1.5 * early and totals[-1] >= middle:
        return 0.0  # the queue only grows
    ratio = scatter / math.sqrt(middle)
    return 1.0 if ratio < 0.4 else (0.5 if ratio < 0.9 else 0.1)


def _frontend(windows: Sequence[Window]) -> float:
    parts = [merged(windows, h) for h in (Hist.TTFT_SECONDS, Hist.QUEUE_SECONDS, Hist.PREFILL_SECONDS)]
    means = [p.mean for p in parts if p and p.mean is not None]
    return max(0.0, means[0] - means[1] - means[2]) if len(means) == 3 else 0.0


def _is_busy(window: Window) -> bool:
    """Requests were there at both ends: the engine worked all the time."""
    gauge = window.gauge(Gauge.RUNNING_REQUESTS)
    return bool(gauge and gauge.nonzero_share == 1.0 and window.duration_seconds)


def _cv(histogram: Histogram) -> float:
    """Spread over mean, from bucket midpoints; 0.5 where there are no buckets. The buckets' own width is in it, so it is capped."""
    if not histogram.bounds or not histogram.mean:
        return 0.5
    squares, below, edge = 0.0, 0.0, 0.0
    for bound, cumulative in zip(histogram.bounds, histogram.cumulative, strict=True):
        middle = (edge + bound) / 2
        squares += (cumulative - below) * (middle - histogram.mean) ** 2
        below, edge = cumulative, bound
    return min(2.0, max(0.05, math.sqrt(squares / histogram.count) / histogram.mean))


def _sum(windows: Sequence[Window], counter: Counter) -> float | None:
    values = [d for w in windows if (d := w.delta(counter)) is not None]
    return sum(values) if values else None


def _rate(windows: Sequence[Window], counter: Counter, seconds: float) -> float | None:
    total = _sum(windows, counter)
    return total / seconds if total is not None and seconds else None


def _last(window: Window, gauge: Gauge) -> float:
    found = window.gauge(gauge)
    return found.last if found else 0.0


def _busy_mean(windows: Sequence[Window], gauge: Gauge) -> float:
    found: list[GaugeStats] = [g for w in windows if (g := w.gauge(gauge))]
    if not found:
        return 0.0
    busy = [g for w in windows if (g := w.gauge(Gauge.RUNNING_REQUESTS))] or found
    weight = sum(g.samples * g.nonzero_share for g in busy)
    return sum(g.mean * g.samples for g in found) / weight if weight else 0.0


def _most_total(windows: Sequence[Window]) -> float:
    """Most requests at a time; of one window the maxima of running and waiting need not coincide, so it is an upper bound."""
    found = [
        (r.max if (r := w.gauge(Gauge.RUNNING_REQUESTS)) else 0.0) + (q.max if (q := w.gauge(Gauge.WAITING_REQUESTS)) else 0.0)
        for w in windows
    ]
    return max(found, default=0.0)


def _median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
