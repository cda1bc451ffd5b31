"""Ordering candidates by predicted benefit over risk, and telling a predicted improvement to people."""

from __future__ import annotations

import math
from collections.abc import Sequence

from perf_service.models.plan import Direction, Optimization, PredictedEffect
from perf_service.models.slo import SLOTarget

# Chance that a change of this knob does harm or does not start, by judgement: 0 none, 1 sure.
RISK = {
    "enable_prefix_caching": 0.05,
    "disable_radix_cache": 0.05,
    "prefix_caching": 0.05,
    "watermark": 0.05,
    "num_gpu_blocks_override": 0.1,
    "max_total_tokens": 0.1,
    "max_num_seqs": 0.1,
    "max_num_active_seqs": 0.05,
    "max_running_requests": 0.1,
    "max_batch_size": 0.2,
    "max_num_batched_tokens": 0.15,
    "chunked_prefill_size": 0.2,
    "max_batch_prefill_tokens": 0.2,
    "long_prefill_token_threshold": 0.15,
    "max_loras": 0.2,
    "schedule_conservativeness": 0.2,
    "gpu_memory_utilization": 0.3,
    "mem_fraction_static": 0.3,
    "cuda_memory_fraction": 0.2,
    "kv_cache_dtype": 0.6,
    "quantization": 0.7,
    "quantize": 0.7,
}
_DEFAULT_RISK = 0.25

# Weight of each metric in the benefit (natural log of the improvement), where the operator named no objective.
_WEIGHTS = {"throughput_tokens_per_second": 1.0, "ttft_seconds_mean": 0.5, "e2e_seconds_mean": 0.5, "itl_seconds_mean": 0.25}
_HIGHER_IS_BETTER = frozenset({"throughput_tokens_per_second", "requests_per_second"})
_LOG_CAP = math.log(20.0)  # a queue that vanishes is no hundredfold benefit


def risk(candidate: Optimization) -> float:
    """0..1: the riskiest of its changes, more where precision changes."""
    base = max((RISK.get(c.parameter, _DEFAULT_RISK) for c in candidate.config_changes), default=0.0)
    return min(1.0, base + (0.2 if candidate.needs_quality_gate else 0.0))


def _gain(effect: PredictedEffect, ratio: float) -> float:
    log = math.log(max(1e-6, ratio))
    return max(-_LOG_CAP, min(_LOG_CAP, log if effect.metric in _HIGHER_IS_BETTER else -log))


def _weights(targets: Sequence[SLOTarget]) -> dict[str, float]:
    """Metrics that the operator named count double; the built-in objectives do not count as a wish."""
    weights = dict(_WEIGHTS)
    for target in targets:
        if target.builtin:
            continue
        name = target.base_metric
        metric = name if name in weights else f"{name}_seconds_mean"
        if metric in weights:
            weights[metric] = max(1.0, 2 * weights[metric])
    return weights


def benefit(effects: Sequence[PredictedEffect], targets: Sequence[SLOTarget] = ()) -> tuple[float, float, float] | None:
    """(value, low, high) of the weighted log improvement, positive is better; None without predicted effects."""
    weights = _weights(targets)
    known = [(e, weights[e.metric]) for e in effects if e.metric in weights]
    if not known:
        return None
    total = sum(w for _, w in known)
    value = sum(w * _gain(e, e.ratio.value) for e, w in known) / total
    edges = [(w * _gain(e, e.ratio.low), w * _gain(e, e.ratio.high)) for e, w in known]
    return value, sum(min(pair) for pair in edges) / total, sum(max(pair) for pair in edges) / total


def score(candidate: Optimization, targets: Sequence[SLOTarget] = ()) -> float:
    """Predicted benefit (or, without a prediction, confidence and severity) less risk."""
    gained = benefit(candidate.effects, targets)
    expected = gained[0] if gained else candidate.confidence_ratio * (0.2 + 0.2 * candidate.expected_impact.rank)
    return expected * (1.0 - risk(candidate)) - 0.1 * risk(candidate)


def harmful(candidate: Optimization, targets: Sequence[SLOTarget] = ()) -> bool:
    """Whether even the favourable edge of the prediction is no improvement. Without throughput only half of a trade is seen: no verdict."""
    gained = benefit(candidate.effects, targets)
    weighed = any(e.metric in _HIGHER_IS_BETTER for e in candidate.effects)
    return gained is not None and weighed and gained[2] <= 0.0


_NAMES = {
    "throughput_tokens_per_second": "throughput",
    "ttft_seconds_mean": "mean TTFT",
    "e2e_seconds_mean": "mean E2E latency",
    "itl_seconds_mean": "mean ITL",
}


def describe(effects: Sequence[PredictedEffect]) -> str:
    """The effects in one line: `throughput x3.9 (2.5 to 5.1), mean TTFT x0.05 (0.02 to 0.2), ... worse`. Empty without effects."""
    parts = []
    for effect in effects:
        name = _NAMES.get(effect.metric)
        if name and effect.direction is not Direction.UNCHANGED:
            worse = ", worse" if effect.direction is Direction.WORSENS else ""
            parts.append(f"{name} x{effect.ratio.value:.2g} ({effect.ratio.low:.2g} to {effect.ratio.high:.2g}{worse})")
    return ", ".join(parts)
