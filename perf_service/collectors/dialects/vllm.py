"""vLLM's names, 0.6 (V0 engine) to 0.33 (vllm/engine/metrics.py and vllm/v1/metrics/loggers.py of the releases)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from perf_service.collectors.dialects.base import (
    Dialect,
    InfoLabel,
    Merge,
    NameList,
    Rule,
    as_bool,
    as_float,
    as_int,
    as_text,
    having,
    lacking,
)
from perf_service.models.metrics import Counter, Engine, Gauge, Hist

_POST: Final = having("method", "", "POST")

_GAUGES: Final = (
    Rule(Gauge.RUNNING_REQUESTS, ("vllm:num_requests_running",)),
    Rule(Gauge.WAITING_REQUESTS, ("vllm:num_requests_waiting",)),
    # Since 0.20. "deferred" is waiting that a larger batch does not cure (LoRA slots, KV transfer).
    Rule(Gauge.WAITING_CAPACITY_REQUESTS, ("vllm:num_requests_waiting_by_reason",), where=(having("reason", "capacity"),)),
    Rule(Gauge.WAITING_DEFERRED_REQUESTS, ("vllm:num_requests_waiting_by_reason",), where=(having("reason", "deferred"),)),
    # A ratio despite its name. Renamed in 0.9.2, both exposed until 0.10.2. Every rank has a cache of the same size.
    Rule(Gauge.KV_CACHE_USAGE_RATIO, ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"), merge=Merge.MEAN),
    # V0 only; V1 has counters.
    Rule(Gauge.PREFIX_CACHE_HIT_RATIO, ("vllm:gpu_prefix_cache_hit_rate",), merge=Merge.MEAN),
    Rule(Gauge.GENERATION_TOKENS_PER_SECOND, ("vllm:avg_generation_throughput_toks_per_s",)),
    Rule(Gauge.ENGINE_AWAKE, ("vllm:engine_sleep_state",), where=(having("sleep_state", "awake"),), merge=Merge.MIN),
    Rule(Gauge.RESIDENT_MEMORY_BYTES, ("process_resident_memory_bytes",), foreign=True),
    Rule(Gauge.OPEN_FILE_DESCRIPTORS, ("process_open_fds",), foreign=True),
)

_COUNTERS: Final = (
    Rule(Counter.PROMPT_TOKENS, ("vllm:prompt_tokens_total",)),
    Rule(Counter.PROMPT_CACHED_TOKENS, ("vllm:prompt_tokens_cached_total",)),
    Rule(Counter.GENERATION_TOKENS, ("vllm:generation_tokens_total",)),
    # Every finish is counted here, aborts and errors included.
    Rule(
        Counter.REQUESTS_SUCCEEDED,
        ("vllm:request_success_total",),
        where=(lacking("finished_reason", "abort", "error"),),
    ),
    Rule(Counter.REQUESTS_ABORTED, ("vllm:request_success_total",), where=(having("finished_reason", "abort"),)),
    Rule(Counter.REQUESTS_FAILED, ("vllm:request_success_total",), where=(having("finished_reason", "error"),)),
    Rule(Counter.REQUESTS_FAILED, ("vllm:request_failure_total",)),
    Rule(Counter.REQUESTS_REJECTED, ("vllm:admission_rejections_total",)),
    Rule(Counter.PREEMPTIONS, ("vllm:num_preemptions_total",)),
    Rule(
        Counter.PREFIX_CACHE_QUERIES_TOKENS,
        ("vllm:prefix_cache_queries_total", "vllm:gpu_prefix_cache_queries_total"),
    ),
    Rule(Counter.PREFIX_CACHE_HITS_TOKENS, ("vllm:prefix_cache_hits_total", "vllm:gpu_prefix_cache_hits_total")),
    Rule(Counter.SPEC_DRAFTS, ("vllm:spec_decode_num_drafts_total",)),
    Rule(Counter.SPEC_DRAFT_TOKENS, ("vllm:spec_decode_num_draft_tokens_total",)),
    Rule(Counter.SPEC_ACCEPTED_TOKENS, ("vllm:spec_decode_num_accepted_tokens_total",)),
    Rule(Counter.PROCESS_CPU_SECONDS, ("process_cpu_seconds_total",), foreign=True),
    # GETs are probes and model lists.
    Rule(Counter.HTTP_2XX_RESPONSES, ("http_requests_total",), (having("status", "2xx"), _POST), foreign=True),
    Rule(Counter.HTTP_4XX_RESPONSES, ("http_requests_total",), (having("status", "4xx"), _POST), foreign=True),
    Rule(Counter.HTTP_5XX_RESPONSES, ("http_requests_total",), (having("status", "5xx"), _POST), foreign=True),
)

_HISTOGRAMS: Final = (
    Rule(Hist.TTFT_SECONDS, ("vllm:time_to_first_token_seconds",)),
    # The old name has the same per-token meaning; hidden from 0.12, gone by 0.16.
    Rule(Hist.ITL_SECONDS, ("vllm:inter_token_latency_seconds", "vllm:time_per_output_token_seconds")),
    Rule(Hist.TPOT_SECONDS, ("vllm:request_time_per_output_token_seconds",)),
    Rule(Hist.E2E_SECONDS, ("vllm:e2e_request_latency_seconds",)),
    Rule(Hist.QUEUE_SECONDS, ("vllm:request_queue_time_seconds", "vllm:time_in_queue_requests")),
    Rule(Hist.PREFILL_SECONDS, ("vllm:request_prefill_time_seconds",)),
    Rule(Hist.DECODE_SECONDS, ("vllm:request_decode_time_seconds",)),
    Rule(Hist.INFERENCE_SECONDS, ("vllm:request_inference_time_seconds",)),
    Rule(Hist.PROMPT_TOKENS, ("vllm:request_prompt_tokens",)),
    Rule(Hist.GENERATION_TOKENS, ("vllm:request_generation_tokens",)),
    Rule(Hist.MAX_TOKENS, ("vllm:request_params_max_tokens",)),
    Rule(Hist.PREFILL_COMPUTED_TOKENS, ("vllm:request_prefill_kv_computed_tokens",)),
    # A histogram despite its name.
    Rule(Hist.ITERATION_TOKENS, ("vllm:iteration_tokens_total",)),
    Rule(Hist.PREEMPTIONS, ("vllm:request_num_preemptions",)),
    Rule(Hist.HTTP_SECONDS, ("http_request_duration_highr_seconds",), foreign=True),
)

# Labels of vllm:cache_config_info and, the last, of vllm:lora_requests_info. The set changes every few releases, so each is optional.
_INFO: Final = (
    InfoLabel("block_size", "block_size", as_int),
    InfoLabel("gpu_memory_utilization", "gpu_memory_utilization", as_float),
    InfoLabel("cache_dtype", "kv_cache_dtype", as_text),
    InfoLabel("num_gpu_blocks", "num_gpu_blocks", as_int),
    InfoLabel("num_gpu_blocks_override", "num_gpu_blocks_override", as_int),
    InfoLabel("enable_prefix_caching", "enable_prefix_caching", as_bool),
    InfoLabel("prefix_caching_hash_algo", "prefix_caching_hash_algo", as_text),
    InfoLabel("sliding_window", "sliding_window", as_int),
    InfoLabel("swap_space", "swap_space", as_float),
    InfoLabel("cpu_offload_gb", "cpu_offload_gb", as_float),
    InfoLabel("kv_cache_memory_bytes", "kv_cache_memory_bytes", as_int),
    InfoLabel("kv_offloading_size", "kv_offloading_size", as_float),
    InfoLabel("kv_cache_size_tokens", "kv_cache_size_tokens", as_int),
    InfoLabel("kv_cache_max_concurrency", "kv_cache_max_concurrency", as_float),
    InfoLabel("max_lora", "max_loras", as_int),
)


def capacity_tokens(info: Mapping[str, str]) -> float | None:
    """KV capacity of one rank: `kv_cache_size_tokens` (since 0.26), else blocks times block size.

    The product is too large for hybrid models, whose layers do not all keep every token.
    """
    told = as_int(info.get("kv_cache_size_tokens", ""))
    if told:
        return float(told)
    blocks, size = as_int(info.get("num_gpu_blocks", "")), as_int(info.get("block_size", ""))
    return float(blocks) * float(size) if blocks and size else None


VLLM: Final = Dialect(
    engine=Engine.VLLM,
    prefix="vllm:",
    aliases=("vllm_",),
    rules=(*_GAUGES, *_COUNTERS, *_HISTOGRAMS),
    rank_labels=("engine",),
    replica_labels=("pid",),
    info_metrics=("vllm:cache_config_info", "vllm:lora_requests_info"),
    info_labels=_INFO,
    # One series for each set of adapters that ran or waited together, kept for the life of the process.
    name_lists=(NameList(("running_lora_adapters", "waiting_lora_adapters"), Gauge.LORA_ADAPTERS_SEEN),),
    capacity_tokens=capacity_tokens,
    start_names=("process_start_time_seconds",),
    known_elsewhere=(
        "vllm:num_requests_kv_fetch_by_stage",
        "vllm:num_requests_waiting_by_reason",
        "vllm:num_requests_swapped",
        "vllm:cpu_cache_usage_perc",
        "vllm:cpu_prefix_cache_hit_rate",
        "vllm:avg_prompt_throughput_toks_per_s",
        "vllm:model_forward_time_milliseconds",
        "vllm:model_execute_time_milliseconds",
        "vllm:tokens_total",
        "vllm:engine_sleep_state",
        "vllm:prompt_tokens_by_source_total",
        "vllm:prompt_tokens_cached_by_source_total",
        "vllm:prompt_tokens_recomputed_total",
        "vllm:external_prefix_cache_",
        "vllm:mm_cache_",
        "vllm:spec_decode_",
        "vllm:estimated_",
        "vllm:corrupted_requests_total",
        "vllm:watermark_requests_total",
        "vllm:request_max_num_generation_tokens",
        "vllm:request_params_n",
        "vllm:request_params_best_of",
        "vllm:kv_block_",
        "vllm:sleep_mode_",
        "vllm:rl_weight_update_",
        "vllm:websocket_connection",
        "vllm:tool_call_parser_",
        "vllm:diffusion_",
        "vllm:kv_offload_",
        "vllm:simple_kv_offload_",
        "vllm:nixl_",
        "vllm:mooncake_",
        "vllm:hf3fs_",
        "vllm:hisparse_",
        "vllm:umbp_transfer_",
    ),
    core=(
        Gauge.RUNNING_REQUESTS,
        Gauge.WAITING_REQUESTS,
        Gauge.KV_CACHE_USAGE_RATIO,
        Counter.GENERATION_TOKENS,
        Counter.REQUESTS_SUCCEEDED,
        Hist.TTFT_SECONDS,
        Hist.E2E_SECONDS,
    ),
)
