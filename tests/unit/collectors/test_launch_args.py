"""Command lines in every form deployments write them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from perf_service.collectors.launch_args import parse_launch_args, parse_settings
from perf_service.models.config import Source
from perf_service.models.errors import InvalidArgumentError
from perf_service.models.metrics import Engine


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ("vllm serve tiny --max-num-seqs 64", {"model": "tiny", "max_num_seqs": 64}),
        (["vllm", "serve", "tiny", "--max_num_seqs=64"], {"model": "tiny", "max_num_seqs": 64}),
        (["--max-num-seqs", "64", "--max-num-seqs=8"], {"max_num_seqs": 8}),
        ("--no-enable-prefix-caching", {"enable_prefix_caching": False}),
        ("--enable-prefix-caching --enable-chunked-prefill=false", {"enable_prefix_caching": True, "enable_chunked_prefill": False}),
        ("--enforce-eager tiny --gpu-memory-utilization .85", {"enforce_eager": True, "gpu_memory_utilization": 0.85}),
        ("--max-model-len 16k --max-num-batched-tokens 2K", {"max_model_len": 16000, "max_num_batched_tokens": 2048}),
        ("-tp 2 -O3 -q fp8", {"tensor_parallel_size": 2, "quantization": "fp8"}),
        (["sh", "-c", "exec vllm serve x --max-num-seqs 4 && echo done"], {"model": "x", "max_num_seqs": 4}),
        (["/bin/bash", "-lc", "cd /x; FOO=1 vllm serve x \\\n --max-num-seqs '4'"], {"model": "x", "max_num_seqs": 4}),
        (["vllm serve x --max-num-seqs 4"], {"model": "x", "max_num_seqs": 4}),
        ("python -m vllm.entrypoints.openai.api_server --model m --api-key hush", {"model": "m"}),
        ("--max-num-batched-tokens 32", {"max_num_batched_tokens": 32}),
        ("--long-prefill-token-threshold -1 --kv-cache-dtype fp8", {"long_prefill_token_threshold": -1, "kv_cache_dtype": "fp8"}),
        ('--speculative-config \'{"method": "ngram", "n": 3}\'', {"speculative_config.method": "ngram", "speculative_config.n": 3}),
        ("--custom-histogram-buckets '{\"x\": [1]}'", {"custom_histogram_buckets": '{"x": [1]}'}),
        ("--device-memory-utilization 0.9", {"gpu_memory_utilization": 0.9}),
        ("", {}),
        ([], {}),
    ],
)
def test_vllm(args: str | Sequence[str], expected: dict[str, Any]) -> None:
    config = parse_launch_args(Engine.VLLM, args)
    assert config.values() == expected
    assert all(config.source(knob) is Source.LAUNCH_ARGS for knob in config)


def test_sglang_aliases_and_switches() -> None:
    config = parse_launch_args(
        Engine.SGLANG,
        "python -m sglang.launch_server --model-path m --tp 2 --data-parallel-size 2 --disable-radix-cache --mem-fraction-static 0.8 "
        "--schedule-conservativeness 1.3 --chunked-prefill-size -1",
    )
    assert config.values() == {
        "model_path": "m",
        "tp_size": 2,
        "dp_size": 2,
        "disable_radix_cache": True,
        "mem_fraction_static": 0.8,
        "schedule_conservativeness": 1.3,
        "chunked_prefill_size": -1,
    }


def test_tgi_reads_its_environment_and_the_command_line_wins() -> None:
    config = parse_launch_args(
        Engine.TGI,
        "text-generation-launcher --max-batch-prefill-tokens 2048",
        {"MAX_BATCH_PREFILL_TOKENS": "4096", "MAX_CONCURRENT_REQUESTS": "64", "HF_TOKEN": "hush", "CUDA_GRAPHS": "1,2,4"},
    )
    assert config.values() == {"max_batch_prefill_tokens": 2048, "max_concurrent_requests": 64, "cuda_graphs": "1,2,4"}
    inline = parse_launch_args(Engine.TGI, "MAX_BATCH_SIZE=4 text-generation-launcher --model-id m")
    assert inline.values() == {"max_batch_size": 4, "model_id": "m"}


def test_unbalanced_quotes_are_an_error() -> None:
    with pytest.raises(InvalidArgumentError, match="cannot be split"):
        parse_launch_args(Engine.VLLM, "--model 'x")


def test_settings_as_people_type_them() -> None:
    config = parse_settings(Engine.VLLM, ["max_num_seqs=256", "--enable-prefix-caching=false", "kv_cache_dtype= fp8 "])
    assert config.values() == {"max_num_seqs": 256, "enable_prefix_caching": False, "kv_cache_dtype": "fp8"}
    assert config.source("max_num_seqs") is Source.USER
    for text in ("max_num_seqs", "=5", ""):
        with pytest.raises(InvalidArgumentError, match="is not a setting"):
            parse_settings(Engine.VLLM, [text])
