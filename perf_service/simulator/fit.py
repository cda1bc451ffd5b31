"""Step times from what a real vLLM shows on its pages: least squares over windows of a busy engine.

While an engine is never idle, wall time is the sum of its steps, so every window gives one equation

    seconds = base * steps + per_seq * decoded tokens + per_prefill_token * computed prompt tokens

and windows of different mixes separate the three coefficients.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import median

from perf_service.collectors.exposition import parse
from perf_service.models.errors import CollectError, ErrorReason
from perf_service.simulator.flags import StepTimes

_HUBER = 0.25  # relative residual from which a window loses weight: foreign load only ever adds time
_ROUNDS = 12


@dataclass(frozen=True, slots=True)
class FitWindow:
    """Work done in a stretch of wall time in which the engine was never idle."""

    seconds: float
    steps: float
    decode_tokens: float
    prefill_tokens: float

    @property
    def row(self) -> tuple[float, float, float]:
        return (self.steps, self.decode_tokens, self.prefill_tokens)


@dataclass(frozen=True, slots=True)
class StepFit:
    """Fitted step times with how well they explain the windows (median relative error)."""

    step_times: StepTimes
    windows: int
    median_error_ratio: float


def fit_step_times(windows: Sequence[FitWindow], like: StepTimes | None = None) -> StepFit:
    """Robust non-negative least squares on relative residuals.

    Coefficients that the windows cannot separate end at 0 or in the one they go with. Raises
    CollectError (NOT_ENOUGH_DATA) below three windows.
    """
    usable = [w for w in windows if w.seconds > 0 and w.steps > 0]
    if len(usable) < 3:
        raise CollectError(ErrorReason.NOT_ENOUGH_DATA, f"step times need at least 3 busy windows, got {len(usable)}; collect longer")
    weights = [1.0] * len(usable)
    x = (0.0, 0.0, 0.0)
    for _ in range(_ROUNDS):
        x = _nnls([[v / w.seconds for v in w.row] for w in usable], weights)
        errors = [_predict(x, w) / w.seconds - 1 for w in usable]
        weights = [min(1.0, _HUBER / abs(e)) if e else 1.0 for e in errors]
    errors = [abs(_predict(x, w) / w.seconds - 1) for w in usable]
    times = replace(like or StepTimes(), base=x[0], per_seq=x[1], per_prefill_token=x[2], per_context_token=0.0)
    return StepFit(times, len(usable), median(errors))


def speed_factor(times: StepTimes, windows: Iterable[FitWindow]) -> float:
    """How much slower (>1) than ``times`` the machine was during these windows."""
    x = (times.base, times.per_seq, times.per_prefill_token)
    pairs = [(w.seconds, _predict(x, w)) for w in windows]
    total = sum(p for _, p in pairs)
    return sum(s for s, _ in pairs) / total if total > 0 else 1.0


def windows_from_pages(pages: Sequence[tuple[float, str | bytes]], *, max_num_batched_tokens: int = 2048) -> list[FitWindow]:
    """Windows between consecutive vLLM pages (Unix seconds, text) of a run under constant load.

    Only windows with requests running at both ends count. Prompt chunks do not show on the page (a whole
    prompt is booked with its first token) and neither does recomputation after preemption, so the steps
    are at least what the budget needs, and each preemption is charged a mean prompt and half an answer.
    """
    totals = [(when, _totals(text)) for when, text in pages]
    out = []
    for (t0, a), (t1, b) in itertools.pairwise(totals):
        d = {k: b[k] - a[k] for k in b}
        busy = a["running"] > 0 and b["running"] > 0
        if not busy or t1 <= t0 or d["generation"] <= 0 or d["steps"] < 0:
            continue
        n = max(b["finished"], 1.0)
        redone = d["preemptions"] * (b["prompt_sum"] + b["output_sum"] / 2) / n
        prefill = d["computed"] + redone
        decode = max(d["itl_count"], 0.0)
        steps = max(d["steps"], math.ceil(prefill / max_num_batched_tokens))
        out.append(FitWindow(t1 - t0, steps, decode, prefill))
    return out


_NAMES = {
    "vllm:num_requests_running": "running",
    "vllm:generation_tokens_total": "generation",
    "vllm:iteration_tokens_total_count": "steps",
    "vllm:inter_token_latency_seconds_count": "itl_count",
    "vllm:num_preemptions_total": "preemptions",
    "vllm:request_prompt_tokens_sum": "prompt_sum",
    "vllm:request_generation_tokens_sum": "output_sum",
    "vllm:request_prompt_tokens_count": "finished",
}


def _totals(text: str | bytes) -> dict[str, float]:
    out = dict.fromkeys((*_NAMES.values(), "computed"), 0.0)
    for name, labels, value in parse(text):
        key = _NAMES.get(name)
        if name == "vllm:prompt_tokens_by_source_total" and labels.get("source") == "local_compute":
            key = "computed"
        if key is not None:
            out[key] += value
    return out


def _predict(x: Sequence[float], window: FitWindow) -> float:
    return sum(c * v for c, v in zip(x, window.row, strict=True))


def _nnls(rows: Sequence[Sequence[float]], weights: Sequence[float]) -> tuple[float, float, float]:
    """min sum w (row.x - 1)^2 with x >= 0, by trying every subset of the three columns."""
    best, best_cost = (0.0, 0.0, 0.0), math.inf
    for size in (1, 2, 3):
        for chosen in itertools.combinations(range(3), size):
            solved = _solve(rows, weights, chosen)
            if solved is None or min(solved) < 0:
                continue
            x = [0.0, 0.0, 0.0]
            for column, value in zip(chosen, solved, strict=True):
                x[column] = value
            cost = sum(w * (sum(c * v for c, v in zip(x, row, strict=True)) - 1) ** 2 for row, w in zip(rows, weights, strict=True))
            if cost < best_cost * (1 - 1e-9):
                best, best_cost = (x[0], x[1], x[2]), cost
    return best


def _solve(rows: Sequence[Sequence[float]], weights: Sequence[float], chosen: Sequence[int]) -> list[float] | None:
    """Normal equations by Gauss elimination; None when the columns cannot be told apart."""
    n = len(chosen)
    scale = [max(abs(row[c]) for row in rows) or 1.0 for c in chosen]
    m = [[0.0] * (n + 1) for _ in range(n)]
    for row, w in zip(rows, weights, strict=True):
        v = [row[c] / s for c, s in zip(chosen, scale, strict=True)]
        for i in range(n):
            m[i][n] += w * v[i]
            for j in range(n):
                m[i][j] += w * v[i] * v[j]
    for i in range(n):
        pivot = max(range(i, n), key=lambda r: abs(m[r][i]))
        m[i], m[pivot] = m[pivot], m[i]
        if abs(m[i][i]) < 1e-9:
            return None
        for r in range(n):
            if r != i:
                factor = m[r][i] / m[i][i]
                m[r] = [a - factor * b for a, b in zip(m[r], m[i], strict=True)]
    return [m[i][n] / m[i][i] / scale[i] for i in range(n)]
