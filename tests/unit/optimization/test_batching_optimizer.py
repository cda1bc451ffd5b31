"""How many sequences, and who is admitted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from perf_service.collectors.fleet_window import fleet_window
from perf_service.models.analysis import BottleneckType, Cause
from perf_service.models.config import EngineConfig, Source
from perf_service.models.metrics import Engine, Gauge
from perf_service.models.plan import Optimization
from perf_service.models.window import GaugeStats
from perf_service.optimization.batching_optimizer import BatchingOptimizer
from perf_service.optimization.configs import BatchingConfig, ConfigLike
from tests.support.proposals import change_of, situation
from tests.support.real_runs import finding, overall

BATCHING = (BottleneckType.QUEUE_BUILDUP, BottleneckType.LOW_THROUGHPUT, BottleneckType.BATCH_SIZE_SUBOPTIMAL)
_SIZES: tuple[ConfigLike, ...] = (None, {}, {"max_batch_size": 32}, EngineConfig(), BatchingConfig(max_batch_size=32))


@pytest.mark.parametrize("kind", BATCHING)
def test_batching_answers_every_bare_queue(engine: Engine, kind: BottleneckType) -> None:
    for current in _SIZES:
        found, config = BatchingOptimizer().generate_optimizations([finding(kind)], engine.value, current)
        assert found
        assert isinstance(config, BatchingConfig)
        assert config.max_batch_size is not None
        assert config.max_batch_size <= 256


@pytest.mark.parametrize(("size", "wanted"), [(32, 64), (8, 16), (200, 256)])
def test_batching_doubles_a_known_limit_up_to_the_cap(engine: Engine, size: int, wanted: int) -> None:
    found, config = BatchingOptimizer().generate_optimizations([finding()], engine, {"max_batch_size": size})
    assert config is not None
    assert config.max_batch_size == wanted
    assert any(c.current_value == size and c.recommended_value == wanted for o in found for c in o.config_changes)


@pytest.mark.parametrize("size", [256, 512])
def test_batching_at_its_ceiling_still_advises(engine: Engine, size: int) -> None:
    found, config = BatchingOptimizer().generate_optimizations([finding()], engine, {"max_batch_size": size})
    assert found
    assert all(o.advice_only for o in found)
    assert config is not None
    assert config.max_batch_size == 256


def test_the_cap_is_a_parameter() -> None:
    _, config = BatchingOptimizer(max_batch_size=40).generate_optimizations([finding()], "vllm", {"max_batch_size": 32})
    assert config is not None
    assert config.max_batch_size == 40
    with pytest.raises(ValueError, match="at least 1"):
        BatchingOptimizer(max_batch_size=0)


def test_a_symptom_gets_no_proposal_of_its_own() -> None:
    symptom = finding(BottleneckType.QUEUE_BUILDUP, symptom_of=Cause.KV_EXHAUSTED)
    assert BatchingOptimizer().generate_optimizations([symptom], "vllm", {"max_num_seqs": 8}) == ([], None)


def batch_limit(**config: Any) -> list[Optimization]:
    at = situation(config, window=overall("b_queue_bad_r2"))
    return BatchingOptimizer().generate_optimizations([finding(cause=Cause.BATCH_LIMIT)], Engine.VLLM, situation=at)[0]


def test_a_batch_limit_rises_to_the_demand_not_by_blind_doubling() -> None:
    change = change_of(batch_limit(max_num_seqs=2), "max_num_seqs")
    assert change.current_value == 2
    assert change.recommended_value == 64  # 32 requests were there at once


def test_an_unknown_batch_limit_is_inferred_and_said_so() -> None:
    change = change_of(batch_limit(), "max_num_seqs")
    assert change.current_value is None
    assert change.current_source is Source.INFERRED
    assert "inferred as 2" in change.reason


def test_an_unknown_batch_limit_that_no_scrape_shows_is_not_said_to_be_zero() -> None:
    window = overall("b_queue_bad_r2")
    idle = replace(window, gauges={**window.gauges, Gauge.RUNNING_REQUESTS: GaugeStats(0, 0, 0, 0, 2)})
    found, _ = BatchingOptimizer().generate_optimizations(
        [finding(cause=Cause.BATCH_LIMIT)], Engine.VLLM, situation=situation({}, window=idle)
    )
    assert change_of(found, "max_num_seqs").recommended_value == 256
    assert "not known" in found[0].prerequisites[0]


def test_limits_are_those_of_one_replica_not_of_the_fleets_sum() -> None:
    one = overall("b_queue_bad_r2")
    at = situation({}, window=fleet_window("f", [one, replace(one, instance_id="other")]))
    found, _ = BatchingOptimizer().generate_optimizations([finding(cause=Cause.BATCH_LIMIT)], Engine.VLLM, situation=at)
    change = change_of(found, "max_num_seqs")
    assert change.recommended_value == 64
    assert "inferred as 2" in change.reason


@pytest.mark.parametrize(("seen", "slots", "kept", "wanted"), [(3, 1, None, 3), (30, 2, None, 8), (3, 1, 2, None), (3, 4, None, None)])
def test_lora_slots_rise_to_the_adapters_asked_for(seen: float, slots: int, kept: int | None, wanted: int | None) -> None:
    config = {"max_loras": slots} | ({"max_cpu_loras": kept} if kept else {})
    window = replace(overall("b_queue_bad_r2"), gauges={Gauge.LORA_ADAPTERS_SEEN: GaugeStats(seen, seen, seen, seen, 5)})
    waiting = finding(BottleneckType.QUEUE_BUILDUP, Cause.WAITING_NOT_CAPACITY)
    found, _ = BatchingOptimizer().generate_optimizations([waiting], Engine.VLLM, config, situation=situation(config, window=window))
    assert [change_of(found, "max_loras").recommended_value] == [wanted] if wanted else not found


def test_a_batch_limit_never_exceeds_what_the_kv_cache_holds() -> None:
    window = overall("b_queue_bad_r2")
    tight = replace(window, gauges={**window.gauges, Gauge.KV_CAPACITY_TOKENS: GaugeStats(1000, 1000, 1000, 1000, 9)})
    at = situation({"max_num_seqs": 2}, window=tight)
    found, _ = BatchingOptimizer().generate_optimizations([finding(cause=Cause.BATCH_LIMIT)], Engine.VLLM, situation=at)
    assert change_of(found, "max_num_seqs").recommended_value == 8  # 1000 tokens / 109 per request, as a power of two


def test_a_token_budget_below_the_new_limit_rises_with_it() -> None:
    found = batch_limit(max_num_seqs=2, max_num_batched_tokens=16)
    assert change_of(found, "max_num_batched_tokens").recommended_value >= 64  # type: ignore[operator]


def test_the_narrower_admission_limit_is_the_one_raised() -> None:
    found = batch_limit(max_num_seqs=256, max_num_active_seqs=2)
    assert {c.parameter for o in found for c in o.config_changes} == {"max_num_active_seqs"}


def test_the_narrower_admission_limit_is_raised_up_to_the_wider_one() -> None:
    change = change_of(batch_limit(max_num_seqs=32, max_num_active_seqs=2), "max_num_active_seqs")
    assert change.recommended_value == 32, "64 would be wanted, and has no effect above max_num_seqs"
    assert "limited to 32 by max_num_seqs" in change.reason


def test_under_admission_lowers_conservativeness_once() -> None:
    at = situation({}, Engine.SGLANG, "0.5.23")
    found, _ = BatchingOptimizer().generate_optimizations([finding(cause=Cause.UNDER_ADMISSION)], Engine.SGLANG, situation=at)
    assert change_of(found, "schedule_conservativeness").recommended_value == 0.3
    at = situation({"schedule_conservativeness": 0.3}, Engine.SGLANG, "0.5.23")
    assert BatchingOptimizer().generate_optimizations([finding(cause=Cause.UNDER_ADMISSION)], Engine.SGLANG, situation=at) == ([], None)


def test_sglang_reserves_more_against_retraction() -> None:
    at = situation({"schedule_conservativeness": 0.3}, Engine.SGLANG, "0.5.23")
    exhausted = finding(BottleneckType.MEMORY_PRESSURE, Cause.KV_EXHAUSTED)
    found, _ = BatchingOptimizer().generate_optimizations([exhausted], Engine.SGLANG, situation=at)
    assert change_of(found, "schedule_conservativeness").recommended_value == 1.3


def test_the_reason_says_why_the_limit_is_raised_no_further() -> None:
    queue = finding(BottleneckType.QUEUE_BUILDUP, Cause.BATCH_LIMIT)
    window = overall("b_queue_bad_r2")

    def reason() -> str:
        at = situation({"max_num_seqs": 2}, window=window)
        return change_of(BatchingOptimizer(256).generate_optimizations([queue], "vllm", situation=at)[0], "max_num_seqs").reason

    assert "64 is enough for them, with a quarter to spare" in reason()
    capped = situation({"max_num_seqs": 2}, window=window)
    found, _ = BatchingOptimizer(16).generate_optimizations([queue], "vllm", situation=capped)
    assert "limited to 16, the most that is proposed" in change_of(found, "max_num_seqs").reason
    small = replace(
        window, config=EngineConfig(), gauges={**window.gauges, Gauge.KV_CAPACITY_TOKENS: GaugeStats(1000, 1000, 1000, 1000, 5, 1.0)}
    )
    found, _ = BatchingOptimizer(256).generate_optimizations([queue], "vllm", situation=situation({"max_num_seqs": 2}, window=small))
    change = change_of(found, "max_num_seqs")
    assert f"limited to {change.recommended_value} by the KV cache: " in change.reason
    assert change.reason.endswith("requests of this length fit")


def test_drafts_that_nobody_accepts_are_switched_off() -> None:
    wasted = finding(BottleneckType.HIGH_LATENCY, Cause.SPECULATION_NOT_PAYING)
    told = situation({"speculative_config": '{"method":"ngram"}'})
    found, _ = BatchingOptimizer().generate_optimizations([wasted], Engine.VLLM, situation=told)
    assert change_of(found, "speculative_config").recommended_value is None
    found, _ = BatchingOptimizer().generate_optimizations([wasted], Engine.VLLM, situation=situation({}))
    assert [o.advice_only for o in found] == [True]
    assert "--speculative-config" in found[0].description
