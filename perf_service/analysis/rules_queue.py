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

import math

from perf_service.analysis import thresholds as t
from perf_service.analysis.candidates import Candidate, compact, fact, ramp
from perf_service.analysis.facts import Facts
from perf_service.analysis.queue_weights import (
    batch_weight,
    budget_smallness,
    deferred_weight,
    held_beside_prefill,
    kv_weight,
    prefill_saturation,
)
from perf_service.models.analysis import Cause, Evidence, Verdict
from perf_service.models.metrics import Engine

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
        return gauge >= max(t.WAITING_GAUGE_SINGLE_MIN.value, ran)
    gauge = facts.waiting.mean if facts.waiting else 0.0
    single = facts.window.scrapes <= 1
    return gauge >= (t.WAITING_GAUGE_SINGLE_MIN.value if single else t.WAITING_GAUGE_MIN.value)


def _waits_without_time(facts: Facts) -> bool:
    """The same where the time between the pages is unknown: as many wait for each that runs as the queue is longer than the service."""
    if facts.window.duration_seconds is not None or not facts.queue:
        return False
    return facts.inference is None or facts.queue * (facts.running_mean or 1.0) >= t.WAITING_MIN.value * facts.inference


def queue_evidence(facts: Facts) -> tuple[Evidence, ...]:
    """That requests wait, in numbers."""
    gauge = facts.waiting.mean if facts.waiting else None
    share = facts.queue_share
    return compact(
        (
            fact(
                facts,
                "waiting_requests",
                "mean",
                facts.waiting_mean,
                f"{facts.waiting_mean:.1f} requests wait on average.",
                unit="requests",
            )
            if facts.waiting_mean > 0 or (gauge is not None and share is None)
            else None,
            fact(
                facts,
                "queue_seconds",
                "share",
                share,
                f"{share:.0%} of the time to the first token is spent in the queue ({facts.queue:.2f} s).",
                threshold=t.QUEUE_SHARE_MIN.value,
                unit="ratio",
            )
            if share is not None
            else None,
        )
    )


def candidates(facts: Facts) -> tuple[Candidate, ...]:
    """The reasons for waiting with their weights."""
    kv = kv_weight(facts)
    # Running held at a number that prefill does not explain takes the force out of a busy prefill.
    saturation = prefill_saturation(facts) * (1.0 - 0.8 * held_beside_prefill(facts))
    small = budget_smallness(facts)
    deferred = deferred_weight(facts)
    open_share = (1.0 - 0.9 * kv) * (1.0 - 0.95 * deferred)
    batch = batch_weight(facts, saturation) * open_share
    decodes_fill = facts.token_budget is not None and (facts.running_mean or 0.0) >= 0.85 * facts.token_budget
    budget = max(saturation * small, 0.9 * small if decodes_fill else 0.0) * open_share
    prefill = saturation * (1.0 - small) * open_share
    found = [
        Candidate(Cause.KV_EXHAUSTED, kv * (1.0 - 0.95 * deferred), kv_evidence(facts), kv_verdict(facts)),
        Candidate(Cause.BATCH_LIMIT, batch, batch_evidence(facts), Verdict.TUNE, ARGS_SETTLE[facts.engine]),
        Candidate(Cause.TOKEN_BUDGET_TOO_SMALL, budget, budget_evidence(facts), Verdict.TUNE, ARGS_SETTLE[facts.engine]),
        Candidate(Cause.PREFILL_COMPUTE, prefill, saturation_evidence(facts), Verdict.SCALE, ARGS_SETTLE[facts.engine]),
        Candidate(Cause.WAITING_NOT_CAPACITY, deferred, deferred_evidence(facts), Verdict.LOOK_AT_CLIENT),
    ]
    if facts.engine is Engine.SGLANG:
        found.append(_under_admission(facts, open_share))
    if facts.engine is Engine.TGI:
        found.append(_reservation(facts, open_share))
    return tuple(candidate for candidate in found if candidate.weight > 0.005)


def kv_verdict(facts: Facts) -> Verdict:
    """More KV is a flag's matter as long as memory may be given to it."""
    return Verdict.TUNE


def kv_evidence(facts: Facts) -> tuple[Evidence, ...]:
    """Preemptions and KV use, for or against exhaustion."""
    per_request, peak, need = facts.preemptions_per_request, facts.kv_peak, facts.kv_need_ratio
    word = "retractions" if facts.engine is Engine.SGLANG else "preemptions"
    return compact(
        (
            fact(
                facts,
                "preemptions",
                "delta",
                facts.preemptions,
                f"{facts.preemptions:.0f} {word} in {facts.finished:.0f} finished requests."
                if per_request is not None
                else f"{facts.preemptions:.0f} {word}.",
                threshold=t.PREEMPTIONS_PER_REQUEST.value * facts.finished if per_request is not None else None,
                against=facts.preemptions <= 0,
            )
            if facts.preemptions is not None
            else None,
            fact(
                facts,
                "kv_cache_usage_ratio",
                "max",
                peak,
                f"KV cache use peaks at {peak:.1%}.",
                threshold=t.KV_FULL.value,
                unit="ratio",
                against=peak < t.KV_FREE_MAX.value,
            )
            if peak is not None
            else None,
            fact(
                facts,
                "kv_need_ratio",
                "mean",
                need,
                f"By Little's law the running requests need {need:.0%} of the KV cache on average.",
                threshold=t.KV_NEED_FULL.value,
                unit="ratio",
                against=need < 0.5,
            )
            if need is not None
            else None,
        )
    )


def budget_evidence(facts: Facts) -> tuple[Evidence, ...]:
    """The token budget as told, or as the occupancy of prefill implies it."""
    budget, estimate, prompt = facts.token_budget, facts.budget_estimate, facts.computed_tokens
    steps = prompt / budget if budget and prompt else None
    small = budget_smallness(facts) >= 0.5
    return (
        *compact(
            (
                fact(
                    facts,
                    "token_budget",
                    "config",
                    budget,
                    f"The step budget is {budget:.0f} tokens"
                    + (f": a prompt of {prompt:.0f} tokens needs {math.ceil(steps)} steps." if steps else "."),
                    threshold=t.BUDGET_LARGE_ENOUGH.value,
                    unit="tokens",
                    against=not small,
                )
                if budget is not None
                else None,
                fact(
                    facts,
                    "token_budget",
                    "estimate",
                    estimate,
                    f"Prompts of {prompt:.0f} tokens are prefilled about {facts.prefill_occupancy:.2f} at a time: "
                    f"that fits a budget of {_estimate_text(estimate, prompt)} tokens per step.",
                    threshold=t.BUDGET_LARGE_ENOUGH.value,
                    unit="tokens",
                    against=not small,
                )
                if budget is None and estimate is not None and facts.prefill_occupancy is not None and prompt is not None
                else None,
            )
        ),
        *saturation_evidence(facts),
    )


def _estimate_text(estimate: float, prompt: float) -> str:
    """An occupancy tells the budget to some percent of a prompt; below that only that it is small."""
    least = 0.05 * prompt
    return f"about {estimate:.0f}" if estimate >= least else f"less than {max(least, 1):.0f}"


def saturation_evidence(facts: Facts) -> tuple[Evidence, ...]:
    """How many prompts are in prefill on average."""
    occupancy = facts.prefill_occupancy
    return compact(
        (
            fact(
                facts,
                "prefill_occupancy",
                "mean",
                occupancy,
                f"On average {occupancy:.2f} requests are in prefill "
                + (
                    "while others wait: prefill is a busy server."
                    if occupancy >= t.PREFILL_SATURATED.value
                    else "- prefill is not what they wait for."
                ),
                threshold=t.PREFILL_SATURATED.value,
                unit="requests",
                against=occupancy < t.PREFILL_SATURATED.value,
            )
            if occupancy is not None
            else None,
        )
    )


def batch_evidence(facts: Facts) -> tuple[Evidence, ...]:
    """Running requests held at a constant number, and free KV cache beside it."""
    pinning, limit, peak = facts.pinning, facts.sequence_limit, facts.kv_peak
    running = facts.running_mean
    top = facts.running_top
    return compact(
        (
            fact(
                facts,
                "running_requests",
                "config",
                top,
                f"{top:.0f} requests run; the limit is {limit:.0f}.",
                threshold=limit,
                unit="requests",
                against=top < 0.9 * limit,
            )
            if limit is not None and top > 0
            else None,
            fact(
                facts,
                "running_requests",
                "share",
                pinning.share,
                f"While others wait, running is at its maximum of {pinning.limit:.0f} in {pinning.share:.0%} of {pinning.scrapes} scrapes.",
                threshold=0.8,
                unit="ratio",
                samples=pinning.scrapes,
                against=pinning.tightness < 0.5,
            )
            if pinning is not None
            else None,
            fact(
                facts,
                "running_requests",
                "mean",
                running,
                f"{running:.1f} requests run on average while {facts.waiting_mean:.1f} wait.",
                unit="requests",
            )
            if running is not None and pinning is None
            else None,
            fact(
                facts,
                "kv_cache_usage_ratio",
                "max",
                peak,
                f"KV cache is free: its use peaks at {peak:.1%}." if peak < t.KV_FREE_MAX.value else f"KV cache use peaks at {peak:.1%}.",
                threshold=t.KV_FREE_MAX.value,
                unit="ratio",
                against=peak >= t.KV_FREE_MAX.value,
            )
            if peak is not None and facts.kv is not None and facts.kv.nonzero_share > 0
            else None,
        )
    )


def deferred_evidence(facts: Facts) -> tuple[Evidence, ...]:
    """Share of the waiting requests that no free place would help."""
    share = facts.deferred_share
    if share is None:
        return ()
    text = f"{share:.0%} of the waiting requests are deferred (LoRA slot, KV transfer, grammar), not short of capacity."
    return (fact(facts, "waiting_deferred_requests", "share", share, text, threshold=0.5, unit="ratio", against=share < 0.5),)


def _under_admission(facts: Facts, open_share: float) -> Candidate:
    """SGLang holds back requests for tokens they may still generate: KV in use below 0.9, running wanders with the load."""
    usage = facts.kv.mean / facts.kv.nonzero_share if facts.kv and facts.kv.nonzero_share > 0 else None
    peak = facts.kv_peak
    if usage is None or peak is None:
        return Candidate(Cause.UNDER_ADMISSION, 0.1 * open_share)
    reserved = (1.0 - ramp(usage, 0.7, t.SGLANG_USAGE_LOW.value)) * (1.0 - ramp(peak, t.SGLANG_USAGE_LOW.value, 0.97))
    told = facts.config.number("schedule_conservativeness")
    if told is not None and told <= 0.3:
        reserved *= 0.1  # as far down as the vendor advises already
    wandering = 1.0 - (facts.pinning.tightness if facts.pinning else 0.5)
    text = f"KV token usage is {usage:.0%} with {facts.waiting_mean:.1f} requests queued."
    evidence = (fact(facts, "kv_cache_usage_ratio", "mean", usage, text, threshold=t.SGLANG_USAGE_LOW.value, unit="ratio"),)
    settle = "the launch argument schedule_conservativeness and the clients' max_new_tokens"
    return Candidate(Cause.UNDER_ADMISSION, 0.9 * reserved * wandering * open_share, evidence, Verdict.TUNE, settle)


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
    return Candidate(Cause.RESERVATION_LIMIT, 0.95 * ramp(peak, 0.6, 0.9), evidence, Verdict.TUNE)
