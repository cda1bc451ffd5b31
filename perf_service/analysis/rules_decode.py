"""Why tokens come slowly once they come: batch size, prefill interference, preemption stalls, speculation."""

from __future__ import annotations

from perf_service.analysis import queue_evidence, queue_weights
from perf_service.analysis import thresholds as t
from perf_service.analysis.candidates import Candidate, compact, fact, ramp
from perf_service.analysis.facts import Facts
from perf_service.analysis.sentences import together
from perf_service.models.analysis import Cause, Evidence, Verdict
from perf_service.models.metrics import Counter, Gauge, Hist
from perf_service.models.units import number, percent, seconds


def candidates(facts: Facts) -> tuple[Candidate, ...]:
    """Causes of slow decoding with their weights."""
    interference = _interference(facts)
    kv = queue_weights.kv_weight(facts) if facts.preemptions else 0.0
    # A batch that is too slow is slow at every token; spikes leave the median far below the mean.
    middle = facts.window.quantile(Hist.ITL_SECONDS, 0.5)
    steady = ramp(middle.value / facts.itl, 0.3, 0.7) if middle is not None and facts.itl else 1.0
    decode = 0.7 * (1.0 - 0.8 * interference) * (0.3 + 0.7 * steady) * (1.0 - 0.9 * drafts_wasted(facts))
    return tuple(
        candidate
        for candidate in (
            Candidate(Cause.DECODE_BOUND, decode, decode_evidence(facts), Verdict.SCALE, "time per token at another batch size"),
            Candidate(
                Cause.TOKEN_BUDGET_TOO_LARGE,
                0.9 * interference,
                interference_evidence(facts),
                Verdict.TUNE,
                "the launch argument max_num_batched_tokens, and whether the spikes coincide with arriving prompts",
            ),
            Candidate(Cause.KV_EXHAUSTED, kv, queue_evidence.kv_evidence(facts)),
            _speculation(facts),
            _cpu(facts),
        )
        if candidate.weight > 0.005
    )


def _interference(facts: Facts) -> float:
    """How likely prefill chunks of others cause the slow tokens: a long tail over a short median, on prompt-heavy work."""
    tail, middle = facts.window.quantile(Hist.ITL_SECONDS, 0.99), facts.window.quantile(Hist.ITL_SECONDS, 0.5)
    long = facts.window.quantile(Hist.PROMPT_TOKENS, 0.95)
    if tail is None or middle is None or middle.value <= 0 or facts.prompt_share is None or facts.prompt_tokens is None:
        return 0.0
    if facts.token_budget is not None and facts.token_budget <= 512:
        return 0.0
    objective = next(o.target_value for o in t.BUILTIN_OBJECTIVES if o.histogram is Hist.ITL_SECONDS)
    usual = min(middle.value, facts.itl or middle.value)  # the lowest bucket tells no median, but the mean is not above it by much
    spread = ramp(tail.value / usual, 0.75 * t.INTERFERENCE_RATIO.value, 2.0 * t.INTERFERENCE_RATIO.value)
    computed = min(1.0, (facts.computed_tokens or facts.prompt_tokens) / max(facts.prompt_tokens, 1.0))
    slow = 1.0 - ramp(middle.value, objective, 2.0 * objective)  # the usual token is slow too: not spikes
    heavy = (
        slow
        * ramp(facts.prompt_share, t.INTERFERENCE_PROMPT_SHARE.value, 0.8)
        * ramp(computed * max(facts.prompt_tokens, long.value / 2.0 if long else 0.0), 256, 1024)  # what is cached stalls nobody
    )
    return spread * heavy


def decode_evidence(facts: Facts) -> tuple[Evidence, ...]:
    """Time per token and the batch it was reached with."""
    running = facts.running_mean
    middle = facts.window.quantile(Hist.ITL_SECONDS, 0.5)
    whole = facts.e2e
    share = facts.decode / whole if facts.decode is not None and whole else None
    return compact(
        (
            fact(facts, "itl_seconds", "mean", facts.itl, f"A token takes {seconds(facts.itl)} on average.", unit="s")
            if facts.itl is not None
            else None,
            fact(
                facts,
                "itl_seconds",
                "p50",
                middle.value,
                f"The median time between tokens is {seconds(middle.value)}.",
                unit="s",
                samples=middle.samples,
            )
            if middle is not None
            else None,
            fact(
                facts,
                "running_requests",
                "mean",
                running,
                f"{number(running)} requests decode together on average{together(facts)}.",
                unit="requests",
            )
            if running is not None
            else None,
            fact(facts, "decode_seconds", "share", share, f"Decoding is {percent(share)} of the whole latency.", unit="ratio")
            if share is not None
            else None,
        )
    )


def interference_evidence(facts: Facts) -> tuple[Evidence, ...]:
    """The tail of the time between tokens beside its median."""
    tail, middle = facts.window.quantile(Hist.ITL_SECONDS, 0.99), facts.window.quantile(Hist.ITL_SECONDS, 0.5)
    if tail is None or middle is None or middle.value <= 0:
        return ()
    ratio = tail.value / middle.value
    text = f"ITL p99 is {tail.value * 1000:.0f} ms, {ratio:.0f} times its median, with prompts of {facts.prompt_tokens or 0:.0f} tokens."
    return (fact(facts, "itl_seconds", "p99/p50", ratio, text, threshold=t.INTERFERENCE_RATIO.value, unit="ratio", samples=tail.samples),)


def _cpu(facts: Facts) -> Candidate:
    """The accelerator waits for the CPU: SGLang tells its share of time in forward passes, else only a saturated process hints at it."""
    occupancy, cores = facts.window.gauge(Gauge.FORWARD_OCCUPANCY_RATIO), facts.cpu_cores
    settle = "CPU use of each server process and the accelerator's idle share"
    if occupancy is not None and occupancy.mean > 0:
        weight = 0.9 * (1.0 - ramp(occupancy.mean, 0.5, t.FORWARD_OCCUPANCY_LOW.value))
        text = f"Only {occupancy.mean:.0%} of the time is spent in forward passes although requests run."
        limit = t.FORWARD_OCCUPANCY_LOW.value
        evidence = (fact(facts, "forward_occupancy_ratio", "mean", occupancy.mean, text, threshold=limit, unit="ratio"),)
        return Candidate(Cause.CPU_OVERHEAD, weight, evidence if weight > 0 else (), Verdict.TUNE, settle)
    weight = 0.5 * ramp(cores, 0.7, t.CPU_SATURATED.value) if cores is not None else 0.0
    return Candidate(Cause.CPU_OVERHEAD, weight, (), Verdict.TUNE, settle)


def drafts_wasted(facts: Facts) -> float:
    """How certain it is that speculation is nothing but cost: next to no draft token accepted, in drafts at a good part of the steps."""
    drafts, accepted = facts.window.delta(Counter.SPEC_DRAFTS), facts.window.delta(Counter.SPEC_ACCEPTED_TOKENS)
    if not drafts or accepted is None or drafts < t.SPEC_DRAFTS_TELLING.value:
        return 0.0
    tokens = facts.window.delta(Counter.GENERATION_TOKENS)
    often = ramp(drafts / tokens, 0.2, 0.5) if tokens else 0.0  # a sequence has a draft a step at most; rare ones cost next to nothing
    return often * ramp(accepted / drafts, t.SPEC_ACCEPTED_PER_DRAFT_MIN.value, t.SPEC_ACCEPTED_PER_DRAFT_NONE.value)


def _speculation(facts: Facts) -> Candidate:
    """Drafts that are rarely accepted never pay; in a large batch, where checking a draft token costs as much as making one, even
    fair ones do not."""
    settle = "time per token with speculation off"
    drafts, accepted = facts.window.delta(Counter.SPEC_DRAFTS), facts.window.delta(Counter.SPEC_ACCEPTED_TOKENS)
    length = facts.window.gauge(Gauge.SPEC_ACCEPT_LENGTH_TOKENS)
    if drafts and accepted is not None:
        per_draft = accepted / drafts
    elif length is not None and length.mean >= 1.0:
        per_draft = length.mean - 1.0  # SGLang counts the token that comes anyway
    else:
        return Candidate(Cause.SPECULATION_NOT_PAYING, 0.0)
    limit = t.SPEC_ACCEPTED_PER_DRAFT_MIN.value
    weight = 1.0 - ramp(per_draft, limit, 3 * limit)
    proposed = facts.window.delta(Counter.SPEC_DRAFT_TOKENS)
    text = f"A draft yields {per_draft:.2f} accepted tokens"
    if proposed and drafts and accepted is not None:
        rate = accepted / proposed
        text += f", {rate:.0%} of those proposed"
        large = ramp(facts.running_mean or 0.0, 0.25 * t.LARGE_RUNNING.value, t.LARGE_RUNNING.value)
        weight = max(weight, large * (1.0 - ramp(rate, t.SPEC_RATE_LOW.value, 2 * t.SPEC_RATE_LOW.value)))
    weight = max(weight, 2.0 * drafts_wasted(facts))
    evidence = (fact(facts, "spec_accepted_tokens", "per draft", per_draft, text + ".", threshold=limit, unit="tokens"),)
    return Candidate(Cause.SPECULATION_NOT_PAYING, weight, evidence, Verdict.TUNE, settle)
