"""What an engine tells about itself over HTTP: version, model, and as much of its configuration as it shows.

A normal vLLM shows neither its scheduler limits nor its parallel sizes (only with VLLM_SERVER_DEV_MODE=1); SGLang shows every
resolved argument; TGI its router's limits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from perf_service.collectors.fetch import PageFetcher, base_url
from perf_service.models.config import EngineConfig, KnobValue, Source
from perf_service.models.errors import CollectError, ErrorReason
from perf_service.models.metrics import Engine

# vLLM's VllmConfig (0.9 to 0.33): section -> field -> knob.
_VLLM_SECTIONS: Final[Mapping[str, Mapping[str, str]]] = {
    "scheduler_config": {
        name: name
        for name in (
            "max_num_seqs",
            "max_num_batched_tokens",
            "max_num_active_seqs",
            "long_prefill_token_threshold",
            "max_num_queued_reqs",
            "max_num_queued_tokens",
            "enable_chunked_prefill",
            "scheduler_reserve_full_isl",
            "watermark",
            "prefill_schedule_interval",
            "async_scheduling",
            "stream_interval",
        )
    }
    | {"chunked_prefill_enabled": "enable_chunked_prefill", "policy": "scheduling_policy"},
    "cache_config": {
        "block_size": "block_size",
        "gpu_memory_utilization": "gpu_memory_utilization",
        "cache_dtype": "kv_cache_dtype",
        "num_gpu_blocks": "num_gpu_blocks",
        "num_gpu_blocks_override": "num_gpu_blocks_override",
        "enable_prefix_caching": "enable_prefix_caching",
        "prefix_caching_hash_algo": "prefix_caching_hash_algo",
        "kv_cache_memory_bytes": "kv_cache_memory_bytes",
        "kv_offloading_size": "kv_offloading_size",
        "kv_cache_size_tokens": "kv_cache_size_tokens",
        "cpu_offload_gb": "cpu_offload_gb",
        "swap_space": "swap_space",
    },
    "model_config": {
        "max_model_len": "max_model_len",
        "quantization": "quantization",
        "enforce_eager": "enforce_eager",
        "dtype": "dtype",
        "model": "model",
    },
    "parallel_config": {
        "tensor_parallel_size": "tensor_parallel_size",
        "pipeline_parallel_size": "pipeline_parallel_size",
        "data_parallel_size": "data_parallel_size",
        "enable_expert_parallel": "enable_expert_parallel",
        "_api_process_count": "api_server_count",
    },
}

# SGLang's ServerArgs that are knobs. An allow-list: the answer also holds API keys.
_SGLANG_KNOBS: Final = (
    "model_path",
    "mem_fraction_static",
    "max_total_tokens",
    "max_total_num_tokens",
    "kv_cache_dtype",
    "page_size",
    "context_length",
    "disable_radix_cache",
    "radix_eviction_policy",
    "enable_hierarchical_cache",
    "hicache_ratio",
    "hicache_size",
    "cpu_offload_gb",
    "swa_full_tokens_ratio",
    "max_running_requests",
    "max_queued_requests",
    "chunked_prefill_size",
    "max_prefill_tokens",
    "prefill_max_requests",
    "schedule_policy",
    "schedule_conservativeness",
    "enable_mixed_chunk",
    "prefill_decode_interval",
    "num_continuous_decode_steps",
    "retraction_policy",
    "enable_priority_scheduling",
    "stream_interval",
    "disable_overlap_schedule",
    "disable_cuda_graph",
    "cuda_graph_max_bs",
    "cuda_graph_max_bs_decode",
    "quantization",
    "tp_size",
    "pp_size",
    "dp_size",
    "ep_size",
    "attn_dp_size",
    "enable_dp_attention",
    "attention_backend",
    "speculative_algorithm",
    "speculative_num_steps",
    "speculative_eagle_topk",
    "speculative_num_draft_tokens",
    "disaggregation_mode",
    "enable_torch_compile",
    "dtype",
)

# TGI's /info, 2.x and 3.x.
_TGI_KNOBS: Final = {
    "model_id": "model_id",
    "max_concurrent_requests": "max_concurrent_requests",
    "max_input_tokens": "max_input_tokens",
    "max_input_length": "max_input_tokens",
    "max_total_tokens": "max_total_tokens",
    "max_batch_total_tokens": "max_batch_total_tokens",
    "max_batch_prefill_tokens": "max_batch_prefill_tokens",
    "max_waiting_tokens": "max_waiting_tokens",
    "max_batch_size": "max_batch_size",
    "waiting_served_ratio": "waiting_served_ratio",
    "max_client_batch_size": "max_client_batch_size",
    "validation_workers": "validation_workers",
    "model_dtype": "dtype",
}

# Asked in this order; what is not there (404) is passed over.
_PATHS: Final[Mapping[Engine, tuple[str, ...]]] = {
    Engine.VLLM: ("/version", "/v1/models", "/server_info?config_format=json"),
    Engine.SGLANG: ("/server_info", "/get_server_info", "/v1/models"),
    Engine.TGI: ("/info",),
}


@dataclass(frozen=True, slots=True)
class Discovery:
    """What an engine told. `answered` are the paths that did."""

    engine_version: str = ""
    model_name: str = ""
    config: EngineConfig = field(default_factory=EngineConfig)
    answered: tuple[str, ...] = ()

    def merged(self, other: Discovery) -> Discovery:
        """This one, completed by another."""
        return Discovery(
            self.engine_version or other.engine_version,
            self.model_name or other.model_name,
            self.config.over(other.config),
            (*self.answered, *other.answered),
        )


async def discover(fetcher: PageFetcher, engine: Engine, endpoint: str) -> Discovery:
    """Ask the engine at `endpoint`. Endpoints that are missing or answer nonsense are passed over; none of them is required.

    Raises:
        CollectError: ENDPOINT_INVALID, ENDPOINT_FORBIDDEN, ENDPOINT_UNREACHABLE: the server itself cannot be asked.
    """
    base = base_url(endpoint)
    found = Discovery()
    for path in _PATHS[engine]:
        if path == "/get_server_info" and "/server_info" in found.answered:
            continue
        try:
            content = await fetcher.fetch_json(base + path)
        except CollectError as error:
            if error.reason in (ErrorReason.ENDPOINT_INVALID, ErrorReason.ENDPOINT_FORBIDDEN, ErrorReason.ENDPOINT_UNREACHABLE):
                raise
            continue
        found = found.merged(replace(read_answer(engine, path, content), answered=(path,)))
    return found


def read_answer(engine: Engine, path: str, content: Mapping[str, Any]) -> Discovery:
    """What one endpoint's JSON object tells. What is not understood is left out."""
    path = path.partition("?")[0]
    if path == "/v1/models":
        return _models(engine, content)
    if path == "/version":
        return Discovery(engine_version=_text(content.get("version")))
    if path in ("/server_info", "/get_server_info"):
        return _vllm_server_info(content) if engine is Engine.VLLM else _sglang_server_info(content)
    if path == "/info":
        return _tgi_info(content)
    return Discovery()


def _models(engine: Engine, content: Mapping[str, Any]) -> Discovery:
    data = content.get("data")
    first = data[0] if isinstance(data, list) and data and isinstance(data[0], dict) else {}
    knob = {Engine.VLLM: "max_model_len", Engine.SGLANG: "context_length"}.get(engine)
    length = first.get("max_model_len")
    values: dict[str, KnobValue] = {knob: length} if knob and isinstance(length, int) and not isinstance(length, bool) else {}
    return Discovery(model_name=_text(first.get("id")), config=EngineConfig.of(values, Source.SERVER_INFO))


def _vllm_server_info(content: Mapping[str, Any]) -> Discovery:
    config = content.get("vllm_config")
    if not isinstance(config, dict):
        return Discovery()
    values: dict[str, KnobValue] = {}
    for section, names in _VLLM_SECTIONS.items():
        told = config.get(section)
        if isinstance(told, dict):
            values |= _knobs(told, names)
    if isinstance(values.get("dtype"), str):
        values["dtype"] = str(values["dtype"]).removeprefix("torch.")
    model = config.get("model_config")
    name = model.get("served_model_name") if isinstance(model, dict) else None
    return Discovery(model_name=_text(name), config=EngineConfig.of(values, Source.SERVER_INFO))


def _sglang_server_info(content: Mapping[str, Any]) -> Discovery:
    values = _knobs(content, {name: name for name in _SGLANG_KNOBS})
    states = content.get("internal_states")
    state = states[0] if isinstance(states, list) and states and isinstance(states[0], dict) else {}
    effective = state.get("effective_max_running_requests_per_dp")
    if "max_running_requests" not in values and isinstance(effective, int) and effective > 0:
        values["max_running_requests"] = effective
    return Discovery(
        engine_version=_text(content.get("version")),
        model_name=_text(content.get("served_model_name")),
        config=EngineConfig.of(values, Source.SERVER_INFO),
    )


def _tgi_info(content: Mapping[str, Any]) -> Discovery:
    return Discovery(
        engine_version=_text(content.get("version")),
        model_name=_text(content.get("model_id")),
        config=EngineConfig.of(_knobs(content, _TGI_KNOBS), Source.SERVER_INFO),
    )


def _knobs(content: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, KnobValue]:
    return {knob: content[name] for name, knob in names.items() if isinstance(content.get(name), bool | int | float | str)}


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
