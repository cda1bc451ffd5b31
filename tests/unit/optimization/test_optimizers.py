"""The three optimizers: their contract on bare findings, and what each named cause gets."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from perf_service.collectors.fleet_window import fleet_window
from perf_service.models.analysis import BottleneckType, Cause, Verdict
from perf_service.models.config import ConfigChange, EngineConfig, Source
from perf_service.models.errors import InvalidArgumentError
from perf_service.models.metrics import Engine, Gauge, Hist, Histogram
from perf_service.models.plan import Optimization
from perf_service.models.window import GaugeStats, Window
from perf_service.optimization.batching_optimizer import BatchingOptimizer
from perf_service.optimization.configs import BatchingConfig, ConfigLike, KVCacheConfig, QuantizationConfig
from perf_service.optimization.kv_cache_optimizer import KVCacheOptimizer
from perf_service.optimization.quantization_optimizer import QuantizationOptimizer
from perf_service.optimization.situation import Situation
from tests.support.real_runs import finding, overall

OPTIMIZERS = (BatchingOptimizer(), KVCacheOptimizer(), QuantizationOptimizer())
BATCHING = (BottleneckType.QUEUE_BUILDUP, BottleneckType.LOW_THROUGHPUT, BottleneckType.BATCH_SIZE_SUBOPTIMAL)
_SIZES: tuple[ConfigLike, ...] = (None, {}, {"max_batch_size": 32}, EngineConfig(), BatchingConfig(max_batch_size=32))
_PLAIN: tuple[ConfigLike, ...] = (None, {}, {"quantization": "none"}, {"quantization": None})


def situation(config: dict[str, Any] | None = None, engine: Engine = Engine.VLLM, version: str = "0.32.0", **fields: Any) -> Situation:
    return Situation(engine, version, config=EngineConfig.of(config or {}, Source.LAUNCH_ARGS), **fields)


def change_of(found: list[Optimization], parameter: str) -> ConfigChange:
    return next(c for o in found for c in o.config_changes if c.parameter == parameter)


# ---- The contract ----


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_nothing_to_do_is_nothing(optimizer: Any, engine: Engine) -> None:
    assert optimizer.generate_optimizations([], engine, None) == ([], None)
    assert optimizer.generate_optimizations([], engine.value, {"max_batch_size": 32}) == ([], None)


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


@pytest.mark.parametrize("kind", [BottleneckType.MEMORY_PRESSURE, BottleneckType.CACHE_INEFFICIENCY])
def test_kv_cache_answers_bare_pressure(engine: Engine, kind: BottleneckType) -> None:
    found, config = KVCacheOptimizer().generate_optimizations([finding(kind)], engine.value, None)
    assert found
    assert isinstance(config, KVCacheConfig)
    assert hasattr(config, "max_model_len")


def test_kv_config_carries_what_is_known() -> None:
    _, config = KVCacheOptimizer().generate_optimizations(
        [finding(BottleneckType.MEMORY_PRESSURE)], "vllm", {"max_model_len": 4096, "gpu_memory_utilization": 0.9}
    )
    assert config is not None
    assert (config.max_model_len, config.gpu_memory_utilization) == (4096, 0.93)


@pytest.mark.parametrize("kind", [BottleneckType.MEMORY_PRESSURE, BottleneckType.HIGH_LATENCY])
def test_quantization_is_proposed_for_plain_weights(engine: Engine, kind: BottleneckType) -> None:
    for current in _PLAIN:
        found, config = QuantizationOptimizer().generate_optimizations([finding(kind)], engine.value, current)
        assert found
        assert all("quantization" in o.description.lower() for o in found)
        assert all(o.needs_quality_gate for o in found)
        assert isinstance(config, QuantizationConfig)
        assert config.target_bits == 8


def test_quantized_weights_are_left_alone(engine: Engine) -> None:
    for method in ("int8", "int4", "fp8", "awq", "gptq"):
        named = {"quantize" if engine is Engine.TGI else "quantization": method}
        for current in ({"quantization": method}, QuantizationConfig(method=method), named):
            assert QuantizationOptimizer().generate_optimizations([finding(BottleneckType.MEMORY_PRESSURE)], engine, current) == ([], None)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_an_unknown_engine_or_shape_is_an_error_for_people(optimizer: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="vllm, sglang, tgi"):
        optimizer.generate_optimizations([finding()], "triton", None)
    with pytest.raises(InvalidArgumentError, match="not list"):
        optimizer.generate_optimizations([finding()], "vllm", [1, 2])


def test_config_objects_round_trip_between_optimizers() -> None:
    _, first = BatchingOptimizer().generate_optimizations([finding()], "sglang", {"max_batch_size": 8})
    _, second = BatchingOptimizer().generate_optimizations([finding()], "sglang", first)
    assert second is not None
    assert second.max_batch_size == 32
    off = KVCacheConfig(enable_prefix_caching=False)
    _, config = KVCacheOptimizer().generate_optimizations([finding(BottleneckType.CACHE_INEFFICIENCY)], "sglang", off)
    assert config is not None
    assert config.enable_prefix_caching is True


# ---- Verdicts ----


@pytest.mark.parametrize("verdict", [v for v in Verdict if v is not Verdict.TUNE])
def test_only_a_finding_to_tune_changes_the_config(verdict: Verdict) -> None:
    for cause in Cause:
        for optimizer in OPTIMIZERS:
            found, _ = optimizer.generate_optimizations([finding(cause=cause, verdict=verdict)], "vllm", {"max_num_seqs": 8})
            assert all(o.advice_only for o in found), (cause, found)


def test_a_symptom_gets_no_proposal_of_its_own() -> None:
    symptom = finding(BottleneckType.QUEUE_BUILDUP, symptom_of=Cause.KV_EXHAUSTED)
    assert BatchingOptimizer().generate_optimizations([symptom], "vllm", {"max_num_seqs": 8}) == ([], None)


# ---- Causes ----


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


@pytest.mark.parametrize(("current", "wanted"), [({"max_num_batched_tokens": 32}, 2048), ({}, 2048)])
def test_a_small_token_budget_grows_to_a_usual_prompt(current: dict[str, int], wanted: int) -> None:
    at = situation(current, window=overall("d_prefill_bad_r2"))
    found, config = BatchingOptimizer().generate_optimizations([finding(cause=Cause.TOKEN_BUDGET_TOO_SMALL)], Engine.VLLM, situation=at)
    assert change_of(found, "max_num_batched_tokens").recommended_value == wanted
    assert config is not None
    assert config.max_num_batched_tokens == wanted


def test_a_large_token_budget_shrinks_but_not_below_the_sequences() -> None:
    at = situation({"max_num_batched_tokens": 8192})
    bottleneck = finding(BottleneckType.HIGH_LATENCY, Cause.TOKEN_BUDGET_TOO_LARGE)
    found, _ = BatchingOptimizer().generate_optimizations([bottleneck], Engine.VLLM, situation=at)
    assert change_of(found, "max_num_batched_tokens").recommended_value == 2048
    assert "ttft_seconds" in found[0].expected_losers
    at = situation({"max_num_batched_tokens": 1024, "max_num_seqs": 1024})
    assert BatchingOptimizer().generate_optimizations([bottleneck], Engine.VLLM, situation=at) == ([], None)


def test_sglang_mixes_decodes_into_prefill_against_spikes() -> None:
    at = situation({"chunked_prefill_size": 8192}, Engine.SGLANG, "0.5.23")
    found, _ = BatchingOptimizer().generate_optimizations(
        [finding(BottleneckType.HIGH_LATENCY, Cause.TOKEN_BUDGET_TOO_LARGE)], Engine.SGLANG, situation=at
    )
    assert change_of(found, "enable_mixed_chunk").recommended_value is True


def test_under_admission_lowers_conservativeness_once() -> None:
    at = situation({}, Engine.SGLANG, "0.5.23")
    found, _ = BatchingOptimizer().generate_optimizations([finding(cause=Cause.UNDER_ADMISSION)], Engine.SGLANG, situation=at)
    assert change_of(found, "schedule_conservativeness").recommended_value == 0.3
    at = situation({"schedule_conservativeness": 0.3}, Engine.SGLANG, "0.5.23")
    assert BatchingOptimizer().generate_optimizations([finding(cause=Cause.UNDER_ADMISSION)], Engine.SGLANG, situation=at) == ([], None)


def kv_exhausted(config: dict[str, Any], version: str = "0.32.0", **fields: Any) -> list[Optimization]:
    at = situation(config, version=version, **fields)
    bottleneck = finding(BottleneckType.MEMORY_PRESSURE, Cause.KV_EXHAUSTED)
    return [o for optimizer in OPTIMIZERS for o in optimizer.generate_optimizations([bottleneck], Engine.VLLM, situation=at)[0]]


def test_a_planted_cap_on_the_pool_is_removed_and_nothing_else() -> None:
    found = kv_exhausted({"num_gpu_blocks_override": 24}, window=overall("c_kv_bad_r2"))
    assert [(c.parameter, c.recommended_value) for o in found for c in o.config_changes] == [("num_gpu_blocks_override", None)]


def test_exhaustion_without_a_cap_gets_memory_watermark_and_fewer_sequences() -> None:
    window = overall("c_kv_bad_r2")
    crowded = replace(window, gauges={**window.gauges, Gauge.RUNNING_REQUESTS: GaugeStats(7, 0, 9, 6, 17)})
    found = kv_exhausted({"gpu_memory_utilization": 0.9, "max_num_seqs": 64}, window=crowded)
    assert change_of(found, "gpu_memory_utilization").recommended_value == 0.93
    assert change_of(found, "watermark").recommended_value == 0.02
    assert change_of(found, "max_num_seqs").recommended_value == 6  # 3072 tokens at about 497 per request
    fp8 = next(o for o in found for c in o.config_changes if c.parameter == "kv_cache_dtype")
    assert fp8.needs_quality_gate


def test_fp8_kv_is_never_proposed_without_a_preemption() -> None:
    found = kv_exhausted({"gpu_memory_utilization": 0.9}, window=overall("b_queue_bad_r2"))
    assert not any(c.parameter == "kv_cache_dtype" for o in found for c in o.config_changes)


def test_a_watermark_is_proposed_only_to_versions_that_have_it() -> None:
    for version, has in (("0.20.2", False), ("0.26.0", True), ("", False)):
        found = kv_exhausted({"gpu_memory_utilization": 0.9}, version=version)
        assert any(c.parameter == "watermark" for o in found for c in o.config_changes) is has


def test_memory_at_its_ceiling_ends_in_advice() -> None:
    found = kv_exhausted({"gpu_memory_utilization": 0.95}, version="0.20.2")
    assert found
    assert all(o.advice_only for o in found)


def test_a_prefix_cache_that_is_off_is_turned_on() -> None:
    bottleneck = finding(BottleneckType.CACHE_INEFFICIENCY, Cause.PREFIX_CACHE_OFF)
    for engine, knob, value in ((Engine.VLLM, "enable_prefix_caching", True), (Engine.SGLANG, "disable_radix_cache", False)):
        at = situation({knob: not value}, engine, "")
        found, config = KVCacheOptimizer().generate_optimizations([bottleneck], engine, situation=at)
        assert change_of(found, knob).recommended_value is value
        assert config is not None
        assert config.enable_prefix_caching is True


def test_tgi_reservation_asks_the_clients_too() -> None:
    at = situation({"cuda_memory_fraction": 0.9}, Engine.TGI, "3.3.7")
    found, _ = KVCacheOptimizer().generate_optimizations([finding(cause=Cause.RESERVATION_LIMIT)], Engine.TGI, situation=at)
    assert change_of(found, "cuda_memory_fraction").recommended_value == 0.95
    assert any("max_new_tokens" in o.title for o in found)


@pytest.mark.parametrize("cause", [Cause.DECODE_BOUND, Cause.OVERLOAD, Cause.PREFILL_COMPUTE])
@pytest.mark.parametrize("verdict", [Verdict.TUNE, Verdict.SCALE])
def test_no_free_flag_where_capacity_is_the_answer(engine: Engine, cause: Cause, verdict: Verdict) -> None:
    found = [
        o
        for optimizer in OPTIMIZERS
        for o in optimizer.generate_optimizations([finding(BottleneckType.HIGH_LATENCY, cause, verdict)], engine, {"max_batch_size": 64})[0]
    ]
    assert found
    assert all(o.advice_only for o in found)


def test_long_prompts_are_chunked_or_served_apart() -> None:
    blocked = finding(BottleneckType.HIGH_LATENCY, Cause.HEAD_OF_LINE_BLOCKING)
    at = situation({}, window=overall("d_prefill_bad_r2"))
    found, _ = BatchingOptimizer().generate_optimizations([blocked], Engine.VLLM, situation=at)
    # Prompts of up to 2,000 tokens: a cap of as many caps nothing, and above max_model_len the engine does not start.
    assert change_of(found, "long_prefill_token_threshold").recommended_value == 128
    found, _ = BatchingOptimizer().generate_optimizations([blocked], "tgi", {})
    assert [o.advice_only for o in found] == [True]


def test_a_chunk_of_long_prompts_is_never_made_longer() -> None:
    blocked = finding(BottleneckType.HIGH_LATENCY, Cause.HEAD_OF_LINE_BLOCKING)
    at = situation({"long_prefill_token_threshold": 128}, window=overall("d_prefill_bad_r2"))
    found, _ = BatchingOptimizer().generate_optimizations([blocked], Engine.VLLM, situation=at)
    assert [o.advice_only for o in found] == [True]


def test_prompts_that_are_not_chunked_at_all_are_chunked_first() -> None:
    blocked = finding(BottleneckType.HIGH_LATENCY, Cause.HEAD_OF_LINE_BLOCKING)
    at = situation({"enable_chunked_prefill": False}, window=overall("d_prefill_bad_r2"))
    found, _ = BatchingOptimizer().generate_optimizations([blocked], Engine.VLLM, situation=at)
    assert [(c.parameter, c.recommended_value) for c in found[0].config_changes] == [
        ("enable_chunked_prefill", True),
        ("long_prefill_token_threshold", 128),
    ]


def test_where_the_cap_on_a_chunk_binds_it_goes_and_the_budget_stays() -> None:
    cut = finding(BottleneckType.BATCH_SIZE_SUBOPTIMAL, Cause.TOKEN_BUDGET_TOO_SMALL)
    config = {"max_num_batched_tokens": 2048, "long_prefill_token_threshold": 64}
    at = situation(config, window=overall("d_prefill_bad_r2"))
    found, _ = BatchingOptimizer().generate_optimizations([cut], Engine.VLLM, situation=at)
    assert [(c.parameter, c.recommended_value) for o in found for c in o.config_changes] == [("long_prefill_token_threshold", None)]


def test_thrashing_prefixes_get_room_an_order_and_routing() -> None:
    at = situation({"mem_fraction_static": 0.8, "schedule_policy": "fcfs"}, Engine.SGLANG, "0.5.23")
    found, _ = KVCacheOptimizer().generate_optimizations(
        [finding(BottleneckType.CACHE_INEFFICIENCY, Cause.PREFIX_CACHE_THRASHING)], Engine.SGLANG, situation=at
    )
    assert change_of(found, "mem_fraction_static").recommended_value == 0.82
    assert change_of(found, "schedule_policy").recommended_value == "lpm"
    assert "route" in found[-1].title.lower()


def test_sglang_reserves_more_against_retraction() -> None:
    at = situation({"schedule_conservativeness": 0.3}, Engine.SGLANG, "0.5.23")
    exhausted = finding(BottleneckType.MEMORY_PRESSURE, Cause.KV_EXHAUSTED)
    found, _ = BatchingOptimizer().generate_optimizations([exhausted], Engine.SGLANG, situation=at)
    assert change_of(found, "schedule_conservativeness").recommended_value == 1.3


def test_chunking_that_is_off_has_no_budget_to_raise() -> None:
    at = situation({"chunked_prefill_size": -1}, Engine.SGLANG, "0.5.23")
    small = finding(BottleneckType.BATCH_SIZE_SUBOPTIMAL, Cause.TOKEN_BUDGET_TOO_SMALL)
    assert BatchingOptimizer().generate_optimizations([small], Engine.SGLANG, situation=at) == ([], None)


def test_a_budget_at_its_ceiling_ends_in_advice() -> None:
    at = situation({"max_num_batched_tokens": 16384}, window=overall("d_prefill_bad_r2"))
    small = finding(BottleneckType.BATCH_SIZE_SUBOPTIMAL, Cause.TOKEN_BUDGET_TOO_SMALL)
    found, _ = BatchingOptimizer().generate_optimizations([small], Engine.VLLM, situation=at)
    assert [o.advice_only for o in found] == [True]


# ---- Properties ----


# ---- The reasons of a value, and what a page shows where nothing is told ----


def steps_up_to(bound: float) -> Window:
    """A window whose largest step held at most `bound` tokens."""
    steps = Histogram(
        100.0, 5000.0, (16.0, 512.0, 1024.0, 2048.0, 8192.0), tuple(100.0 if b >= bound else 50.0 for b in (16, 512, 1024, 2048, 8192))
    )
    window = overall("b_queue_bad_r2")
    return replace(window, histograms={**window.histograms, Hist.ITERATION_TOKENS: steps})


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


def test_a_budget_is_lowered_below_the_steps_that_were_seen() -> None:
    stalls = finding(BottleneckType.HIGH_LATENCY, Cause.TOKEN_BUDGET_TOO_LARGE)

    def lowered(bound: float) -> list[Optimization]:
        return BatchingOptimizer().generate_optimizations([stalls], "vllm", situation=situation(window=steps_up_to(bound)))[0]

    assert change_of(lowered(2048), "max_num_batched_tokens").recommended_value == 1024, "2048 would change nothing"
    assert change_of(lowered(8192), "max_num_batched_tokens").recommended_value == 2048
    assert lowered(512) == [], "there is no room above the floor"


def test_long_prompts_are_capped_where_the_page_shows_a_release_that_can() -> None:
    blocked = finding(BottleneckType.HIGH_LATENCY, Cause.HEAD_OF_LINE_BLOCKING)
    window = overall("b_queue_bad_r2")

    def found(window: Window) -> list[Optimization]:
        return BatchingOptimizer().generate_optimizations([blocked], "vllm", situation=situation(version="", window=window))[0]

    assert "kv_cache_size_tokens" in window.config
    assert change_of(found(window), "long_prefill_token_threshold").recommended_value
    silent: dict[Hist, Histogram] = {h: v for h, v in window.histograms.items() if h is not Hist.PREFILL_COMPUTED_TOKENS}
    (advice,) = found(replace(window, config=EngineConfig(), histograms=silent))
    assert advice.advice_only
    assert "--long-prefill-token-threshold" in advice.description
    assert "since 0.8, and which one runs is not known" in advice.description


def test_a_page_shows_at_least_which_release_it_is() -> None:
    at = situation(version="", window=overall("b_queue_bad_r2"))
    assert at.least_version == "0.26.0"
    assert at.has("watermark")
    assert at.has("max_num_active_seqs") is None, "since 0.31: nothing on the page tells"
    assert situation(version="0.12.0", window=at.window).least_version == "", "a version that is told needs no guess"
    assert situation(version="0.12.0", window=at.window).has("watermark") is False
