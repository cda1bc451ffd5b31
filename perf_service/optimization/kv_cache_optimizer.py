"""KV cache: its size, its precision and the reuse of prefixes."""

from __future__ import annotations

from collections.abc import Sequence

from perf_service.models.analysis import Bottleneck, BottleneckType, Cause
from perf_service.models.metrics import Engine
from perf_service.models.plan import Optimization, OptimizerKind
from perf_service.optimization.configs import ConfigLike, KVCacheConfig
from perf_service.optimization.situation import Rule, Situation, merged_values, optimization, proposals, tunable

WATERMARK = 0.02  # ratio of the KV blocks; one to five percent keep a decoding batch from preempting itself

_KV_TYPES = frozenset({BottleneckType.MEMORY_PRESSURE, BottleneckType.CACHE_INEFFICIENCY})
_FP8_RISKS = (
    "accuracy may fall, badly on some models: compare answers before and after",
    "on compute capability below 9.0 vLLM changes to another attention backend",
)


class KVCacheOptimizer:
    """Proposes what gives the KV cache more room, or makes better use of it."""

    def generate_optimizations(
        self,
        bottlenecks: Sequence[Bottleneck],
        instance_type: Engine | str,
        current_config: ConfigLike = None,
        *,
        situation: Situation | None = None,
    ) -> tuple[list[Optimization], KVCacheConfig | None]:
        """Proposals for the findings that the KV cache can cure, and the config with all of them; `([], None)` where there is none.

        `situation` carries what else is known (version, hardware, window); without it engine and config are all there is.
        Raises InvalidArgumentError for an unknown engine.
        """
        at = situation or Situation.of(instance_type, current_config)
        found = proposals(bottlenecks, at, _rule)
        return (found, _config(at, found)) if found else ([], None)


def _rule(bottleneck: Bottleneck) -> Rule | None:
    if not tunable(bottleneck):
        return None
    if bottleneck.cause is Cause.UNKNOWN:
        return _bare if bottleneck.type in _KV_TYPES else None
    rules: dict[Cause, Rule] = {
        Cause.KV_EXHAUSTED: _exhausted,
        Cause.PREFIX_CACHE_OFF: _prefix_on,
        Cause.PREFIX_CACHE_THRASHING: _thrashing,
        Cause.RESERVATION_LIMIT: _reservation,
    }
    return rules.get(bottleneck.cause)


def _config(at: Situation, found: Sequence[Optimization]) -> KVCacheConfig:
    after = merged_values(at.config, found)
    length, memory, block = after.number(at.knobs.context), after.number(at.knobs.memory), after.number("block_size")
    prefix, dtype, cap = after.get(at.knobs.prefix), after.get(at.knobs.kv_dtype), after.number("num_gpu_blocks_override")
    return KVCacheConfig(
        max_model_len=int(length) if length is not None else None,
        enable_prefix_caching=(prefix is at.knobs.prefix_on) if isinstance(prefix, bool) else None,
        gpu_memory_utilization=memory,
        kv_cache_dtype=str(dtype) if dtype is not None else None,
        block_size=int(block) if block is not None else None,
        num_gpu_blocks_override=int(cap) if cap is not None else None,
        watermark=after.number("watermark"),
    )


def _uncap(bottleneck: Bottleneck, at: Situation) -> list[Optimization]:
    """Undo a cap that somebody put on the pool: it is there for tests, and whatever it holds back lies idle."""
    cap = at.knobs.pool_cap
    change = at.propose(cap, None, "caps the KV cache below what the memory holds") if cap else None
    if change is None:
        return []
    return [
        optimization(
            OptimizerKind.KV_CACHE, bottleneck, f"Remove {cap}",
            f"{cap}={change.current_value} holds the KV cache at less than the memory allows; without it the engine sizes it by itself.",
            change,
            risks=("more requests run at once: inter-token latency rises",),
            prerequisites=("the cap was not put there to share the accelerator with another process",),
            losers=("itl_seconds", "tpot_seconds"),
        )
    ]  # fmt: skip


def _more_memory(bottleneck: Bottleneck, at: Situation) -> list[Optimization]:
    knob = at.knobs.memory
    if at.config.get("kv_cache_memory_bytes") is not None and not at.config.get(knob):
        return []  # the size is fixed in bytes: a fraction would have no effect
    present = at.number(knob)
    if present is None:
        return []  # a step up from an unknown value could as well be a step down
    target = round(min(at.knobs.memory_ceiling, present + at.knobs.memory_step), 3)
    change = at.propose(knob, target, f"{(target - present) * 100:.0f} % more of the memory for the KV cache") if target > present else None
    if change is None:
        return []
    return [
        optimization(
            OptimizerKind.KV_CACHE, bottleneck, f"Raise {knob} to {target:g}",
            f"Give the engine more than {present:.0%} of the memory: all of the difference goes to the KV cache.",
            change,
            risks=("out of memory at start or under load if something else uses the accelerator",),
            prerequisites=("the accelerator is not shared, and memory is free after start",),
            losers=("itl_seconds",),
        )
    ]  # fmt: skip


def _fp8_kv(bottleneck: Bottleneck, at: Situation) -> list[Optimization]:
    """Half the bytes per token; only where preemptions were seen, as it brings nothing otherwise."""
    if not at.preemptions or at.value(at.knobs.kv_dtype) not in (None, "auto", "bfloat16", "bf16", "float16"):
        return []
    change = at.propose(at.knobs.kv_dtype, at.knobs.fp8_kv, "half the bytes per token: twice the requests fit")
    if change is None:
        return []
    return [
        optimization(
            OptimizerKind.KV_CACHE, bottleneck, f"Store the KV cache as {at.knobs.fp8_kv}",
            "Doubles what the KV cache holds at half the precision. Only behind a comparison of answers.",
            change, risks=_FP8_RISKS,
            prerequisites=(*_unless_known(at, "8.0"), "a quality test on real prompts has passed"),
            quality_gate=True, confidence=0.4,
        )
    ]  # fmt: skip


def _unless_known(at: Situation, needed: str) -> tuple[str, ...]:
    return () if at.hardware.compute_capability else (f"the accelerator has compute capability {needed} or more: not known here",)


def _exhausted(bottleneck: Bottleneck, at: Situation) -> list[Optimization]:
    cured = _uncap(bottleneck, at)
    if cured:
        return cured
    found = _more_memory(bottleneck, at)
    change = at.propose("watermark", WATERMARK, "keeps blocks free for the requests that already run")
    if change:
        found.append(
            optimization(
                OptimizerKind.KV_CACHE, bottleneck, f"Keep {WATERMARK:.0%} of the KV blocks free at admission",
                "Requests that run get blocks before new ones are admitted: fewer preemptions.", change,
                risks=("slightly fewer requests run at once",), losers=("queue_seconds",),
            )
        )  # fmt: skip
    found += _fp8_kv(bottleneck, at)
    return found or [_capacity(bottleneck, at)]


def _prefix_on(bottleneck: Bottleneck, at: Situation) -> list[Optimization]:
    knob, on = at.knobs.prefix, at.knobs.prefix_on
    entry = at.catalogue.get(at.engine, knob)
    change = at.propose(knob, on, "requests that share a prefix compute it once")
    if change is None and entry and at.config.get(knob) is None and entry.supported(at.version) is not False:
        # On by default, yet seen to be off: say so explicitly.
        why = "the prefix cache is seen to be off"
        change = at.catalogue.change(at.engine, knob, on, current=at.config, version=at.version, reason=why)
    if change is None:
        return []
    how = f"drop {entry.knob.negative_flag}" if entry and entry.knob.negative_flag else ("drop the flag" if not on else "set it")
    return [
        optimization(
            OptimizerKind.KV_CACHE, bottleneck, "Turn the prefix cache on",
            f"Prompts that begin alike reuse each other's KV cache ({how}). The gain is as large as the share that prompts have in common.",
            change,
            risks=("no gain where prompts share nothing",),
            prerequisites=("prompts share a prefix (system prompt, history): the metrics cannot show it while the cache is off",),
        )
    ]  # fmt: skip


def _thrashing(bottleneck: Bottleneck, at: Situation) -> list[Optimization]:
    found = _uncap(bottleneck, at) or _more_memory(bottleneck, at)
    if at.engine is Engine.SGLANG:
        change = at.propose("schedule_policy", "lpm", "takes the request with the longest cached prefix first")
        if change:
            found.append(
                optimization(
                    OptimizerKind.KV_CACHE, bottleneck, "Schedule the longest cached prefix first",
                    "Requests whose prefix is still cached go first, before it is evicted.", change,
                    risks=("requests without a cached prefix wait longer",), losers=("ttft_seconds_p99",),
                )
            )  # fmt: skip
    found.append(
        optimization(
            OptimizerKind.KV_CACHE, bottleneck, "Route requests with equal prefixes to the same replica",
            "Prefixes are evicted before they are used again; prefix-aware routing or a host-memory tier keeps them longer.",
        )
    )  # fmt: skip
    return found


def _reservation(bottleneck: Bottleneck, at: Situation) -> list[Optimization]:
    return [
        *_more_memory(bottleneck, at),
        optimization(
            OptimizerKind.KV_CACHE, bottleneck, "Lower max_new_tokens in the clients",
            "TGI reserves the worst case of every request; clients that ask for less let more of them run. "
            "Otherwise quantize the KV cache behind a quality test, shard over more accelerators, or move off TGI.",
        ),
    ]  # fmt: skip


def _bare(bottleneck: Bottleneck, at: Situation) -> list[Optimization]:
    """A finding without a cause: the changes that give room or reuse at least risk."""
    cache_first = bottleneck.type is BottleneckType.CACHE_INEFFICIENCY
    room = _uncap(bottleneck, at) or _more_memory(bottleneck, at)
    if not cache_first:
        return room or _memory_by_default(bottleneck, at) or [_capacity(bottleneck, at)]
    prefix = _prefix_on(bottleneck, at) if at.value(at.knobs.prefix) is not at.knobs.prefix_on else []
    return [*prefix, *room] or _thrashing(bottleneck, at)


# What the projects' own guides name as the upper end of what is safe, for engines whose present value is not known.
_MEMORY_TARGET = {Engine.VLLM: 0.95, Engine.SGLANG: 0.9}


def _memory_by_default(bottleneck: Bottleneck, at: Situation) -> list[Optimization]:
    target = _MEMORY_TARGET.get(at.engine)
    if target is None or at.number(at.knobs.memory) is not None:
        return []
    change = at.propose(at.knobs.memory, target, "more of the memory for the KV cache; the present value is not known")
    return [
        optimization(
            OptimizerKind.KV_CACHE, bottleneck, f"Raise {at.knobs.memory} to {target:g}",
            f"Give the engine {target:.0%} of the memory.", change,
            risks=("out of memory at start or under load if something else uses the accelerator",),
            prerequisites=(f"the present {at.knobs.memory} is below {target:g}: it is not known here",), confidence=0.3,
        )
    ] if change else []  # fmt: skip


def _capacity(bottleneck: Bottleneck, at: Situation) -> Optimization:
    return optimization(
        OptimizerKind.KV_CACHE, bottleneck, "Add KV capacity: another replica or more accelerators",
        f"The memory is used up to its ceiling; {at.knobs.tensor_parallel} or a replica adds KV cache, shorter contexts save it.",
    )  # fmt: skip
