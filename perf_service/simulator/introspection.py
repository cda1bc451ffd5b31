"""What each engine tells about itself over HTTP: version, models, resolved configuration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from perf_service.simulator.args import ServerOptions, native_values
from perf_service.simulator.core import EngineCore

InfoRoute = Callable[[dict[str, str]], Any]


def info_routes(options: ServerOptions, core: EngineCore) -> dict[str, InfoRoute]:
    """GET routes by path; each takes the query and returns a JSON value."""
    kind = options.engine.flags.engine
    routes: dict[str, InfoRoute] = {"/v1/models": lambda _: _models(options)}
    if kind == "vllm":
        routes["/version"] = lambda _: {"version": options.version}
        if options.dev_mode:
            routes["/server_info"] = lambda query: _vllm_server_info(options, query)
    elif kind == "sglang":
        for path in ("/server_info", "/get_server_info"):
            routes[path] = lambda _: _sglang_server_info(options, core)
        for path in ("/model_info", "/get_model_info"):
            routes[path] = lambda _: {"model_path": options.model_name, "is_generation": True}
    else:
        routes["/info"] = lambda _: _tgi_info(options)
    return routes


def _models(options: ServerOptions) -> dict[str, Any]:
    model = {
        "id": options.model_name, "object": "model", "owned_by": options.engine.flags.engine,
        "root": options.model_name, "max_model_len": options.engine.flags.max_model_len,
    }  # fmt: skip
    return {"object": "list", "data": [model]}


def _vllm_server_info(options: ServerOptions, query: dict[str, str]) -> dict[str, Any]:
    flags, engine = options.engine.flags, options.engine
    config = {
        "model_config": {
            "model": options.model_name,
            "max_model_len": flags.max_model_len,
            "quantization": flags.quantization,
            "served_model_name": options.model_name,
        },
        "cache_config": {
            "block_size": flags.block_size,
            "gpu_memory_utilization": flags.gpu_memory_utilization,
            "cache_dtype": flags.kv_cache_dtype,
            "num_gpu_blocks_override": flags.num_gpu_blocks_override,
            "enable_prefix_caching": flags.enable_prefix_caching,
            "num_gpu_blocks": engine.num_blocks,
            "kv_cache_size_tokens": engine.kv_capacity_tokens,
        },
        "parallel_config": {"tensor_parallel_size": flags.tensor_parallel_size, "data_parallel_size": 1},
        "scheduler_config": {
            "max_num_batched_tokens": flags.max_num_batched_tokens,
            "max_num_seqs": flags.max_num_seqs,
            "max_num_active_seqs": flags.max_num_active_seqs,
            "max_num_queued_reqs": flags.max_num_queued_reqs,
            "long_prefill_token_threshold": flags.long_prefill_token_threshold,
            "enable_chunked_prefill": flags.enable_chunked_prefill,
            "scheduler_reserve_full_isl": flags.scheduler_reserve_full_isl,
            "watermark": flags.watermark,
            "policy": "fcfs",
        },
    }
    return {"vllm_config": config if query.get("config_format") == "json" else str(config)}


def _sglang_server_info(options: ServerOptions, core: EngineCore) -> dict[str, Any]:
    engine = options.engine
    kv_gib = engine.kv_capacity_tokens * engine.hardware.kv_bytes_per_token / 2**30
    state = {
        "effective_max_running_requests_per_dp": engine.flags.max_num_seqs,
        "memory_usage": {
            "weight": engine.hardware.weights_gib,
            "kvcache": round(kv_gib, 2),
            "token_capacity": engine.kv_capacity_tokens,
        },
        "last_gen_throughput": core.gauges.extra.get("gen_throughput", 0.0),
    }
    return {
        "model_path": options.model_name,
        "served_model_name": options.model_name,
        "host": options.host,
        "port": options.port,
        "enable_metrics": options.metrics,
        "schedule_policy": "fcfs",
        **native_values(engine.flags),
        "version": options.version,
        "launch_command": ["python", "-m", "sglang.launch_server", *options.argv],
        "internal_states": [state],
    }


def _tgi_info(options: ServerOptions) -> dict[str, Any]:
    flags = options.engine.flags
    return {
        "model_id": options.model_name,
        "model_sha": None,
        "max_concurrent_requests": flags.max_concurrent_requests,
        "max_best_of": 2,
        "max_stop_sequences": 4,
        "max_input_tokens": flags.max_input_tokens or flags.max_model_len - 1,
        "max_total_tokens": flags.max_model_len,
        "validation_workers": 2,
        "max_client_batch_size": 4,
        "router": "text-generation-router",
        "version": options.version,
        "sha": None,
    }
