"""The command line: real flag names, real refusals."""

from __future__ import annotations

import pytest

from perf_service.models.errors import ErrorReason
from perf_service.simulator.args import flags_from_native, native_values, parse, run_simulated_engine
from perf_service.simulator.flags import FlagError


def test_vllm_flags_with_hyphens_underscores_and_equals() -> None:
    options = parse(
        ["--max-num-seqs", "2", "--max_num_batched_tokens=512", "--no-enable-prefix-caching", "--port", "0",
         "--served-model-name", "tiny", "--dev-mode", "--startup-seconds", "1.5"]
    )  # fmt: skip
    flags = options.engine.flags
    assert (flags.engine, flags.max_num_seqs, flags.max_num_batched_tokens) == ("vllm", 2, 512)
    assert not flags.enable_prefix_caching
    assert (options.port, options.model_name, options.dev_mode, options.startup_seconds) == (0, "tiny", True, 1.5)
    assert options.shutdown_timeout == 0  # vLLM aborts what runs on SIGTERM


def test_sglang_flags_map_onto_the_same_fields() -> None:
    options = parse(
        ["--engine", "sglang", "--max-running-requests", "8", "--chunked-prefill-size", "1024", "--mem-fraction-static",
         "0.8", "--disable-radix-cache", "--schedule-conservativeness", "0.3", "--max-total-tokens", "20000"]
    )  # fmt: skip
    flags = options.engine.flags
    assert (flags.max_num_seqs, flags.max_num_batched_tokens, flags.gpu_memory_utilization) == (8, 1024, 0.8)
    assert (flags.enable_prefix_caching, flags.schedule_conservativeness) == (False, 0.3)
    assert options.engine.kv_capacity_tokens == 20000
    assert not options.metrics  # off unless --enable-metrics, as in SGLang
    assert parse(["--engine", "sglang", "--enable-metrics"]).metrics


def test_tgi_flags() -> None:
    options = parse(["--engine=tgi", "--max-batch-total-tokens", "8192", "--max-concurrent-requests", "4"])
    assert options.engine.kv_capacity_tokens == 8192
    assert options.engine.flags.max_concurrent_requests == 4
    assert options.port == 3000


def test_time_scale_and_physics() -> None:
    times = parse(["--step-base-ms", "20", "--step-per-seq-ms", "1", "--time-scale", "2"]).engine.step_times
    assert (times.base, times.per_seq) == (0.01, 0.0005)


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["--max-running-requests", "8"], "unrecognized"),  # SGLang's name is none of vLLM's
        (["--max-num-seq", "8"], "unrecognized"),  # no abbreviations
        (["--max-num-seqs", "many"], "takes int"),
        (["--max-num-seqs", "64", "--max-num-batched-tokens", "32"], "must be greater than or equal"),
        (["--engine", "llama"], "invalid choice"),
        (["--port", "70000"], "0..65535"),
        (["--time-scale", "0"], "time-scale"),
        (["--num-gpu-blocks-override", "10"], "too few"),
    ],
)
def test_wrong_flags_end_with_exit_code_2(argv: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_simulated_engine(argv) == 2
    captured = capsys.readouterr()
    assert text in captured.err
    assert captured.out == ""


def test_help_is_fine(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_simulated_engine(["--engine", "sglang", "--help"]) == 0
    assert "--schedule-conservativeness" in capsys.readouterr().out


def test_defaults_are_clipped_but_given_values_are_not() -> None:
    assert flags_from_native("vllm", {"max_num_batched_tokens": 64}).max_num_seqs == 64
    with pytest.raises(FlagError):
        parse(["--max-num-batched-tokens", "64", "--max-num-seqs", "65"])


def test_native_names_round_trip() -> None:
    flags = flags_from_native("sglang", {"--disable-radix-cache": "true", "max_running_requests": "7", "kv_cache_dtype": "fp8_e5m2"})
    shown = native_values(flags)
    assert shown["disable_radix_cache"] is True
    assert shown["max_running_requests"] == 7
    assert flags_from_native("sglang", shown) == flags


def test_native_changes_start_from_a_base() -> None:
    base = flags_from_native("vllm", {"max_num_seqs": 2})
    changed = flags_from_native("vllm", {"no-enable-prefix-caching": True}, base)
    assert (changed.max_num_seqs, changed.enable_prefix_caching) == (2, False)
    assert flags_from_native("vllm", {"num_gpu_blocks_override": None}, base).num_gpu_blocks_override is None
    assert not flags_from_native("sglang", {"chunked_prefill_size": -1}).enable_chunked_prefill


@pytest.mark.parametrize(("values", "reason"), [
    ({"max_seqs": 1}, ErrorReason.KNOB_UNKNOWN),
    ({"enable_prefix_caching": "maybe"}, ErrorReason.KNOB_VALUE_INVALID),
    ({"max_num_seqs": None}, ErrorReason.KNOB_VALUE_INVALID),
])  # fmt: skip
def test_unknown_or_wrong_native_values(values: dict[str, object], reason: ErrorReason) -> None:
    with pytest.raises(FlagError) as refused:
        flags_from_native("vllm", values)
    assert refused.value.reason is reason
