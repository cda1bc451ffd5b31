"""SGLang's names, 0.4.3 to 0.5.23 (srt/metrics and srt/observability/metrics_collector.py of the releases)."""

from __future__ import annotations

from typing import Final

from perf_service.collectors.dialects.base import Dialect, GaugeFact, InfoLabel, Merge, Rule, as_int, having
from perf_service.models.metrics import Counter, Engine, Gauge, Hist

_GIB: Final = float(1 << 30)
_POST: Final = having("method", "", "POST")


def _status(first_digit: str) -> tuple[str, frozenset[str], bool]:
    return having("status_code", *(f"{first_digit}{rest:02d}" for rest in range(100)))


_GAUGES: Final = (
    Rule(Gauge.RUNNING_REQUESTS, ("sglang:num_running_reqs",)),
    Rule(Gauge.WAITING_REQUESTS, ("sglang:num_queue_reqs",)),
    Rule(Gauge.GRAMMAR_QUEUE_REQUESTS, ("sglang:num_grammar_queue_reqs",)),
    # Largest over the pools (full attention, sliding window, Mamba); evictable prefix cache counts as free.
    Rule(Gauge.KV_CACHE_USAGE_RATIO, ("sglang:token_usage",), merge=Merge.MEAN),
    Rule(Gauge.KV_CAPACITY_TOKENS, ("sglang:max_total_num_tokens",)),
    Rule(Gauge.KV_USED_TOKENS, ("sglang:kv_used_tokens", "sglang:num_used_tokens")),
    # Of the last prefill batch, not of a window.
    Rule(Gauge.PREFIX_CACHE_HIT_RATIO, ("sglang:cache_hit_rate",), merge=Merge.MEAN),
    Rule(Gauge.KV_EVICTABLE_TOKENS, ("sglang:kv_evictable_tokens",)),
    Rule(Gauge.GENERATION_TOKENS_PER_SECOND, ("sglang:gen_throughput",)),
    # Of the last interval. No multiprocess mode is declared, so it carries a pid.
    Rule(Gauge.RETRACTED_REQUESTS, ("sglang:num_retracted_reqs",)),
    Rule(Gauge.NEW_TOKEN_RATIO, ("sglang:new_token_ratio",), merge=Merge.MEAN),
    Rule(Gauge.FORWARD_OCCUPANCY_RATIO, ("sglang:fwd_occupancy",), merge=Merge.MEAN),
    Rule(Gauge.CUDA_GRAPH_ENABLED, ("sglang:is_cuda_graph",), merge=Merge.MIN),
    Rule(Gauge.SPEC_ACCEPT_LENGTH_TOKENS, ("sglang:spec_accept_length",), merge=Merge.MEAN),
    Rule(Gauge.LORA_SLOTS_USED, ("sglang:lora_pool_slots_used",)),
    # A gauge despite its name.
    Rule(Gauge.LORA_SLOTS_TOTAL, ("sglang:lora_pool_slots_total",)),
    Rule(
        Gauge.STARTUP_AVAILABLE_GPU_MEMORY_BYTES,
        ("sglang:startup_available_gpu_memory_gb",),
        merge=Merge.MIN,
        scale=_GIB,
    ),
    Rule(Gauge.RESIDENT_MEMORY_BYTES, ("process_resident_memory_bytes",), foreign=True),
    Rule(Gauge.OPEN_FILE_DESCRIPTORS, ("process_open_fds",), foreign=True),
)

_COUNTERS: Final = (
    Rule(Counter.PROMPT_TOKENS, ("sglang:prompt_tokens_total",)),
    Rule(Counter.PROMPT_CACHED_TOKENS, ("sglang:cached_tokens_total",)),
    Rule(Counter.GENERATION_TOKENS, ("sglang:generation_tokens_total",)),
    # There is no finish reason: this counts every request that was served to its end.
    Rule(Counter.REQUESTS_SUCCEEDED, ("sglang:num_requests_total",)),
    # Declared without _total before 0.5.3; the page has it all the same.
    Rule(Counter.REQUESTS_ABORTED, ("sglang:num_aborted_requests_total",)),
    # 0.5.7 has the counter; 0.5.6 to 0.5.10 a histogram per request, whose sum are the retractions; 0.4.10 to 0.5.2 a gauge.
    Rule(
        Counter.PREEMPTIONS,
        ("sglang:num_retracted_requests_total", "sglang:num_retractions_sum", "sglang:total_retracted_reqs"),
    ),
    # Since 0.5.18; before, tokens served from the cache over prompt tokens say the same at the end of each request.
    Rule(Counter.PREFIX_CACHE_QUERIES_TOKENS, ("sglang:prefill_effective_tokens_total", "sglang:prompt_tokens_total")),
    Rule(
        Counter.PREFIX_CACHE_HITS_TOKENS,
        ("sglang:prefill_effective_tokens_total", "sglang:cached_tokens_total"),
        where=(having("mode", "", "device_hit", "host_hit", "storage_hit"),),
    ),
    Rule(Counter.EVICTED_TOKENS, ("sglang:evicted_tokens_total",)),
    Rule(Counter.SPEC_DRAFTS, ("sglang:spec_verify_calls_total",)),
    Rule(
        Counter.PROCESS_CPU_SECONDS,
        ("sglang:process_cpu_seconds_total", "process_cpu_seconds_total"),
        foreign=True,
    ),
    Rule(Counter.HTTP_2XX_RESPONSES, ("sglang:http_responses_total",), (_status("2"), _POST), foreign=True),
    Rule(Counter.HTTP_4XX_RESPONSES, ("sglang:http_responses_total",), (_status("4"), _POST), foreign=True),
    Rule(Counter.HTTP_5XX_RESPONSES, ("sglang:http_responses_total",), (_status("5"), _POST), foreign=True),
)

_HISTOGRAMS: Final = (
    Rule(Hist.TTFT_SECONDS, ("sglang:time_to_first_token_seconds",)),
    Rule(Hist.ITL_SECONDS, ("sglang:inter_token_latency_seconds", "sglang:time_per_output_token_seconds")),
    Rule(Hist.TPOT_SECONDS, ("sglang:request_time_per_output_token_seconds",)),
    Rule(Hist.E2E_SECONDS, ("sglang:e2e_request_latency_seconds",)),
    Rule(Hist.QUEUE_SECONDS, ("sglang:queue_time_seconds", "sglang:queue_time_s")),
    # Only the forward passes of the prefill; a chunked prompt has several.
    Rule(
        Hist.PREFILL_SECONDS,
        ("sglang:per_stage_req_latency_seconds",),
        where=(having("stage", "prefill_forward"),),
        derived=True,
    ),
    Rule(Hist.PROMPT_TOKENS, ("sglang:prompt_tokens_histogram",)),
    Rule(Hist.GENERATION_TOKENS, ("sglang:generation_tokens_histogram",)),
    Rule(Hist.PREFILL_COMPUTED_TOKENS, ("sglang:uncached_prompt_tokens_histogram",)),
    Rule(Hist.PREEMPTIONS, ("sglang:num_retractions",)),
)

# Families of 0.4.3 to 0.5.23 that exist and are not used.
_KNOWN_ELSEWHERE: Final = (
    "sglang:avg_request_queue_latency",
    "sglang:backup_",
    "sglang:backuped_tokens_total",
    "sglang:cache_hit_rate",
    "sglang:cached_tokens",
    "sglang:context_len",
    "sglang:cuda_graph_passes",
    "sglang:decode_",
    "sglang:dp_attention_",
    "sglang:dp_cooperation_",
    "sglang:encoder_",
    "sglang:engine_load_weights_time",
    "sglang:engine_startup_time",
    "sglang:eplb_",
    "sglang:estimated_",
    "sglang:evicted_tokens",
    "sglang:eviction_duration_seconds",
    "sglang:failed_session_recoveries",
    "sglang:forward_execution_seconds",
    "sglang:full_token_usage",
    "sglang:func_latency_seconds",
    "sglang:func_latency",
    "sglang:get_loads_duration_seconds",
    "sglang:gpu_execution_seconds",
    "sglang:gpu_overlap_wait_seconds",
    "sglang:grammar_",
    "sglang:graph_memory_usage_gb",
    "sglang:hicache_",
    "sglang:http_",
    "sglang:is_cuda_graph",
    "sglang:kv_available_tokens",
    "sglang:kv_cache_memory_usage_gb",
    "sglang:kv_transfer_",
    "sglang:load_back_",
    "sglang:lora_pool_",
    "sglang:mamba_",
    "sglang:max_running_requests_under_SLO",
    "sglang:max_total_num_tokens_swa",
    "sglang:new_token_ratio",
    "sglang:num_bootstrap_failed_reqs",
    "sglang:num_decode_",
    "sglang:num_grammar_",
    "sglang:num_pages",
    "sglang:num_paused_reqs",
    "sglang:num_prefill_",
    "sglang:num_requests_received",
    "sglang:num_retracted_",
    "sglang:num_running_reqs_offline_batch",
    "sglang:num_so_requests",
    "sglang:num_streaming_sessions",
    "sglang:num_transfer_failed_reqs",
    "sglang:num_unique_running_routing_keys",
    "sglang:page_size",
    "sglang:pending_prealloc_token_usage",
    "sglang:per_stage_req_latency_seconds",
    "sglang:prealloc_",
    "sglang:prefetch_",
    "sglang:prefetched_tokens_total",
    "sglang:prefill_delayer_",
    "sglang:prefill_effective_tokens",
    "sglang:process_cpu_seconds",
    "sglang:queue_time_seconds",
    "sglang:realtime_tokens",
    "sglang:routing_key",
    "sglang:scheduler_",
    "sglang:spec_",
    "sglang:startup_",
    "sglang:storage_",
    "sglang:streaming_session_held_tokens",
    "sglang:swa_",
    "sglang:time_to_first_token_seconds_offline_batch",
    "sglang:utilization",
    "sglang:weight_load_duration_seconds",
    "sglang:weight_memory_usage_gb",
)

SGLANG: Final = Dialect(
    engine=Engine.SGLANG,
    prefix="sglang:",
    aliases=("sglang_",),
    rules=(*_GAUGES, *_COUNTERS, *_HISTOGRAMS),
    rank_labels=("dp_rank",),
    # Every tensor- or pipeline-parallel rank and every process reports the same requests.
    replica_labels=("tp_rank", "pp_rank", "moe_ep_rank", "pid"),
    # With priority scheduling the total stands under priority="".
    totals={"priority": "", "cache_source": "total"},
    # 0.5.9 and 0.5.10 only; then two gauges.
    info_metrics=("sglang:cache_config_info",),
    info_labels=(InfoLabel("page_size", "page_size", as_int),),
    facts=(
        GaugeFact("sglang:max_total_num_tokens", "max_total_num_tokens"),
        GaugeFact("sglang:page_size", "page_size"),
        GaugeFact("sglang:context_len", "context_length"),
    ),
    known_elsewhere=_KNOWN_ELSEWHERE,
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
