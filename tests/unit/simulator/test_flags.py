"""What an engine refuses at start, and what memory flags do to its capacity."""

from __future__ import annotations

import pytest

from perf_service.models.errors import ErrorReason
from perf_service.simulator.flags import EngineFlags, FlagError, Hardware, StepTimes, resolve


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ({"max_num_seqs": 64, "max_num_batched_tokens": 32}, "must be greater than or equal to max_num_seqs"),
        ({"num_gpu_blocks_override": 20, "max_model_len": 2048}, "too few for one request"),
        ({"gpu_memory_utilization": 0.3}, "no memory is left"),
        ({"gpu_memory_utilization": 1.2}, r"must lie in \(0, 1\]"),
        ({"max_num_seqs": 0}, "must be at least 1"),
        ({"watermark": 1.0}, "watermark"),
        ({"enable_chunked_prefill": False}, "without chunked prefill"),
        ({"engine": "sglang", "schedule_conservativeness": 0.0}, "must be positive"),
        ({"engine": "sglang", "block_size": 64, "max_num_batched_tokens": 100}, "multiple of page_size"),
    ],
)
def test_bad_flags_are_refused_with_a_reason(flags: dict[str, object], text: str) -> None:
    with pytest.raises(FlagError, match=text) as refused:
        resolve(EngineFlags(**flags))  # type: ignore[arg-type]
    assert refused.value.reason is ErrorReason.KNOB_VALUE_INVALID


def test_unknown_flag_is_named() -> None:
    with pytest.raises(FlagError, match="max_seqs") as refused:
        EngineFlags().changed({"max_seqs": 3})
    assert refused.value.reason is ErrorReason.KNOB_UNKNOWN


def test_memory_flags_change_the_capacity() -> None:
    base = resolve(EngineFlags()).kv_capacity_tokens
    assert resolve(EngineFlags(gpu_memory_utilization=0.95)).kv_capacity_tokens > base
    assert resolve(EngineFlags(kv_cache_dtype="fp8")).kv_capacity_tokens == pytest.approx(2 * base, rel=0.001)
    assert resolve(EngineFlags(quantization="fp8")).kv_capacity_tokens > 1.5 * base
    assert resolve(EngineFlags(tensor_parallel_size=2)).kv_capacity_tokens > 2 * base
    assert resolve(EngineFlags(), None, Hardware(memory_gib=80)).kv_capacity_tokens > 5 * base
    assert resolve(EngineFlags(engine="sglang", max_total_tokens=20_000)).kv_capacity_tokens == 20_000


def test_weight_quantization_speeds_up_only_the_weight_share() -> None:
    times = StepTimes(base=0.02, weight_share=0.5)
    assert resolve(EngineFlags(quantization="fp8"), times).step_times.base == pytest.approx(0.015)


def test_step_times_scale_and_refuse_nonsense() -> None:
    times = StepTimes(0.01, 0.001, 0.0001, 0.00001)
    assert times.step(2, 100, 1000) == pytest.approx(0.032)
    assert times.scaled(2).step(2, 100, 1000) == pytest.approx(0.064)
    for bad in ({"base": -1.0}, {"base": float("nan")}, {"base": 0.0, "per_seq": 0.0}):
        with pytest.raises(FlagError):
            StepTimes(**bad)
