"""Why requests wait: an engine holds a request back for few reasons, and each leaves its own trace.

A continuous-batching scheduler admits the head of its queue unless (1) the sequence limit is reached, (2) the step's token budget
is spent, (3) there are no KV blocks, or (4) the request itself is not ready (LoRA slot, KV transfer, grammar). So:

* (1) leaves the number of running requests constant at the limit;
* (2) leaves always at least one prompt in prefill: with a budget of B tokens per step and prompts of P tokens, the mean number in
  prefill is 1 + B/P (a step's stretch of B tokens touches that many prompts). Read backwards it tells B;
* (3) shows in preemptions and in KV use; (4) in the deferred queue.

vLLM calls (1), (2) and (3) alike "capacity" in `num_requests_waiting_by_reason`.
"""

from __future__ import annotations

from dataclasses import replace

from perf_service.analysis import thresholds as t
from perf_service.analysis.candidates import Candidate, fact, ramp
from perf_service.analysis.facts import Facts
from perf_service.analysis.queue_evidence import batch_evidence, budget_evidence, deferred_evidence, kv_evidence, saturation_evidence
from perf_service.analysis.queue_weights import (
    batch_weight,
    budget_smallness,
    deferred_weight,
    held_beside_prefill,
    kv_weight,
    prefill_saturation,
)
from perf_service.models.analysis import Cause, Verdict
from perf_service.models.metrics import Engine, Gauge

ARGS_SETTLE = {
    Engine.VLLM: "the launch arguments max_num_seqs and max_num_batched_tokens (tell them: --config max_num_seqs=...)",
    Engine.SGLANG: "the launch arguments max_running_requests and chunked_prefill_size (tell them: --config max_running_requests=...)",
    Engine.TGI: "the launch arguments max_batch_size and max_batch_prefill_tokens (tell them: --config max_batch_size=...)",
}


def significant(facts: Facts) -> bool:
    """Whether waiting matters at all: enough requests wait, and that is a fair share of the time to the first token."""
    if facts.queue is not None and facts.finished >= t.REQUESTS_MIN.value:
        share = facts.queue_share
        long_enough = share is None or share >= t.QUEUE_SHARE_MIN.value
        if long_enough and (facts.waiting_mean >= t.WAITING_MIN.value or _waits_without_time(facts)):
            return True
        # Queue times are booked at the end: in an overload those who still wait are not among them.
        gauge = facts.waiting.mean if facts.waiting else 0.0
        ran = facts.running.mean if facts.running else 0.0
        lasting = (share or 0.0) >= 0.02 or (facts.waiting is not None and facts.waiting.nonzero_share >= 0.8)
        return lasting and gauge >= max(t.WAITING_GAUGE_SINGLE_MIN.value, ran)  # not a burst that one scrape happened to see
    gauge = facts.waiting.mean if facts.waiting else 0.0
    single = facts.window.scrapes <= 1
    return gauge >= (t.WAITING_GAUGE_SINGLE_MIN.value if single else t.WAITING_GAUGE_MIN.value)


def saturated(facts: Facts) -> bool:
    """Whether the data show, without any objective, that more is asked than can be served: requests suffer in the queue, it outgrows
    what runs, or it was never empty at five scrapes or more."""
    if not significant(facts):
        return False
    suffers = (facts.queue or 0.0) >= t.QUEUE_SUFFERING_SECONDS.value and (facts.queue_share or 0.0) >= t.QUEUE_SUFFERING_SHARE.value
    if suffers and not facts.window.lifetime:  # totals since the start may be of a queue that is long gone
        return True
    waiting, ran = facts.waiting, facts.running.mean if facts.running else 0.0
    if waiting is None or waiting.last <= 0:
        return False
    never_empty = waiting.samples >= t.SCRAPES_TELLING.value and waiting.min > 0
    return never_empty or waiting.mean >= max(t.WAITING_GAUGE_SINGLE_MIN.value, ran)


def _waits_without_time(facts: Facts) -> bool:
    """The same where the time is unknown, or, of a life, its idle part: as many wait for each that runs as the queue is longer than
    the service."""
    if (facts.window.duration_seconds is not None and not facts.window.lifetime) or not facts.queue:
        return False
    return facts.inference is None or facts.queue * (facts.running_mean or 1.0) >= t.WAITING_MIN.value * facts.inference


def candidates(facts: Facts) -> tuple[Candidate, ...]:
    """The reasons for waiting with their weights."""
    kv = kv_weight(facts)
    # Running held at a number that prefill does not explain takes the force out of a busy prefill.
    saturation = prefill_saturation(facts) * (1.0 - 0.8 * held_beside_prefill(facts))
    small = budget_smallness(facts)
    deferred = deferred_weight(facts)
    waits_on_flag = Verdict.TUNE if facts.adapters_short else Verdict.LOOK_AT_CLIENT
    open_share = (1.0 - 0.9 * kv) * (1.0 - 0.95 * deferred)
    batch = batch_weight(facts, saturation) * open_share
    decodes_fill = facts.token_budget is not None and (facts.running_mean or 0.0) >= 0.85 * facts.token_budget
    budget = max(saturation * small, 0.9 * small if decodes_fill else 0.0) * open_share
    prefill = saturation * (1.0 - small) * open_share
    found = [
        Candidate(Cause.KV_EXHAUSTED, kv * (1.0 - 0.95 * deferred), kv_evidence(facts), Verdict.TUNE),
        Candidate(Cause.BATCH_LIMIT, batch, batch_evidence(facts), Verdict.TUNE, ARGS_SETTLE[facts.engine]),
        Candidate(Cause.TOKEN_BUDGET_TOO_SMALL, budget, budget_evidence(facts), Verdict.TUNE, ARGS_SETTLE[facts.engine]),
        Candidate(Cause.PREFILL_COMPUTE, prefill, saturation_evidence(facts), Verdict.SCALE, ARGS_SETTLE[facts.engine]),
        Candidate(Cause.WAITING_NOT_CAPACITY, deferred, deferred_evidence(facts), waits_on_flag),
    ]
    if facts.engine is Engine.SGLANG:
        timid = _under_admission(facts, open_share)
        if _boldest(facts):  # reservations bind although they can't be made smaller: what is short is the pool
            found[0] = replace(found[0], weight=max(found[0].weight, timid.weight), evidence=(*found[0].evidence, *timid.evidence))
        else:
            found.append(timid)
    if facts.engine is Engine.TGI:
        reserved = _reservation(facts, open_share)
        if facts.sequence_limit is None:
            found = [replace(c, weight=c.weight * (1.0 - 0.8 * reserved.weight)) if c.cause is Cause.BATCH_LIMIT else c for c in found]
        found.append(reserved)
    return tuple(candidate for candidate in found if candidate.weight > 0.005)


def _under_admission(facts: Facts, open_share: float) -> Candidate:
    """SGLang holds back requests for tokens they may still generate: KV in use below 0.9, running wanders with the load."""
    usage = facts.kv.mean / facts.kv.nonzero_share if facts.kv and facts.kv.nonzero_share > 0 else None
    peak = facts.kv_peak
    if usage is None or peak is None:
        return Candidate(Cause.UNDER_ADMISSION, 0.1 * open_share)
    reserved = (1.0 - ramp(usage, 0.7, t.SGLANG_USAGE_LOW.value)) * (1.0 - ramp(peak, t.SGLANG_USAGE_LOW.value, 0.97))
    reserved *= _could_be_reserved(facts, usage)
    told_elsewhere = facts.sequence_limit is not None and facts.running_top < 0.9 * facts.sequence_limit
    wandering = 1.0 if told_elsewhere else 1.0 - (facts.pinning.tightness if facts.pinning else 0.5)
    if facts.sequence_limit is None:
        wandering = max(wandering, _STEADY_RESERVATIONS)
    text = f"KV token usage is {usage:.0%} with {facts.waiting_mean:.1f} requests queued."
    evidence = (fact(facts, "kv_cache_usage_ratio", "mean", usage, text, threshold=t.SGLANG_USAGE_LOW.value, unit="ratio"),)
    settle = "the launch argument schedule_conservativeness and the clients' max_new_tokens"
    return Candidate(Cause.UNDER_ADMISSION, 0.9 * reserved * wandering * open_share, evidence, Verdict.TUNE, settle)


_STEADY_RESERVATIONS = 0.3
"""Requests of one length reserve for a constant number as a limit does: not excluded while the limit is not told."""


def _boldest(facts: Facts) -> bool:
    """Whether schedule_conservativeness is as far down as the vendor advises already: as told, or by the ratio of new tokens that
    is reserved, which never falls below a fixed share of it."""
    told = facts.config.number("schedule_conservativeness")
    if told is not None:
        return told <= t.SGLANG_BOLDEST.value
    ratio = facts.window.gauge(Gauge.NEW_TOKEN_RATIO)
    return ratio is not None and 0 < ratio.max < t.SGLANG_BOLDEST.value * t.SGLANG_LEAST_RATIO.value


def _could_be_reserved(facts: Facts, usage: float) -> float:
    """Whether what may be reserved for running requests could fill the rest of the pool at all."""
    capacity = facts.window.gauge(Gauge.KV_CAPACITY_TOKENS)
    ratio = facts.window.gauge(Gauge.NEW_TOKEN_RATIO)
    if capacity is None or capacity.mean <= 0:
        return 1.0
    most = (facts.running_top * min(1.0, ratio.max if ratio is not None else 1.0) + 1.0) * t.SGLANG_CLIP_NEW_TOKENS.value
    return ramp(usage + most / capacity.mean, 0.7, 1.0)


def _reservation(facts: Facts, open_share: float) -> Candidate:
    """TGI admits by worst case: prompt plus max_new_tokens of every running request must fit the token budget."""
    peak = facts.kv_peak
    if peak is None:
        return Candidate(Cause.RESERVATION_LIMIT, 0.3 * open_share, (), Verdict.LOOK_AT_CLIENT, "the gauge tgi_batch_max_total_tokens")
    text = f"Up to {peak:.0%} of the batch's token budget is reserved for the running requests' worst case."
    evidence = (
        fact(
            facts,
            "kv_cache_usage_ratio",
            "max",
            peak,
            text,
            threshold=t.KV_FREE_MAX.value,
            unit="ratio",
            against=peak < t.KV_FREE_MAX.value,
        ),
    )
    weight = 0.95 * ramp(peak, 0.6, 0.9)
    if facts.running_top >= 1:
        room = (1.0 - peak) * facts.running_top / max(peak, 1e-9)  # how many more like those that run would fit
        weight = max(weight, 0.95 * ramp(-room, -1.5, -0.9))
    return Candidate(Cause.RESERVATION_LIMIT, weight, evidence, Verdict.TUNE)
