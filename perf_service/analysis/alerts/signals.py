"""The recorded series: what the rules reason with, under one name for every engine and version.

First the signals, read off the engine's own series; then what is concluded from signals alone (who waits, what runs while others wait).
"""

from __future__ import annotations

from perf_service.analysis import thresholds as t
from perf_service.analysis.alerts.promql import RANGE, SERVED, Source
from perf_service.analysis.alerts.rules import PackOptions, Record
from perf_service.models.metrics import Counter, Engine, Gauge, Hist

PREFIX = "llm:"
STALL_RANGE = "4m"
"""Three to four samples at a scrape interval of 60 s: no progress between any of them."""

_AVERAGES = (
    Gauge.RUNNING_REQUESTS,
    Gauge.WAITING_REQUESTS,
    Gauge.WAITING_DEFERRED_REQUESTS,
    Gauge.GRAMMAR_QUEUE_REQUESTS,
)
_RATES = (
    Counter.GENERATION_TOKENS,
    Counter.PROMPT_TOKENS,
    Counter.REQUESTS_SUCCEEDED,
    Counter.REQUESTS_FAILED,
    Counter.REQUESTS_REJECTED,
    Counter.REQUESTS_ABORTED,
    Counter.HTTP_4XX_RESPONSES,
    Counter.HTTP_5XX_RESPONSES,
    Counter.PREEMPTIONS,
    Counter.EVICTED_TOKENS,
)
_MEANS = (
    Hist.TTFT_SECONDS,
    Hist.ITL_SECONDS,
    Hist.QUEUE_SECONDS,
    Hist.PREFILL_SECONDS,
    Hist.INFERENCE_SECONDS,
    Hist.PROMPT_TOKENS,
    Hist.GENERATION_TOKENS,
    Hist.PREFILL_COMPUTED_TOKENS,
)
_COUNTS = (Hist.TTFT_SECONDS, Hist.E2E_SECONDS, Hist.QUEUE_SECONDS)
_PROGRESS = (Counter.GENERATION_TOKENS, Counter.PROMPT_TOKENS, Counter.REQUESTS_SUCCEEDED, Counter.REQUESTS_ABORTED)


class Names:
    """Selectors of the recorded series of one pack."""

    def __init__(self, options: PackOptions) -> None:
        self._pack = options.pack

    def __call__(self, metric: str, operation: str = "") -> str:
        """The selector of a recorded series."""
        return f'{recorded(metric, operation)}{{pack="{self._pack}"}}'


def recorded(metric: str, operation: str = "") -> str:
    """The name of a recorded series, `llm:metric:operation`."""
    return f"{PREFIX}{metric}:{operation}" if operation else f"{PREFIX}{metric}"


def records(options: PackOptions) -> tuple[Record, ...]:
    """The recording rules of an engine, in the order in which they must be evaluated."""
    source, r = Source(options), Names(options)
    found = {SERVED: source.identity()}

    def add(metric: str, operation: str, expr: str | None) -> None:
        if expr is not None:
            found[recorded(metric, operation)] = expr

    for gauge in (Gauge.RUNNING_REQUESTS, Gauge.WAITING_REQUESTS):
        add(gauge.value, "", source.gauge(gauge, ""))
        add(gauge.value, f"min{STALL_RANGE}", source.gauge(gauge, "min_over_time", STALL_RANGE))
    for gauge in _AVERAGES:
        add(gauge.value, f"avg{RANGE}", source.gauge(gauge, "avg_over_time"))
    for counter in _RATES:
        add(counter.value, f"rate{RANGE}", source.rate(counter))
    for hist in _MEANS:
        add(hist.value, f"mean{RANGE}", source.mean(hist))
    for hist in _COUNTS:
        add(hist.value, f"count_rate{RANGE}", source.hist(hist, "count"))
    add("kv_cache_usage_ratio", f"max{RANGE}", _kv_peak(source))
    add("prefix_cache_hit_ratio", f"mean{RANGE}", _hit_ratio(source))
    add("restarts", "30m", _restarts(source))
    add("progress", f"increase{STALL_RANGE}", _progress(source))
    add("open_file_descriptors", f"delta{RANGE}", _piling_up(source))
    found |= _conclusions(r)
    return tuple(Record(name, expr) for name, expr in found.items())


def _conclusions(r: Names) -> dict[str, str]:
    """What follows from signals alone."""
    running, waiting = r("running_requests"), r("waiting_requests")
    return {
        recorded("busy"): f"({running} + {waiting}) > bool 0",
        recorded("running_requests", "while_waiting"): f"{running} > 0\nand {waiting} > 0",
        # 1 where the number of running requests does not move while others wait: it is held at a limit.
        recorded("running_requests", f"steadiness{RANGE}"): (
            f"avg_over_time({r('running_requests', 'while_waiting')}[{RANGE}])\n"
            f"/ max_over_time({r('running_requests', 'while_waiting')}[{RANGE}])\n"
            f"and count_over_time({r('running_requests', 'while_waiting')}[{RANGE}]) >= 4"
        ),
        recorded("preemptions_per_request", f"mean{RANGE}"): (
            f"{r('preemptions', f'rate{RANGE}')} / {r('requests_succeeded', f'rate{RANGE}')}\n"
            f"and {r('preemptions', f'rate{RANGE}')} * {seconds(RANGE)} >= {t.EVENTS_MIN.value:g}"
        ),
    }


def seconds(span: str) -> int:
    """The length of a range, e.g. `5m`."""
    return int(span[:-1]) * {"s": 1, "m": 60, "h": 3600}[span[-1]]


def events(rate: str) -> str:
    """How many events a rate over `RANGE` stands for."""
    return f"{rate} * {seconds(RANGE)}"


def _kv_peak(source: Source) -> str | None:
    if source.options.engine is Engine.TGI:
        # No cache gauge: what admission goes by, the worst case that is reserved for the running batch.
        used = source.gauge(Gauge.KV_USED_TOKENS, "max_over_time")
        capacity = source.gauge(Gauge.KV_CAPACITY_TOKENS, "max_over_time")
        return f"({used})\n/\n(({capacity}) > 0)"
    return source.gauge(Gauge.KV_CACHE_USAGE_RATIO, "max_over_time")


def _hit_ratio(source: Source) -> str | None:
    hits, queries = source.rate(Counter.PREFIX_CACHE_HITS_TOKENS), source.rate(Counter.PREFIX_CACHE_QUERIES_TOKENS)
    return f"({hits})\n/\n(({queries}) > 0)" if hits and queries else None


def _restarts(source: Source) -> str:
    """Starts of the process, or counters that began anew where the page has no start time (several API processes)."""
    started = source.foreign(f"max by ({source.target}) (changes({source.plain('process_start_time_seconds')}[30m]))")
    again = source.rate(Counter.GENERATION_TOKENS, "30m", "resets")
    return f"(\n{started}\n)\nor\n{again}"


def _progress(source: Source) -> str:
    """Tokens, steps and finished requests together: 0 only where nothing moved at all."""
    parts = [source.rate(counter, STALL_RANGE, "increase") for counter in _PROGRESS]
    # Steps count where tokens are booked only when a request ends.
    parts += [source.hist(hist, "count", STALL_RANGE, "increase") for hist in (Hist.ITL_SECONDS, Hist.TTFT_SECONDS)]
    known = [part for part in parts if part]
    tagged = [f'label_replace(\n{part}\n, "part", "{index}", "", "")' for index, part in enumerate(known)]
    return f"sum by ({source.replica}) (\n" + "\nor\n".join(tagged) + "\n)"


def _piling_up(source: Source) -> str | None:
    """Descriptors that the API process gained, where it lost none in between."""
    rule = next((rule for rule in source.dialect.rules if rule.target is Gauge.OPEN_FILE_DESCRIPTORS), None)
    if rule is None:
        return None
    series = source.plain(rule.names[0])
    gained = f"sum by ({source.target}) (delta({series}[{RANGE}]))"
    lost = f"sum by ({source.target}) (resets({series}[{RANGE}])) == 0"
    return source.foreign(f"({gained} and {lost})")
