"""Whole plans over the real runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from perf_service.analysis.engine import AnalysisEngine
from perf_service.collectors.saved import read_saved, snapshots_of
from perf_service.collectors.window import windows_of
from perf_service.models.analysis import Analysis, BottleneckType, Cause, Verdict
from perf_service.models.config import EngineConfig, Source
from perf_service.models.metrics import Engine
from perf_service.models.plan import Plan, plan_hash
from perf_service.models.slo import parse_slo
from perf_service.optimization.catalogue import KnobCatalogue, find_conflicts
from perf_service.optimization.engine import NOTHING, OptimizationEngine
from tests.support.real_runs import CAPTURES, finding, overall, plan_of, snapshots, windows

CATALOGUE = KnobCatalogue.load()


@pytest.mark.parametrize("told", [False, True])
@pytest.mark.parametrize(
    ("scenario", "present", "parameter", "value"),
    [
        ("b_queue_bad_r2", {"max_num_seqs": 2, "max_num_batched_tokens": 2048}, "max_num_seqs", 64),
        ("c_kv_bad_r2", {"max_num_seqs": 64, "num_gpu_blocks_override": 24}, "num_gpu_blocks_override", None),
        ("d_prefill_bad_r2", {"max_num_seqs": 16, "max_num_batched_tokens": 32}, "max_num_batched_tokens", 2048),
        ("d_prefill_bad_r3", {"max_num_seqs": 16, "max_num_batched_tokens": 32}, "max_num_batched_tokens", 2048),
        ("f_prefix_off", {"enable_prefix_caching": False}, "enable_prefix_caching", True),
    ],
)
def test_the_first_change_undoes_what_was_planted(told: bool, scenario: str, present: dict[str, Any], parameter: str, value: Any) -> None:
    plan = plan_of(scenario, present if told else None)
    first = plan.optimizations[0].config_changes[0]
    assert (first.parameter, first.recommended_value) == (parameter, value)
    assert plan.changes[0] == first
    assert plan.proposed_config.get(parameter) == value
    assert parameter in plan.diff
    assert plan.plan_hash == plan_hash(Engine.VLLM, plan.engine_version, plan.changes)
    assert plan.baseline is not None
    assert plan.baseline.config == plan.current_config
    assert not find_conflicts(CATALOGUE, Engine.VLLM, plan.proposed_config)


@pytest.mark.parametrize(
    "scenario",
    ["a_healthy", "g_idle", "h_restart", "b_queue_fixed_r2", "c_kv_fixed_r2", "d_prefill_fixed_r2", "e_decode_bad", "f_prefix_on"],
)
def test_no_flag_where_none_helps(scenario: str) -> None:
    plan = plan_of(scenario)
    assert plan.empty
    assert plan.optimizations == ()
    assert plan.estimated_total_improvement == NOTHING
    assert plan.diff == ""
    if scenario == "e_decode_bad":
        assert any("replica" in o.title.lower() for o in plan.advice)


def test_an_itl_objective_holds_the_batch_back() -> None:
    free, held = plan_of("b_queue_bad_r2", {"max_num_seqs": 2}), plan_of("b_queue_bad_r2", {"max_num_seqs": 2}, ["itl<30ms"])
    before, after = free.changes[0].recommended_value, held.changes[0].recommended_value
    assert isinstance(before, int)
    assert isinstance(after, int)
    assert 2 < after < before
    assert held.prediction is not None
    assert held.prediction.itl_seconds is not None
    assert held.prediction.itl_seconds.mean.value <= 0.03


def test_fewer_sequences_only_where_itl_was_asked_for_and_all_objectives_are_met() -> None:
    root = finding(BottleneckType.HIGH_LATENCY, Cause.DECODE_BOUND, Verdict.SCALE)
    analysis = Analysis("i", Engine.VLLM, bottlenecks=(root,), window=overall("e_decode_bad"))

    def plan(*slo: str) -> Plan:
        targets = [parse_slo(s) for s in slo]
        return OptimizationEngine().generate_plan(
            analysis, {"max_num_seqs": 64}, slo_targets=targets, engine_version="0.32.0", windows=windows("e_decode_bad")
        )

    assert plan("ttft<60").empty
    assert plan("itl<25ms", "ttft<0.5").empty, "the queue would miss the other objective"
    made = plan("itl<25ms", "ttft<60")
    assert made.changes[0].parameter == "max_num_active_seqs"
    assert made.changes[0].recommended_value in (8, 16)
    assert "trade" in made.optimizations[0].title.lower()
    assert "throughput_tokens_per_second" in made.optimizations[0].expected_losers


def test_a_queue_that_has_just_begun_does_not_talk_the_cure_down() -> None:
    """Without the time between two early pages, the few short waits on them say nothing of the wait to come."""
    early = [replace(page, collected_at=None) for page in snapshots("e_decode_seqs8")[:2]]
    plan = OptimizationEngine().generate_plan(AnalysisEngine().analyze(early, "vllm"))
    assert [c.parameter for c in plan.changes] == ["max_num_seqs"]
    assert not any(e.metric.startswith(("ttft", "e2e")) for e in plan.effects)


@pytest.mark.parametrize("told", [{}, {"max_num_batched_tokens": 128, "max_num_seqs": 16}])
def test_a_missed_objective_does_not_buy_its_cure_with_one_that_is_met(told: dict[str, Any]) -> None:
    """A budget of 128 tokens, real run: each value that brings TTFT nearer takes the time between tokens over 50 ms."""
    pages = snapshots_of(read_saved(CAPTURES.parent / "held_out" / "budget128"), "budget128")
    known = EngineConfig.of(told, Source.LAUNCH_ARGS) if told else None

    def plan(*slo: str) -> Plan:
        targets = [parse_slo(s) for s in slo]
        analysis = AnalysisEngine().analyze(pages, "vllm", targets, config=known)
        return OptimizationEngine().generate_plan(analysis, known, slo_targets=targets, windows=windows_of(pages))

    torn = plan("ttft_p95<1s", "itl_mean<50ms")
    assert torn.empty
    assert torn.summary.startswith("No configuration change; choose between ttft_p95 < 1.00 s and itl_mean < 50.0 ms")
    assert "with 256 ttft_p95 " in torn.advice[0].description
    assert torn.options[0].chosen
    assert not torn.options[0].changes
    roomy = plan("ttft_p95<1s", "itl_mean<150ms")
    assert [c.parameter for c in roomy.changes] == ["max_num_batched_tokens"]
    assert all(f.met for f in roomy.options[0].objectives)
