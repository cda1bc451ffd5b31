"""How long one engine step takes: seconds = base + per_sequence * decodes + per_token * prompt tokens in it.

The three coefficients are fitted from windows. Few operating points cannot tell all three, so the fit is Bayesian over the two
ratios base/per_token and per_sequence/per_token (a grid, weighted by how well it explains the windows) with the scale solved for;
what the windows leave open stays open and widens the predictions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from perf_service.models.metrics import Hist
from perf_service.models.window import Window


@dataclass(frozen=True, slots=True)
class StepCost:
    """Coefficients in seconds: of a step as such, per decoding sequence, per prompt token."""

    base: float
    per_sequence: float
    per_token: float

    def seconds(self, decodes: float, tokens: float = 0.0) -> float:
        """Duration of a step with that many decodes and prompt tokens."""
        return self.base + self.per_sequence * decodes + self.per_token * tokens


@dataclass(frozen=True, slots=True)
class Prior:
    """What is believed of the ratios before any measurement: log-normal, medians in tokens and standard deviations of the log."""

    base_tokens: float  # base / per_token
    base_spread: float
    sequence_tokens: float  # per_sequence / per_token
    sequence_spread: float
    text: str


# Medians and spreads over 245 groups of measured serving points of vLLM, SGLang and TensorRT-LLM on H100 to GB300 (the public
# silicon data of ai-dynamo/aiconfigurator): base/per_token 390 (5 % to 95 %: 100 to 1290), per_sequence/per_token 4 to 5 at
# contexts up to some thousand tokens.
GPU_PRIOR = Prior(390.0, 0.8, 4.5, 0.8, "step-time ratios as on data-centre GPUs")
# A CPU has little compute to spare in a step: a few dozen tokens cost as much as the step itself (vLLM 0.32 on x86, small model).
CPU_PRIOR = Prior(40.0, 0.5, 4.5, 0.4, "step-time ratios as on a CPU")
UNKNOWN_PRIOR = Prior(125.0, 1.2, 4.5, 0.8, "hardware unknown: step-time ratios anywhere from CPU to GPU")


@dataclass(frozen=True, slots=True)
class Observation:
    """One measured mean duration: of `steps` steps, each with `decodes` sequences, and `tokens` prompt tokens in all of them."""

    seconds: float
    steps: float
    decodes: float
    tokens: float
    sigma: float  # standard deviation of the log of `seconds`, model error included


@dataclass(frozen=True, slots=True)
class Particle:
    """One possible set of coefficients with its weight."""

    weight: float
    cost: StepCost


@dataclass(frozen=True, slots=True)
class StepFit:
    """The weighted sets of coefficients, and what they stand on."""

    particles: tuple[Particle, ...]
    decodes_low: float  # range of batch sizes that was seen
    decodes_high: float
    points: int


_GRID = 13  # points per ratio, over +-2.4 standard deviations
_KEPT = 40  # particles after thinning
_CROWD = 4.0  # decodes in a step


def observations_of(windows: Sequence[Window], token_budget: float | None) -> list[Observation]:
    """What the windows tell of step times: mean inter-token latency by batch size, and mean prefill time.

    vLLM's iteration histogram counts the steps that emit tokens; with at least one decode in each that is every step. A prompt
    that is cut by the token budget takes several steps, which only a known budget tells.
    """
    found: list[Observation] = []
    bins: dict[int, list[tuple[float, float, float, float]]] = {}
    for window in windows:
        itl, steps = window.histograms.get(Hist.ITL_SECONDS), window.count(Hist.ITERATION_TOKENS)
        if itl is None or itl.count < 20 or itl.sum <= 0:
            continue
        if steps and itl.count >= steps:
            decodes = itl.count / steps
        elif window.duration_seconds:
            decodes = max(1.0, itl.sum / window.duration_seconds)  # Little: time in decode over time
        else:
            continue
        prompt_tokens = _computed(window)
        tokens = prompt_tokens * decodes / itl.count if prompt_tokens else 0.0
        bins.setdefault(round(2 * math.log2(max(1.0, decodes))), []).append((itl.count, itl.sum, decodes * itl.count, tokens * itl.count))
    for members in bins.values():
        count = sum(m[0] for m in members)
        logs = [math.log(m[1] / m[0]) for m in members]
        middle = sum(logs) / len(logs)
        scatter = math.sqrt(sum((v - middle) ** 2 for v in logs) / len(logs)) if len(logs) > 1 else 0.2
        sigma = math.sqrt(0.06**2 + max(scatter, 0.05) ** 2 / len(logs))
        found.append(
            Observation(
                sum(m[1] for m in members) / count, 1.0, sum(m[2] for m in members) / count, sum(m[3] for m in members) / count, sigma
            )
        )
    prefill = _prefill(windows, token_budget, found)
    return [*found, prefill] if prefill else found


def _computed(window: Window) -> float | None:
    """Prompt tokens per request that had to be computed times the requests that got their first token in the window."""
    per_request = window.mean(Hist.PREFILL_COMPUTED_TOKENS) or window.mean(Hist.PROMPT_TOKENS)
    return per_request * window.count(Hist.TTFT_SECONDS) if per_request else None


def _prefill(windows: Sequence[Window], budget: float | None, decoding: Sequence[Observation]) -> Observation | None:
    """Mean time from a request's first step to its first token: the step or steps that its prompt took."""
    parts = [(h, w) for w in windows if (h := w.histograms.get(Hist.PREFILL_SECONDS)) and h.count > 0]
    count, seconds = sum(h.count for h, _ in parts), sum(h.sum for h, _ in parts)
    if count < 3 or seconds <= 0:
        return None  # no step takes no time: the page rounds it, or does not fill the metric in
    lengths = [
        (m, w.count(Hist.PREFILL_SECONDS)) for _, w in parts if (m := w.mean(Hist.PREFILL_COMPUTED_TOKENS) or w.mean(Hist.PROMPT_TOKENS))
    ]
    if not lengths:
        return None
    tokens = sum(m * n for m, n in lengths) / sum(n for _, n in lengths)
    beside = sum(o.decodes for o in decoding) / len(decoding) if decoding else 0.0
    # Without a known budget a prompt is taken to fit into one step, which a wide sigma pays for.
    steps = max(1.0, tokens / max(1.0, budget - beside)) if budget else 1.0
    # Among many, prompts share steps in numbers that no page tells: then the time of one says little of its own tokens.
    if beside > _CROWD:
        return None
    return Observation(seconds / count, steps, beside, tokens, 0.25 if budget or tokens < 512 else 0.5)


def fit(observations: Sequence[Observation], prior: Prior) -> StepFit | None:
    """Particles of the posterior; None without observations."""
    if not observations:
        return None
    grid: list[tuple[float, StepCost]] = []
    offsets = [-2.4 + 4.8 * i / (_GRID - 1) for i in range(_GRID)]
    for i in offsets:
        base = prior.base_tokens * math.exp(i * prior.base_spread)
        for j in offsets:
            sequence = prior.sequence_tokens * math.exp(j * prior.sequence_spread)
            shape = [o.steps * (base + sequence * o.decodes) + o.tokens for o in observations]
            weights = [1.0 / o.sigma**2 for o in observations]
            residuals = [math.log(o.seconds / s) for o, s in zip(observations, shape, strict=True)]
            scale = sum(w * r for w, r in zip(weights, residuals, strict=True)) / sum(weights)
            misfit = sum(w * (r - scale) ** 2 for w, r in zip(weights, residuals, strict=True))
            unit = math.exp(scale)
            grid.append((-0.5 * (i * i + j * j + misfit), StepCost(base * unit, sequence * unit, unit)))
    top = max(g[0] for g in grid)
    particles = sorted((Particle(math.exp(log - top), cost) for log, cost in grid), key=lambda p: -p.weight)[:_KEPT]
    total = sum(p.weight for p in particles)
    decodes = [o.decodes for o in observations if o.steps == 1.0] or [o.decodes for o in observations]
    return StepFit(tuple(Particle(p.weight / total, p.cost) for p in particles), min(decodes), max(decodes), len(observations))
