"""Why requests are slow that do not wait: the steps that they share, and prompts computed again (see `rules_decode`)."""

from __future__ import annotations

from perf_service.analysis import thresholds as t
from perf_service.analysis.alerts import texts
from perf_service.analysis.alerts.conditions import Conditions
from perf_service.analysis.alerts.promql import RANGE
from perf_service.analysis.alerts.rules import Alert, Urgency, builtin_bound
from perf_service.analysis.alerts.signals import events
from perf_service.analysis.knob_names import TOKEN_BUDGET
from perf_service.models.analysis import Cause, Verdict
from perf_service.models.metrics import Engine

_INTERFERENCE_SHARE = 0.3
_STEP_TOKENS = 100
"""A step's fixed cost in prompt tokens (`rules_decode.FIXED_COST_TOKENS`)."""


def alerts(c: Conditions) -> list[Alert]:
    """Those that this engine's metrics can tell."""
    if c.engine is Engine.TGI:
        return []
    off = [_prefix_off(c)] if c.engine is Engine.VLLM else []
    return [*_decode(c), *off, _thrashing(c)]


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
            f"Lower `{TOKEN_BUDGET[c.engine]}` one step (the first token will come later), or give long prompts a pool of their own.",
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


def _prefix_off(c: Conditions) -> Alert:
    who = texts.replica(c.options)
    ttft, prefill = c.mean("ttft_seconds"), c.mean("prefill_seconds")
    tokens = texts.looked_up(c.options, "prompt_tokens_per_request", f"mean{RANGE}", "%.0f")
    first = texts.looked_up(c.options, "ttft_seconds", f"mean{RANGE}", "humanizeDuration")
    block = 16
    share = f"{prefill} / {ttft}"
    return Alert(
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
