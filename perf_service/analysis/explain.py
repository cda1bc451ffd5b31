"""Words for people: what a cause is called, what to do about it on each engine, one sentence per finding."""

from __future__ import annotations

from perf_service.analysis.facts import Facts
from perf_service.analysis.knob_names import MEMORY_SHARE, SEQUENCE_LIMIT, TOKEN_BUDGET
from perf_service.models.analysis import BottleneckType, Cause, Verdict
from perf_service.models.metrics import Engine

CAUSE_TYPES: dict[Cause, BottleneckType] = {
    Cause.BATCH_LIMIT: BottleneckType.QUEUE_BUILDUP,
    Cause.KV_EXHAUSTED: BottleneckType.MEMORY_PRESSURE,
    Cause.TOKEN_BUDGET_TOO_SMALL: BottleneckType.BATCH_SIZE_SUBOPTIMAL,
    Cause.TOKEN_BUDGET_TOO_LARGE: BottleneckType.HIGH_LATENCY,
    Cause.PREFILL_COMPUTE: BottleneckType.HIGH_LATENCY,
    Cause.DECODE_BOUND: BottleneckType.HIGH_LATENCY,
    Cause.PREFIX_CACHE_OFF: BottleneckType.CACHE_INEFFICIENCY,
    Cause.PREFIX_CACHE_THRASHING: BottleneckType.CACHE_INEFFICIENCY,
    Cause.HEAD_OF_LINE_BLOCKING: BottleneckType.HIGH_LATENCY,
    Cause.WAITING_NOT_CAPACITY: BottleneckType.QUEUE_BUILDUP,
    Cause.UNDER_ADMISSION: BottleneckType.QUEUE_BUILDUP,
    Cause.RESERVATION_LIMIT: BottleneckType.QUEUE_BUILDUP,
    Cause.CPU_OVERHEAD: BottleneckType.CPU_BOUND,
    Cause.SPECULATION_NOT_PAYING: BottleneckType.HIGH_LATENCY,
    Cause.REPLICA_IMBALANCE: BottleneckType.IMBALANCE,
    Cause.OVERLOAD: BottleneckType.QUEUE_BUILDUP,
    Cause.REQUEST_ERRORS: BottleneckType.ERRORS,
    Cause.REJECTIONS: BottleneckType.ERRORS,
    Cause.CLIENT_ABORTS: BottleneckType.ERRORS,
    Cause.ENGINE_HANG: BottleneckType.ENGINE_STALLED,
    Cause.UPGRADE_REGRESSION: BottleneckType.HIGH_LATENCY,
    Cause.UNDER_USE: BottleneckType.UNDERUTILIZATION,
}


def recommendation(cause: Cause, facts: Facts, verdict: Verdict = Verdict.TUNE) -> str:
    """What to do about a cause, in one sentence, with the engine's own knob."""
    engine = facts.engine
    limit, budget, memory = SEQUENCE_LIMIT[engine], TOKEN_BUDGET[engine], MEMORY_SHARE[engine]
    prefix = "remove --disable-radix-cache" if engine is Engine.SGLANG else "set enable_prefix_caching"
    cap = facts.config.number("long_prefill_token_threshold")
    raised = f"Raise {budget}"
    if cap and facts.token_budget is not None and cap < facts.token_budget:
        raised = "Take long_prefill_token_threshold off or raise it"  # the smaller of the two cuts the prompts
    texts = {
        Cause.BATCH_LIMIT: f"Raise {limit}: requests wait for a place while KV cache is free.",
        Cause.KV_EXHAUSTED: f"Give the KV cache more room ({memory}, an fp8 KV cache after a quality check, more GPUs) "
        f"or admit fewer requests; "
        f"raising {limit} makes it worse.",
        Cause.TOKEN_BUDGET_TOO_SMALL: f"{raised}: prompts are cut into many small steps. Time between tokens may rise a little.",
        Cause.TOKEN_BUDGET_TOO_LARGE: f"Lower {budget} one step: long prompts stall running decodes. The first token will come later.",
        Cause.PREFILL_COMPUTE: "Prefill is compute bound: add a replica, shard over more GPUs, or let prompts share prefixes.",
        Cause.DECODE_BOUND: f"Decoding is bound by batch size and memory bandwidth: add a replica, quantise, "
        f"or trade queueing for speed with a lower {limit}.",
        Cause.PREFIX_CACHE_OFF: f"If prompts share a prefix, {prefix}: every prompt is computed in full now.",
        Cause.PREFIX_CACHE_THRASHING: "Prefixes are evicted before they are used again: "
        f"more KV room ({memory}), KV offload, or prefix-aware routing.",
        Cause.HEAD_OF_LINE_BLOCKING: "A few very long prompts hold up the rest: "
        "cap their chunk (long_prefill_token_threshold) or give them a pool of their own.",
        Cause.WAITING_NOT_CAPACITY: "Raise max_loras: requests wait for their adapter's turn; batch limits do not help."
        if facts.adapters_short
        else "These requests wait for a LoRA slot, a KV transfer or a grammar, not for a place: "
        "look there (e.g. max_loras); batch limits do not help.",
        Cause.UNDER_ADMISSION: "Lower schedule_conservativeness (towards 0.3): admission reserves for tokens that are never generated.",
        Cause.RESERVATION_LIMIT: "Clients ask for more max_new_tokens than they use and TGI reserves them: "
        "lower it, or give the cache more memory.",
        Cause.CPU_OVERHEAD: "The CPU side is the limit: give the API server more cores or processes (api_server_count).",
        Cause.SPECULATION_NOT_PAYING: "Drafts are rarely accepted: switch speculative decoding off or shorten the draft.",
        Cause.REPLICA_IMBALANCE: "Fix the routing first: one replica is loaded while others idle; flags from an average would be wrong.",
        Cause.OVERLOAD: "More requests arrive than this replica can serve at its objectives: add a replica or shed load; no flag cures it.",
        Cause.REQUEST_ERRORS: "Look at the engine's log for the failing requests before tuning anything.",
        Cause.REJECTIONS: "The engine refuses requests at its own queue limit: add capacity, or raise the limit if waiting is acceptable.",
        Cause.CLIENT_ABORTS: "Clients leave before their answer: check their timeouts.",
        Cause.ENGINE_HANG: "Keep a stack dump, drain and restart the engine; tuning or scaling does not help a hang.",
        Cause.UPGRADE_REGRESSION: "Pin or roll back the version and report the regression; do not tune around it.",
        Cause.UNDER_USE: "The engine is far below its capacity: fewer replicas would serve this load.",
        Cause.UNKNOWN: "Change no flag on a guess: take more pages under load, tell the launch arguments, and look again.",
    }
    return texts[cause]


TITLES: dict[Cause, str] = {
    Cause.REPLICA_IMBALANCE: "The load is spread unevenly",
    Cause.REQUEST_ERRORS: "Requests fail",
    Cause.REJECTIONS: "Requests are rejected",
    Cause.CLIENT_ABORTS: "Clients leave before their answer is complete",
    Cause.ENGINE_HANG: "The engine makes no progress although it has work",
    Cause.UPGRADE_REGRESSION: "The engine became slower with a new version",
    Cause.UNDER_USE: "The engine is hardly used",
}
"""How the sentence of a cause begins that is an event; those of latency are in `sentences`."""

NAMES: dict[Cause, str] = {
    Cause.BATCH_LIMIT: "batch limit",
    Cause.KV_EXHAUSTED: "KV cache exhausted",
    Cause.TOKEN_BUDGET_TOO_SMALL: "token budget per step too small",
    Cause.TOKEN_BUDGET_TOO_LARGE: "token budget per step too large",
    Cause.PREFILL_COMPUTE: "prompt computation (prefill) at its limit",
    Cause.DECODE_BOUND: "decoding at its limit",
    Cause.PREFIX_CACHE_OFF: "prefix caching off",
    Cause.PREFIX_CACHE_THRASHING: "prefix cache thrashing",
    Cause.HEAD_OF_LINE_BLOCKING: "long prompts hold up short ones",
    Cause.WAITING_NOT_CAPACITY: "waiting that no capacity cures",
    Cause.UNDER_ADMISSION: "admission too timid",
    Cause.RESERVATION_LIMIT: "token reservation for the worst case",
    Cause.CPU_OVERHEAD: "CPU overhead",
    Cause.SPECULATION_NOT_PAYING: "speculative decoding does not pay",
    Cause.REPLICA_IMBALANCE: "uneven load",
    Cause.OVERLOAD: "overload",
    Cause.REQUEST_ERRORS: "failing requests",
    Cause.REJECTIONS: "rejected requests",
    Cause.CLIENT_ABORTS: "clients give up",
    Cause.ENGINE_HANG: "engine hangs",
    Cause.UPGRADE_REGRESSION: "slower since the upgrade",
    Cause.UNDER_USE: "hardly used",
    Cause.UNKNOWN: "cause not determined",
}
"""What a cause is called in tables."""
