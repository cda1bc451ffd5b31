"""Why the first token is late although the request was admitted: small chunks, no prefix reuse, or plain compute."""

from __future__ import annotations

from dataclasses import replace

from perf_service.analysis import queue_evidence, queue_weights, rules_length, rules_queue
from perf_service.analysis import thresholds as t
from perf_service.analysis.candidates import Candidate, compact, fact, ramp
from perf_service.analysis.facts import Facts
from perf_service.analysis.steps import chunks, fixed_share, interference_share
from perf_service.models.analysis import Cause, Evidence, Verdict
from perf_service.models.metrics import Counter, Engine, Gauge
from perf_service.models.units import number, percent, seconds


def candidates(facts: Facts) -> tuple[Candidate, ...]:
    """Causes of a long prefill phase with their weights."""
    small = _chunking(facts)
    kv = queue_weights.kv_weight(facts) if facts.preemptions else 0.0  # who is preempted prefills again
    long = rules_length.head_of_line(facts)
    compute = (0.1 + 0.5 * (1.0 - small)) * (1.0 - 0.9 * kv) * (1.0 - 0.6 * long.weight)
    thrashing = prefix_thrashing(facts)
    compute *= 1.0 - 0.5 * thrashing.weight
    return tuple(
        candidate
        for candidate in (
            Candidate(
                Cause.TOKEN_BUDGET_TOO_SMALL,
                0.9 * small,
                queue_evidence.budget_evidence(facts),
                Verdict.TUNE,
                rules_queue.ARGS_SETTLE[facts.engine],
            ),
            Candidate(Cause.KV_EXHAUSTED, kv, queue_evidence.kv_evidence(facts)),
            prefix_off(facts),
            thrashing,
            long,
            Candidate(Cause.PREFILL_COMPUTE, compute, prefill_evidence(facts), Verdict.SCALE, "the step time at another token budget"),
        )
        if candidate.weight > 0.005
    )


def _chunking(facts: Facts) -> float:
    """How likely a small step budget stretches the prefill of one prompt, without a queue to read the budget from."""
    prompt, budget = facts.computed_tokens, facts.token_budget
    if prompt is None:
        return 0.0
    if budget is not None:
        steps = prompt / budget
        return queue_weights.budget_smallness(facts) * ramp(steps, 1.0, 0.75 * t.CHUNKS_MANY.value)
    cut = chunks(facts)
    if not cut.known:
        return 0.05 if facts.engine is Engine.VLLM else 0.2  # others leave no trace of their steps: not excluded
    likely = cut.likely if cut.least >= t.CUT_MIN.value else cut.least
    return queue_weights.budget_smallness(facts) * ramp(likely, 2.0, 1.5 * t.CHUNKS_MANY.value)


def prefill_evidence(facts: Facts) -> tuple[Evidence, ...]:
    """What share of the time to the first token prefill takes."""
    if facts.prefill is None:
        return ()
    share = facts.prefill / facts.ttft if facts.ttft else None
    text = f"Prefill takes {seconds(facts.prefill)}" + (f", {percent(share)} of the time to the first token" if share is not None else "")
    if facts.computed_tokens is not None:
        text += f", for {facts.computed_tokens:,.0f} prompt tokens that are not in the cache"
    return (fact(facts, "prefill_seconds", "mean", facts.prefill, text + ".", unit="s", threshold=None),)


def prefix_off(facts: Facts) -> Candidate:
    """Prefix caching is switched off and prefill is a material part of the latency. Whether prompts share anything cannot be seen."""
    weight = 0.0
    evidence: tuple[Evidence, ...] = ()
    block = facts.config.number("block_size") or facts.config.number("page_size") or 16.0
    prompt = facts.prompt_tokens
    if facts.prefix_caching is False and prompt is not None and prompt >= t.PREFIX_MIN_BLOCKS.value * block:
        whole = facts.e2e or facts.ttft
        share = facts.prefill / whole if facts.prefill is not None and whole else None
        first = facts.prefill / facts.ttft if facts.prefill is not None and facts.ttft else None
        weight = 1.2 * (ramp(first, 0.5 * t.PREFILL_SHARE_MIN.value, t.PREFILL_SHARE_MIN.value) if first is not None else 0.4)
        if rules_queue.significant(facts):
            weight = 1.2  # the prompts before it are what a request waits for
        evidence = compact(
            (
                fact(facts, "enable_prefix_caching", "config", 0.0, "Prefix caching is off in the engine's configuration."),
                fact(
                    facts,
                    "prompt_tokens",
                    "mean",
                    prompt,
                    f"Prompts have {prompt:,.0f} tokens on average, all computed anew.",
                    unit="tokens",
                ),
                fact(
                    facts,
                    "prefill_seconds",
                    "share",
                    share,
                    f"Prefill is {percent(share)} of the whole latency.",
                    threshold=t.PREFIX_PREFILL_SHARE_MIN.value,
                    unit="ratio",
                )
                if share is not None
                else None,
            )
        )
    settle = "whether prompts share a prefix (system prompt, chat history, documents): the metrics cannot show it while caching is off"
    return Candidate(Cause.PREFIX_CACHE_OFF, weight, evidence, Verdict.TUNE, settle)


def savings(facts: Facts, kv_exhausted: bool) -> tuple[Candidate, ...]:
    """What could be saved of the service of a request, whatever it waits for: prefixes computed anew, the fixed cost of many steps."""
    found = []
    off = prefix_off(facts)
    share = facts.prefill / facts.inference if facts.prefill is not None and facts.inference else 0.0
    # What prompts take of the engine is not only their own wait: the answers that are written meanwhile take as much longer.
    beside = interference_share(facts) * facts.decode / facts.inference if facts.decode is not None and facts.inference else 0.0
    # A shared prefix is also kept only once: with a full cache that is room, even where prefill is a small part.
    room = kv_exhausted and (facts.prompt_tokens or 0.0) >= (facts.output_tokens or 0.0)
    if off.weight > 0 and (share + beside >= t.PREFILL_SERVICE_SHARE.value or room):
        found.append(replace(off, weight=1.2))
    cut = chunks(facts)
    budget = facts.token_budget
    if budget is None and facts.computed_tokens and cut.least >= t.CUT_MIN.value:
        budget = facts.computed_tokens / cut.likely
    if budget is not None:
        fixed = fixed_share(facts, budget)
        many = ramp((facts.computed_tokens or 0.0) / budget, 1.0, t.CHUNKS_MANY.value)
        saved = queue_weights.budget_smallness(facts) * (many if fixed is None else fixed) * share
        if saved >= t.SECOND_SAVING_MIN.value:
            settle = rules_queue.ARGS_SETTLE[facts.engine]
            found.append(Candidate(Cause.TOKEN_BUDGET_TOO_SMALL, 1.0, queue_evidence.budget_evidence(facts)[:2], Verdict.TUNE, settle))
    return tuple(found)


def prefix_thrashing(facts: Facts) -> Candidate:
    """Prefixes are evicted before the next use: some prompts hit and most do not, while the whole cache is written anew again and again.

    Cached blocks count as free in the engines' KV use, so that says nothing here.
    """
    hit, evicted = facts.hit_ratio, facts.window.delta(Counter.EVICTED_TOKENS)
    turnovers = _turnovers(facts)
    settle = "the hit ratio with a larger cache, or vllm:kv_block_reuse_gap_seconds (--kv-cache-metrics)"
    if facts.prefix_caching is False or hit is None or not 0.02 < hit < t.PREFIX_HIT_HIGH.value:
        return Candidate(Cause.PREFIX_CACHE_THRASHING, 0.0)
    rewritten = ramp(turnovers, 0.5 * t.CACHE_TURNOVERS.value, t.CACHE_TURNOVERS.value) if turnovers is not None else 0.0
    if evicted:
        rewritten = max(rewritten, 0.5)
    weight = rewritten * ramp(hit, 0.02, 0.06) * (1.0 - ramp(hit, 0.5, t.PREFIX_HIT_HIGH.value))
    text = f"Only {percent(hit)} of prompt tokens are found in the cache"
    text += f", which was written anew {turnovers:.1f} times in this window." if turnovers is not None else "."
    evidence = (fact(facts, "prefix_cache_hit_ratio", "mean", hit, text, threshold=t.PREFIX_HIT_HIGH.value, unit="ratio"),)
    return Candidate(Cause.PREFIX_CACHE_THRASHING, weight, evidence, Verdict.TUNE, settle)


def _turnovers(facts: Facts) -> float | None:
    """How often the window's new tokens fill the KV cache; of a whole life that says nothing, as any cache was filled some day."""
    if facts.window.lifetime:
        return None
    gauge = facts.window.gauge(Gauge.KV_CAPACITY_TOKENS)
    capacity = gauge.mean if gauge is not None else facts.config.number("kv_cache_size_tokens")
    if not capacity or facts.computed_tokens is None or facts.output_tokens is None:
        return None
    return facts.finished * (facts.computed_tokens + facts.output_tokens) / capacity


def preschedule(facts: Facts) -> tuple[Candidate, ...]:
    """Causes of time spent before the scheduler saw the request."""
    cores = facts.cpu_cores
    occupancy = facts.window.gauge(Gauge.FORWARD_OCCUPANCY_RATIO)
    busy = ramp(cores, 0.6, t.CPU_SATURATED.value) if cores is not None else 0.2
    if occupancy is not None and facts.engine is Engine.SGLANG:
        busy = max(busy, 1.0 - ramp(occupancy.mean, 0.5, t.FORWARD_OCCUPANCY_LOW.value))
    if facts.engine is Engine.TGI:
        busy = 1.0  # validation is tokenizing on the CPU and nothing else
    value = facts.preschedule or 0.0
    evidence = compact(
        (
            fact(
                facts,
                "preschedule_seconds",
                "mean",
                value,
                f"{seconds(value)} of the time to the first token pass before the scheduler sees the request (HTTP, tokenizing).",
                unit="s",
            ),
            fact(
                facts,
                "process_cpu_seconds",
                "rate",
                cores,
                f"The API process uses {number(cores)} CPU cores.",
                threshold=t.CPU_SATURATED.value,
                unit="cores",
                against=cores < t.CPU_SATURATED.value,
            )
            if cores is not None
            else None,
        )
    )
    return (Candidate(Cause.CPU_OVERHEAD, 0.9 * busy, evidence, Verdict.TUNE, "CPU use of the API server process and its cores"),)
