"""The KV cache: its size, its precision, its reuse."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from perf_service.models.analysis import BottleneckType, Cause
from perf_service.models.metrics import Engine, Gauge
from perf_service.models.plan import Optimization
from perf_service.models.window import GaugeStats
from perf_service.optimization.batching_optimizer import BatchingOptimizer
from perf_service.optimization.configs import KVCacheConfig
from perf_service.optimization.kv_cache_optimizer import KVCacheOptimizer
from perf_service.optimization.quantization_optimizer import QuantizationOptimizer
from tests.support.proposals import change_of, situation
from tests.support.real_runs import finding, overall

OPTIMIZERS = (BatchingOptimizer(), KVCacheOptimizer(), QuantizationOptimizer())


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


def test_thrashing_prefixes_get_room_an_order_and_routing() -> None:
    at = situation({"mem_fraction_static": 0.8, "schedule_policy": "fcfs"}, Engine.SGLANG, "0.5.23")
    found, _ = KVCacheOptimizer().generate_optimizations(
        [finding(BottleneckType.CACHE_INEFFICIENCY, Cause.PREFIX_CACHE_THRASHING)], Engine.SGLANG, situation=at
    )
    assert change_of(found, "mem_fraction_static").recommended_value == 0.82
    assert change_of(found, "schedule_policy").recommended_value == "lpm"
    assert "route" in found[-1].title.lower()
