"""Why requests wait: one alert per cause, told apart as the analyzer's rules tell them apart (see `rules_queue`).

Requests wait for few reasons and each leaves its own trace, so the reasons are asked in turn: not capacity at all, KV cache, prefill,
the limit on running requests; a queue that none of them explains is told as such.
"""

from __future__ import annotations

import math

from perf_service.analysis import thresholds as t
from perf_service.analysis.alerts import texts
from perf_service.analysis.alerts.conditions import Conditions
from perf_service.analysis.alerts.promql import RANGE
from perf_service.analysis.alerts.rules import Alert, Urgency, builtin_bound
from perf_service.analysis.knob_names import SEQUENCE_LIMIT, TOKEN_BUDGET
from perf_service.models.analysis import Cause, Verdict
from perf_service.models.metrics import Engine

_BUDGET_BETWEEN = math.sqrt(t.BUDGET_SMALL.value * t.BUDGET_LARGE_ENOUGH.value)


def alerts(c: Conditions) -> list[Alert]:
    """Those that this engine's metrics can tell."""
    return [*_waiting(c), _unexplained(c)]


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
            f"Raise `{SEQUENCE_LIMIT[engine]}`; time between tokens will rise somewhat."
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
        f"do not raise `{SEQUENCE_LIMIT[engine]}`.",
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
            f"Raise `{TOKEN_BUDGET[c.engine]}` (2048 or more) if it is low; if it is not, prefill is the limit: add a replica.",
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
