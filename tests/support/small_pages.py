"""A small vLLM page with a value for each kind of metric."""

from __future__ import annotations

from perf_service.collectors.snapshot import snapshot_of
from perf_service.models.metrics import Engine, Snapshot

TEXT = """
vllm:num_requests_running {running}
vllm:generation_tokens_total {tokens}
vllm:request_success_total{{finished_reason="stop"}} {done}
vllm:e2e_request_latency_seconds_bucket{{le="1"}} {fast}
vllm:e2e_request_latency_seconds_bucket{{le="+Inf"}} {done}
vllm:e2e_request_latency_seconds_sum {seconds}
vllm:e2e_request_latency_seconds_count {done}
process_cpu_seconds_total {cpu}
process_start_time_seconds {start}
"""


def page(
    at: float | None,
    *,
    tokens: float = 0,
    done: float = 0,
    fast: float = 0,
    running: float = 1,
    cpu: float | None = None,
    start: float = 1000.0,
) -> Snapshot:
    """At `at`, `done` requests of 2 s each have ended, `fast` of them within a second."""
    text = TEXT.format(
        running=running,
        tokens=tokens,
        done=done,
        fast=min(fast, done),
        seconds=done * 2.0,
        cpu=(at or 0) / 10 if cpu is None else cpu,
        start=start,
    )
    return snapshot_of(text, "i", engine=Engine.VLLM, collected_at=at)
