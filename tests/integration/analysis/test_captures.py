"""Real pages: the first finding is right, and what is healthy or cured stays quiet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from perf_service.analysis.engine import AnalysisEngine
from perf_service.models.analysis import BottleneckType, Cause, Severity, SLOState, Verdict
from perf_service.models.config import EngineConfig, Source
from perf_service.models.metrics import IssueCode, Snapshot
from perf_service.models.slo import SLOTarget

Run = Callable[[str], tuple[Snapshot, ...]]
BAD = {
    "b_queue_bad_r2": (Cause.BATCH_LIMIT, BottleneckType.QUEUE_BUILDUP),
    "c_kv_bad_r2": (Cause.KV_EXHAUSTED, BottleneckType.MEMORY_PRESSURE),
    "d_prefill_bad_r2": (Cause.TOKEN_BUDGET_TOO_SMALL, BottleneckType.BATCH_SIZE_SUBOPTIMAL),
    "d_prefill_bad_r3": (Cause.TOKEN_BUDGET_TOO_SMALL, BottleneckType.BATCH_SIZE_SUBOPTIMAL),
    "e_decode_bad": (Cause.DECODE_BOUND, BottleneckType.HIGH_LATENCY),
    "e_decode_seqs8": (Cause.BATCH_LIMIT, BottleneckType.QUEUE_BUILDUP),
    "f_prefix_off": (Cause.PREFIX_CACHE_OFF, BottleneckType.CACHE_INEFFICIENCY),
    "sglang_kv_pressure_synthetic": (Cause.KV_EXHAUSTED, BottleneckType.MEMORY_PRESSURE),
}
CURED = {
    "b_queue_fixed_r2": {Cause.BATCH_LIMIT},
    "c_kv_fixed_r2": {Cause.KV_EXHAUSTED},
    "d_prefill_fixed_r2": {Cause.TOKEN_BUDGET_TOO_SMALL, Cause.BATCH_LIMIT},
    "d_prefill_fixed_r3": {Cause.TOKEN_BUDGET_TOO_SMALL, Cause.BATCH_LIMIT},
    "f_prefix_on": {Cause.PREFIX_CACHE_OFF, Cause.PREFIX_CACHE_THRASHING},
}


@pytest.mark.parametrize("scenario", BAD)
@pytest.mark.parametrize("pages", ["all", "ends", "middle"])
def test_root_cause(run: Run, scenario: str, pages: str) -> None:
    snapshots = run(scenario)
    if pages == "ends":  # both taken while nothing ran: the gauges say nothing
        snapshots = (snapshots[1] if scenario.startswith("sglang") else snapshots[0], snapshots[-1])
    elif pages == "middle":
        snapshots = snapshots[1:4]
    root = AnalysisEngine().analyze(snapshots).bottlenecks[0]
    assert (root.cause, root.type) == BAD[scenario]
    assert root.evidence
    assert root.confidence_ratio >= 0.4


@pytest.mark.parametrize("scenario", ["b_queue_bad_r2", "e_decode_seqs8"])
@pytest.mark.parametrize("idle_seconds", [0.0, 3600.0])
def test_the_totals_of_a_life_tell_the_queue_that_no_gauge_shows_any_more(run: Run, scenario: str, idle_seconds: float) -> None:
    page = run(scenario)[-1]
    assert page.collected_at is not None
    assert page.process_start_time is not None, "or the length of its life is unknown"
    later = replace(page, collected_at=page.collected_at + idle_seconds)
    root = AnalysisEngine().analyze(later, "vllm", [SLOTarget("ttft_p95", 0.5)]).bottlenecks[0]
    assert root.cause is Cause.BATCH_LIMIT


@pytest.mark.parametrize("scenario", ["a_healthy", "g_idle", "h_restart"])
def test_healthy_is_silent(run: Run, scenario: str) -> None:
    analysis = AnalysisEngine().analyze(run(scenario), "vllm")
    assert analysis.bottlenecks == ()
    assert analysis.verdict is Verdict.NOTHING_TO_DO


@pytest.mark.parametrize("scenario", CURED)
def test_cured_flag_is_not_blamed(run: Run, scenario: str) -> None:
    analysis = AnalysisEngine().analyze(run(scenario), "vllm")
    assert not {b.cause for b in analysis.bottlenecks} & CURED[scenario]
    assert all(b.severity.rank <= Severity.MEDIUM.rank for b in analysis.bottlenecks)


@pytest.mark.parametrize(
    ("scenario", "args"),
    [
        ("b_queue_bad_r2", {"max_num_seqs": 2, "max_num_batched_tokens": 2048}),
        ("d_prefill_bad_r2", {"max_num_seqs": 16, "max_num_batched_tokens": 32}),
        ("e_decode_seqs8", {"max_num_seqs": 8, "max_num_batched_tokens": 2048}),
    ],
)
def test_known_arguments_agree(run: Run, scenario: str, args: dict[str, int]) -> None:
    root = AnalysisEngine().analyze(run(scenario), "vllm", config=EngineConfig.of(args, Source.LAUNCH_ARGS)).bottlenecks[0]
    assert root.cause is BAD[scenario][0]
    assert root.confidence_ratio >= 0.85
    assert root.would_settle == ""


def test_unknown_arguments_are_what_would_settle(run: Run) -> None:
    root = AnalysisEngine().analyze(run("d_prefill_bad_r2"), "vllm").bottlenecks[0]
    assert root.alternative is not None
    assert "max_num_batched_tokens" in root.would_settle


def test_idle_is_an_answer_of_its_own(run: Run) -> None:
    analysis = AnalysisEngine().analyze(run("g_idle"), "vllm")
    assert analysis.overall_health_score is None
    assert analysis.quality.has(IssueCode.IDLE)


def test_restart_invents_nothing(run: Run) -> None:
    analysis = AnalysisEngine().analyze(run("h_restart"), "vllm")
    assert analysis.quality.has(IssueCode.RESET)
    assert analysis.window is not None
    assert all(value >= 0 for value in analysis.window.counters.values())
    assert all(h.sum >= 0 and h.count >= 0 for h in analysis.window.histograms.values())


def test_severity_follows_the_operators_objective(run: Run) -> None:
    loose = AnalysisEngine().analyze(run("b_queue_bad_r2"), "vllm", [SLOTarget("ttft", 60.0)])
    tight = AnalysisEngine().analyze(run("b_queue_bad_r2"), "vllm", [SLOTarget("ttft", 0.5)])
    assert all(b.severity.rank <= Severity.MEDIUM.rank for b in loose.bottlenecks)
    assert tight.bottlenecks[0].severity is Severity.CRITICAL
    assert (loose.slo_statuses[0].state, tight.slo_statuses[0].state) == (SLOState.MET, SLOState.MISSED)


def test_missed_objective_is_attributed(run: Run) -> None:
    (status,) = AnalysisEngine().analyze(run("b_queue_bad_r2"), "vllm", [SLOTarget("ttft", 0.5)]).slo_statuses
    assert status.phases is not None
    assert status.phases.queue_ratio > 0.9
    total = status.phases.queue_ratio + status.phases.prefill_ratio + status.phases.decode_ratio
    assert total == pytest.approx(1.0)


def test_symptoms_refer_to_the_root(run: Run) -> None:
    root, *rest = AnalysisEngine().analyze(run("b_queue_bad_r2"), "vllm").bottlenecks
    assert root.symptom_of is None
    assert [b.symptom_of for b in rest if b.metric_name == "ttft"] == [Cause.BATCH_LIMIT]


def test_one_page_is_weaker_and_marked(run: Run) -> None:
    analysis = AnalysisEngine().analyze(run("b_queue_bad_r2")[3], "vllm")
    assert analysis.quality.has(IssueCode.LIFETIME_ONLY)
    assert analysis.bottlenecks[0].severity.rank <= Severity.MEDIUM.rank
