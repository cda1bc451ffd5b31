"""What all three optimizers hold to."""

from __future__ import annotations

from typing import Any

import pytest

from perf_service.models.analysis import BottleneckType, Cause, Verdict
from perf_service.models.errors import InvalidArgumentError
from perf_service.models.metrics import Engine
from perf_service.optimization.batching_optimizer import BatchingOptimizer
from perf_service.optimization.configs import KVCacheConfig
from perf_service.optimization.kv_cache_optimizer import KVCacheOptimizer
from perf_service.optimization.quantization_optimizer import QuantizationOptimizer
from tests.support.proposals import situation
from tests.support.real_runs import finding, overall

OPTIMIZERS = (BatchingOptimizer(), KVCacheOptimizer(), QuantizationOptimizer())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_nothing_to_do_is_nothing(optimizer: Any, engine: Engine) -> None:
    assert optimizer.generate_optimizations([], engine, None) == ([], None)
    assert optimizer.generate_optimizations([], engine.value, {"max_batch_size": 32}) == ([], None)


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


@pytest.mark.parametrize("verdict", [v for v in Verdict if v is not Verdict.TUNE])
def test_only_a_finding_to_tune_changes_the_config(verdict: Verdict) -> None:
    for cause in Cause:
        for optimizer in OPTIMIZERS:
            found, _ = optimizer.generate_optimizations([finding(cause=cause, verdict=verdict)], "vllm", {"max_num_seqs": 8})
            assert all(o.advice_only for o in found), (cause, found)


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


def test_a_page_shows_at_least_which_release_it_is() -> None:
    at = situation(version="", window=overall("b_queue_bad_r2"))
    assert at.least_version == "0.26.0"
    assert at.has("watermark")
    assert at.has("max_num_active_seqs") is None, "since 0.31: nothing on the page tells"
    assert situation(version="0.12.0", window=at.window).least_version == "", "a version that is told needs no guess"
    assert situation(version="0.12.0", window=at.window).has("watermark") is False
