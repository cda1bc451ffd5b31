"""What is drawn, and from which ranges: physics, flags, load and objectives of one engine. Everything follows from one seed.

The scoring set draws from wider ranges and from all measured accelerators with a jitter on top; the tuning set from every second
accelerator.
"""

from __future__ import annotations

import csv
import math
import random
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from perf_service.simulator.flags import EngineFlags, EngineKind, Hardware, StepTimes
from perf_service.simulator.workload import Lengths, Workload

SetName = Literal["tuning", "scoring"]
HARDWARE = Hardware(memory_gib=4000.0, weights_gib=15.0)  # the pool is bound by flags, never by memory
PHYSICS = Path(__file__).with_name("physics.csv")
FULL_BUDGET = 8192
FULL_SEQS = 256
UNSHARED = 1_000_000  # prefixes, so that no two requests have the same
WARM_SECONDS = 8.0
PAGES = 11
STEPS_MAX = 2400  # bounds what one run costs to simulate


@dataclass(frozen=True)
class Objective:
    """One latency objective: metric ``ttft`` or ``itl``, statistic ``mean`` / ``p95`` / ``p99``, bound in seconds."""

    metric: str
    statistic: str
    bound: float

    @property
    def name(self) -> str:
        return f"{self.metric}_{self.statistic}"


BUILTIN = (Objective("ttft", "mean", 0.1), Objective("itl", "mean", 0.05))


@dataclass(frozen=True)
class Wish:
    """How strict the operator is: bound = statistic of the sound engine under the same load, times the ratio."""

    metric: str
    statistic: str
    ratio: float


@dataclass(frozen=True)
class Situation:
    """One engine (or, with ``shares``, a fleet of them) under one load."""

    seed: int
    kind: str
    engine: EngineKind
    times: StepTimes
    flags: EngineFlags
    sound: EngineFlags  # the flags without the planted fault
    workload: Workload
    duration: float
    wishes: tuple[Wish, ...] = ()  # empty: no objectives are told, the built-in ones count
    shares: tuple[float, ...] = ()  # of the load, by replica
    trap: str = ""  # see traps.py
    trap_value: float = 0.0
    pages: int = PAGES

    @property
    def key(self) -> str:
        return repr(self)


@dataclass
class Draw:
    """Random numbers of one situation, with ranges that are wider in the scoring set."""

    seed: int
    wide: bool
    rng: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)

    def between(self, low: float, high: float) -> float:
        """Log-uniform; a third wider on both sides in the scoring set."""
        if self.wide:
            low, high = low / 1.33, high * 1.33
        return math.exp(self.rng.uniform(math.log(low), math.log(high)))

    def whole(self, low: float, high: float) -> int:
        return max(1, round(self.between(low, high)))

    def pick(self, *options: Any) -> Any:
        return self.rng.choice(options)

    def chance(self, share: float) -> bool:
        return self.rng.random() < share


def any_engine(d: Draw) -> EngineKind:
    engine: EngineKind = d.pick("vllm", "vllm", "sglang", "tgi")
    return engine


def accelerators() -> list[StepTimes]:
    """Step times fitted from measured accelerators."""
    with PHYSICS.open(encoding="utf-8") as file:
        rows = csv.DictReader(line for line in file if not line.startswith("#"))
        return [StepTimes(float(r["base_ms"]) / 1e3, float(r["per_seq_ms"]) / 1e3, float(r["per_prefill_token_us"]) / 1e6) for r in rows]


_ACCELERATORS: list[StepTimes] = []


def physics(d: Draw) -> StepTimes:
    """One accelerator's step times."""
    if not _ACCELERATORS:
        _ACCELERATORS.extend(accelerators())
    times: StepTimes = d.pick(*(_ACCELERATORS if d.wide else _ACCELERATORS[::2]))
    if d.wide:
        times = StepTimes(*(value * math.exp(d.rng.gauss(0, 0.25)) for value in (times.base, times.per_seq, times.per_prefill_token)))
    return times


# -- flags --------------------------------------------------------------------------------------------


def kv_flags(flags: EngineFlags, tokens: float) -> EngineFlags:
    """The flags with a KV pool of about ``tokens``, set by the engine's own knob."""
    tokens = max(int(tokens), flags.max_model_len + 2 * 16)
    if flags.engine == "vllm":
        return replace(flags, num_gpu_blocks_override=tokens // 16 + 1)
    return replace(flags, max_total_tokens=tokens) if flags.engine == "sglang" else replace(flags, max_batch_total_tokens=tokens)


def kv_tokens(flags: EngineFlags) -> int:
    """What ``kv_flags`` set."""
    if flags.engine == "vllm":
        return (flags.num_gpu_blocks_override or 0) * 16
    return (flags.max_total_tokens if flags.engine == "sglang" else flags.max_batch_total_tokens) or 0


def sound_flags(d: Draw, engine: EngineKind, longest: int, kv: float = 600_000) -> EngineFlags:
    """A roomy, ordinary configuration."""
    length = next(n for n in (2048, 4096, 8192, 16384, 32768, 65536) if n >= longest)
    flags = EngineFlags(engine=engine, max_num_seqs=FULL_SEQS, max_num_batched_tokens=d.pick(2048, 4096, 8192), max_model_len=length)
    if engine == "sglang":
        flags = replace(flags, block_size=1, max_num_seqs=d.pick(256, 2048))
    if engine == "tgi":
        flags = replace(flags, max_num_seqs=d.pick(256, 1_000_000), max_input_tokens=length - 1, max_concurrent_requests=1024)
    return kv_flags(flags, kv)


# -- load ---------------------------------------------------------------------------------------------


def mean(lengths: Lengths) -> float:
    if lengths.kind == "lognormal":
        return min(lengths.median * math.exp(lengths.sigma**2 / 2), lengths.high)
    return (lengths.low + lengths.high) / 2


def service(times: StepTimes, load: Workload, running: float, *, prompt: float | None = None) -> float:
    """Seconds one request takes with ``running`` of them in the batch."""
    p, o = mean(load.prompt) if prompt is None else prompt, mean(load.output)
    return o * (times.base + times.per_seq * running) + running * p * times.per_prefill_token + times.base


def capacity(times: StepTimes, load: Workload, running: float, *, prompt: float | None = None) -> float:
    """Requests per second with ``running`` of them in the batch."""
    return running / service(times, load, running, prompt=prompt)


def chat(d: Draw) -> tuple[Lengths, Lengths]:
    """Prompt and answer lengths of talk."""
    prompt = Lengths.lognormal(d.between(60, 700), d.rng.uniform(0.2, 0.7), 8, 4000)
    return prompt, Lengths.lognormal(d.between(30, 160), d.rng.uniform(0.2, 0.6), 2, 600)


def closed(prompt: Lengths, output: Lengths, clients: int) -> Workload:
    return Workload(prompt, output, concurrency=clients)


def open_(prompt: Lengths, output: Lengths, rate: float) -> Workload:
    return Workload(prompt, output, rate=rate)


def longest(load: Workload) -> int:
    return max(load.prompt.high, load.shared_prefix_tokens + 1) + max(load.output.high, load.max_tokens or 0)


def seconds(d: Draw, times: StepTimes, running: float) -> float:
    """Length of the observed stretch: some ten seconds to two minutes, bounded by what it costs to simulate."""
    step = times.base + times.per_seq * running
    return round(max(15.0, min(d.between(30, 90), STEPS_MAX * step)), 1)


def finish(d: Draw, kind: str, times: StepTimes, flags: EngineFlags, sound: EngineFlags, load: Workload, **more: object) -> Situation:
    """The situation with its length and objectives."""
    running = float(load.concurrency or min(64.0, (load.rate and load.rate * service(times, load, 8)) or 1))
    wishes = more.pop("wishes", None)
    if wishes is None:
        wishes = wished(d) if d.chance(0.65) else ()
    length = more.pop("duration", None) or seconds(d, times, min(running, flags.max_num_seqs))
    if flags.engine == "vllm":
        flags = replace(flags, max_num_seqs=min(flags.max_num_seqs, flags.max_num_batched_tokens))
    return Situation(d.seed, kind, flags.engine, times, flags, sound, load, length, wishes, **more)  # type: ignore[arg-type]


def wished(d: Draw, ttft: tuple[float, float] = (1.4, 3.0), itl: tuple[float, float] = (1.4, 2.5)) -> tuple[Wish, ...]:
    """Objectives on the first token and on the pace (its mean: the p95 sits on the edge between steps with and without prefill)."""
    return (Wish("ttft", d.pick("mean", "mean", "p95"), d.between(*ttft)), Wish("itl", "mean", d.between(*itl)))
