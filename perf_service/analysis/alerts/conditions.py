"""The recorded predicates that the alerts of the causes are put together from, each as the analyzer's rules ask (see `rules_queue`)."""

from __future__ import annotations

from perf_service.analysis import thresholds as t
from perf_service.analysis.alerts.promql import RANGE, Source
from perf_service.analysis.alerts.rules import PackOptions, Record
from perf_service.analysis.alerts.signals import Names, recorded
from perf_service.models.metrics import Engine


class Conditions:
    """The recorded predicates: each is present where it holds, and its value is the number to tell."""

    def __init__(self, options: PackOptions) -> None:
        self.options, self.r = options, Names(options)
        self.engine = options.engine
        self.queued = self.r("queued")
        self.kv_bound, self.prefill_bound = self.r("bound_by", "kv_cache"), self.r("bound_by", "prefill")
        self.deferred, self.limit = self.r("bound_by", "other_than_capacity"), self.r("bound_by", "running_limit")

    def mean(self, metric: str) -> str:
        """The mean of a metric per request."""
        return self.r(metric, f"mean{RANGE}")

    def records(self) -> tuple[Record, ...]:
        """In the order of evaluation."""
        found = {recorded("queued"): self._queued(), recorded("bound_by", "kv_cache"): self._kv()}
        if self.engine is not Engine.TGI:
            found[recorded("bound_by", "other_than_capacity")] = self._deferred()
        if self.engine is Engine.VLLM:
            found[recorded("bound_by", "prefill")] = self._prefill()
            source = Source(self.options)
            off = source.plain(source.dialect.info_metrics[0], 'enable_prefix_caching=~"False|false|0"')
            found[recorded("prefix_caching_off")] = source.foreign(f"group by ({source.target}) ({off})")
        found[recorded("bound_by", "running_limit")] = self._running_limit()
        return tuple(Record(name, expr) for name, expr in found.items())

    def other_reasons(self) -> str:
        """The reasons that are asked before the limit on running requests, for `unless`."""
        names = [self.kv_bound]
        if self.engine is not Engine.TGI:
            names.append(self.deferred)
        if self.engine is Engine.VLLM:
            names.append(self.prefill_bound)
        return "".join(f"\nunless {name}" for name in names)

    def _queued(self) -> str:
        """Enough requests wait, it is a fair share of the time to the first token, and somebody notices."""
        wish = self.options.wish("ttft")
        felt = min(t.QUEUE_SUFFERING_SECONDS.value, wish) if wish is not None else t.QUEUE_SUFFERING_SECONDS.value
        waiting, queue = self.r("waiting_requests", f"avg{RANGE}"), self.mean("queue_seconds")
        first = self.mean("ttft_seconds")
        late = f"{queue} >= {felt:g}"
        if self.engine is not Engine.TGI:
            late = f"{first} >= {felt:g}\nand {queue} >= {t.QUEUE_SHARE_MIN.value:g} * {first}"
        told = f"{waiting} >= {t.WAITING_GAUGE_MIN.value:g}\nand {late}"
        # Queue times are booked at the end: in an overload those who still wait are not among them, nor where none is exported.
        running = self.r("running_requests", f"avg{RANGE}")
        growing = f"{waiting} >= {t.WAITING_GAUGE_SINGLE_MIN.value:g} and {waiting} >= {running}"
        return f"(\n{told}\n)\nor\n({growing})"

    def _kv(self) -> str:
        """Requests are thrown out, or one more of the present size would not fit where others wait."""
        peak = self.r("kv_cache_usage_ratio", f"max{RANGE}")
        most = f"max_over_time({self.r('running_requests', 'while_waiting')}[{RANGE}])"
        full = t.SGLANG_USAGE_LOW.value if self.engine is Engine.SGLANG else t.KV_FULL.value
        next_one = f"{peak} and {peak} * (1 + 1 / {most}) >= {full:g} and {self.queued}"
        if self.engine is Engine.TGI:
            return f"({next_one})\nor\n({peak} >= {t.KV_FREE_MAX.value:g} and {self.queued})"
        if self.engine is Engine.SGLANG:
            often = f"{self.r('preemptions', f'rate{RANGE}')} >= {t.RETRACTIONS_PER_SECOND.value:.4g}"
        else:
            often = f"{self.r('preemptions_per_request', f'mean{RANGE}')} >= {t.PREEMPTIONS_PER_REQUEST.value:g}"
        return f"({peak} and {often})\nor\n({next_one})"

    def _deferred(self) -> str:
        waiting = self.r("waiting_requests", f"avg{RANGE}")
        if self.engine is Engine.SGLANG:  # its grammar queue is counted apart
            grammar = self.r("grammar_queue_requests", f"avg{RANGE}")
            return f"{grammar} / ({grammar} + {waiting}) >= 0.5\nand {grammar} >= {t.WAITING_GAUGE_MIN.value:g}"
        return f"{self.r('waiting_deferred_requests', f'avg{RANGE}')} / {waiting} >= 0.5\nand {self.queued}"

    def _prefill(self) -> str:
        """Prompts in prefill while others wait: what runs then, split by the phases' times. At least one all the time, and not merely
        because so many run beside it. One that runs alone and is mostly in prefill counts too: hardly anybody sets a limit of one."""
        share = f"{self.mean('prefill_seconds')} / {self.mean('inference_seconds')}"
        running = f"avg_over_time({self.r('running_requests', 'while_waiting')}[{RANGE}])"
        steady = f"{self.r('running_requests', f'steadiness{RANGE}')} >= 0.9"
        alone = f"({running} < 2 and {share} >= 0.6)"
        occupied = f"{running} * ({share})"
        return (
            f"{occupied}\nand ({occupied} >= {t.PREFILL_SATURATED.value:g} or {alone})\nand {self.queued}\n"
            f"unless ({steady} and {share} < 0.35)\nunless {self.kv_bound}"
        )

    def _running_limit(self) -> str:
        """Running stays near its maximum while others wait: a tenth is scatter, and the gauge misses those that just finished."""
        seen = f"{self.r('running_requests', 'while_waiting')}[{RANGE}]"
        steady = f"avg_over_time({seen}) >= 0.9 * max_over_time({seen}) - 0.4\nand count_over_time({seen}) >= 4"
        # TGI has no cache gauge, and older versions do not tell their budget.
        free = f"\nand {self.r('kv_cache_usage_ratio', f'max{RANGE}')} < {t.KV_FREE_MAX.value:g}" if self.engine is not Engine.TGI else ""
        return f"{self.queued}\nand {steady}{free}{self.other_reasons()}"
