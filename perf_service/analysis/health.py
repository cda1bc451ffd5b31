"""The health score: 100 minus what is wrong, each part told with its points; the parts add up to 100 minus the score.

| part | points off |
|---|---|
| each missed objective of the operator | 40 x (1 - target / value), all together at most 60 |
| each missed built-in objective | 20 x (1 - target / value), all together at most 30 |
| failed and rejected requests | 50 x min(1, share / 0.2) |
| waiting requests, where they matter | 20 x waiting / (waiting + max(running, 1)) |
| preemptions | 15 x min(1, per request / 0.5) |
| requests given up by their clients, where that is a finding | 30 x min(1, share / 0.5) |
| a hang | 100 |
| a standstill that is over | 25 + 25 x its share of the window |

For a floor (throughput) value / target stands for target / value, for an attainment the share of the burn rate. More than 100 points
count as 100, each part in proportion. Every part grows with what it measures, so a worse input never gives a higher score. An
undecided objective costs nothing: it is not known to be missed.

A fleet's score is made from the summed buckets and counters of its replicas, so each replica weighs by its traffic, and it is at most
50 + half the score of the worst replica: a dead one has no traffic to weigh.

In words: healthy from 80, degraded from 50, else unhealthy. Without load, or without data to judge, there is no score, and nothing is
called healthy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from perf_service.analysis import rules_queue, rules_stall
from perf_service.analysis.facts import Facts
from perf_service.analysis.slo_monitor import error_count, measure_rate, miss_ratio
from perf_service.models.analysis import Bottleneck, Cause, HealthPart, HealthStatus, SLOState, SLOStatus, Verdict
from perf_service.models.units import number, percent

OPERATOR_POINTS, OPERATOR_CAP = 40.0, 60.0
BUILTIN_POINTS, BUILTIN_CAP = 20.0, 30.0
ERROR_POINTS, ERROR_FULL_RATIO = 50.0, 0.2
QUEUE_POINTS = 20.0
PREEMPTION_POINTS, PREEMPTION_FULL = 15.0, 0.5
ABORT_POINTS, ABORT_FULL_RATIO = 30.0, 0.5
HEALTHY_FROM, DEGRADED_FROM = 80.0, 50.0
STALL_POINTS, STALL_SHARE_POINTS = 25.0, 25.0
WORST_REPLICA_SHARE = 0.5

Scored = tuple[float, tuple[HealthPart, ...]]


def score(
    statuses: Sequence[SLOStatus],
    *,
    error_ratio: float = 0.0,
    waiting: float = 0.0,
    running: float = 0.0,
    preemptions_per_request: float = 0.0,
    abort_ratio: float = 0.0,
    hung: bool = False,
    stalled_ratio: float = 0.0,
    replicas: int = 1,
) -> Scored:
    """Score 0..100 and its parts, largest first. `waiting` and `running` are mean numbers of requests, ratios lie in 0..1."""
    parts = [
        *_objectives([s for s in statuses if not s.target.builtin], OPERATOR_POINTS, OPERATOR_CAP),
        *_objectives([s for s in statuses if s.target.builtin], BUILTIN_POINTS, BUILTIN_CAP),
    ]
    if hung:
        parts.append(HealthPart("hang", 100.0, "The engine makes no progress."))
    if stalled_ratio > 0:
        points = STALL_POINTS + STALL_SHARE_POINTS * min(1.0, stalled_ratio)
        parts.append(HealthPart("standstill", points, f"The engine stood still for {percent(stalled_ratio)} of the time."))
    if error_ratio > 0:
        points = ERROR_POINTS * min(1.0, error_ratio / ERROR_FULL_RATIO)
        parts.append(HealthPart("errors", points, f"{percent(error_ratio)} of requests fail or are rejected."))
    if waiting > 0:
        points = QUEUE_POINTS * waiting / (waiting + max(running, 1.0))
        where = f" (sum of {replicas} replicas)" if replicas > 1 else ""
        parts.append(HealthPart("queue", points, f"{number(waiting)} requests wait while {number(running)} run, on average{where}."))
    if preemptions_per_request > 0:
        points = PREEMPTION_POINTS * min(1.0, preemptions_per_request / PREEMPTION_FULL)
        parts.append(HealthPart("preemptions", points, f"{number(preemptions_per_request)} preemptions per finished request."))
    if abort_ratio > 0:
        points = ABORT_POINTS * min(1.0, abort_ratio / ABORT_FULL_RATIO)
        parts.append(HealthPart("aborts", points, f"{percent(abort_ratio)} of requests are given up by their clients."))
    return _summed(parts)


def _summed(parts: Sequence[HealthPart]) -> Scored:
    total = sum(part.penalty for part in parts)
    scale = 100.0 / total if total > 100.0 else 1.0
    kept = sorted((replace(part, penalty=part.penalty * scale) for part in parts), key=lambda part: (-part.penalty, part.name))
    return max(0.0, 100.0 - total), tuple(kept)


def _objectives(statuses: Sequence[SLOStatus], points: float, cap: float) -> list[HealthPart]:
    missed = [s for s in statuses if s.state is SLOState.MISSED]
    raw = [(s, points * (1.0 - 1.0 / ratio) if (ratio := miss_ratio(s)) < float("inf") else points) for s in missed]
    total = sum(value for _, value in raw)
    scale = min(1.0, cap / total) if total > 0 else 1.0
    return [HealthPart(f"objective:{s.target}", value * scale, s.message) for s, value in raw]


def of(found: Facts, statuses: Sequence[SLOStatus], bottlenecks: Sequence[Bottleneck]) -> Scored | None:
    """The score of one window. None where nothing was asked of it, and nothing measured that could be judged."""
    total = found.finished + error_count(found.window)
    error_ratio, _ = measure_rate(found.window, "error_ratio")
    stalled = max((b.current_value for b in bottlenecks if b.metric_name == rules_stall.STALLED_SECONDS), default=0.0)
    hung = any(b.cause is Cause.ENGINE_HANG and b.verdict is Verdict.RESTART for b in bottlenecks)
    if not hung and not total and not _present(found) and all(s.state is SLOState.NOT_MEASURED for s in statuses):
        return None
    # Both by the gauges or both by the times: numbers of two kinds do not compare.
    by_gauge = found.waiting is not None and found.running is not None and found.waiting.mean >= (found.waiting_occupancy or 0.0)
    return score(
        statuses,
        error_ratio=error_ratio or 0.0,
        waiting=found.waiting_mean if rules_queue.significant(found) else 0.0,
        running=found.running.mean if by_gauge and found.running is not None else found.running_mean or 0.0,
        preemptions_per_request=found.preemptions_per_request or 0.0,
        abort_ratio=max((b.current_value for b in bottlenecks if b.cause is Cause.CLIENT_ABORTS), default=0.0),
        hung=hung,
        stalled_ratio=stalled / found.window.duration_seconds if found.window.duration_seconds else 0.0,
        replicas=found.window.replicas,
    )


def _present(found: Facts) -> bool:
    """Whether requests run or wait, or came to a first token."""
    gauges = (found.running, found.waiting)
    return found.started > 0 or any(stats is not None and stats.max > 0 for stats in gauges)


def of_fleet(merged: Scored | None, replicas: Mapping[str, Scored]) -> Scored | None:
    """The fleet's score: that of its sums, at most 50 + half the score of the worst replica."""
    if merged is None or not replicas:
        return merged
    total, parts = merged
    name, (worst, why) = min(replicas.items(), key=lambda item: (item[1][0], item[0]))
    cap = 100.0 - WORST_REPLICA_SHARE * (100.0 - worst)
    if total <= cap:
        return merged
    reason = f" {why[0].text}" if why else ""
    part = HealthPart(f"replica:{name}", total - cap, f"{name} alone scores {worst:.0f} of 100:{reason}")
    return cap, tuple(sorted((*parts, part), key=lambda p: (-p.penalty, p.name)))


def status_of(value: float | None, *, no_load: bool = False) -> HealthStatus:
    """The score in one word."""
    if value is None:
        return HealthStatus.NO_LOAD if no_load else HealthStatus.UNKNOWN
    return HealthStatus.HEALTHY if value >= HEALTHY_FROM else HealthStatus.DEGRADED if value >= DEGRADED_FROM else HealthStatus.UNHEALTHY
