"""How strongly each reason for waiting is indicated, 0..1, from occupancies and known limits (see `rules_queue`)."""

from __future__ import annotations

import math

from perf_service.analysis import steps
from perf_service.analysis import thresholds as t
from perf_service.analysis.candidates import ramp
from perf_service.analysis.facts import Facts
from perf_service.analysis.pinning import UNTELLING
from perf_service.models.metrics import Engine, Gauge


def kv_weight(facts: Facts) -> float:
    """How likely the KV cache is what requests wait for."""
    if facts.engine is Engine.TGI:
        return 0.0  # its gauge is reserved budget, not use: see the reservation limit
    if facts.preemptions:
        per_request = facts.preemptions_per_request
        often = per_request is not None and per_request >= t.PREEMPTIONS_PER_REQUEST.value
        if per_request is not None and often:
            return 0.7 + 0.27 * ramp(per_request, t.PREEMPTIONS_PER_REQUEST.value, t.PREEMPTIONS_PATHOLOGICAL.value)
        if per_request is None and (facts.kv_peak or 0.0) >= t.KV_FREE_MAX.value:
            return 0.9
        return max(0.4, _fullness(facts))
    return _fullness(facts)


def _fullness(facts: Facts) -> float:
    """The same by how full the cache was, or how full the requests that ran must have made it."""
    peak, need = facts.kv_peak, facts.kv_need_ratio
    if peak is not None and peak >= t.KV_FULL.value:
        return 0.85
    if need is not None and need >= t.KV_NEED_FULL.value:
        return 0.7
    if peak is not None and facts.kv is not None and facts.kv.nonzero_share > 0:
        used = 0.02 + 0.4 * ramp(peak, t.KV_FREE_MAX.value, t.KV_FULL.value)
        return max(used, 0.85 * ramp(_room_for(facts, peak), t.ROOM_FOR_TWO.value, 1.0))
    if need is not None:
        return 0.02 + 0.3 * ramp(need, 0.5, t.KV_NEED_FULL.value)
    return 0.02 if peak is not None else 0.2


def _turns_of_adapters(facts: Facts) -> float:
    """More adapters were asked for than a step holds; whether it was they that requests waited for, no scrape saw. Nothing where
    something else is seen to be short."""
    at_limit = facts.sequence_limit is not None and facts.running_top >= 0.9 * facts.sequence_limit
    if at_limit or facts.preemptions or (facts.kv_peak or 0.0) >= t.KV_FREE_MAX.value:
        return 0.0
    return 0.6 * (1.0 - (facts.pinning.tightness if facts.pinning else 0.0))


def _room_for(facts: Facts, peak: float) -> float:
    """How many more requests of the mean length fit into what is left of the KV cache at its fullest; they take whole blocks."""
    gauge, prompt, output = facts.window.gauge(Gauge.KV_CAPACITY_TOKENS), facts.prompt_tokens, facts.output_tokens
    if gauge is None or gauge.mean <= 0 or prompt is None or output is None or facts.window.replicas > 1:
        return math.inf
    block = facts.config.number("block_size") or facts.config.number("page_size") or 1.0
    return (1.0 - peak) * gauge.mean / (block * max(1, math.ceil((prompt + output) / block)))


def prefill_saturation(facts: Facts) -> float:
    """How likely prefill is a busy server with a queue before it: always a prompt in prefill while others wait."""
    occupancy = facts.prefill_occupancy
    if occupancy is None:
        if facts.prompt_share is None:
            return 0.15
        if facts.prefill_step_share is not None:
            return ramp(facts.prefill_step_share, 0.7, t.PREFILL_SATURATED.value) * ramp(facts.prompt_share, 0.5, 0.9)
        return 0.5 * ramp(facts.prompt_share, 0.7, 0.98)
    budget, prompt, running = facts.token_budget, facts.computed_tokens, facts.running_mean
    if budget is not None and prompt:
        # The told budget says how many prompts a full step touches; fewer in prefill means steps that were not full.
        left = max(1.0, budget - max(0.0, (running or 0.0) - occupancy))
        return ramp(occupancy / (1.0 + left / prompt), 0.6, 0.9)
    # A prompt that takes one step of those that decode anyway holds nobody up, unless prompts are most of that step.
    low, high = (0.3, 0.6) if steps.chunks(facts).most < 2.0 else (0.15, 0.4)
    found = ramp(occupancy, 0.8, t.PREFILL_SATURATED.value) * ramp(steps.prompt_part(facts), low, high)
    if facts.busy_seconds is None and facts.running_occupancy is None and steps.chunks(facts).least >= t.CUT_MIN.value:
        found = max(found, 0.6)  # without times the occupancy is only that of a scrape or two; prompts are cut all the same
    # Totals since the start mix what came before: one that runs alone now may be in its prefill all the time.
    return max(found, 0.5) if _alone_on_one_page(facts) and occupancy >= 0.5 else found


def _alone_on_one_page(facts: Facts) -> bool:
    return facts.window.lifetime and 0 < facts.running_top <= 1


def budget_smallness(facts: Facts) -> float:
    """1 where the step's token budget is so small that the fixed cost of a step dominates, 0 where it cannot be."""
    budget, prompt, cut = facts.token_budget, facts.computed_tokens, steps.chunks(facts)
    value = budget if budget is not None else facts.budget_estimate
    if budget is None and prompt:
        low, high = cut.budget(prompt)
        if cut.least >= t.CUT_MIN.value:
            value = min(value, high) if value is not None else prompt / cut.likely
        value = max(value, low) if value is not None else None
    if value is None:
        return 0.3 * ramp(cut.most, 1.5, t.CHUNKS_MANY.value)
    small = 1.0 - ramp(math.log(max(value, 1.0)), math.log(t.BUDGET_SMALL.value), math.log(t.BUDGET_LARGE_ENOUGH.value))
    share = steps.fixed_share(facts, value)
    if share is not None:
        small *= ramp(share, 0.5 * t.FIXED_SHARE_MIN.value, t.FIXED_SHARE_MIN.value)  # compute is what takes the time
    if budget is None:
        small *= ramp(cut.most, 1.5, t.CHUNKS_MANY.value)  # whose prefill is over in a step or two was not cut into chunks
    # A step that takes several whole prompts does not starve them.
    return small * (1.0 - ramp(value / prompt, 1.0, 3.0)) if prompt else small


def batch_weight(facts: Facts, saturation: float) -> float:
    """How likely the sequence limit is what requests wait for."""
    limit, pinning, running = facts.sequence_limit, facts.pinning, facts.running_mean
    top = facts.running_top
    if limit is not None and top > 0:
        if top < 0.9 * limit:
            return 0.01
        # At the limit is one thing, being there whenever others wait another.
        held = pinning.tightness if pinning is not None else ramp(running if running is not None else top, 0.6 * limit, 0.9 * limit)
        return 0.05 + 0.85 * held * (1.0 - 0.8 * saturation * float(limit > 4))
    if pinning is not None:
        base = 0.1 + 0.8 * pinning.tightness
    elif facts.prefill_occupancy is not None or facts.kv_peak is not None:
        base = 0.6  # the other reasons are excluded or not by their own traces
    else:
        base = 0.3
    if _alone_on_one_page(facts):
        base *= 0.5  # hardly anybody sets a limit of one
    if queue_unseen(facts):
        base *= 0.5
    occupancy = facts.prefill_occupancy
    if occupancy is None:
        # One at a time: hardly anybody sets a limit of one, while a prompt that takes many steps looks just so.
        return base * (1.0 - 0.5 * saturation) * (0.5 if 0 < top <= 1 else 1.0)
    # Behind a sequence limit the number in prefill may be anything up to the limit; a binding token budget keeps it at one and
    # a bit. Finding it there is the budget's trace, the more so the larger its share of what runs.
    in_prefill = min(1.0, occupancy / running) if running else 0.0
    if pinning is not None and pinning.limit <= 1:
        return base * (1.0 - 0.65 * saturation)  # one at a time: a limit of one looks just the same
    return base * (1.0 - saturation * (0.6 + 0.35 * ramp(in_prefill, 0.2, 0.7)))


def queue_unseen(facts: Facts) -> bool:
    """Whether requests ran at the scrapes and none of them saw any waiting: those that did may have waited for anything."""
    running, waiting = facts.running, facts.waiting
    return running is not None and waiting is not None and running.max > 0 and waiting.max <= 0


def held_beside_prefill(facts: Facts) -> float:
    """How clearly running is held at a number that prefill alone does not explain: a token budget would let it wander."""
    pinning, occupancy = facts.pinning, facts.prefill_occupancy
    if pinning is None or occupancy is None or pinning.limit < 2 or facts.token_budget is not None:
        return 0.0
    in_prefill = min(1.0, occupancy / pinning.limit)
    return ramp(pinning.tightness, UNTELLING, 1.0) * ramp(pinning.scrapes, 3, 8) * (1.0 - ramp(in_prefill, 0.2, 0.5))


def deferred_weight(facts: Facts) -> float:
    """How likely requests wait for something other than capacity."""
    if facts.deferred_share is not None and facts.deferred_share > t.DEFERRED_MIN.value:
        return 3.0 * ramp(facts.deferred_share, t.DEFERRED_MIN.value, 0.7)
    if facts.adapters_short and facts.deferred_share is None:
        return _turns_of_adapters(facts)
    used, total = facts.window.gauge(Gauge.LORA_SLOTS_USED), facts.window.gauge(Gauge.LORA_SLOTS_TOTAL)
    if used is not None and total is not None and total.mean > 0 and (facts.kv_peak or 0.0) < t.KV_FREE_MAX.value:
        return 0.5 * ramp(used.mean / total.mean, 0.9, 1.0)  # every adapter slot is taken: the next adapter must wait
    return 0.0
