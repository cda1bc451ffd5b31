"""The catalogue's data is well formed, and its checks name what is wrong."""

from __future__ import annotations

import pytest

from perf_service.models.config import EngineConfig, KnobValue, Source
from perf_service.models.errors import ErrorReason, InvalidArgumentError
from perf_service.models.fleet import Hardware
from perf_service.models.metrics import Engine
from perf_service.models.plan import KnobType
from perf_service.optimization.catalogue import KnobCatalogue, capability, find_conflicts, in_bracket, kv_capacity_tokens, release

CATALOGUE = KnobCatalogue.load()
H100 = Hardware("H100-SXM", 1, 80 << 30, "9.0")
A100 = Hardware("A100-SXM80", 1, 80 << 30, "8.0")


@pytest.mark.parametrize("engine", Engine)
def test_every_knob_is_well_formed(engine: Engine) -> None:
    for entry in CATALOGUE.entries(engine):
        knob = entry.knob
        assert knob.engine is engine, knob.name
        assert knob.description, knob.name
        assert not knob.description.endswith("."), knob.name
        assert entry.env_only or knob.flag.startswith("--"), knob.name
        assert knob.env or not entry.env_only, knob.name
        assert knob.default or entry.env_only, knob.name
        assert (knob.type is KnobType.ENUM) == bool(entry.brackets), knob.name
        if knob.type is KnobType.BOOL:
            assert knob.minimum is None, knob.name
            assert knob.maximum is None, knob.name
        if knob.minimum is not None and knob.maximum is not None:
            assert knob.minimum < knob.maximum, knob.name
        if knob.since and knob.removed:
            assert (release(knob.since) or ()) < (release(knob.removed) or ()), knob.name
        for rule in entry.defaults:
            assert CATALOGUE.parse(engine, knob.name, rule.value) == rule.value
        for need in entry.needs:
            assert capability(need.min_compute_capability), knob.name
            assert set(need.values) <= set(entry.choices("")), knob.name
        for other in knob.conflicts:
            assert CATALOGUE.get(engine, other) is not None
        for alias in entry.aliases:
            assert CATALOGUE.resolve(engine, alias) == knob.name
        if knob.tunable:
            assert knob.trades, f"{knob.name}: what may be proposed says what it trades"


def test_brackets_of_choices_leave_no_version_without() -> None:
    for version in ("0.6.6", "0.12.0", "0.20.2", "0.26.0", "0.33.0"):
        for name in ("quantization", "kv_cache_dtype", "scheduling_policy"):
            assert CATALOGUE.lookup("vllm", name, version).choices
    assert "gguf" in CATALOGUE.lookup("vllm", "quantization", "0.12.0").choices
    assert "gguf" not in CATALOGUE.lookup("vllm", "quantization", "0.33.0").choices


@pytest.mark.parametrize(
    ("text", "parts"),
    [("0.32.0+cpu", (0, 32)), ("v3.3.7", (3, 3, 7)), ("0.8.5.post1", (0, 8, 5)), ("1.0.0rc2", (1,)), ("", None), ("main", None)],
)
def test_versions_are_read(text: str, parts: tuple[int, ...] | None) -> None:
    assert release(text) == parts


def test_versions_compare_by_number() -> None:
    assert in_bracket("0.10.0", "0.9.2", "") is True
    assert in_bracket("0.29.0", "", "0.29") is False
    assert in_bracket("", "0.9", "") is None
    assert in_bracket("", "", "") is True


@pytest.mark.parametrize(
    ("text", "value"), [("9.0", (9, 0)), ("90", (9, 0)), ("sm_120", (12, 0)), ("100", (10, 0)), ("7", (7, 0)), ("?", None)]
)
def test_capabilities_are_read(text: str, value: tuple[int, int] | None) -> None:
    assert capability(text) == value


@pytest.mark.parametrize(("engine", "name"), [("vllm", "max_num_seqs"), ("sglang", "max_running_requests"), ("tgi", "max_batch_size")])
def test_batch_size_has_one_name_for_all(engine: str, name: str) -> None:
    assert CATALOGUE.resolve(engine, "max_batch_size") == name
    assert CATALOGUE.resolve(engine, "--Max-Batch-Size") == name


def test_a_negative_flag_is_its_knob() -> None:
    config = CATALOGUE.config("vllm", {"--no-enable-prefix-caching": True})
    assert config.get("enable_prefix_caching") is False
    assert CATALOGUE.resolve("sglang", "no_such") == "no_such"


def test_an_unknown_knob_names_its_neighbours() -> None:
    with pytest.raises(InvalidArgumentError, match="max_num_seqs") as caught:
        CATALOGUE.changes("vllm", {"max_num_seq": 4})
    assert caught.value.reason is ErrorReason.KNOB_UNKNOWN
    assert "max_num_seqs" in caught.value.metadata["nearest"]


def test_a_reported_fact_is_no_flag() -> None:
    with pytest.raises(InvalidArgumentError, match="no flag"):
        CATALOGUE.changes("vllm", {"num_gpu_blocks": 4})


@pytest.mark.parametrize(
    ("name", "value", "hint"),
    [
        ("max_num_seqs", 0, "least value 1"),
        ("max_num_seqs", "many", "whole number"),
        ("max_num_seqs", True, "whole number"),
        ("max_num_seqs", 2.5, "whole number"),
        ("gpu_memory_utilization", 1.2, "largest value 1"),
        ("gpu_memory_utilization", float("nan"), "a number"),
        ("enable_prefix_caching", "perhaps", "true or false"),
        ("kv_cache_dtype", "fp7", "auto"),
        ("max_model_len", 0, "positive"),
        ("max_num_seqs", "1e400", "whole number"),
    ],
)
def test_values_out_of_range_say_what_is_right(name: str, value: KnobValue, hint: str) -> None:
    with pytest.raises(InvalidArgumentError, match=hint) as caught:
        CATALOGUE.changes("vllm", {name: value})
    assert caught.value.reason is ErrorReason.KNOB_VALUE_INVALID


def test_a_knob_of_another_version_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match=r"since 0\.26") as caught:
        CATALOGUE.changes("vllm", {"watermark": 0.02}, version="0.20.2")
    assert caught.value.reason is ErrorReason.KNOB_NOT_IN_VERSION
    with pytest.raises(InvalidArgumentError, match=r"gone in 0\.18"):
        CATALOGUE.changes("vllm", {"swap_space": 4}, version="0.32.0")
    assert CATALOGUE.changes("vllm", {"watermark": 0.02}, version="0.32.0")


def test_a_value_beyond_the_hardware_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match=r"8\.0") as caught:
        CATALOGUE.changes("vllm", {"quantization": "mxfp8"}, version="0.33.0", hardware=A100)
    assert caught.value.reason is ErrorReason.KNOB_NEEDS_HARDWARE
    assert CATALOGUE.changes("vllm", {"quantization": "fp8_per_tensor"}, version="0.33.0", hardware=H100)
    assert CATALOGUE.changes("vllm", {"quantization": "mxfp8"}, version="0.33.0"), "unknown hardware is not refused"


def test_defaults_depend_on_version_and_hardware() -> None:
    assert CATALOGUE.default("vllm", "max_num_seqs", "0.33.0", H100) == 1024
    assert CATALOGUE.default("vllm", "max_num_seqs", "0.33.0", A100) == 256
    assert CATALOGUE.default("vllm", "max_num_seqs", "0.33.0") is None, "memory unknown"
    assert CATALOGUE.default("vllm", "gpu_memory_utilization", "0.18.1") == 0.9
    assert CATALOGUE.default("vllm", "gpu_memory_utilization", "0.33.0") == 0.92
    assert CATALOGUE.default("vllm", "gpu_memory_utilization", "") is None
    assert CATALOGUE.default("sglang", "chunked_prefill_size", "", Hardware(memory_bytes=24 << 30)) == 4096


@pytest.mark.parametrize(
    ("engine", "current", "values", "hint"),
    [
        ("vllm", {"max_num_batched_tokens": 2048}, {"max_num_seqs": 4096}, "at least max_num_seqs"),
        ("vllm", {"max_model_len": 8192, "enable_chunked_prefill": False}, {"max_num_batched_tokens": 2048}, "chunked prefill"),
        ("vllm", {"max_model_len": 2048, "block_size": 16}, {"num_gpu_blocks_override": 100}, "does not fit"),
        ("vllm", {"kv_cache_memory_bytes": 1 << 30}, {"gpu_memory_utilization": 0.9}, "exclude each other"),
        ("vllm", {"max_num_seqs": 8}, {"max_num_active_seqs": 16}, "no effect"),
        ("sglang", {"page_size": 64}, {"chunked_prefill_size": 2000}, "multiple of page_size"),
        ("sglang", {"context_length": 8192}, {"max_total_tokens": 4096}, "does not fit"),
        ("tgi", {"max_total_tokens": 2048}, {"max_input_tokens": 2048}, "must be below"),
        ("tgi", {"dtype": "float16"}, {"quantize": "fp8"}, "exclude each other"),
    ],
)
def test_conflicts_are_found(engine: str, current: dict[str, KnobValue], values: dict[str, KnobValue], hint: str) -> None:
    with pytest.raises(InvalidArgumentError, match=hint) as caught:
        CATALOGUE.changes(engine, values, current=EngineConfig.of(current))
    assert caught.value.reason is ErrorReason.CONFIG_CONFLICT


def test_one_knob_twice_under_two_names_is_a_conflict() -> None:
    with pytest.raises(InvalidArgumentError, match="twice"):
        CATALOGUE.changes("vllm", {"max_num_seqs": 4, "max_batch_size": 8})


def test_an_existing_oddity_is_not_the_fault_of_another_change() -> None:
    odd = EngineConfig.of({"max_num_seqs": 4096, "max_num_batched_tokens": 2048})
    assert find_conflicts(CATALOGUE, Engine.VLLM, odd)
    assert CATALOGUE.changes("vllm", {"enable_prefix_caching": True}, current=odd)


def test_what_a_page_resolved_conflicts_with_nothing() -> None:
    page = EngineConfig.of({"kv_cache_memory_bytes": 1 << 30}, Source.PAGE)
    assert CATALOGUE.changes("vllm", {"gpu_memory_utilization": 0.95}, current=page)


def test_capacity_of_an_override_wins_over_the_page() -> None:
    config = EngineConfig.of({"block_size": 128, "num_gpu_blocks_override": 24, "kv_cache_size_tokens": 262144})
    assert kv_capacity_tokens(Engine.VLLM, config) == 3072


def test_removing_a_flag_is_a_change_to_none() -> None:
    (change,) = CATALOGUE.changes("vllm", {"num_gpu_blocks_override": None}, current=EngineConfig.of({"num_gpu_blocks_override": 24}))
    assert (change.current_value, change.recommended_value, change.flag) == (24, None, "--num-gpu-blocks-override")
