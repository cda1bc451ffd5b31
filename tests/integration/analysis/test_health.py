"""The health score is monotone and adds up; its watch never flaps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perf_service.analysis import health
from perf_service.analysis.health_watch import HealthWatch, Look
from perf_service.analysis.slo_monitor import evaluate
from perf_service.models.analysis import HealthStatus, SLOStatus, Verdict
from perf_service.models.metrics import Counter, Engine, Hist, Histogram
from perf_service.models.slo import SLOTarget
from perf_service.models.window import Window

TARGETS = (
    SLOTarget("ttft", 0.3),
    SLOTarget("ttft_p95", 0.5),
    SLOTarget("ttft_p90", 0.7),  # inside a bucket
    SLOTarget("ttft", 0.3, objective_ratio=0.9),
    SLOTarget("ttft", 0.1, builtin=True),
    SLOTarget("throughput", 50.0, "greater_than"),
)
_counts = st.tuples(*[st.integers(0, 50)] * 4).filter(any)
_loads: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {
        name: st.floats(0, top)
        for name, top in (("error_ratio", 1.0), ("waiting", 200.0), ("preemptions_per_request", 3.0), ("abort_ratio", 1.0))
    }
)


def statuses(counts: tuple[int, ...], tokens: float, targets: tuple[SLOTarget, ...]) -> tuple[SLOStatus, ...]:
    """Each TTFT lies at its bucket's upper bound, 5 s in the open one."""
    bounds = (0.1, 0.5, 1.0)
    cumulative = tuple(float(sum(counts[: i + 1])) for i in range(3))
    total = sum(n * b for n, b in zip(counts, (*bounds, 5.0), strict=True))
    hists = {Hist.TTFT_SECONDS: Histogram(float(sum(counts)), total, bounds, cumulative)}
    counters = {Counter.GENERATION_TOKENS: tokens}
    return evaluate(Window("w", Engine.VLLM, 0.0, 10.0, 10.0, 2, counters=counters, histograms=hists), targets)


@settings(max_examples=150, deadline=None)
@given(
    counts=_counts,
    slower=st.integers(0, 3),
    tokens=st.floats(0, 2000),
    fewer=st.floats(0, 1),
    loads=_loads,
    more=st.sampled_from(["", "error_ratio", "waiting", "preemptions_per_request", "abort_ratio", "hung"]),
    factor=st.floats(1.0, 5.0),
    targets=st.lists(st.sampled_from(TARGETS), unique=True).map(tuple),
    running=st.floats(0, 100),
)
def test_a_worse_input_never_gives_a_higher_score(
    counts: tuple[int, ...],
    slower: int,
    tokens: float,
    fewer: float,
    loads: dict[str, Any],
    more: str,
    factor: float,
    targets: tuple[SLOTarget, ...],
    running: float,
) -> None:
    before, parts = health.score(statuses(counts, tokens, targets), running=running, **loads)
    assert 0 <= before <= 100
    assert sum(part.penalty for part in parts) == pytest.approx(100 - before)
    assert all(part.text for part in parts)
    moved = list(counts)
    for _ in range(slower):  # some requests fall into the next slower bucket
        index = next((i for i in range(3) if moved[i]), 3)
        if index < 3:
            moved[index], moved[index + 1] = moved[index] - 1, moved[index + 1] + 1
    worse = {**loads, **({more: min(loads[more] * factor, 1.0 if more.endswith("ratio") else 1e9)} if more in loads else {})}
    after, _ = health.score(statuses(tuple(moved), tokens * fewer, targets), running=running, hung=more == "hung", **worse)
    assert after <= before + 1e-9


@settings(max_examples=80, deadline=None)
@given(
    merged=st.floats(0, 100), scores=st.lists(st.floats(0, 100), min_size=1, max_size=6), index=st.integers(0, 5), drop=st.floats(0, 100)
)
def test_a_worse_replica_never_gives_a_higher_fleet(merged: float, scores: list[float], index: int, drop: float) -> None:
    def fleet(values: list[float]) -> health.Scored:
        found = health.of_fleet((merged, ()), {f"r{i}": (value, ()) for i, value in enumerate(values)})
        assert found is not None
        return found

    worse = list(scores)
    worse[index % len(worse)] = max(0.0, worse[index % len(worse)] - drop)
    (before, parts), (after, _) = fleet(scores), fleet(worse)
    assert after <= before <= merged
    assert sum(part.penalty for part in parts) == pytest.approx(merged - before)


def look(score: float) -> Look:
    return Look(score, health.status_of(score), Verdict.NOTHING_TO_DO)


@settings(max_examples=120, deadline=None)
@given(
    centre=st.floats(0, 100),
    noise=st.lists(st.floats(-2.49, 2.49), min_size=1, max_size=60),
    margin=st.just(5.0),
    confirmations=st.integers(1, 5),
)
def test_noise_of_less_than_the_margin_never_flaps(centre: float, noise: list[float], margin: float, confirmations: int) -> None:
    watch = HealthWatch(margin=margin, confirmations=confirmations)
    told = [watch.feed(look(min(100.0, max(0.0, centre + n)))) for n in noise]
    assert sum(told) == 1


@settings(max_examples=120, deadline=None)
@given(scores=st.lists(st.floats(0, 100), min_size=1, max_size=60), confirmations=st.integers(1, 5))
def test_any_series_changes_its_status_at_most_once_per_confirmation(scores: list[float], confirmations: int) -> None:
    watch, changes, status = HealthWatch(confirmations=confirmations), 0, None
    for score in scores:
        watch.feed(look(score))
        changes += watch.status is not status
        status = watch.status
    assert changes <= 1 + (len(scores) - 1) // confirmations


@settings(max_examples=60, deadline=None)
@given(scores=st.lists(st.one_of(st.none(), st.floats(0, 100)), min_size=1, max_size=40), last=st.floats(0, 100))
def test_whatever_came_before_a_lasting_score_is_told_and_no_score_is_never_healthy(scores: list[float | None], last: float) -> None:
    watch = HealthWatch()
    for score in scores:
        watch.feed(look(score) if score is not None else replace(look(0), score=None, status=HealthStatus.NO_LOAD))
        assert (score is None) <= (watch.status is HealthStatus.NO_LOAD)
    for _ in range(6):
        watch.feed(look(last))
    edges = [abs(last - edge) for edge in (health.DEGRADED_FROM, health.HEALTHY_FROM)]
    assert watch.status is health.status_of(last) or min(edges) <= 5.0
