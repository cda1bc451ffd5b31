"""The optimizers' own config objects, and reading any of the shapes in which a caller may hold a current config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from perf_service.models.config import EngineConfig, KnobValue
from perf_service.models.errors import InvalidArgumentError
from perf_service.models.metrics import Engine
from perf_service.optimization.catalogue import KnobCatalogue


@dataclass(frozen=True, slots=True)
class KVCacheConfig:
    """KV cache settings in vLLM's words, whatever the engine. None: unknown or left to the engine."""

    max_model_len: int | None = None  # tokens
    enable_prefix_caching: bool | None = None
    gpu_memory_utilization: float | None = None  # ratio (SGLang mem_fraction_static, TGI cuda_memory_fraction)
    kv_cache_dtype: str | None = None
    block_size: int | None = None  # tokens
    num_gpu_blocks_override: int | None = None
    watermark: float | None = None


@dataclass(frozen=True, slots=True)
class BatchingConfig:
    """Batching settings, whatever the engine. None: unknown or left to the engine."""

    max_batch_size: int | None = None  # sequences in a step
    max_num_batched_tokens: int | None = None  # token budget of a step (SGLang chunked_prefill_size)
    enable_chunked_prefill: bool | None = None
    schedule_conservativeness: float | None = None  # SGLang only

    @property
    def max_num_seqs(self) -> int | None:
        """vLLM's name of `max_batch_size`."""
        return self.max_batch_size


@dataclass(frozen=True, slots=True)
class QuantizationConfig:
    """Precision settings. `method` is the engine's own value."""

    method: str | None = None
    target_bits: int | None = None
    kv_cache_dtype: str | None = None

    @property
    def quantization(self) -> str | None:
        """The engines' name of `method`."""
        return self.method


OptimizerConfig = KVCacheConfig | BatchingConfig | QuantizationConfig
ConfigLike = EngineConfig | OptimizerConfig | Mapping[str, KnobValue | None] | None

# Field -> knob where the engine's word differs from the field and is no alias of it in the catalogue.
_FIELD_TO_KNOB = {"method": "quantization"}
_INVERTED = {Engine.SGLANG: {"enable_prefix_caching": "disable_radix_cache"}}


def read_config(catalogue: KnobCatalogue, engine: Engine, current: ConfigLike) -> EngineConfig:
    """An EngineConfig in the engine's own names. Raises InvalidArgumentError where the shape is none that is known."""
    if current is None:
        return EngineConfig()
    if isinstance(current, EngineConfig):
        return EngineConfig({catalogue.resolve(engine, name): setting for name, setting in current.settings.items()})
    if isinstance(current, KVCacheConfig | BatchingConfig | QuantizationConfig):
        values = {_FIELD_TO_KNOB.get(f.name, f.name): getattr(current, f.name) for f in fields(current) if f.name != "target_bits"}
    elif isinstance(current, Mapping):
        values = dict(current)
    else:
        raise InvalidArgumentError(
            f"current_config must be a mapping of knob to value or a config object, not {type(current).__name__}", field="current_config"
        )
    for field_name, knob in _INVERTED.get(engine, {}).items():
        if isinstance(values.get(field_name), bool):
            values[knob] = not values.pop(field_name)
    return catalogue.config(engine, values)


def read_engine(instance_type: Engine | str) -> Engine:
    """The engine of its name. Raises InvalidArgumentError naming the known ones."""
    try:
        return Engine(str(instance_type).strip().lower())
    except ValueError as error:
        raise InvalidArgumentError(
            f"instance type {instance_type!r} is not known; use one of {', '.join(Engine)}", field="instance_type"
        ) from error
