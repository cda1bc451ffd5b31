"""A config as command line, environment, Helm values and diff."""

from __future__ import annotations

import shlex

from perf_service.models.config import ConfigChange, EngineConfig, Setting, Source
from perf_service.models.metrics import Engine
from perf_service.optimization import render

PAGE = {
    "block_size": Setting(128, Source.PAGE),
    "gpu_memory_utilization": Setting(0.92, Source.PAGE),
    "enable_prefix_caching": Setting(False, Source.PAGE),
    "num_gpu_blocks": Setting(2048, Source.PAGE),
    "num_gpu_blocks_override": Setting(24, Source.PAGE),
    "kv_cache_memory_bytes": Setting(1 << 30, Source.PAGE),
}


def test_vllm_command_line_has_what_somebody_set_and_nothing_that_the_engine_resolved() -> None:
    config = EngineConfig({**PAGE, "max_num_seqs": Setting(64, Source.USER)})
    words = shlex.split(render.command_line(config, Engine.VLLM, model="org/model", version="0.32.0"))
    assert words[:3] == ["vllm", "serve", "org/model"]
    assert words[3:] == ["--no-enable-prefix-caching", "--num-gpu-blocks-override", "24", "--max-num-seqs", "64"]


def test_sglang_and_tgi_command_lines() -> None:
    sglang = EngineConfig.of({"disable_radix_cache": False, "max_running_requests": 64, "enable_mixed_chunk": True})
    assert render.command_line(sglang, Engine.SGLANG, model="m") == (
        "python -m sglang.launch_server --model-path m --max-running-requests 64 --enable-mixed-chunk"
    )
    tgi = EngineConfig.of({"prefix_caching": True, "cuda_memory_fraction": 0.95})
    assert render.command_line(tgi, Engine.TGI) == (
        "PREFIX_CACHING=1 text-generation-launcher --model-id MODEL --cuda-memory-fraction 0.95"
    )


def test_a_model_name_is_quoted_for_the_shell() -> None:
    line = render.command_line(EngineConfig(), Engine.VLLM, model="a b; rm -rf /")
    assert shlex.split(line) == ["vllm", "serve", "a b; rm -rf /"]


def test_flags_unknown_to_the_catalogue_are_kept_as_given() -> None:
    config = EngineConfig.of({"trust_remote_code": True, "served_model_name": "tiny"})
    assert render.flags(config, Engine.VLLM) == ["--trust-remote-code", "--served-model-name", "tiny"]


def test_tgi_environment_has_every_flag() -> None:
    config = EngineConfig.of({"max_batch_prefill_tokens": 4096, "prefix_caching": False})
    assert render.env(config, Engine.TGI) == {"MAX_BATCH_PREFILL_TOKENS": "4096", "PREFIX_CACHING": "0"}
    assert render.env(config, Engine.TGI, only=True) == {"PREFIX_CACHING": "0"}
    assert render.env(EngineConfig.of({"max_num_seqs": 4}), Engine.VLLM) == {}


def test_helm_values_of_the_production_stack() -> None:
    config = EngineConfig.of({"max_num_seqs": 64, "enable_prefix_caching": False, "watermark": 0.02, "dtype": "bfloat16"})
    assert render.helm_values(config, Engine.VLLM) == (
        'servingEngineSpec:\n  modelSpec:\n    - vllmConfig:\n        maxNumSeqs: 64\n        dtype: "bfloat16"\n'
        '        extraArgs:\n          - "--no-enable-prefix-caching"\n          - "--watermark"\n          - "0.02"\n'
    )


def test_values_of_other_engines_are_a_containers_args_and_env() -> None:
    config = EngineConfig.of({"max_batch_prefill_tokens": 4096, "prefix_caching": True})
    assert render.helm_values(config, Engine.TGI) == (
        'args:\n  - "--max-batch-prefill-tokens"\n  - "4096"\nenv:\n  - name: PREFIX_CACHING\n    value: "1"\n'
    )


def test_diff_is_one_knob_a_line() -> None:
    changes = (
        ConfigChange("max_num_seqs", None, 64),
        ConfigChange("num_gpu_blocks_override", 24, None),
        ConfigChange("enable_prefix_caching", False, True),
    )
    assert render.unified_diff(changes, Engine.VLLM).splitlines() == [
        "--- vllm (current)",
        "+++ vllm (proposed)",
        "-max_num_seqs = (unknown)",
        "+max_num_seqs = 64",
        "-num_gpu_blocks_override = 24",
        "-enable_prefix_caching = false",
        "+enable_prefix_caching = true",
    ]
    assert render.unified_diff((), Engine.VLLM) == ""
