"""The engine's contract: simplest pages, bad input, fleets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from perf_service.analysis.engine import AnalysisEngine, analyze_fleet
from perf_service.models.analysis import BottleneckType, Cause, Severity, SLOState, Verdict
from perf_service.models.errors import ErrorReason, InvalidArgumentError
from perf_service.models.metrics import Counter, DataIssue, DataQuality, Engine, Gauge, Hist, IssueCode, IssueLevel, Snapshot
from perf_service.models.slo import SLOTarget
from perf_service.models.window import Window

SLOW = """
vllm:time_to_first_token_seconds_sum 15.0
vllm:time_to_first_token_seconds_count 100
vllm:num_requests_waiting 12
"""
GOOD = """
vllm:time_to_first_token_seconds_sum 5.0
vllm:time_to_first_token_seconds_count 100
vllm:num_requests_waiting 0
vllm:num_requests_running 3
vllm:kv_cache_usage_perc 0.3
"""


def test_simplest_page_with_trouble(page: Callable[..., Snapshot]) -> None:
    analysis = AnalysisEngine().analyze(page(SLOW), "vllm")
    assert {b.type for b in analysis.bottlenecks} >= {BottleneckType.HIGH_LATENCY, BottleneckType.QUEUE_BUILDUP}
    assert all(b.severity.rank <= Severity.MEDIUM.rank for b in analysis.bottlenecks)
    assert analysis.overall_health_score is not None
    assert analysis.overall_health_score < 100


def test_simplest_page_does_not_pretend_to_know_the_cause(page: Callable[..., Snapshot]) -> None:
    assert all(b.cause is Cause.UNKNOWN or b.confidence_ratio < 0.7 for b in AnalysisEngine().analyze(page(SLOW)).bottlenecks)


def test_good_page(page: Callable[..., Snapshot]) -> None:
    analysis = AnalysisEngine().analyze(page(GOOD), "vllm")
    assert analysis.bottlenecks == ()
    assert analysis.overall_health_score == 100.0
    assert analysis.verdict is Verdict.NOTHING_TO_DO


def test_one_status_per_target(page: Callable[..., Snapshot]) -> None:
    (status,) = AnalysisEngine().analyze(page(SLOW), "vllm", slo_targets=[SLOTarget("ttft", 0.1, "less_than")]).slo_statuses
    assert not status.compliant
    assert status.current_value == pytest.approx(0.15)


def test_page_without_known_metrics_is_not_healthy(page: Callable[..., Snapshot]) -> None:
    analysis = AnalysisEngine().analyze(page("up 1\n"))
    assert analysis.overall_health_score is None
    assert analysis.verdict is Verdict.NOT_ENOUGH_EVIDENCE
    assert all(s.state is SLOState.NOT_MEASURED for s in analysis.slo_statuses)


@pytest.mark.parametrize(("engine", "reason"), [("trt", ErrorReason.ENGINE_UNKNOWN), ("tgi", ErrorReason.ENGINE_MISMATCH)])
def test_wrong_engine(page: Callable[..., Snapshot], engine: str, reason: ErrorReason) -> None:
    with pytest.raises(InvalidArgumentError) as error:
        AnalysisEngine().analyze(page(GOOD), engine)
    assert error.value.reason is reason


def test_no_snapshots() -> None:
    with pytest.raises(InvalidArgumentError, match="no snapshots"):
        AnalysisEngine().analyze([], "vllm")


def test_engine_given_as_member(page: Callable[..., Snapshot]) -> None:
    assert AnalysisEngine().analyze(page(GOOD), Engine.VLLM).engine is Engine.VLLM


@pytest.mark.parametrize(("code", "verdict"), [(IssueCode.RESET, Verdict.WAIT), (IssueCode.STALE, Verdict.NOT_ENOUGH_EVIDENCE)])
def test_blocked_window_concludes_nothing(window: Callable[..., Window], code: IssueCode, verdict: Verdict) -> None:
    issue = DataIssue(code, IssueLevel.BLOCKING, "no.")
    bad = replace(window({Hist.TTFT_SECONDS: 9.0}), quality=DataQuality((issue,)))
    analysis = AnalysisEngine().analyze(bad, "vllm")
    assert (analysis.bottlenecks, analysis.overall_health_score, analysis.verdict) == ((), None, verdict)
    assert all(s.state is SLOState.NOT_MEASURED for s in analysis.slo_statuses)


def test_uneven_fleet_is_named_before_its_queue(window: Callable[..., Window]) -> None:
    def replica(running: float, waiting: float, queue: float) -> Window:
        return window(
            {Hist.TTFT_SECONDS: queue + 0.05, Hist.QUEUE_SECONDS: queue, Hist.PREFILL_SECONDS: 0.02, Hist.INFERENCE_SECONDS: 1.0},
            {Gauge.RUNNING_REQUESTS: [running] * 6, Gauge.WAITING_REQUESTS: [waiting] * 6, Gauge.KV_CACHE_USAGE_RATIO: [0.1] * 6},
            {Counter.GENERATION_TOKENS: 5000},
        )

    analysis = analyze_fleet({"a": replica(1, 0, 0.0), "b": replica(1, 0, 0.0), "c": replica(16, 30, 8.0)}, "vllm", fleet_id="f")
    root, *rest = analysis.bottlenecks
    assert root.cause is Cause.REPLICA_IMBALANCE
    assert root.verdict is Verdict.LOOK_AT_CLIENT
    assert analysis.fleet_id == "f"
    assert all(b.symptom_of is not None for b in rest)


def test_even_fleet_is_not_uneven(window: Callable[..., Window]) -> None:
    one = window({Hist.TTFT_SECONDS: 0.05}, {Gauge.RUNNING_REQUESTS: [4.0, 5.0, 4.0], Gauge.WAITING_REQUESTS: [0.0] * 3})
    assert analyze_fleet({"a": one, "b": one}, "vllm").bottlenecks == ()


def test_ranks_of_one_engine_can_be_uneven(window: Callable[..., Window]) -> None:
    def stats(value: float) -> dict[Gauge, object]:
        return {Gauge.RUNNING_REQUESTS: one.gauges[Gauge.RUNNING_REQUESTS].__class__(value, value, value, value, 3)}

    one = window({Hist.TTFT_SECONDS: 0.05}, {Gauge.RUNNING_REQUESTS: [12.0] * 3})
    uneven = replace(one, ranks={"0": stats(11.0), "1": stats(0.5)})  # type: ignore[dict-item]
    assert AnalysisEngine().analyze(uneven).bottlenecks[0].cause is Cause.REPLICA_IMBALANCE


def test_fleet_needs_replicas() -> None:
    with pytest.raises(InvalidArgumentError):
        analyze_fleet({}, "vllm")


def test_one_page_with_many_waiting_is_no_small_matter_whatever_its_totals_say(page: Callable[..., Snapshot]) -> None:
    text = (
        "tgi_queue_size 50\ntgi_batch_current_size 8\ntgi_request_queue_duration_sum 5\ntgi_request_queue_duration_count 100\n"
        "tgi_request_duration_sum 100\ntgi_request_duration_count 100\n"
    )
    for engine, body in ((Engine.TGI, text), (Engine.VLLM, "vllm:num_requests_running 8\nvllm:num_requests_waiting 50\n")):
        root = AnalysisEngine().analyze(page(body, engine)).bottlenecks[0]
        assert (root.type, root.severity) == (BottleneckType.QUEUE_BUILDUP, Severity.MEDIUM)


def test_an_objective_the_wrong_way_round_is_called_so(page: Callable[..., Snapshot]) -> None:
    analysis = AnalysisEngine().analyze(page(GOOD), slo_targets=[SLOTarget("ttft", 0.5, "greater_than")])
    assert "wrong way round" in analysis.summary
    assert "No objective is missed" not in analysis.summary


def test_a_missed_objective_without_a_cause_is_not_denied(page: Callable[..., Snapshot]) -> None:
    analysis = AnalysisEngine().analyze(page(GOOD), slo_targets=[SLOTarget("kv_cache_usage_ratio", 0.2, "less_than")])
    assert analysis.verdict is Verdict.NOT_ENOUGH_EVIDENCE
    assert "KV cache use is 30.0 %" in analysis.summary


BUSY = {
    Hist.TTFT_SECONDS: 0.3, Hist.QUEUE_SECONDS: 0.0, Hist.PREFILL_SECONDS: 0.1, Hist.DECODE_SECONDS: 4.0, Hist.INFERENCE_SECONDS: 4.1,
    Hist.E2E_SECONDS: 4.3, Hist.PROMPT_TOKENS: 16.0, Hist.GENERATION_TOKENS: 40.0, Hist.ITL_SECONDS: 0.11,
}  # fmt: skip


def test_a_missed_default_asks_for_no_replica_and_an_objective_of_ones_own_does(window: Callable[..., Window]) -> None:
    busy = window(BUSY, {Gauge.RUNNING_REQUESTS: [50.0] * 6, Gauge.WAITING_REQUESTS: [0.0] * 6})
    by_default, by_wish = (AnalysisEngine().analyze(busy, slo_targets=goals) for goals in (None, [SLOTarget("itl", 0.05, "less_than")]))
    assert by_default.bottlenecks[0].cause is by_wish.bottlenecks[0].cause is Cause.DECODE_BOUND
    assert by_default.verdict is Verdict.NOTHING_TO_DO
    assert "built-in default" in by_default.summary
    assert by_wish.verdict is Verdict.SCALE


def test_a_queue_that_never_empties_asks_for_a_replica_without_any_objective(window: Callable[..., Window]) -> None:
    limits = {"max_num_seqs": 256, "max_num_batched_tokens": 2048}
    times = {Hist.TTFT_SECONDS: 3.0, Hist.QUEUE_SECONDS: 2.0, Hist.PREFILL_SECONDS: 1.0, Hist.INFERENCE_SECONDS: 5.0, Hist.E2E_SECONDS: 7.0}
    gauges = {Gauge.RUNNING_REQUESTS: [9.0, 7.0] * 3, Gauge.WAITING_REQUESTS: [8.0] * 6}
    full = window(BUSY | times | {Hist.PROMPT_TOKENS: 4000.0}, gauges, config=limits)
    analysis = AnalysisEngine().analyze(full)
    assert analysis.bottlenecks[0].cause is Cause.PREFILL_COMPUTE
    assert analysis.verdict is Verdict.SCALE
