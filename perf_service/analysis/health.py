"""The health score: 100 minus penalties, each monotone in what it measures, each told as a part.

| part | points |
|---|---|
| each missed objective of the operator | 40 x (1 - target / value), all together at most 60 |
| each missed built-in objective | 20 x (1 - target / value), all together at most 30 |
| failed and rejected requests | 50 x min(1, share / 0.2) |
| waiting requests, where they matter | 20 x waiting / (waiting + max(running, 1)) |
| preemptions | 15 x min(1, per request / 0.5) |
| a hang | 100 |
"""

from __future__ import annotations

from collections.abc import Sequence

from perf_service.analysis.slo_monitor import miss_ratio
from perf_service.models.analysis import HealthPart, SLOState, SLOStatus

OPERATOR_POINTS, OPERATOR_CAP = 40.0, 60.0
BUILTIN_POINTS, BUILTIN_CAP = 20.0, 30.0
ERROR_POINTS, ERROR_FULL_RATIO = 50.0, 0.2
QUEUE_POINTS = 20.0
PREEMPTION_POINTS, PREEMPTION_FULL = 15.0, 0.5


def score(
    statuses: Sequence[SLOStatus],
    *,
    error_ratio: float = 0.0,
    waiting: float = 0.0,
    running: float = 0.0,
    preemptions_per_request: float = 0.0,
    hung: bool = False,
) -> tuple[float, tuple[HealthPart, ...]]:
    """Score 0..100 and its parts, largest first. `waiting` and `running` are mean numbers of requests, ratios lie in 0..1."""
    parts = [
        *_objectives([s for s in statuses if not s.target.builtin], OPERATOR_POINTS, OPERATOR_CAP),
        *_objectives([s for s in statuses if s.target.builtin], BUILTIN_POINTS, BUILTIN_CAP),
    ]
    if hung:
        parts.append(HealthPart("hang", 100.0, "The engine makes no progress."))
    if error_ratio > 0:
        points = ERROR_POINTS * min(1.0, error_ratio / ERROR_FULL_RATIO)
        parts.append(HealthPart("errors", points, f"{error_ratio:.1%} of requests fail or are rejected."))
    if waiting > 0:
        points = QUEUE_POINTS * waiting / (waiting + max(running, 1.0))
        parts.append(HealthPart("queue", points, f"{waiting:.1f} requests wait beside {running:.1f} running."))
    if preemptions_per_request > 0:
        points = PREEMPTION_POINTS * min(1.0, preemptions_per_request / PREEMPTION_FULL)
        parts.append(HealthPart("preemptions", points, f"{preemptions_per_request:.2f} preemptions per request."))
    parts.sort(key=lambda part: (-part.penalty, part.name))
    return max(0.0, 100.0 - sum(part.penalty for part in parts)), tuple(parts)


def _objectives(statuses: Sequence[SLOStatus], points: float, cap: float) -> list[HealthPart]:
    missed = [s for s in statuses if s.state is SLOState.MISSED]
    raw = [(s, points * (1.0 - 1.0 / ratio) if (ratio := miss_ratio(s)) < float("inf") else points) for s in missed]
    total = sum(value for _, value in raw)
    scale = min(1.0, cap / total) if total > 0 else 1.0
    return [HealthPart(f"objective:{s.target}", value * scale, s.message) for s, value in raw]
