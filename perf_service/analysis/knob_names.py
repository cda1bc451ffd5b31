"""What each engine calls the three knobs that findings speak of, as its own launch flags are named."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from perf_service.models.metrics import Engine

SEQUENCE_LIMIT: Final[Mapping[Engine, str]] = {
    Engine.VLLM: "max_num_seqs",
    Engine.SGLANG: "max_running_requests",
    Engine.TGI: "max_batch_size",
}
"""The most requests that run together."""
TOKEN_BUDGET: Final[Mapping[Engine, str]] = {
    Engine.VLLM: "max_num_batched_tokens",
    Engine.SGLANG: "chunked_prefill_size",
    Engine.TGI: "max_batch_prefill_tokens",
}
"""The most prompt tokens of one step."""
MEMORY_SHARE: Final[Mapping[Engine, str]] = {
    Engine.VLLM: "gpu_memory_utilization",
    Engine.SGLANG: "mem_fraction_static",
    Engine.TGI: "cuda_memory_fraction",
}
"""The share of the accelerator's memory that the engine takes; what its model leaves of it is KV cache."""
