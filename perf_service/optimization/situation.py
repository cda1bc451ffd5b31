"""What the optimizers know when they propose: engine, version, hardware, config, window; and what may be proposed there."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from perf_service.models.analysis import Bottleneck, Cause, Evidence, Severity, Verdict
from perf_service.models.config import ConfigChange, EngineConfig, KnobValue, Source
from perf_service.models.errors import InvalidArgumentError
from perf_service.models.fleet import Hardware
from perf_service.models.metrics import Counter, Engine, Gauge, Hist
from perf_service.models.plan import Optimization, OptimizerKind
from perf_service.models.slo import SLOTarget
from perf_service.models.window import GaugeStats, Window
from perf_service.optimization.catalogue import KnobCatalogue, find_conflicts, kv_capacity_tokens
from perf_service.optimization.catalogue.versions import in_bracket
from perf_service.optimization.configs import ConfigLike, read_config, read_engine


@dataclass(frozen=True, slots=True)
class EngineKnobs:
    """How an engine calls the knobs that every engine has in some form."""

    sequences: str
    token_budget: str
    memory: str
    memory_ceiling: float
    memory_step: float
    kv_dtype: str
    fp8_kv: str
    quantization: str
    context: str
    prefix: str
    prefix_on: bool  # the value of `prefix` that means that the cache is on
    pool_cap: str  # caps the KV pool below what fits; empty: the engine has none
    tensor_parallel: str


KNOBS: dict[Engine, EngineKnobs] = {
    Engine.VLLM: EngineKnobs(
        "max_num_seqs", "max_num_batched_tokens", "gpu_memory_utilization", 0.95, 0.03, "kv_cache_dtype", "fp8", "quantization",
        "max_model_len", "enable_prefix_caching", True, "num_gpu_blocks_override", "--tensor-parallel-size",
    ),
    Engine.SGLANG: EngineKnobs(
        "max_running_requests", "chunked_prefill_size", "mem_fraction_static", 0.92, 0.02, "kv_cache_dtype", "fp8_e5m2", "quantization",
        "context_length", "disable_radix_cache", False, "max_total_tokens", "--tp-size",
    ),
    Engine.TGI: EngineKnobs(
        "max_batch_size", "max_batch_prefill_tokens", "cuda_memory_fraction", 1.0, 0.05, "kv_cache_dtype", "fp8_e4m3fn", "quantize",
        "max_total_tokens", "prefix_caching", True, "", "--num-shard",
    ),
}  # fmt: skip

# What a page of vLLM shows only from a release on, newest first: a key of its cache_config_info, a histogram.
_SHOWN_SINCE: tuple[tuple[str | Hist, str], ...] = (("kv_cache_size_tokens", "0.26.0"), (Hist.PREFILL_COMPUTED_TOKENS, "0.13.0"))

# vLLM: SchedulerConfig.compute_hash puts these into the torch.compile cache key; CacheConfig's memory and prefix knobs are not in it.
_RECOMPILES = frozenset({"max_num_seqs", "max_num_batched_tokens", "max_running_requests", "quantization", "quantize"})


CURE_CONFIDENCE = 0.9  # that the change cures a cause which is the one (by judgement)


def power_of_two_at_least(value: float) -> int:
    """The least power of two >= value (1 for value <= 1)."""
    return 1 << max(0, math.ceil(math.log2(max(1.0, value)) - 1e-9))


def power_of_two_at_most(value: float) -> int:
    """The largest power of two <= value (1 for value < 2)."""
    return 1 << max(0, math.floor(math.log2(max(1.0, value)) + 1e-9))


@dataclass(frozen=True, slots=True)
class Situation:
    """One engine as it runs. Everything but the engine may be unknown."""

    engine: Engine
    version: str = ""
    hardware: Hardware = field(default_factory=Hardware)
    config: EngineConfig = field(default_factory=EngineConfig)
    window: Window | None = None
    slo_targets: tuple[SLOTarget, ...] = ()
    catalogue: KnobCatalogue = field(default_factory=KnobCatalogue.load)

    @classmethod
    def of(cls, instance_type: Engine | str, current: ConfigLike) -> Situation:
        """A situation of which only engine and (perhaps) config are known."""
        engine, catalogue = read_engine(instance_type), KnobCatalogue.load()
        return cls(engine, config=read_config(catalogue, engine, current), catalogue=catalogue)

    @property
    def knobs(self) -> EngineKnobs:
        """The engine's words."""
        return KNOBS[self.engine]

    # ---- What holds now ----

    def value(self, name: str) -> KnobValue | None:
        """The present value of a knob: as known, else the documented default of that version and hardware, else None."""
        known = self.config.get(name)
        return known if known is not None else self.catalogue.default(self.engine, name, self.version, self.hardware)

    def number(self, name: str) -> float | None:
        """The same as a float, where it is a number."""
        value = self.value(name)
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None

    @property
    def kv_capacity_tokens(self) -> float | None:
        """KV capacity in tokens, from the page's gauge or the config."""
        told = [g.last for g in self._engines(Gauge.KV_CAPACITY_TOKENS) if g.last > 0]
        return min(told) if told else kv_capacity_tokens(self.engine, self.config)

    @property
    def running_max(self) -> float | None:
        """Most requests seen running on one engine."""
        return max((g.max for g in self._engines(Gauge.RUNNING_REQUESTS)), default=None)

    @property
    def demand(self) -> float | None:
        """Most requests that were there at once on one engine, running or waiting."""
        running, waiting = self._engines(Gauge.RUNNING_REQUESTS), self._engines(Gauge.WAITING_REQUESTS)
        if not running and not waiting:
            return None
        return max((g.max for g in running), default=0.0) + max((g.max for g in waiting), default=0.0)

    def _engines(self, gauge: Gauge) -> list[GaugeStats]:
        """A gauge of every engine behind the window: limits hold for each replica and each data-parallel rank, not for their sum."""
        if self.window is None:
            return []
        own = [found for rank in self.window.ranks.values() if (found := rank.get(gauge))]
        if own:
            return own
        whole = self.window.gauge(gauge)
        if whole is None:
            return []
        share = max(1, self.window.replicas)
        return [replace(whole, mean=whole.mean / share, min=whole.min / share, max=whole.max / share, last=whole.last / share)]

    @property
    def tokens_per_request(self) -> float | None:
        """Mean KV tokens that a request holds at its end: prompt plus output."""
        if self.window is None:
            return None
        prompt, output = self.window.mean(Hist.PROMPT_TOKENS), self.window.mean(Hist.GENERATION_TOKENS)
        return prompt + (output or 0.0) if prompt else None

    @property
    def prompt_tokens(self) -> float | None:
        """Mean prompt tokens of a request that have to be computed, those from the prefix cache left out where the page tells them."""
        if self.window is None:
            return None
        return self.window.mean(Hist.PREFILL_COMPUTED_TOKENS) or self.window.mean(Hist.PROMPT_TOKENS)

    @property
    def preemptions(self) -> float | None:
        """Preemptions in the window, None where unknown."""
        return self.window.delta(Counter.PREEMPTIONS) if self.window else None

    @property
    def largest_step_tokens(self) -> float | None:
        """At most so many tokens were in one step: the bound of the highest bucket that was hit; a token budget at or above it changes
        nothing. None where the page has no such histogram, or the step lies beyond its last bound."""
        steps = self.window.histograms.get(Hist.ITERATION_TOKENS) if self.window else None
        if steps is None or steps.count <= 0:
            return None
        return next((bound for bound, upto in zip(steps.bounds, steps.cumulative, strict=True) if upto >= steps.count), None)

    @property
    def least_version(self) -> str:
        """The oldest release that the engine can be, by what its page shows; empty: nothing tells. Only for a version that is unknown."""
        if self.version or self.engine is not Engine.VLLM or self.window is None:
            return ""
        return next((since for shown, since in _SHOWN_SINCE if shown in self.window.config or shown in self.window.histograms), "")

    # ---- What may be proposed ----

    def has(self, name: str) -> bool | None:
        """Whether the engine has a knob; None where its version is not known well enough to tell."""
        entry = self.catalogue.get(self.engine, name)
        if entry is None:
            return False
        found = entry.supported(self.version)
        if found is None and self.least_version and not entry.knob.removed and in_bracket(self.least_version, entry.knob.since, ""):
            return True
        return found

    def propose(self, name: str, value: KnobValue | None, reason: str, *, inferred: KnobValue | None = None) -> ConfigChange | None:
        """A change that this version surely knows, this hardware is not known to lack, and that is not in force already; else None.

        `inferred` is the present value concluded from behaviour, used where the config does not tell it.
        """
        entry = self.catalogue.get(self.engine, name)
        if entry is None or not self.has(name) or not entry.knob.tunable:
            return None
        if value is not None:
            choices = entry.certain_choices(self.version)
            if choices and value not in choices:
                return None
            present = self.value(name)
            if present == value or (present is None and inferred == value):
                return None
        elif self.config.get(name) is None:
            return None
        try:
            change = self.catalogue.change(
                self.engine, name, value, current=self.config, version=self.version, hardware=self.hardware, reason=reason
            )
        except InvalidArgumentError:
            return None
        if change.current_value is None and inferred is not None:
            # The change says how the limit is known; the value itself stays unknown.
            change = ConfigChange(
                change.parameter, None, value, flag=change.flag, apply_mode=change.apply_mode,
                reason=f"{reason}; present value unknown, inferred as {inferred} from behaviour", current_source=Source.INFERRED,
            )  # fmt: skip
        return change

    def fits_together(self, changes: Iterable[ConfigChange]) -> bool:
        """Whether the config stays free of conflicts with the changes."""
        made = tuple(changes)
        after = self.config.with_changes(made)
        return not find_conflicts(self.catalogue, self.engine, after, frozenset(c.parameter for c in made))


def relevant(bottlenecks: Iterable[Bottleneck]) -> tuple[Bottleneck, ...]:
    """Findings that stand for themselves: symptoms of another finding are cured with it."""
    return tuple(b for b in bottlenecks if b.symptom_of is None)


Rule = Callable[[Bottleneck, Situation], list[Optimization]]


def proposals(bottlenecks: Iterable[Bottleneck], at: Situation, rule_of: Callable[[Bottleneck], Rule | None]) -> list[Optimization]:
    """What the rules propose for the findings: each title once, and no change that the present config cannot take."""
    found: list[Optimization] = []
    for bottleneck in relevant(bottlenecks):
        rule = rule_of(bottleneck)
        for one in rule(bottleneck, at) if rule else ():
            if one.title not in {o.title for o in found} and (one.advice_only or at.fits_together(one.config_changes)):
                found.append(one)
    return found


def tunable(bottleneck: Bottleneck) -> bool:
    """Whether a finding's verdict asks for a configuration change."""
    return bottleneck.verdict is Verdict.TUNE


def evidence_of(bottleneck: Bottleneck) -> tuple[Evidence, ...]:
    """The finding's evidence; of a bare finding, the one measurement that it names."""
    return bottleneck.evidence or (
        Evidence(bottleneck.metric_name, "value", bottleneck.current_value, bottleneck.description, bottleneck.threshold_value),
    )


def restart_cost(changes: Iterable[ConfigChange]) -> str:
    """What applying costs, in words."""
    names = {c.parameter for c in changes}
    if not names:
        return ""
    base = "each replica restarts: its share of the capacity is gone for as long as the engine takes to start"
    return base + (" (the compiled graphs are made anew: this start takes longer than usual)" if names & _RECOMPILES else "")


def rollback_of(changes: Iterable[ConfigChange]) -> str:
    """The way back, in words."""
    return "; ".join(
        f"{c.parameter} back to {c.current_value}"
        if c.current_value is not None
        else f"{c.parameter} as launched before (left out if it was)"
        for c in changes
    )


def optimization(
    kind: OptimizerKind,
    bottleneck: Bottleneck,
    title: str,
    description: str,
    *changes: ConfigChange | None,
    risks: tuple[str, ...] = (),
    prerequisites: tuple[str, ...] = (),
    losers: tuple[str, ...] = (),
    quality_gate: bool = False,
    confidence: float | None = None,
    impact: Severity | None = None,
) -> Optimization:
    """An Optimization for a finding with everything that follows from its changes filled in."""
    made = tuple(c for c in changes if c is not None)
    bare = bottleneck.cause is Cause.UNKNOWN
    return Optimization(
        optimizer=kind,
        title=title,
        description=description,
        config_changes=made,
        cause=bottleneck.cause,
        expected_impact=impact or bottleneck.severity,
        evidence=evidence_of(bottleneck),
        expected_losers=losers,
        risks=risks,
        prerequisites=prerequisites,
        rollback=rollback_of(made),
        needs_restart=bool(made),
        restart_cost=restart_cost(made),
        needs_quality_gate=quality_gate,
        confidence_ratio=confidence if confidence is not None else bottleneck.confidence_ratio * (0.5 if bare else CURE_CONFIDENCE),
    )


def merged_values(config: EngineConfig, optimizations: Iterable[Optimization]) -> EngineConfig:
    """The config after every change of the optimizations."""
    return config.with_changes(tuple(c for o in optimizations for c in o.config_changes))
