"""The facts behind each reason for waiting, in words: for it or against it."""

from __future__ import annotations

import math

from perf_service.analysis import thresholds as t
from perf_service.analysis.candidates import compact, fact
from perf_service.analysis.facts import Facts
from perf_service.analysis.queue_weights import budget_smallness
from perf_service.analysis.sentences import together, waiting_text
from perf_service.analysis.steps import chunks
from perf_service.models.analysis import Evidence
from perf_service.models.metrics import Engine
from perf_service.models.units import number, percent, seconds


def queue_evidence(facts: Facts) -> tuple[Evidence, ...]:
    """That requests wait, in numbers."""
    share, waiting = facts.queue_share, facts.waiting_mean
    found: list[Evidence] = []
    if waiting > 0 or (facts.waiting is not None and share is None):
        found.append(fact(facts, "waiting_requests", "mean", waiting, f"{waiting_text(facts)}.", unit="requests"))
    gauge = facts.waiting
    if gauge is not None and gauge.samples > 2 and gauge.last >= max(t.WAITING_GAUGE_SINGLE_MIN.value, 1.5 * gauge.mean):
        text = f"The queue grows: {number(gauge.last)} wait at the last scrape, {number(gauge.mean)} on average over all of them."
        found.append(fact(facts, "waiting_requests", "last", gauge.last, text, unit="requests"))
    if share is not None:
        text = f"{percent(share)} of the time to the first token is spent in the queue ({seconds(facts.queue)})."
        found.append(fact(facts, "queue_seconds", "share", share, text, threshold=t.QUEUE_SHARE_MIN.value, unit="ratio"))
    return tuple(found)


def kv_evidence(facts: Facts) -> tuple[Evidence, ...]:
    """Preemptions and KV use, for or against exhaustion."""
    per_request, count, peak, need = facts.preemptions_per_request, facts.preemptions, facts.kv_peak, facts.kv_need_ratio
    found: list[Evidence] = []
    if count is not None:
        word = "retractions" if facts.engine is Engine.SGLANG else "preemptions"
        text = f"{count:.0f} {word}" + (f" in {facts.finished:.0f} finished requests." if per_request is not None else ".")
        limit = t.PREEMPTIONS_PER_REQUEST.value * facts.finished if per_request is not None else None
        found.append(fact(facts, "preemptions", "delta", count, text, threshold=limit, against=count <= 0))
    if peak is not None:
        text = f"KV cache use peaks at {percent(peak)}."
        against = peak < t.KV_FREE_MAX.value
        found.append(fact(facts, "kv_cache_usage_ratio", "max", peak, text, threshold=t.KV_FULL.value, unit="ratio", against=against))
    if need is not None:
        text = f"The running requests need {percent(need)} of the KV cache on average, by their number and length (Little's law)."
        limit = t.KV_NEED_FULL.value
        found.append(fact(facts, "kv_need_ratio", "mean", need, text, threshold=limit, unit="ratio", against=need < 0.5))
    return tuple(found)


def budget_evidence(facts: Facts) -> tuple[Evidence, ...]:
    """The token budget as told, or as the occupancy of prefill and the length of steps imply it."""
    against = budget_smallness(facts) < 0.5
    budget = facts.token_budget
    found = compact((_told_budget(facts, budget, against), _cut_prompts(facts, against), _implied_budget(facts, against)))
    return (*found, *saturation_evidence(facts))


def _told_budget(facts: Facts, budget: float | None, against: bool) -> Evidence | None:
    if budget is None:
        return None
    steps = facts.computed_tokens / budget if facts.computed_tokens else None
    text = f"The step budget is {budget:.0f} tokens"
    text += f": a prompt of {facts.computed_tokens:.0f} tokens needs {math.ceil(steps)} steps." if steps else "."
    limit = t.BUDGET_LARGE_ENOUGH.value
    return fact(facts, "token_budget", "config", budget, text, threshold=limit, unit="tokens", against=against)


def _cut_prompts(facts: Facts, against: bool) -> Evidence | None:
    """How finely prompts are cut, by the length of the steps."""
    cut, prompt = chunks(facts), facts.computed_tokens
    if facts.token_budget is not None or prompt is None or facts.prefill is None or cut.least < t.CUT_MIN.value:
        return None
    text = (
        f"Steps take at most {1000 * facts.prefill / cut.least:.0f} ms and a prefill {facts.prefill:.2f} s: "
        f"a prompt of {prompt:.0f} tokens is cut into {cut.least:.1f} steps or more, at most {prompt / cut.least:.0f} tokens each."
    )
    limit = t.CHUNKS_MANY.value
    return fact(facts, "steps_per_prompt", "at least", cut.least, text, threshold=limit, unit="steps", against=against)


def _implied_budget(facts: Facts, against: bool) -> Evidence | None:
    """The budget that the number of prompts in prefill at a time implies."""
    estimate, prompt, occupancy = facts.budget_estimate, facts.computed_tokens, facts.prefill_occupancy
    if facts.token_budget is not None or estimate is None or prompt is None or occupancy is None or occupancy < t.PREFILL_SATURATED.value:
        return None
    least = 0.05 * prompt  # an occupancy tells the budget to some percent of a prompt; below that only that it is small
    told = f"about {estimate:.0f}" if estimate >= least else f"less than {max(least, 1):.0f}"
    text = f"Prompts of {prompt:.0f} tokens are prefilled about {occupancy:.2f} at a time: that fits a budget of {told} tokens per step."
    limit = t.BUDGET_LARGE_ENOUGH.value
    return fact(facts, "token_budget", "estimate", estimate, text, threshold=limit, unit="tokens", against=against)


def saturation_evidence(facts: Facts) -> tuple[Evidence, ...]:
    """How many prompts are in prefill on average."""
    occupancy, limit = facts.prefill_occupancy, t.PREFILL_SATURATED.value
    if occupancy is None:
        return ()
    text = f"{number(occupancy)} prompts are in prefill at a time{together(facts)}: "
    text += "prefill is never idle while others wait." if occupancy >= limit else "prefill is not what the others wait for."
    return (fact(facts, "prefill_occupancy", "mean", occupancy, text, threshold=limit, unit="requests", against=occupancy < limit),)


def batch_evidence(facts: Facts) -> tuple[Evidence, ...]:
    """Running requests held at a constant number, and free KV cache beside it."""
    pinning, limit, peak, top = facts.pinning, facts.sequence_limit, facts.kv_peak, facts.running_top
    found: list[Evidence] = []
    if limit is not None and top > 0:
        each = limit / facts.limit_holders
        where = f" on each of {facts.limit_holders:.0f} replicas or ranks" if facts.limit_holders > 1 else ""
        text = f"{top:.0f} requests run; the limit is {each:.0f}{where}."
        found.append(fact(facts, "running_requests", "config", top, text, threshold=limit, unit="requests", against=top < 0.9 * limit))
    if pinning is not None:
        against = pinning.tightness < 0.5
        if pinning.counted:
            text = f"While others wait, {pinning.limit:.0f} run, the maximum, at {percent(pinning.share)} of {pinning.scrapes} scrapes."
        else:
            text = f"{pinning.mean:.1f} requests run on average and {pinning.limit:.0f} at most, over {pinning.scrapes} scrapes."
        value, n = pinning.share if pinning.counted else pinning.tightness, pinning.scrapes
        found.append(fact(facts, "running_requests", "share", value, text, threshold=0.8, unit="ratio", samples=n, against=against))
    elif facts.running_mean is not None:
        text = f"{number(facts.running_mean)} requests run on average while {number(facts.waiting_mean)} wait{together(facts)}."
        found.append(fact(facts, "running_requests", "mean", facts.running_mean, text, unit="requests"))
    if peak is not None and facts.kv is not None and facts.kv.nonzero_share > 0:
        free = peak < t.KV_FREE_MAX.value
        text = f"KV cache is free: its use peaks at {percent(peak)}." if free else f"KV cache use peaks at {percent(peak)}."
        found.append(fact(facts, "kv_cache_usage_ratio", "max", peak, text, threshold=t.KV_FREE_MAX.value, unit="ratio", against=not free))
    return tuple(found)


def deferred_evidence(facts: Facts) -> tuple[Evidence, ...]:
    """Share of the waiting requests that no free place would help."""
    found = []
    share = facts.deferred_share
    if share is not None:
        text = f"{percent(share)} of the waiting requests are deferred (LoRA slot, KV transfer, grammar), not short of capacity."
        found.append(fact(facts, "waiting_deferred_requests", "share", share, text, threshold=0.5, unit="ratio", against=share < 0.5))
    if facts.adapters_short:
        adapters, slots = facts.adapters_short
        text = f"Requests asked for {adapters} LoRA adapters; a step holds {slots} (max_loras)."
        found.append(fact(facts, "lora_adapters_seen", "last", adapters, text, threshold=slots, unit="adapters"))
    return tuple(found)
