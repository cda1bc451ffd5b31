"""What a config means for the model: its limits now and after a change, with every value that is not known told or spread out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from perf_service.models.config import ConfigChange, EngineConfig, Source
from perf_service.models.metrics import Engine, Gauge
from perf_service.models.window import Window
from perf_service.optimization.catalogue import KnobCatalogue, kv_capacity_tokens
from perf_service.optimization.predictor.service import Limits
from perf_service.optimization.predictor.workload import Workload

# How many KV tokens an accelerator with a given share of memory more may gain: the weights are fixed, so the cache grows by more
# than the share; by at most this factor of it, where the cache is at least a fifth of the memory.
_MEMORY_LEVERAGE = (1.0, 2.0, 5.0)
_MEMORY_KNOBS = frozenset({"gpu_memory_utilization", "mem_fraction_static", "cuda_memory_fraction"})
_SEQUENCE_KNOBS = frozenset({"max_num_seqs", "max_num_active_seqs", "max_running_requests", "max_batch_size"})
_BUDGET_KNOBS = frozenset({"max_num_batched_tokens", "chunked_prefill_size", "max_batch_prefill_tokens"})
_POOL_KNOBS = frozenset({"num_gpu_blocks_override", "max_total_tokens"})
_PREFIX_KNOBS = frozenset({"enable_prefix_caching", "disable_radix_cache", "prefix_caching"})
MODELLED = _MEMORY_KNOBS | _SEQUENCE_KNOBS | _BUDGET_KNOBS | _POOL_KNOBS | _PREFIX_KNOBS | {"watermark", "schedule_conservativeness"}

# Share of the prompt tokens that a prefix cache would serve, where nothing tells: from nothing shared to a long system prompt.
UNKNOWN_HIT_RATIOS = (0.0, 0.2, 0.4, 0.6, 0.8, 0.95)
_PREEMPTIONS_IF_FULL = 0.3  # per request, where the cache fills up and none was seen yet


@dataclass(frozen=True, slots=True)
class Scenario:
    """One way in which the change may turn out: limits, and the share of prompt tokens served from the prefix cache."""

    weight: float
    limits: Limits
    hit_ratio: float | None = None  # None: as now


@dataclass(frozen=True, slots=True)
class Scenarios:
    """The limits now, the ways after the change, and what had to be assumed."""

    now: Limits
    after: tuple[Scenario, ...]
    notes: tuple[str, ...] = ()
    impossible: str = ""  # why nothing can be predicted; empty: it can
    unmodelled: tuple[str, ...] = field(default=())


# What a token budget may be that is not told, where it is about to be changed.
_BUDGETS = (32, 64, 128, 256, 512)


def budgets_of(config: EngineConfig, changes: Sequence[ConfigChange], load: Workload) -> list[EngineConfig]:
    """What to assume of a token budget that is to change and whose present value is not known: one config for each hypothesis.

    Requests that wait while few run, with prompts of several hundred tokens, are what a small budget looks like; then every value
    that cuts the mean prompt into at least two chunks is allowed for. Otherwise it is taken not to bind.
    """
    change = next((c for c in changes if c.parameter in _BUDGET_KNOBS and config.number(c.parameter) is None), None)
    if change is None or load.waiting < 0.5:
        return [EngineConfig()]
    target = change.recommended_value
    ceiling = min(load.computed / 2, float(target) if isinstance(target, int) and target > 0 else math.inf)
    fitting = [b for b in _BUDGETS if b < ceiling]
    return [EngineConfig.of({change.parameter: b}, Source.INFERRED) for b in fitting] or [EngineConfig()]


def scenarios_of(
    engine: Engine,
    config: EngineConfig,
    changes: Sequence[ConfigChange],
    windows: Sequence[Window],
    load: Workload,
    version: str,
    catalogue: KnobCatalogue,
    *,
    budget_told: bool = True,
) -> Scenarios:
    """Reads the config and its changes into the model's terms. Without `budget_told` the config's token budget is a hypothesis."""
    notes: list[str] = []
    now = _limits_now(engine, config, windows, load, version, catalogue, notes, infer_sequences=budget_told)
    if not budget_told:
        notes.append(f"the present token budget is not known: {_BUDGETS[0]} to {_BUDGETS[-1]} tokens are allowed for")
    unmodelled = tuple(c.parameter for c in changes if c.parameter not in MODELLED or _cuts_only_the_longest(c, now, load))
    unknown = tuple(c.parameter for c in changes if c.parameter not in MODELLED)
    why = [f"the effect of {', '.join(unknown)} on time is not modelled"] if unknown else []
    if len(unknown) < len(unmodelled):
        why.append("a token budget above the mean prompt cuts only longer prompts, which a model of mean prompts does not see")
    if changes and len(unmodelled) == len(changes):
        return Scenarios(now, (), tuple(notes), "; ".join(why), unmodelled)
    notes += why
    after: list[Scenario] = [Scenario(1.0, now)]
    for change in changes:
        if change.parameter in _BUDGET_KNOBS and config.number(change.parameter) is None:
            notes.append(f"the present {change.parameter} is not known; nothing shows that it binds, so it is taken not to")
        after = [s for old in after for s in _apply(engine, config, change, old, load, notes)]
    return Scenarios(now, tuple(after), tuple(dict.fromkeys(notes)), "", unmodelled)


def _cuts_only_the_longest(change: ConfigChange, now: Limits, load: Workload) -> bool:
    """Whether a token budget is lowered to a value that still holds the mean prompt beside the decodes."""
    value = change.recommended_value
    if change.parameter not in _BUDGET_KNOBS or isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        return False
    return load.computed + load.running <= value < now.token_budget and load.waiting < 0.5


def _limits_now(
    engine: Engine,
    config: EngineConfig,
    windows: Sequence[Window],
    load: Workload,
    version: str,
    catalogue: KnobCatalogue,
    notes: list[str],
    *,
    infer_sequences: bool,
) -> Limits:
    sequences = min((v for k in _SEQUENCE_KNOBS if (v := config.number(k)) is not None and v > 0), default=None)
    capacity = _capacity(engine, config, windows)
    block = config.number("block_size") or config.number("page_size") or (16.0 if engine is Engine.VLLM else 1.0)
    held = load.prompt + load.output / 2 + block / 2
    full = capacity is not None and load.running_max * held > 0.8 * capacity
    pinned = load.waiting > 0.5 and load.running_max >= 1 and load.running > 0.85 * load.running_max
    if infer_sequences and sequences is None and pinned and not full:
        sequences = load.running_max
        notes.append(f"the sequence limit is not known; running stays at {load.running_max:.0f} while others wait, so it is taken for it")
    budget = next((v for k in _BUDGET_KNOBS if (v := config.number(k)) is not None), None)
    return Limits(
        sequences=sequences if sequences is not None else math.inf,
        token_budget=budget if budget is not None and budget > 0 else math.inf,
        kv_tokens=_usable(engine, capacity, block),
        kv_block=block,
        preemptions_per_request=load.preemptions_per_request or _PREEMPTIONS_IF_FULL,
        mixed=engine is not Engine.SGLANG or config.get("enable_mixed_chunk") is True,
    )


def _capacity(engine: Engine, config: EngineConfig, windows: Sequence[Window]) -> float | None:
    gauges = [g.last for w in windows if (g := w.gauge(Gauge.KV_CAPACITY_TOKENS)) and g.last > 0]
    return gauges[-1] if gauges else kv_capacity_tokens(engine, config)


def _usable(engine: Engine, capacity: float | None, block: float) -> float:
    """vLLM keeps one block as a placeholder."""
    if capacity is None:
        return math.inf
    return max(block, capacity - block) if engine is Engine.VLLM else capacity


def _apply(
    engine: Engine, config: EngineConfig, change: ConfigChange, old: Scenario, load: Workload, notes: list[str]
) -> Iterable[Scenario]:
    """The ways in which one change may turn out, on top of a scenario."""
    name, value = change.parameter, change.recommended_value
    number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
    limits = old.limits

    def with_limits(weight: float = 1.0, **values: Any) -> Scenario:
        return Scenario(old.weight * weight, replace(limits, **values), old.hit_ratio)

    if name in _SEQUENCE_KNOBS:
        others = [v for k in _SEQUENCE_KNOBS - {name} if (v := config.number(k)) is not None]
        yield with_limits(sequences=min([number if number is not None else math.inf, *others]))
    elif name in _BUDGET_KNOBS:
        yield with_limits(token_budget=number if number is not None and number > 0 else math.inf)
    elif name in _POOL_KNOBS:
        if number is None:
            notes.append(f"the KV capacity without {name} is not known; it is taken to hold every request")
            yield with_limits(kv_tokens=math.inf)
        else:
            tokens = number * limits.kv_block if name == "num_gpu_blocks_override" else number
            yield with_limits(kv_tokens=_usable(engine, tokens, limits.kv_block))
    elif name in _MEMORY_KNOBS:
        before = change.current_value
        if number is None or not isinstance(before, int | float) or not before:
            notes.append(f"the present {name} is not known: its effect on the KV capacity is left out")
            yield old
            return
        notes.append(f"the KV capacity grows at least as {name} does; by how much more depends on the weights")
        share = number / float(before) - 1.0
        for leverage in _MEMORY_LEVERAGE:
            yield with_limits(1 / len(_MEMORY_LEVERAGE), kv_tokens=max(1.0, limits.kv_tokens * (1.0 + leverage * share)))
    elif name in _PREFIX_KNOBS:
        on = (value is not True) if name == "disable_radix_cache" else (value is True)
        if not on:
            yield Scenario(old.weight, limits, 0.0)
        elif load.hit_ratio:
            yield Scenario(old.weight, limits, None)
        else:
            notes.append("how much prompts share is not seen while the prefix cache is off: anything from nothing to 95 % is assumed")
            for share in UNKNOWN_HIT_RATIOS:
                yield Scenario(old.weight / len(UNKNOWN_HIT_RATIOS), limits, share)
    elif name == "watermark" and number is not None:
        notes.append("how many preemptions a watermark avoids is assumed: between a fifth and nine tenths")
        for left in (0.1, 0.4, 0.8):
            yield with_limits(
                1 / 3,
                kv_tokens=limits.kv_tokens * (1.0 - number),
                preemptions_per_request=limits.preemptions_per_request * left,
            )
    elif name == "schedule_conservativeness" and number is not None:
        before = change.current_value if isinstance(change.current_value, int | float) else 1.0
        if number > before:
            notes.append("how many retractions a higher conservativeness avoids is assumed: between a tenth and nine tenths")
            for left in (0.1, 0.5, 0.9):
                yield with_limits(1 / 3, preemptions_per_request=limits.preemptions_per_request * left)
            return
        admitted = max(1.0, load.running_max)
        notes.append("how many more requests a lower conservativeness admits is assumed, up to what the KV cache holds")
        fits = limits.kv_tokens / (load.prompt + load.output / 2 + limits.kv_block / 2)
        # A limit that was only inferred is the very admission that the knob loosens.
        told = min((v for k in _SEQUENCE_KNOBS if (v := config.number(k)) is not None and v > 0), default=math.inf)
        for power in (0.2, 0.6, 1.0):
            factor = (float(before) / number) ** power if number else 1.0
            yield with_limits(1 / 3, sequences=min(told, fits, max(1.0, admitted * factor)))
    else:
        yield old
