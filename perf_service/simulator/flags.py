"""What a simulated engine is told: its launch flags, its step times and the memory of its device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from perf_service.models.errors import ErrorReason, InvalidArgumentError

EngineKind = Literal["vllm", "sglang", "tgi"]

#: KV bytes per token relative to a 16-bit cache, by ``--kv-cache-dtype`` value (prefix match).
_KV_DTYPE_FACTORS = (("fp8", 0.5), ("int8", 0.5), ("nvfp4", 0.28), ("fp4", 0.28), ("float32", 2.0))
#: Weight bytes relative to a 16-bit checkpoint, by ``--quantization`` / ``--quantize`` value (prefix match).
_WEIGHT_FACTORS = (
    ("fp8", 0.5), ("w8a8", 0.5), ("int8", 0.5), ("eetq", 0.5), ("mxfp8", 0.5), ("modelopt", 0.5),
    ("awq", 0.28), ("gptq", 0.28), ("nvfp4", 0.28), ("mxfp4", 0.28), ("marlin", 0.28),
)  # fmt: skip


class FlagError(InvalidArgumentError):
    """The engine refuses to start with these flags; the text says which value and what to do."""

    def __init__(self, message: str, *, reason: ErrorReason = ErrorReason.KNOB_VALUE_INVALID) -> None:
        super().__init__(message, reason=reason)


def _factor(table: tuple[tuple[str, float], ...], value: str | None) -> float:
    return next((f for prefix, f in table if value and value.startswith(prefix)), 1.0)


@dataclass(frozen=True, slots=True)
class StepTimes:
    """Physics of one engine step, in seconds.

    step = base + per_seq * decoding sequences + per_prefill_token * prompt tokens in the step
    + per_context_token * tokens of KV read by the step. The linear form is the one usually fitted
    to iteration times of continuous batching (for example llm-d's queue analyzer:
    ``T(n) = a + n (b tc + g tm)``).

    ``weight_share`` is the part of ``base`` spent on reading weights; it shrinks with weight
    quantization and tensor parallelism.
    """

    base: float = 0.012
    per_seq: float = 0.0004
    per_prefill_token: float = 0.00015
    per_context_token: float = 0.0
    weight_share: float = 0.7

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if not 0 <= value < float("inf"):
                raise FlagError(f"step time {f.name} is {value!r}; it must be a finite number >= 0")
        if self.base + self.per_seq <= 0:
            raise FlagError("a decode step would take no time: step base and per-sequence time are both 0")

    def step(self, decoding: int, prefill_tokens: int, context_tokens: int = 0) -> float:
        """Duration in seconds of a step with this content."""
        return self.base + self.per_seq * decoding + self.per_prefill_token * prefill_tokens + self.per_context_token * context_tokens

    def scaled(self, factor: float) -> StepTimes:
        """The same shape on a machine that is ``factor`` times slower."""
        return replace(
            self,
            base=self.base * factor,
            per_seq=self.per_seq * factor,
            per_prefill_token=self.per_prefill_token * factor,
            per_context_token=self.per_context_token * factor,
        )


@dataclass(frozen=True, slots=True)
class Hardware:
    """Memory of one device, so that memory flags change the KV capacity. Sizes in GiB and bytes.

    The defaults are an 8B model with 16-bit weights and grouped-query attention on a 24 GiB device.
    """

    memory_gib: float = 24.0
    weights_gib: float = 15.0
    kv_bytes_per_token: int = 131072


@dataclass(frozen=True, slots=True)
class EngineFlags:
    """Launch flags of one engine, under vLLM's names; ``args.py`` maps SGLang's and TGI's onto them.

    ``None`` means "as the engine resolves it". Fields that one engine alone knows are ignored by
    the others' schedulers, and its flag parser does not offer them.
    """

    engine: EngineKind = "vllm"
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    max_model_len: int = 8192
    block_size: int = 16
    num_gpu_blocks_override: int | None = None
    gpu_memory_utilization: float = 0.92
    kv_cache_dtype: str = "auto"
    enable_prefix_caching: bool = True
    enable_chunked_prefill: bool = True
    max_num_active_seqs: int | None = None
    max_num_queued_reqs: int | None = None
    long_prefill_token_threshold: int = 0
    watermark: float = 0.0
    scheduler_reserve_full_isl: bool = True
    quantization: str | None = None
    tensor_parallel_size: int = 1
    # SGLang
    max_total_tokens: int | None = None
    max_prefill_tokens: int = 16384
    schedule_conservativeness: float = 1.0
    enable_mixed_chunk: bool = False
    decode_log_interval: int = 40
    # TGI
    max_concurrent_requests: int = 128
    max_batch_total_tokens: int | None = None
    max_input_tokens: int | None = None
    waiting_served_ratio: float = 0.3  # both without effect in a backend that chunks prefill, as in TGI 3
    max_waiting_tokens: int = 20

    def changed(self, changes: Mapping[str, Any]) -> EngineFlags:
        """A copy with some fields changed. Raises FlagError on a name that is not a field."""
        known = {f.name for f in fields(self)}
        unknown = sorted(set(changes) - known)
        if unknown:
            raise FlagError(f"unknown engine flag(s): {', '.join(unknown)}", reason=ErrorReason.KNOB_UNKNOWN)
        return replace(self, **dict(changes))

    @property
    def kv_block_tokens(self) -> int:
        """Tokens per tracked KV block. Pages of one token (SGLang) are tracked in blocks of 16."""
        return self.block_size if self.block_size >= 8 else 16


@dataclass(frozen=True, slots=True)
class ResolvedEngine:
    """Flags after the checks an engine makes at start, with the capacities that follow from them."""

    flags: EngineFlags
    num_blocks: int
    step_times: StepTimes
    hardware: Hardware = field(default_factory=Hardware)

    @property
    def kv_capacity_tokens(self) -> int:
        return self.num_blocks * self.flags.kv_block_tokens


def resolve(flags: EngineFlags, step_times: StepTimes | None = None, hardware: Hardware | None = None) -> ResolvedEngine:
    """Checks the flags as the engine does at start and works out KV capacity and effective step times.

    Raises FlagError with the text that the start-up log would show.
    """
    times, hw = step_times or StepTimes(), hardware or Hardware()
    for name in ("max_num_seqs", "max_num_batched_tokens", "max_model_len", "block_size", "tensor_parallel_size"):
        if getattr(flags, name) < 1:
            raise FlagError(f"{name} is {getattr(flags, name)}; it must be at least 1")
    if not 0 < flags.gpu_memory_utilization <= 1:
        raise FlagError(f"gpu memory fraction is {flags.gpu_memory_utilization}; it must lie in (0, 1]")
    if not 0 <= flags.watermark < 1:
        raise FlagError(f"watermark is {flags.watermark}; it must lie in [0, 1)")
    if flags.schedule_conservativeness <= 0:
        raise FlagError(f"schedule_conservativeness is {flags.schedule_conservativeness}; it must be positive")
    if flags.engine == "vllm":
        _check_vllm(flags)
    if flags.engine == "sglang" and flags.max_num_batched_tokens % flags.block_size:
        raise FlagError(f"chunked_prefill_size ({flags.max_num_batched_tokens}) must be a multiple of page_size ({flags.block_size})")
    num_blocks = _num_blocks(flags, hw)
    usable = num_blocks - 1 if flags.engine == "vllm" else num_blocks  # vLLM keeps one null block
    capacity = usable * flags.kv_block_tokens
    if capacity < flags.max_model_len:
        raise FlagError(
            f"the KV cache holds {capacity} tokens, too few for one request of max_model_len "
            f"{flags.max_model_len}: raise the memory fraction or lower the maximum length"
        )
    shrink = _factor(_WEIGHT_FACTORS, flags.quantization) / flags.tensor_parallel_size
    speed = flags.tensor_parallel_size**0.8  # communication eats part of every added device
    times = replace(
        times,
        base=times.base * (1 - times.weight_share + times.weight_share * shrink),
        per_prefill_token=times.per_prefill_token / speed,
        per_context_token=times.per_context_token / speed,
    )
    return ResolvedEngine(flags, num_blocks, times, hw)


def _check_vllm(flags: EngineFlags) -> None:
    if flags.max_num_batched_tokens < flags.max_num_seqs:
        raise FlagError(
            f"max_num_batched_tokens ({flags.max_num_batched_tokens}) must be greater than or equal to max_num_seqs ({flags.max_num_seqs})"
        )
    if not flags.enable_chunked_prefill and flags.max_num_batched_tokens < flags.max_model_len:
        raise FlagError(
            f"max_num_batched_tokens ({flags.max_num_batched_tokens}) is smaller than max_model_len "
            f"({flags.max_model_len}); without chunked prefill a long prompt could never be scheduled"
        )


def _num_blocks(flags: EngineFlags, hw: Hardware) -> int:
    size = flags.kv_block_tokens
    if flags.num_gpu_blocks_override is not None:
        return flags.num_gpu_blocks_override
    gib = 2**30
    weights = hw.weights_gib * _factor(_WEIGHT_FACTORS, flags.quantization)
    free_gib = hw.memory_gib * flags.tensor_parallel_size * flags.gpu_memory_utilization - weights
    per_token = hw.kv_bytes_per_token * _factor(_KV_DTYPE_FACTORS, flags.kv_cache_dtype)
    tokens = int(free_gib * gib / per_token) if free_gib > 0 else 0
    cap = flags.max_total_tokens if flags.engine == "sglang" else flags.max_batch_total_tokens
    if cap is not None:
        tokens = min(tokens, cap)
    if tokens < size:
        raise FlagError(
            f"no memory is left for the KV cache: weights take {weights:.1f} GiB of "
            f"{hw.memory_gib * flags.gpu_memory_utilization:.1f} GiB; raise the memory fraction"
        )
    return tokens // size
