"""Where the time of a latency objective went: queue, prefill, decode, preemption; and what of it is above the objective."""

from __future__ import annotations

import math
from dataclasses import replace

from perf_service.analysis import steps
from perf_service.analysis import thresholds as t
from perf_service.analysis.facts import Facts
from perf_service.analysis.slo_monitor import likely_missed, miss_ratio
from perf_service.analysis.steps import DECODE_COST_TOKENS
from perf_service.models.analysis import PhaseShares, SLOState, SLOStatus
from perf_service.models.metrics import Engine, Hist

QUEUE, PREFILL, DECODE, PRESCHEDULE, UNKNOWN = "queue", "prefill", "decode", "preschedule", "unknown"


def phase_shares(facts: Facts, hist: Hist | None) -> dict[str, float]:
    """Shares (sum 1) of a latency metric by phase; {unknown: 1} where the page does not tell."""
    parts: dict[str, float] = {}
    if hist is Hist.TTFT_SECONDS:
        if facts.ttft and (facts.queue is not None or facts.prefill is not None):
            own = own_prefill_share(facts)
            prefill = facts.prefill or 0.0
            parts = {
                QUEUE: facts.queue or 0.0,
                PREFILL: own * prefill,
                DECODE: (1.0 - own) * prefill,
                PRESCHEDULE: facts.preschedule or 0.0,
            }
    elif hist is Hist.E2E_SECONDS:
        interference = steps.interference_share(facts)
        if facts.decode is not None or facts.queue is not None or facts.prefill is not None:
            decode = facts.decode or 0.0
            parts = {
                QUEUE: facts.queue or 0.0,
                PREFILL: (facts.prefill or 0.0) + interference * decode,
                DECODE: (1.0 - interference) * decode,
                PRESCHEDULE: facts.preschedule or 0.0,
            }
    elif hist in (Hist.ITL_SECONDS, Hist.TPOT_SECONDS, Hist.DECODE_SECONDS):
        interference = steps.interference_share(facts)
        parts = {DECODE: 1.0 - interference, PREFILL: interference}
    elif hist is Hist.QUEUE_SECONDS:
        parts = {QUEUE: 1.0}
    elif hist is Hist.PREFILL_SECONDS:
        parts = {PREFILL: 1.0}
    total = sum(parts.values())
    return {phase: value / total for phase, value in parts.items()} if total > 0 else {UNKNOWN: 1.0}


def own_prefill_share(facts: Facts) -> float:
    """Share of the prefill time that the prompt itself costs; the rest is the batch that decodes in the same steps.

    A short prompt that joins a large batch waits for the batch's step, not for its own few tokens.
    """
    prompt, running = facts.computed_tokens, facts.running_mean
    if prompt is None or running is None or running <= 1.0 or facts.engine is Engine.SGLANG:
        return 1.0  # SGLang's prefill batches hold no decodes
    return prompt / (prompt + running * DECODE_COST_TOKENS)


def preemption_share(facts: Facts) -> float:
    """Share of the time between tokens that preempted requests stood still.

    A preempted request gives its KV cache up, queues again and is computed anew; meanwhile its client waits for one token. So of P
    preemptions the P longest pauses between tokens are theirs, as far as they exceed the usual one. Pauses are taken at the lower
    bound of their bucket: the share is no less than told, unless other pauses were longer still.
    """
    pauses = facts.window.histograms.get(Hist.ITL_SECONDS)
    preemptions = facts.preemptions or 0.0
    usual = facts.window.quantile(Hist.ITL_SECONDS, 0.5)
    if pauses is None or not pauses.bounds or preemptions <= 0 or usual is None or pauses.sum <= 0:
        return 0.0
    left, stood = preemptions, 0.0
    edges, counts = (0.0, *pauses.bounds), (*pauses.cumulative, pauses.count)
    for index in range(len(edges) - 1, -1, -1):
        if edges[index] <= usual.high or left <= 0:
            break
        here = min(left, counts[index] - (counts[index - 1] if index else 0.0))
        stood += here * (edges[index] - usual.value)
        left -= here
    return min(1.0, stood / pauses.sum)


def attributed(status: SLOStatus, facts: Facts) -> SLOStatus:
    """The status with its phases, where it is a missed latency objective. Time before the scheduler counts as waiting.

    Standing still after a preemption is taken out of decoding, in which engines book it.
    """
    hist = status.target.histogram
    if status.state is not SLOState.MISSED or hist is None:
        return status
    shares = phase_shares(facts, hist)
    if UNKNOWN in shares:
        return status
    decode = shares.get(DECODE, 0.0)
    preempted = 0.0 if hist is Hist.TTFT_SECONDS else decode * preemption_share(facts)
    phases = PhaseShares(
        queue_ratio=shares.get(QUEUE, 0.0) + shares.get(PRESCHEDULE, 0.0),
        prefill_ratio=shares.get(PREFILL, 0.0),
        decode_ratio=decode - preempted,
        preemption_ratio=preempted,
    )
    return replace(status, phases=phases)


def miss_weight(status: SLOStatus) -> float:
    """How far a latency objective is missed (or likely is, inside a bucket), by ratio as severities are: the logarithm of
    value / target, 0 where it is met."""
    if not likely_missed(status) or status.target.histogram is None or status.current_value is None:
        return 0.0
    return math.log(min(max(miss_ratio(status), 1.0), t.MISS_RATIO_CAP.value)) or 1e-6
