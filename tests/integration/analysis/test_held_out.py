"""Real runs that no rule was written on: see `truth.txt` in each folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from perf_service.analysis.engine import AnalysisEngine
from perf_service.collectors.saved import read_saved, snapshots_of
from perf_service.models.analysis import Analysis, Cause, Severity, Verdict
from perf_service.models.config import EngineConfig

HELD_OUT = Path(__file__).parents[2] / "fixtures" / "held_out"
COMPUTE = {Cause.PREFILL_COMPUTE, Cause.DECODE_BOUND, Cause.UNKNOWN}  # what a healthy engine may be said to spend its time on


def _analyzed(scenario: str, **config: int) -> Analysis:
    snapshots = snapshots_of(read_saved(HELD_OUT / scenario), scenario)
    return AnalysisEngine().analyze(snapshots, "vllm", config=EngineConfig.of(config))


@pytest.mark.parametrize(
    ("scenario", "cause"),
    [
        ("queue_seqs4", Cause.BATCH_LIMIT),
        ("prefill_budget64", Cause.TOKEN_BUDGET_TOO_SMALL),
        ("kv_blocks24", Cause.KV_EXHAUSTED),
        ("client_aborts", Cause.CLIENT_ABORTS),
        ("engine_hang", Cause.ENGINE_HANG),
        ("queue_seqs8", Cause.BATCH_LIMIT),
        ("budget128", Cause.TOKEN_BUDGET_TOO_SMALL),
        ("kv_blocks40", Cause.KV_EXHAUSTED),
        ("prefix_off_512", Cause.PREFIX_CACHE_OFF),
        ("long_among_short", Cause.HEAD_OF_LINE_BLOCKING),
        ("seqs16_clients48", Cause.BATCH_LIMIT),
        ("api2_queue", Cause.BATCH_LIMIT),
        ("priority_queue", Cause.BATCH_LIMIT),
        ("budget256_long", Cause.TOKEN_BUDGET_TOO_SMALL),
        ("kv_edge_queue", Cause.KV_EXHAUSTED),
        ("engine_errors", Cause.REQUEST_ERRORS),
        ("bad_requests", Cause.REQUEST_ERRORS),
        ("aborts_early", Cause.CLIENT_ABORTS),
        ("hang_recovered", Cause.ENGINE_HANG),
        ("lora_slots1", Cause.WAITING_NOT_CAPACITY),
        ("grammar_distinct", Cause.WAITING_NOT_CAPACITY),
        ("dp2_one_rank", Cause.REPLICA_IMBALANCE),
        ("long_no_chunking", Cause.HEAD_OF_LINE_BLOCKING),
        ("spec_wasted", Cause.SPECULATION_NOT_PAYING),
        ("chat_evicted", Cause.PREFIX_CACHE_THRASHING),
        ("overload_prefill", Cause.PREFILL_COMPUTE),
    ],
)
def test_the_first_cause_of_a_run_with_a_fault(scenario: str, cause: Cause) -> None:
    root = _analyzed(scenario).root_cause
    assert root is not None
    assert root.cause is cause


@pytest.mark.parametrize(
    "scenario",
    [
        "healthy_busy",
        "one_client",
        "unshared_prompts",
        "kv_full_no_preemption",
        "dp2_light",
        "dp2_busy",
        "seqs8_light",
        "cold_start",
        "load_step",
        "prefill_long",
        "budget256_chat",
        "bursts",
        "slow_reader",
        "chat_fit",
        "lora_slots3",
        "spec_repeat",
        "api2_light",
        "kv_edge_fits",
        "grammar_few",
        "chat_kept",
        "restart_cured",
    ],
)
def test_a_run_without_a_fault_blames_no_flag_and_alarms_nobody(scenario: str) -> None:
    analysis = _analyzed(scenario)
    assert {b.cause for b in analysis.bottlenecks} <= COMPUTE
    assert all(b.severity in (Severity.LOW, Severity.MEDIUM) for b in analysis.bottlenecks)
    assert analysis.verdict is not Verdict.TUNE


def test_a_small_budget_without_a_queue_is_told_with_and_without_the_launch_argument() -> None:
    unknown, known = _analyzed("prefill_budget64_open"), _analyzed("prefill_budget64_open", max_num_batched_tokens=64)
    for analysis in (unknown, known):
        assert analysis.root_cause is not None
        assert analysis.root_cause.cause is Cause.TOKEN_BUDGET_TOO_SMALL
    assert unknown.root_cause is not None
    assert unknown.root_cause.alternative is Cause.PREFILL_COMPUTE
    assert "max_num_batched_tokens" in unknown.root_cause.would_settle


def test_a_hang_with_frozen_gauges_is_no_idleness() -> None:
    snapshots = snapshots_of(read_saved(HELD_OUT / "engine_hang"), "hung")
    frozen = AnalysisEngine().analyze(snapshots[-5:], "vllm")
    assert frozen.verdict is Verdict.RESTART
    assert frozen.overall_health_score == 0.0


def test_of_two_faults_the_second_is_told_beside_the_first() -> None:
    causes = [finding.cause for finding in _analyzed("two_faults").bottlenecks]
    assert causes[0] is Cause.BATCH_LIMIT
    assert Cause.TOKEN_BUDGET_TOO_SMALL in causes


def test_a_cache_too_small_for_its_chats_is_told_as_both_full_and_thrashing() -> None:
    causes = {finding.cause for finding in _analyzed("chat_thrash").bottlenecks}
    assert {Cause.KV_EXHAUSTED, Cause.PREFIX_CACHE_THRASHING} <= causes


def test_requests_that_fail_inside_the_engine_are_counted_once() -> None:
    root = _analyzed("engine_errors").root_cause
    assert root is not None
    assert root.current_value == 1.0  # all of them; vLLM counts them among the finished as well


@pytest.mark.parametrize("scenario", ["api2_light", "bursts", "kv_edge_fits", "slow_reader"])
def test_one_page_alone_of_a_healthy_run_blames_no_flag(scenario: str) -> None:
    analysis = AnalysisEngine().analyze(snapshots_of(read_saved(HELD_OUT / scenario), scenario)[-1:], "vllm")
    assert analysis.verdict is not Verdict.TUNE


def test_a_real_overload_asks_for_capacity_and_for_no_flag() -> None:
    for config in ({}, {"max_num_seqs": 64, "max_num_batched_tokens": 2048}):
        assert _analyzed("overload_prefill", **config).verdict is Verdict.SCALE


def test_a_rank_that_hangs_beside_one_that_works_is_told() -> None:
    snapshots = snapshots_of(read_saved(HELD_OUT / "dp2_rank_hung"), "hung")
    now = AnalysisEngine().analyze(snapshots[:7], "vllm")
    assert now.root_cause is not None
    assert (now.root_cause.cause, now.verdict) == (Cause.ENGINE_HANG, Verdict.RESTART)
    assert "Rank 1 of the engine makes no progress" in now.root_cause.description
    over = AnalysisEngine().analyze(snapshots, "vllm").root_cause
    assert over is not None
    assert over.cause is Cause.ENGINE_HANG
    assert over.description.startswith("Rank 1 of the engine stood still")
