"""Which phases cost more than the objectives allow, and the causes that could be behind each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from perf_service.analysis import attribution as phase
from perf_service.analysis import queue_evidence, queue_weights, rules_decode, rules_length, rules_prefill, rules_queue
from perf_service.analysis import thresholds as t
from perf_service.analysis.candidates import Candidate, Harm, ramp
from perf_service.analysis.facts import Facts
from perf_service.models.analysis import Cause, SLOState, SLOStatus, Verdict
from perf_service.models.metrics import Engine, Hist
from perf_service.models.slo import Comparison


def harms(facts: Facts, statuses: Sequence[SLOStatus]) -> list[Harm]:
    """The phases that cost more than the objectives allow, the costliest first."""
    missed = _missed_by_phase(facts, statuses)
    queued = rules_queue.significant(facts)
    if queued and _queue_unjudged(facts, statuses):
        missed[phase.QUEUE] = max(missed.get(phase.QUEUE, 0.0), 1.0 if _growing(facts) else 0.1)
    queue, prefill = missed.pop(phase.QUEUE, 0.0), missed.pop(phase.PREFILL, 0.0)
    before, decode = missed.pop(phase.PRESCHEDULE, 0.0), missed.pop(phase.DECODE, 0.0)
    unknown = missed.pop(phase.UNKNOWN, 0.0)
    # While a long step runs the engine does not even look at new requests, so a wait of a step's length belongs to prefill.
    if before and facts.prefill is not None and (_within_a_step(facts) or _busy_beside_idle_frontend(facts)):
        own = phase.own_prefill_share(facts)
        prefill, decode, before = prefill + own * before, decode + (1.0 - own) * before, 0.0
    if decode and prefill and facts.engine is Engine.VLLM and phase.own_prefill_share(facts) < t.OWN_SHARE_MIN.value:
        decode, prefill = decode + prefill, 0.0  # a short prompt takes as long as the steps of those that decode do
    if rules_decode.drafts_wasted(facts) >= 0.5:
        decode, prefill, before = decode + prefill + before, 0.0, 0.0  # drafts make each step longer, whoever is in it
    if not queued and not _outlasts_steps(facts):
        prefill, queue = prefill + queue, 0.0
    else:
        if queue_weights.prefill_saturation(facts) >= 0.5:
            queue, prefill = queue + prefill, 0.0
        queue, unknown = queue + unknown + before, 0.0
        before = 0.0
    found = []
    if queue > 0:
        found.append(Harm(phase.QUEUE, queue, _queue_candidates(facts, statuses), _ignorance(facts), queue_evidence.queue_evidence(facts)))
    if prefill > 0:
        found.append(Harm(phase.PREFILL, prefill, rules_prefill.candidates(facts), 0.1, rules_prefill.prefill_evidence(facts)))
    if decode > 0:
        found.append(Harm(phase.DECODE, decode, rules_decode.candidates(facts), 0.2, rules_decode.decode_evidence(facts)))
    if before > 0:
        found.append(Harm(phase.PRESCHEDULE, before, rules_prefill.preschedule(facts), 0.5))
    if unknown > 0:
        found.append(Harm(phase.UNKNOWN, unknown, _unknown_candidates(facts), 0.6))
    if facts.window.lifetime:
        found = [replace(harm, unknown_weight=harm.unknown_weight + _LIFETIME_IGNORANCE) for harm in found]
    return sorted(found, key=lambda harm: (-harm.missed, harm.phase))


_LIFETIME_IGNORANCE = 0.3
"""Totals since the start mix every load there was: what fits their mean may fit none of them."""


def _outlasts_steps(facts: Facts) -> bool:
    """Whether requests wait longer, on average, than for the end of a step: few may wait at a time, and yet it is not their prefill."""
    if facts.queue is None or facts.prefill is None or facts.itl is None or facts.finished < t.REQUESTS_MIN.value:
        return False
    steps = t.TGI_STEPS_BEFORE_PREFILL.value if facts.engine is Engine.TGI else t.STALL_STEPS.value
    return (facts.queue_share or 0.0) >= t.QUEUE_SUFFERING_SHARE.value and facts.queue > facts.prefill + steps * facts.itl


def _within_a_step(facts: Facts) -> bool:
    return facts.prefill is not None and (facts.preschedule or 0.0) <= 1.5 * facts.prefill


def _busy_beside_idle_frontend(facts: Facts) -> bool:
    """Whether the time before the scheduler passes beside a busy engine and an API process that has little to do."""
    cores, running = facts.cpu_cores, facts.running_mean
    if (facts.preschedule or 0.0) > t.STALL_STEPS.value * max(facts.prefill or 0.0, facts.itl or 0.0):
        return False  # nobody waits so long for a step of this engine
    return cores is not None and cores < t.CPU_SPARE.value and running is not None and running >= t.BATCH_BUSY.value


def _missed_by_phase(facts: Facts, statuses: Sequence[SLOStatus]) -> dict[str, float]:
    """What the phases have of the missed objectives; of several objectives on one metric the worst counts."""
    by_hist: dict[Hist, float] = {}
    # What makes the slowest tokens slow is weighed among the causes of slow decoding, prompts in the same step included.
    tails = {
        s.target.histogram
        for s in statuses
        if s.target.histogram in (Hist.ITL_SECONDS, Hist.TPOT_SECONDS) and (s.target.quantile or 0.0) >= 0.9
    }
    for status in statuses:
        hist = status.target.histogram
        if hist is not None and status.target.comparison is Comparison.LESS_THAN:
            by_hist[hist] = max(by_hist.get(hist, 0.0), phase.miss_weight(status))
    missed: dict[str, float] = {}
    for hist, excess in by_hist.items():
        shares = {phase.DECODE: 1.0} if hist in tails else phase.phase_shares(facts, hist)
        for name, share in shares.items():
            missed[name] = missed.get(name, 0.0) + share * excess
    if throughput_missed(statuses) and rules_queue.significant(facts):
        missed[phase.QUEUE] = missed.get(phase.QUEUE, 0.0) + 1.0
    return {name: value for name, value in missed.items() if value > 0}


def throughput_missed(statuses: Sequence[SLOStatus]) -> bool:
    """Whether a throughput objective is missed."""
    return any(
        s.state is SLOState.MISSED and s.target.base_metric in ("throughput_tokens_per_second", "requests_per_second") for s in statuses
    )


def _queue_unjudged(facts: Facts, statuses: Sequence[SLOStatus]) -> bool:
    """Whether no objective speaks about the time to the first token or the whole latency, so that the queue counts by itself."""
    hists = (Hist.TTFT_SECONDS, Hist.E2E_SECONDS, Hist.QUEUE_SECONDS)
    judged = any(s.target.histogram in hists and s.state is not SLOState.NOT_MEASURED for s in statuses)
    return not judged or _growing(facts)


def _growing(facts: Facts) -> bool:
    """Queue times and TTFT are booked late: a waiting gauge far above what runs speaks for itself."""
    ran = facts.running.mean if facts.running else 0.0
    return facts.waiting is not None and facts.waiting.mean >= max(t.WAITING_GAUGE_SINGLE_MIN.value, ran)


def _queue_candidates(facts: Facts, statuses: Sequence[SLOStatus]) -> tuple[Candidate, ...]:
    """Reasons for waiting; a saturated prefill is followed to its own cause (cache off, long prompts)."""
    found = list(rules_queue.candidates(facts))
    compute = next((c for c in found if c.cause is Cause.PREFILL_COMPUTE), None)
    if compute is not None:
        causes = (rules_prefill.prefix_off(facts), rules_length.head_of_line(facts), rules_prefill.prefix_thrashing(facts))
        deeper = [replace(c, weight=1.25 * c.weight * compute.weight) for c in causes if c.weight > 0]
        if deeper:
            found.remove(compute)
            share = min(1.0, max(c.weight for c in causes))
            found += [*deeper, replace(compute, weight=compute.weight * (1.0 - 0.5 * share))]
    overload = _overload(facts, statuses)
    if overload > 0:
        found = [replace(c, weight=c.weight * (1.0 - overload)) if c.cause is Cause.BATCH_LIMIT else c for c in found]
        limit = next((c for c in rules_queue.candidates(facts) if c.cause is Cause.BATCH_LIMIT), None)
        if limit is not None:
            evidence = (*limit.evidence, *rules_decode.decode_evidence(facts)[:1])
            found.append(
                Candidate(Cause.OVERLOAD, limit.weight * overload, evidence, Verdict.SCALE, "time per token with fewer running requests")
            )
    return tuple(found)


def _overload(facts: Facts, statuses: Sequence[SLOStatus]) -> float:
    """How far a larger batch is out of the question: its tokens would come later than an objective of the operator allows, or,
    without one, the batch is large already and its tokens come at the limit of the built-in objective."""
    running = facts.running_mean
    if running is None or facts.itl is None:
        return 0.0
    per_token = [s for s in statuses if s.target.histogram in (Hist.ITL_SECONDS, Hist.TPOT_SECONDS) and not s.target.builtin]
    if per_token:
        used = max(1.0 if s.state is SLOState.MISSED else (s.current_value or 0.0) / s.target.target_value for s in per_token)
        if used < 1.0:
            # At worst tokens take longer in proportion to the batch; that may still be less than what the wait costs.
            worst = math.log(max(1.0, used * (running + facts.waiting_mean) / max(running, 1.0)))
            wait = sum(phase.miss_weight(s) for s in statuses if s.target.histogram in (Hist.TTFT_SECONDS, Hist.QUEUE_SECONDS))
            if wait > worst:
                return 0.0
        return ramp(used, 0.85, 1.0)
    builtin = next(o.target_value for o in t.BUILTIN_OBJECTIVES if o.histogram is Hist.ITL_SECONDS)
    return ramp(running, 0.5 * t.LARGE_RUNNING.value, t.LARGE_RUNNING.value) * ramp(facts.itl, 0.6 * builtin, builtin)


def _ignorance(facts: Facts) -> float:
    """Belief left to reasons that no rule names: large where the page tells little."""
    known = (facts.kv is not None) + (facts.queue is not None) + (facts.prefill is not None) + (facts.running is not None)
    return max((0.8, 0.5, 0.3, 0.15, 0.05)[known], _UNSEEN_IGNORANCE if queue_weights.queue_unseen(facts) else 0.0)


_UNSEEN_IGNORANCE = 0.4
"""Queue times tell of a queue that no scrape saw: what held it is not seen either."""


def _unknown_candidates(facts: Facts) -> tuple[Candidate, ...]:
    """TTFT alone is too high, without phases: what the configuration suggests, if anything."""
    off = rules_prefill.prefix_off(facts)
    return (off,) if off.weight > 0 else ()
