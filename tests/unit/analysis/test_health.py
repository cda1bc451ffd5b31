"""The health score by its parts, of a fleet by its replicas, and which changes of it are told."""

from __future__ import annotations

from dataclasses import replace

import pytest

from perf_service.analysis import health
from perf_service.analysis.engine import AnalysisEngine, analyze_fleet
from perf_service.analysis.health_watch import HealthWatch, Look
from perf_service.models.analysis import Analysis, BudgetState, Cause, ErrorBudget, HealthPart, HealthStatus, SLOState, SLOStatus, Verdict
from perf_service.models.metrics import Counter, Engine, Gauge, Hist, Histogram, Snapshot
from perf_service.models.slo import SLOTarget

H, D, U, IDLE = HealthStatus.HEALTHY, HealthStatus.DEGRADED, HealthStatus.UNHEALTHY, HealthStatus.NO_LOAD


def test_more_than_everything_wrong_is_100_points_in_proportion() -> None:
    missed = SLOStatus(SLOTarget("ttft", 0.1), SLOState.MISSED, 10.0, samples=100)
    score, parts = health.score([missed], error_ratio=1.0, waiting=30.0, running=2.0, preemptions_per_request=2.0, hung=True)
    assert score == 0.0
    assert sum(part.penalty for part in parts) == pytest.approx(100.0)
    assert parts[0].name == "hang"


def test_an_undecided_objective_costs_nothing() -> None:
    undecided = SLOStatus(SLOTarget("ttft_p95", 0.1), SLOState.UNDECIDED, 0.2, samples=100)
    assert health.score([undecided]) == (100.0, ())


def page(at: float, done: float, *, running: float = 0.0, waiting: float = 0.0, more: dict[Counter, float] | None = None) -> Snapshot:
    histograms = {Hist.TTFT_SECONDS: Histogram(done, 0.01 * done, (0.1, 1.0), (done, done))}
    counters = {Counter.GENERATION_TOKENS: 10 * done, Counter.REQUESTS_SUCCEEDED: done, Counter.PROCESS_CPU_SECONDS: at, **(more or {})}
    gauges = {Gauge.RUNNING_REQUESTS: running, Gauge.WAITING_REQUESTS: waiting}
    return Snapshot("i", Engine.VLLM, at, gauges=gauges, counters=counters, histograms=histograms)


@pytest.mark.parametrize("probes", [0.0, 1.0])
def test_an_idle_engine_is_not_called_healthy(probes: float) -> None:
    """Nor where a probe of a path that this version does not have was answered 404."""
    pages = [page(0.0, 0.0), page(30.0, 0.0, more={Counter.HTTP_4XX_RESPONSES: probes})]
    for analysis in (AnalysisEngine().analyze(pages), analyze_fleet({"a": pages, "b": pages})):
        assert (analysis.overall_health_score, analysis.health_status) == (None, IDLE)
        assert analysis.summary.startswith("No load yet")


def test_data_that_cannot_be_judged_are_unknown() -> None:
    analysis = AnalysisEngine().analyze(Snapshot("i", Engine.VLLM, 1.0))
    assert (analysis.overall_health_score, analysis.health_status) == (None, HealthStatus.UNKNOWN)


def test_a_replica_that_hangs_caps_its_fleet_and_leads_it() -> None:
    """The fleet's sums look well: the others serve, and the dead one has no traffic to weigh."""
    serving = [page(10.0 * i, 100.0 * i, running=2.0) for i in range(6)]
    hung = [page(10.0 * i, 7.0, running=3.0) for i in range(6)]
    analysis = analyze_fleet({"r0": serving, "r1": serving, "r2": hung})
    assert analysis.overall_health_score == 50.0
    assert analysis.health_status is D
    assert analysis.root_cause is not None
    assert (analysis.root_cause.cause, analysis.verdict) == (Cause.ENGINE_HANG, Verdict.RESTART)
    assert analysis.summary.startswith("Replica r2: ")
    assert analysis.health_parts[0].text == "r2 alone scores 0 of 100: The engine makes no progress."
    assert sum(part.penalty for part in analysis.health_parts) == pytest.approx(50.0)


def test_the_worst_replica_caps_the_fleet_and_equal_ones_do_not() -> None:
    even = dict.fromkeys("ab", (90.0, ()))
    assert health.of_fleet((90.0, ()), even) == (90.0, ())
    part = HealthPart("queue", 60.0, "30 requests wait.")
    score, parts = health.of_fleet((95.0, ()), {**even, "c": (40.0, (part,))}) or (0, ())
    assert (score, parts) == (70.0, (HealthPart("replica:c", 25.0, "c alone scores 40 of 100: 30 requests wait."),))
    assert health.of_fleet(None, even) is None


def look(score: float | None, verdict: Verdict = Verdict.NOTHING_TO_DO, cause: Cause | None = None) -> Look:
    return Look(score, health.status_of(score, no_load=True), verdict, cause)


def watched(*scores: float | None, confirmations: int = 3) -> list[tuple[int, HealthStatus]]:
    """Which looks were told, with the status then."""
    watch = HealthWatch(confirmations=confirmations)
    return [(i, watch.status) for i, score in enumerate(scores) if watch.feed(look(score))]


def test_a_change_is_told_when_it_lasts() -> None:
    assert watched(100, 60, 60, 60, 60) == [(0, H), (3, D)]
    assert watched(100, 60, 60, 100, 60, 60) == [(0, H)]
    assert watched(100, 60, confirmations=1) == [(0, H), (1, D)]
    assert watched(60, 100, 100, 100) == [(0, D), (3, H)]


def test_it_goes_only_as_far_as_all_looks_agree() -> None:
    assert watched(100, 20, 60, 20, 20, 20, 20) == [(0, H), (3, D), (6, U)]


def test_noise_around_a_threshold_is_not_told() -> None:
    assert watched(81, 79, 82, 78, 79, 76, 81, 77, 79, 78.5) == [(0, H)]


def test_a_loss_of_load_or_data_is_told_at_once_and_coming_back_when_it_lasts() -> None:
    assert watched(100, None, 100, None, 100, 100, 100) == [(0, H), (1, IDLE), (6, H)]
    watch = HealthWatch()
    unknown = Look(None, HealthStatus.UNKNOWN, Verdict.NOT_ENOUGH_EVIDENCE)
    assert [watch.feed(one) for one in (look(None), look(None), unknown, unknown)] == [True, False, True, False]


def test_another_cause_is_told_when_it_lasts() -> None:
    watch = HealthWatch()
    kv, batch = look(60, Verdict.TUNE, Cause.KV_EXHAUSTED), look(60, Verdict.TUNE, Cause.BATCH_LIMIT)
    assert [watch.feed(one) for one in (kv, batch, kv, batch, batch, kv, batch, batch, batch)] == [True, *[False] * 7, True]


def test_a_budget_that_burns_is_told_when_it_lasts() -> None:
    watch = HealthWatch(confirmations=2)
    calm, burning = look(95), replace(look(95), alert=BudgetState.FAST_BURN)
    assert [watch.feed(one) for one in (calm, burning, calm, burning, burning, burning, calm, calm)] == [1, 0, 0, 0, 1, 0, 0, 1]


def test_a_look_takes_the_worst_alert_of_the_budgets() -> None:
    def status(state: BudgetState) -> SLOStatus:
        return SLOStatus(SLOTarget("ttft_p99", 0.5), SLOState.MET, 0.1, budget=ErrorBudget(0.99, 1.0, 1.0, 1.0, 0.0, 0.0, state=state))

    states = [BudgetState.OK, BudgetState.EXHAUSTED, BudgetState.SLOW_BURN, BudgetState.UNDECIDED]
    assert Look.of(Analysis("i", Engine.VLLM, slo_statuses=tuple(map(status, states)))).alert is BudgetState.SLOW_BURN
    assert Look.of(Analysis("i", Engine.VLLM, slo_statuses=(status(BudgetState.OK),))).alert is None
