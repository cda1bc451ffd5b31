"""Why requests are slow: one alert per cause, told apart as the analyzer's rules tell them apart (see `rules_queue`).

Requests wait for few reasons and each leaves its own trace, so the reasons are asked in turn: not capacity at all, KV cache, prefill,
the limit on running requests; a queue that none of them explains is told as such.
"""

from __future__ import annotations

import math

from perf_service.analysis import thresholds as t
from perf_service.analysis.alerts import texts
from perf_service.analysis.alerts.promql import RANGE, Source
from perf_service.analysis.alerts.rules import Alert, PackOptions, Record, Urgency, builtin_bound
from perf_service.analysis.alerts.signals import Names, events, recorded
from perf_service.models.analysis import Cause, Verdict
from perf_service.models.metrics import Engine

_LIMIT = {Engine.VLLM: "max_num_seqs", Engine.SGLANG: "max_running_requests", Engine.TGI: "max_batch_size"}
_BUDGET = {Engine.VLLM: "max_num_batched_tokens", Engine.SGLANG: "chunked_prefill_size", Engine.TGI: "max_batch_prefill_tokens"}
_BUDGET_BETWEEN = math.sqrt(t.BUDGET_SMALL.value * t.BUDGET_LARGE_ENOUGH.value)
_INTERFERENCE_SHARE = 0.3
_STEP_TOKENS = 100
"""A step's fixed cost in prompt tokens (`rules_decode.FIXED_COST_TOKENS`)."""


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
            off = source.plain(source.dialect.info_metric, 'enable_prefix_caching=~"False|false|0"')
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


def alerts(options: PackOptions) -> tuple[Alert, ...]:
    """The alerts of the causes that this engine's metrics can tell."""
    c = Conditions(options)
    found = [*_waiting(c), _unexplained(c)]
    if options.engine is not Engine.TGI:
        found += _decode(c)
    if options.engine is Engine.VLLM:
        found += [*_prefix_off(c)]
    if options.engine is not Engine.TGI:
        found.append(_thrashing(c))
    return tuple(found)


def _waiting(c: Conditions) -> list[Alert]:
    options, engine, who = c.options, c.engine, texts.replica(c.options)
    waiting = texts.looked_up(options, "waiting_requests", f"avg{RANGE}", "%.0f")
    running = texts.looked_up(options, "running_requests", f"avg{RANGE}", "%.0f")
    peak = texts.looked_up(options, "kv_cache_usage_ratio", f"max{RANGE}", "humanizePercentage")
    queue = texts.looked_up(options, "queue_seconds", f"mean{RANGE}", "humanizeDuration")
    found = []
    if engine is Engine.TGI:
        found.append(
            Alert(
                "LLMReservationLimit",
                f"{c.kv_bound}\nand {c.queued}",
                "5m",
                Urgency.WARNING,
                Cause.RESERVATION_LIMIT,
                Verdict.TUNE,
                f"{who}: {waiting} requests wait {queue} each because {texts.PERCENT} of the token budget is reserved for worst cases.",
                "Requests queue while the token budget is reserved for `max_new_tokens` that clients ask for and mostly do not use",
                f"a queue, and reserved / budget >= {t.KV_FREE_MAX.value:.0%} or no room for one more request of the present size",
                "Lower `max_new_tokens` at the clients, or give the cache more memory (`cuda_memory_fraction`); else add a replica.",
            )
        )
    else:
        found.append(_kv_exhausted(c))
        found.append(
            Alert(
                "LLMWaitingNotCapacity",
                c.deferred,
                "5m",
                Urgency.WARNING,
                Cause.WAITING_NOT_CAPACITY,
                Verdict.LOOK_AT_CLIENT,
                f"{who}: {texts.PERCENT} of its waiting requests wait for a LoRA slot, a KV transfer or a grammar, not for a place.",
                "Requests wait for something that no batch limit cures",
                "deferred (SGLang: grammar queue) >= 50 % of the waiting requests",
                "Look at LoRA slots (`max_loras`), the KV connector or the grammars; do not raise batch limits.",
            )
        )
    if engine is Engine.VLLM:
        found += _prefill(c)
    overloaded = _overloaded(c)
    kv_free = "" if engine is Engine.TGI else f" while the KV cache peaks at {peak}"
    found.append(
        Alert(
            "LLMBatchLimit",
            f"{c.limit}\nunless ({overloaded})",
            "5m",
            Urgency.WARNING,
            Cause.BATCH_LIMIT,
            Verdict.TUNE,
            f"{who}: {texts.VALUE} requests wait ({queue} each) because running is held at {running}{kv_free}.",
            "The limit on running requests holds requests back although there is room for more",
            f"a queue and {t.QUEUE_SUFFERING_SECONDS.value:g} s or more to the first token, running steady while others wait, "
            f"KV cache below {t.KV_FREE_MAX.value:.0%}, prefill not saturated",
            f"Raise `{_LIMIT[engine]}`; time between tokens will rise somewhat."
            + (" If it is far above what runs, lower `schedule_conservativeness` instead." if engine is Engine.SGLANG else ""),
        )
    )
    itl = texts.looked_up(options, "itl_seconds", f"mean{RANGE}", "humanizeDuration")
    found.append(
        Alert(
            "LLMOverloaded",
            f"{c.limit}\nand ({overloaded})",
            "5m",
            Urgency.WARNING,
            Cause.OVERLOAD,
            Verdict.SCALE,
            f"{who}: {texts.VALUE} requests wait behind {running} running ones, and a token already takes {itl}: too much load.",
            "Requests wait, and a larger batch is out of the question because its tokens would come too late",
            "as LLMBatchLimit, with the time per token already at its objective",
            "Add a replica or shed load; no flag cures it.",
        )
    )
    if engine is Engine.SGLANG:
        usage = f"{c.r('kv_cache_usage_ratio', f'max{RANGE}')} < {t.SGLANG_USAGE_LOW.value:g}"
        found.append(
            Alert(
                "LLMUnderAdmission",
                f"{c.queued}\nand {usage}\nunless {c.limit}{c.other_reasons()}",
                "5m",
                Urgency.WARNING,
                Cause.UNDER_ADMISSION,
                Verdict.TUNE,
                f"{who}: {texts.VALUE} requests wait ({queue} each) while token usage peaks at only {peak}: admission is too timid.",
                "SGLang holds requests back for tokens that are never generated",
                f"a queue, token usage below {t.SGLANG_USAGE_LOW.value:.0%}, running not held at a limit",
                "Lower `schedule_conservativeness` towards 0.3, and have clients send a realistic `max_new_tokens`.",
            )
        )
    return found


def _overloaded(c: Conditions) -> str:
    """A larger batch would break the operator's objective; without one, the batch is large and as slow as the built-in one allows."""
    itl, wish = c.mean("itl_seconds"), c.options.wish("itl")
    if wish is not None:
        return f"{itl} >= {0.85 * wish:g}"
    return f"{c.r('running_requests', f'avg{RANGE}')} >= {t.LARGE_RUNNING.value:g} and {itl} >= {builtin_bound('itl'):g}"


def _kv_exhausted(c: Conditions) -> Alert:
    engine, who = c.engine, texts.replica(c.options)
    word = "retractions" if engine is Engine.SGLANG else "preemptions"
    often = (
        f"more than one {word[:-1]} a minute"
        if engine is Engine.SGLANG
        else f"{word} in >= {t.PREEMPTIONS_PER_REQUEST.value:.0%} of the requests"
    )
    rate = texts.looked_up(c.options, "preemptions", f"rate{RANGE}", "%.2f")
    memory = "mem_fraction_static" if engine is Engine.SGLANG else "gpu_memory_utilization"
    return Alert(
        "LLMKVCacheExhausted",
        c.kv_bound,
        "5m",
        Urgency.WARNING,
        Cause.KV_EXHAUSTED,
        Verdict.TUNE,
        f"{who}: the KV cache is exhausted (peak {texts.PERCENT}, {rate} {word} per second); answers stall and are computed twice.",
        f"More context is in flight than fits the KV cache; the engine throws requests out and computes them again ({word})",
        f"{often}, or a queue and no room for one more request of the present size",
        f"Give the KV cache more room (`{memory}`, an fp8 KV cache after a quality check) or admit fewer requests; "
        f"do not raise `{_LIMIT[engine]}`.",
    )


def _prefill(c: Conditions) -> list[Alert]:
    """A busy prefill with a queue: cut into small steps, or simply too much of it.

    With a budget of B tokens per step and prompts of P tokens, 1 + B/P prompts are in prefill on average (`rules_queue`). A prompt that
    is over in a step or two was not cut.
    """
    who = texts.replica(c.options)
    computed = c.mean("prefill_computed_tokens_per_request")
    prompt = f"({computed} or {c.mean('prompt_tokens_per_request')})"
    estimate = f"({c.prefill_bound} - 1) * {prompt} < {_BUDGET_BETWEEN:g}"
    chunked = f"{c.prefill_bound} - 1 <= {1.0 / t.CHUNKS_MANY.value:g}"
    quick = f"{c.mean('prefill_seconds')} / ({c.mean('itl_seconds')} > 0) < {(1.5 + t.CHUNKS_MANY.value) / 2:g}"
    small = f"{estimate}\nand {chunked}\nunless {quick}"
    waiting = texts.looked_up(c.options, "waiting_requests", f"avg{RANGE}", "%.0f")
    queue = texts.looked_up(c.options, "queue_seconds", f"mean{RANGE}", "humanizeDuration")
    tokens = texts.looked_up(c.options, "prompt_tokens_per_request", f"mean{RANGE}", "%.0f")
    off = c.r("prefix_caching_off")
    share = f"{c.mean('prefill_seconds')} / {c.mean('ttft_seconds')}"
    late = f"{share} >= {t.PREFILL_SHARE_MIN.value:g}\nand {c.mean('ttft_seconds')} > {c.options.bound('ttft'):g}"
    first = texts.looked_up(c.options, "ttft_seconds", f"mean{RANGE}", "humanizeDuration")
    own = texts.looked_up(c.options, "prefill_seconds", f"mean{RANGE}", "humanizeDuration")
    evidence = f"a queue with always a prompt in prefill (occupancy >= {t.PREFILL_SATURATED.value:g})"
    return [
        Alert(
            "LLMTokenBudgetTooSmall",
            f"{c.prefill_bound}\nand ({small})",
            "5m",
            Urgency.WARNING,
            Cause.TOKEN_BUDGET_TOO_SMALL,
            Verdict.TUNE,
            f"{who}: {waiting} requests wait ({queue} each) behind prompts of {tokens} tokens computed one at a time in small steps.",
            "Prompts are cut into many small steps, so that the fixed cost of a step is paid over and over",
            evidence + f"; the occupancy fits a budget below {_BUDGET_BETWEEN:.0f} tokens per step",
            f"Raise `{_BUDGET[c.engine]}` (2048 or more) if it is low; if it is not, prefill is the limit: add a replica.",
        ),
        Alert(
            "LLMPrefillComputeBound",
            f"(\n{c.prefill_bound}\nunless ({small})\n)\nor\n(\n{late}\nunless {c.queued}\n)\nunless {off}",
            "5m",
            Urgency.WARNING,
            Cause.PREFILL_COMPUTE,
            Verdict.SCALE,
            f"{who}: the first token takes {first}, of which {own} are prefill ({tokens}-token prompts) and {queue} the queue.",
            "Prompts arrive faster than the accelerator can compute them",
            evidence + f", not in small steps; or no queue, TTFT above its objective and prefill >= {t.PREFILL_SHARE_MIN.value:.0%} of it",
            "Add a replica, shard over more GPUs, or let prompts share prefixes.",
        ),
    ]


def _unexplained(c: Conditions) -> Alert:
    who = texts.replica(c.options)
    queue = texts.looked_up(c.options, "queue_seconds", f"mean{RANGE}", "humanizeDuration")
    usage = ""
    if c.engine is Engine.SGLANG:
        usage = f"\nunless {c.r('kv_cache_usage_ratio', f'max{RANGE}')} < {t.SGLANG_USAGE_LOW.value:g}"
    return Alert(
        "LLMQueueUnexplained",
        f"{c.queued}\nunless {c.limit}{c.other_reasons()}{usage}",
        "10m",
        Urgency.WARNING,
        Cause.UNKNOWN,
        Verdict.NOT_ENOUGH_EVIDENCE,
        f"{who}: {texts.VALUE} requests wait ({queue} each), and its metrics alone do not say why.",
        "Requests wait for a reason that these metrics do not tell",
        "a queue, and none of the other queue alerts",
        "Run `perf-service doctor` on the replica with its launch arguments (`--config`): they settle most of these.",
    )


def _prefix_off(c: Conditions) -> list[Alert]:
    who = texts.replica(c.options)
    ttft, prefill = c.mean("ttft_seconds"), c.mean("prefill_seconds")
    tokens = texts.looked_up(c.options, "prompt_tokens_per_request", f"mean{RANGE}", "%.0f")
    first = texts.looked_up(c.options, "ttft_seconds", f"mean{RANGE}", "humanizeDuration")
    block = 16
    share = f"{prefill} / {ttft}"
    return [
        Alert(
            "LLMPrefixCacheOff",
            f"{share}\nand ({share} >= {t.PREFILL_SHARE_MIN.value:g} or {c.prefill_bound})\n"
            f"and {ttft} >= {builtin_bound('ttft'):g}\n"
            f"and {c.mean('prompt_tokens_per_request')} >= {t.PREFIX_MIN_BLOCKS.value * block:g}\n"
            f"and {events(c.r('ttft_seconds', f'count_rate{RANGE}'))} >= {t.REQUESTS_MIN.value:g}\n"
            f"and {c.r('prefix_caching_off')}",
            "10m",
            Urgency.INFO,
            Cause.PREFIX_CACHE_OFF,
            Verdict.TUNE,
            f"{who}: prefix caching is off, and prefill of {tokens}-token prompts is {texts.PERCENT} of the {first} to the first token.",
            "Every prompt is computed in full; if prompts share a prefix (system prompt, history), that is waste",
            f"`enable_prefix_caching` is False on the page, prefill >= {t.PREFILL_SHARE_MIN.value:.0%} of TTFT. "
            "Whether prompts share anything cannot be seen while it is off",
            "If your prompts share a prefix, start the engine with prefix caching; it costs nothing where they do not.",
        )
    ]


def _thrashing(c: Conditions) -> Alert:
    hit, peak = c.r("prefix_cache_hit_ratio", f"mean{RANGE}"), c.r("kv_cache_usage_ratio", f"max{RANGE}")
    who = texts.replica(c.options)
    use = texts.looked_up(c.options, "kv_cache_usage_ratio", f"max{RANGE}", "humanizePercentage")
    before = f"max_over_time({hit}[1h])"
    return Alert(
        "LLMPrefixCacheThrashing",
        # Traffic that shares nothing has no hits to lose, so zero hits alone say nothing.
        f"{hit} < 0.5\nand {hit} > 0.02\nand {hit} < 0.5 * {before}\nand {peak} >= {t.KV_FREE_MAX.value:g}\n"
        f"and {c.mean('ttft_seconds')} >= {builtin_bound('ttft'):g}",
        "10m",
        Urgency.INFO,
        Cause.PREFIX_CACHE_THRASHING,
        Verdict.TUNE,
        f"{who}: prefix hits fell to {texts.PERCENT}, less than half of the last hour's best, while KV use peaks at {use}.",
        "Cached prefixes are evicted before they are used again",
        f"hit ratio between 2 % and 50 %, halved within the hour, KV use >= {t.KV_FREE_MAX.value:.0%}; never from zero hits alone",
        "More KV room or KV offload, or routing that sends the same prefix to the same replica.",
    )


def _interference(c: Conditions) -> str:
    """Share of a step that is other requests' prefill: in balance a step carries running x prompt / output prompt tokens beside its
    decodes (`rules_decode.interference_share`)."""
    running = c.r("running_requests", f"avg{RANGE}")
    carried = f"{running} * {c.r('prompt_tokens', f'rate{RANGE}')} / ({c.r('generation_tokens', f'rate{RANGE}')} > 0)"
    return f"({carried}) / ({carried} + {running} + {_STEP_TOKENS})"


def _decode(c: Conditions) -> list[Alert]:
    bound = c.options.wish("itl") or builtin_bound("itl")
    itl, running = c.mean("itl_seconds"), c.r("running_requests", f"avg{RANGE}")
    much = f"{_interference(c)} > {_INTERFERENCE_SHARE:g}"
    now = texts.looked_up(c.options, "running_requests", f"avg{RANGE}", "%.0f")
    who, objective = texts.replica(c.options), c.options.bound("itl")
    return [
        Alert(
            "LLMPrefillInterference",
            f"{itl} > {objective:g}\nand {much}\nunless {c.kv_bound}",
            "10m",
            Urgency.WARNING,
            Cause.TOKEN_BUDGET_TOO_LARGE,
            Verdict.TUNE,
            f"{who}: a token takes {texts.SECONDS} on average because most of each step is the prefill of other requests' prompts.",
            "Long prompts stall the answers that are being written",
            f"mean time per token above {objective:g} s, prefill >= {_INTERFERENCE_SHARE:.0%} of a step by the token rates",
            f"Lower `{_BUDGET[c.engine]}` one step (the first token will come later), or give long prompts a pool of their own.",
        ),
        Alert(
            "LLMDecodeBound",
            f"{itl} > {bound:g}\nand {running} >= 2\nunless ({much})\nunless {c.queued}\nunless {c.kv_bound}",
            "10m",
            Urgency.INFO,
            Cause.DECODE_BOUND,
            Verdict.SCALE,
            f"{who}: a token takes {texts.SECONDS} on average with {now} requests decoding together; nothing waits.",
            "Decoding at this batch size is slower than people read comfortably; nothing else is at fault",
            f"mean time per token above {bound:g} s, no queue, no KV pressure, little prefill in the same steps",
            "Add a replica or quantise; a lower limit on running requests trades time per token for queueing.",
        ),
    ]
