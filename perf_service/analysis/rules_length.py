"""Long prompts beside short ones: who waits for whom."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from perf_service.analysis import thresholds as t
from perf_service.analysis.candidates import Candidate, fact, ramp
from perf_service.analysis.facts import Facts
from perf_service.models.analysis import Cause, Verdict
from perf_service.models.metrics import Engine, Hist, Histogram

_SETTLE = {
    Engine.VLLM: "time to the first token by prompt length, or one replica with long_prefill_token_threshold set",
    Engine.SGLANG: "time to the first token by prompt length",
    Engine.TGI: "time to the first token by prompt length",
}


@dataclass(frozen=True, slots=True)
class Mix:
    """`long_tokens`: mean length of the prompt that a random prompt token belongs to; `short_share`: requests short beside it."""

    long_tokens: float
    short_share: float


def mix(histogram: Histogram | None) -> Mix | None:
    """How prompt lengths mix, from bucket bounds; None without buckets or with too few requests.

    Work arrives in tokens, so what a request waits for is on average the length-weighted mean E[P^2] / E[P], as in the
    Pollaczek-Khinchine formula.
    """
    if histogram is None or not histogram.bounds or histogram.count < t.REQUESTS_MIN.value * 2:
        return None
    edges = [0.0, *histogram.bounds]
    counts = [histogram.cumulative[0], *(b - a for a, b in pairwise(histogram.cumulative))]
    cells = [(0.5 * (low + high), n) for (low, high), n in zip(pairwise(edges), counts, strict=True) if n > 0]
    cells.append((histogram.bounds[-1], histogram.count - histogram.cumulative[-1]))
    tokens = sum(length * n for length, n in cells)
    if tokens <= 0:
        return None
    weighted = sum(length * length * n for length, n in cells) / tokens
    short = sum(n for length, n in cells if length <= t.PROMPT_SHORT_RATIO.value * weighted)
    return Mix(weighted, short / histogram.count)


def head_of_line(facts: Facts) -> Candidate:
    """Many short requests share the engine with long prompts: the short ones wait for the long ones' prefill."""
    found = mix(facts.window.histograms.get(Hist.PROMPT_TOKENS))
    if found is None or facts.finished < t.REQUESTS_CERTAIN.value or (facts.hit_ratio or 0.0) > 0.5:
        return Candidate(Cause.HEAD_OF_LINE_BLOCKING, 0.0)
    weight = 0.9 * ramp(found.short_share, 0.5 * t.PROMPT_SHORT_SHARE.value, t.PROMPT_SHORT_SHARE.value)
    weight *= (0.2 if facts.window.lifetime else 1.0) * ramp(found.long_tokens, 0.5 * t.PROMPT_LONG.value, t.PROMPT_LONG.value)
    cap = facts.config.number("long_prefill_token_threshold")
    if cap and cap <= t.PROMPT_SHORT_RATIO.value * found.long_tokens:
        weight *= 0.3  # long prompts give way already
    text = f"{found.short_share:.0%} of the requests are short beside prompts of about {found.long_tokens:.0f} tokens, and wait for them."
    evidence = (
        fact(facts, "prompt_tokens", "share of short", found.short_share, text, threshold=t.PROMPT_SHORT_SHARE.value, unit="ratio"),
    )
    return Candidate(Cause.HEAD_OF_LINE_BLOCKING, weight, evidence, Verdict.TUNE, _SETTLE[facts.engine])
