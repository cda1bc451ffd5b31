"""Values that are each valid but do not go together, or with which the engine does not start."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from perf_service.models.config import EngineConfig, Source
from perf_service.models.errors import ErrorReason, InvalidArgumentError
from perf_service.models.metrics import Engine

if TYPE_CHECKING:
    from perf_service.optimization.catalogue.catalogue import KnobCatalogue

# Someone has set these; what a page reports may be the engine's own resolution.
SET_BY_SOMEONE = frozenset({Source.USER, Source.LAUNCH_ARGS})


def kv_capacity_tokens(engine: Engine, config: EngineConfig) -> float | None:
    """KV capacity in tokens that a config states, or None. An override of the number of blocks wins over what a page reported."""
    if engine is Engine.VLLM:
        block = config.number("block_size")
        override = config.number("num_gpu_blocks_override")
        if override and block:
            return override * block
        told = config.number("kv_cache_size_tokens")
        if told:
            return told
        blocks = config.number("num_gpu_blocks")
        return blocks * block if blocks and block else None
    if engine is Engine.SGLANG:
        return config.number("max_total_tokens") or config.number("max_total_num_tokens")
    return config.number("max_batch_total_tokens")


def _vllm(config: EngineConfig) -> Iterable[tuple[str, str]]:
    """(knobs, message) of each rule that vLLM's own config validation holds, vllm/config/{scheduler,vllm}.py."""
    seqs, tokens, length = config.number("max_num_seqs"), config.number("max_num_batched_tokens"), config.number("max_model_len")
    if seqs and tokens and tokens < seqs:
        yield (
            "max_num_batched_tokens max_num_seqs",
            f"max_num_batched_tokens ({tokens:.0f}) must be at least max_num_seqs ({seqs:.0f}): vLLM refuses to start; "
            f"raise it to {seqs:.0f} or lower max_num_seqs",
        )
    if config.get("enable_chunked_prefill") is False and tokens and length and length > 0 and tokens < length:
        yield (
            "max_num_batched_tokens max_model_len enable_chunked_prefill",
            f"without chunked prefill max_num_batched_tokens ({tokens:.0f}) must hold one prompt of max_model_len ({length:.0f}): "
            f"raise it or keep chunked prefill on",
        )
    long_prefill = config.number("long_prefill_token_threshold")
    if long_prefill and length and 0 < length < long_prefill:
        yield (
            "long_prefill_token_threshold max_model_len",
            f"long_prefill_token_threshold ({long_prefill:.0f}) must not be above max_model_len ({length:.0f}): vLLM refuses to start; "
            "lower it, or leave it out as no prompt can be that long",
        )
    active = config.number("max_num_active_seqs")
    if active and seqs and active > seqs:
        yield (
            "max_num_active_seqs max_num_seqs",
            f"max_num_active_seqs ({active:.0f}) above max_num_seqs ({seqs:.0f}) has no effect; lower it or raise max_num_seqs",
        )


def _sglang(config: EngineConfig) -> Iterable[tuple[str, str]]:
    chunk, page = config.number("chunked_prefill_size"), config.number("page_size")
    if chunk and page and chunk > 0 and chunk % page:
        yield (
            "chunked_prefill_size page_size",
            f"chunked_prefill_size ({chunk:.0f}) must be a multiple of page_size ({page:.0f}); use {max(1, chunk // page) * page:.0f}",
        )


def _tgi(config: EngineConfig) -> Iterable[tuple[str, str]]:
    prompt, total = config.number("max_input_tokens"), config.number("max_total_tokens")
    if prompt and total and prompt >= total:
        yield (
            "max_input_tokens max_total_tokens",
            f"max_input_tokens ({prompt:.0f}) must be below max_total_tokens ({total:.0f}): TGI refuses to start",
        )
    budget = config.number("max_batch_prefill_tokens")
    if prompt and budget and budget < prompt and config.get("prefill_chunking") is False:
        yield (
            "max_batch_prefill_tokens max_input_tokens",
            f"max_batch_prefill_tokens ({budget:.0f}) must hold one prompt of max_input_tokens ({prompt:.0f}) without chunking",
        )


_RULES: dict[Engine, Callable[[EngineConfig], Iterable[tuple[str, str]]]] = {
    Engine.VLLM: _vllm,
    Engine.SGLANG: _sglang,
    Engine.TGI: _tgi,
}
_LENGTH = {Engine.VLLM: "max_model_len", Engine.SGLANG: "context_length", Engine.TGI: "max_total_tokens"}
# What changes the KV capacity: with one of them changed the capacity that the page told is no longer the one that will be.
KV_SIZERS = frozenset(
    {"gpu_memory_utilization", "kv_cache_memory_bytes", "kv_cache_dtype", "quantization", "tensor_parallel_size", "mem_fraction_static",
     "tp_size", "cuda_memory_fraction", "quantize", "num_shard"}
)  # fmt: skip


def find_conflicts(
    catalogue: KnobCatalogue, engine: Engine, config: EngineConfig, changed: frozenset[str] | None = None
) -> tuple[str, ...]:
    """What is wrong with a config as a whole, in words. With `changed`, only what concerns one of those knobs: an existing
    oddity that runs is not the change's fault."""
    found: list[str] = []
    for knobs, message in _RULES[engine](config):
        if changed is None or changed.intersection(knobs.split()):
            found.append(message)
    length, capacity = config.number(_LENGTH[engine]), kv_capacity_tokens(engine, config)
    sizing = changed is None or changed & {_LENGTH[engine], "num_gpu_blocks_override", "max_total_tokens", "block_size"}
    resized = changed is not None and changed & KV_SIZERS
    if sizing and not resized and length and capacity and length > capacity and engine is not Engine.TGI:
        found.append(
            f"the KV cache holds {capacity:.0f} tokens, one request of {_LENGTH[engine]} ({length:.0f}) does not fit: "
            f"the engine does not start; lower {_LENGTH[engine]} or give the cache more memory"
        )
    for name in config:
        entry = catalogue.get(engine, name)
        if entry is None or config.source(name) not in SET_BY_SOMEONE:
            continue
        for other in entry.knob.conflicts:
            if config.get(other) is None or config.source(other) not in SET_BY_SOMEONE:
                continue
            if changed is None or changed & {name, other}:
                found.append(f"{name} and {other} exclude each other: set one of them")
    return tuple(dict.fromkeys(found))


def check_config(catalogue: KnobCatalogue, engine: Engine, config: EngineConfig, changed: frozenset[str] | None = None) -> None:
    """Raises InvalidArgumentError (CONFIG_CONFLICT) with the first conflict that `find_conflicts` finds."""
    found = find_conflicts(catalogue, engine, config, changed)
    if found:
        raise InvalidArgumentError(
            found[0], field="changes", reason=ErrorReason.CONFIG_CONFLICT, metadata={"engine": engine.value, "conflicts": str(len(found))}
        )
