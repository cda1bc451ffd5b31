"""Situations whose right answer is nothing, wait, or not ours, and what counts as right in each."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from benchmarks.diagnosis.drawing import (
    Draw,
    Situation,
    Wish,
    any_engine,
    capacity,
    chat,
    closed,
    finish,
    kv_flags,
    longest,
    open_,
    physics,
    sound_flags,
    wished,
)
from benchmarks.diagnosis.labels import Label
from benchmarks.diagnosis.running import Page
from benchmarks.diagnosis.situations import Maker, batch_limit, budget_small, decode_bound, healthy, kv_small
from perf_service.models.analysis import Analysis, Cause, Severity, Verdict
from perf_service.models.metrics import Engine
from perf_service.simulator.flags import EngineKind
from perf_service.simulator.workload import Lengths

_LOUD = (Verdict.TUNE, Verdict.SCALE, Verdict.RESTART, Verdict.ROLL_BACK_UPGRADE)
_CAPACITY = {Cause.DECODE_BOUND, Cause.PREFILL_COMPUTE, Cause.OVERLOAD}


def _calm_load(d: Draw, level: tuple[float, float] = (0.2, 0.5), engine: EngineKind | None = None) -> Situation:
    """A healthy engine with enough requests, and objectives with room."""
    name, times = engine or any_engine(d), physics(d)
    prompt, output = chat(d)
    load = open_(prompt, output, capacity(times, closed(prompt, output, 1), 16) * d.between(*level))
    sound = sound_flags(d, name, longest(load))
    return finish(d, "healthy", times, sound, sound, load, wishes=wished(d, (1.6, 3.0), (1.6, 2.5)))


def _trap(s: Situation, name: str, value: float = 0.0) -> Situation:
    return replace(s, kind=f"trap:{name}", trap=name, trap_value=value)


def restart(d: Draw) -> Situation:
    return _trap(_calm_load(d), "restart")


def stale(d: Draw) -> Situation:
    s = d.pick(_calm_load, batch_limit, kv_small)(d)
    return _trap(s, "stale", d.pick(0.3, 0.5, 0.0))


def kv_full(d: Draw) -> Situation:
    """The pool is all but full, and everybody fits."""
    engine, times = d.pick("vllm", "vllm", "sglang"), physics(d)
    clients = d.whole(4, 20)
    prompt_tokens, output_tokens = d.whole(300, 900), d.whole(40, 120)
    prompt = Lengths.uniform(prompt_tokens, prompt_tokens + 16)
    output = Lengths.uniform(output_tokens, output_tokens + 8)
    load = closed(prompt, output, clients)
    sound = sound_flags(d, engine, longest(load))
    need = clients * 16 * (-(-longest(load) // 16) + 1)
    flags = kv_flags(sound, need * d.rng.uniform(1.0, 1.04))
    s = finish(d, "", times, flags, sound, load, wishes=wished(d, (1.6, 3.0), (1.6, 2.5)))
    return _trap(s, "kv_full")


def unshared(d: Draw) -> Situation:
    """Prefix caching is on and no two prompts have anything in common; half of them also miss their objective."""
    engine, times = any_engine(d), physics(d)
    prompt = Lengths.lognormal(d.between(500, 2500), 0.4, 100, 9000)
    output = Lengths.lognormal(d.between(4, 60), 0.4, 1, 300)
    load = open_(prompt, output, capacity(times, closed(prompt, output, 1), 8) * d.between(0.3, 0.7))
    sound = sound_flags(d, engine, longest(load))
    tight = d.chance(0.5)
    wishes = (Wish("ttft", "mean", d.between(0.3, 0.6) if tight else d.between(1.6, 3.0)), Wish("itl", "mean", 2.0))
    return _trap(finish(d, "", times, sound, sound, load, wishes=wishes), "unshared")


def load_step(d: Draw) -> Situation:
    """More load from the middle on, which the engine carries."""
    s = _calm_load(d, (0.12, 0.2))
    level = (s.workload.rate or 0.0) * d.between(2.2, 3.0)
    wishes = tuple(replace(w, ratio=w.ratio * 1.6) for w in s.wishes)
    return _trap(replace(s, workload=replace(s.workload, steps=((round(s.duration / 2), level),)), wishes=wishes), "load_step")


def load_surge(d: Draw) -> Situation:
    """More load from the middle on than the flags can carry; what is wrong is what is wrong after the step."""
    s = batch_limit(d)
    while s.workload.concurrency is None:
        s = batch_limit(d)
    few = max(1, s.flags.max_num_seqs // 2)
    steps = ((round(s.duration / 2), float(s.workload.concurrency)),)
    return _trap(replace(s, workload=replace(s.workload, concurrency=few, steps=steps)), "load_surge")


def client_limited(d: Draw) -> Situation:
    """One or two clients, and a wish for throughput that they do not ask for."""
    engine, times = any_engine(d), physics(d)
    prompt, output = chat(d)
    load = closed(prompt, output, d.pick(1, 1, 2))
    sound = sound_flags(d, engine, longest(load))
    s = finish(d, "", times, sound, sound, load, wishes=wished(d, (1.6, 3.0), (1.6, 2.5)))
    return _trap(s, "client_limited", d.between(1.6, 4.0))


def hang(d: Draw) -> Situation:
    return _trap(replace(_calm_load(d, (0.4, 0.7)), duration=d.between(60, 90)), "hang")


def upgrade(d: Draw) -> Situation:
    s = _calm_load(d)
    need = 60 / (s.workload.rate or 1.0)
    return _trap(replace(s, duration=round(max(s.duration, min(2 * need, 120.0)), 1)), "upgrade", d.between(1.35, 2.2))


def upgrade_same(d: Draw) -> Situation:
    """A new version as fast as the old one."""
    return replace(upgrade(d), kind="trap:upgrade_same", trap_value=1.0)


def noisy_neighbour(d: Draw) -> Situation:
    return _trap(_calm_load(d), "noisy_neighbour", d.between(2.2, 4.0))


def mass_aborts(d: Draw) -> Situation:
    s = _calm_load(d, engine=d.pick("vllm", "vllm", "sglang"))
    load = replace(s.workload, leaving_share=d.rng.uniform(0.35, 0.8), leaving_after_tokens=d.pick(1, 2, 4))
    return _trap(replace(s, workload=load), "mass_aborts")


def cold_start(d: Draw) -> Situation:
    return _trap(_calm_load(d), "cold_start", d.between(5.0, 12.0))


def contradictory(d: Draw) -> Situation:
    """A pace that one request alone would not reach, and a first token that no queue allows."""
    s = decode_bound(d)
    first = Wish("ttft", "mean", d.between(0.8, 1.1))
    single = (s.times.base + s.times.per_seq) / (s.times.base + s.times.per_seq * (s.workload.concurrency or 1))
    wishes = (first, Wish("itl", "mean", single * d.between(0.4, 0.8)))
    return _trap(replace(s, wishes=wishes), "contradictory")


def trade_off(d: Draw) -> Situation:
    """Fewer sequences would mend the pace and ruin the first token."""
    s = decode_bound(d)
    return _trap(replace(s, wishes=(Wish("ttft", "mean", 1.3), Wish("itl", "mean", d.between(0.6, 0.8)))), "trade_off")


def renamed(d: Draw) -> Situation:
    """A future version spells some families otherwise."""
    return _trap(d.pick(healthy, batch_limit, kv_small, budget_small)(d), "renamed", float(d.rng.randrange(3)))


def noise(d: Draw) -> Situation:
    """Long-tailed, bursty and healthy."""
    engine, times = any_engine(d), physics(d)
    prompt = Lengths.lognormal(d.between(80, 300), 1.0, 8, 6000)
    output = Lengths.lognormal(d.between(30, 100), 1.0, 1, 1500)
    load = open_(prompt, output, capacity(times, closed(prompt, output, 1), 16) * d.between(0.25, 0.45))
    sound = sound_flags(d, engine, longest(load))
    return _trap(finish(d, "", times, sound, sound, load, wishes=wished(d, (2.0, 4.0), (1.8, 2.5))), "noise")


TRAPS: tuple[tuple[Maker, int], ...] = tuple(
    (maker, 1)
    for maker in (
        restart, stale, kv_full, unshared, load_step, load_surge, client_limited, hang, upgrade, noisy_neighbour, mass_aborts, cold_start,
        contradictory, trade_off, renamed, noise, upgrade_same,
    )
)  # fmt: skip


# -- what happens to the pages ------------------------------------------------------------------------

_RENAMES = (
    (r"num_requests_waiting|num_queue_reqs|tgi_queue_size", "pending_requests_v9"),
    (r"time_to_first_token_seconds|tgi_request_queue_duration", "first_token_latency_v9"),
    (r"kv_cache_usage_perc|token_usage|tgi_batch_current_max_tokens", "cache_fill_v9"),
)


def tampered(s: Situation, pages: list[Page]) -> list[Page]:
    """The pages as they were scraped under the trap."""
    if s.trap == "stale":
        index = int(s.trap_value * (len(pages) - 1))
        frozen = pages[index]
        return [*pages[:index], *((when, frozen[1], frozen[2]) for when, _, _ in pages[index:])]
    if s.trap == "renamed":
        pattern, name = _RENAMES[int(s.trap_value)]
        return [(when, re.sub(pattern, name, text), version) for when, text, version in pages]
    return pages


def after_step(s: Situation) -> Situation:
    """The situation that the last level of the load makes."""
    if not s.workload.steps:
        return s
    level = s.workload.steps[-1][1]
    load = replace(s.workload, steps=())
    load = replace(load, rate=level) if load.rate is not None else replace(load, concurrency=round(level))
    return replace(s, workload=load)


# -- what is right ------------------------------------------------------------------------------------


def loud(a: Analysis) -> bool:
    """Whether somebody is woken up: HIGH or CRITICAL."""
    return any(b.severity in (Severity.HIGH, Severity.CRITICAL) for b in a.bottlenecks)


def calm(a: Analysis) -> bool:
    """Nobody is woken up, and nothing is told to be changed."""
    if loud(a):
        return False
    return not a.bottlenecks or a.verdict not in _LOUD or a.bottlenecks[0].cause is Cause.UNDER_USE


def cause_of(a: Analysis) -> Cause | None:
    return a.bottlenecks[0].cause if a.bottlenecks else None


def _undecided(a: Analysis) -> bool:
    return a.verdict in (Verdict.WAIT, Verdict.NOT_ENOUGH_EVIDENCE) or cause_of(a) is Cause.UNKNOWN


def _no_prefix_blamed(a: Analysis, label: Label) -> bool:
    blamed = any(b.cause in (Cause.PREFIX_CACHE_OFF, Cause.PREFIX_CACHE_THRASHING) for b in a.bottlenecks)
    return not blamed and (calm(a) if label.status == "fine" else cause_of(a) is not None and a.verdict is not Verdict.TUNE)


def _hang_or_blind(a: Analysis, _: Label) -> bool:
    return cause_of(a) is Cause.ENGINE_HANG


def _renamed(a: Analysis, label: Label) -> bool:
    if label.status == "fine":
        return calm(a)
    return cause_of(a) in label.accepted or _undecided(a)


Check = Callable[[Analysis, Label], bool]
CHECKS: dict[str, Check] = {
    "restart": lambda a, _: calm(a),
    # Where a page tells nothing of the process (TGI, SGLang's multiprocess pages), frozen pages and a frozen engine look alike.
    "stale": lambda a, label: (
        calm(a) or cause_of(a) in label.accepted or (a.engine is not Engine.VLLM and cause_of(a) is Cause.ENGINE_HANG)
    ),
    "kv_full": lambda a, _: calm(a),
    "unshared": _no_prefix_blamed,
    "load_step": lambda a, _: calm(a),
    "load_surge": lambda a, label: cause_of(a) in label.accepted or _undecided(a),
    "client_limited": lambda a, _: calm(a),
    "hang": _hang_or_blind,
    "upgrade": lambda a, _: cause_of(a) is Cause.UPGRADE_REGRESSION,
    "upgrade_same": lambda a, _: calm(a),
    "noisy_neighbour": lambda a, _: a.verdict not in (Verdict.TUNE, Verdict.ROLL_BACK_UPGRADE) or cause_of(a) is Cause.UNKNOWN,
    "mass_aborts": lambda a, _: cause_of(a) is Cause.CLIENT_ABORTS,
    "cold_start": lambda a, _: calm(a),
    "contradictory": lambda a, _: cause_of(a) in _CAPACITY and a.verdict is not Verdict.TUNE,
    "trade_off": lambda a, _: cause_of(a) in _CAPACITY and a.verdict is not Verdict.TUNE,
    "renamed": _renamed,
    "noise": lambda a, _: calm(a),
}
NEEDS_FINE = {
    "restart",
    "kv_full",
    "load_step",
    "client_limited",
    "hang",
    "upgrade",
    "noisy_neighbour",
    "mass_aborts",
    "cold_start",
    "noise",
}
"""Traps on an engine that is healthy but for the trap; drawn ones that are not are dropped."""
NEEDS_FAULT = {"load_surge"}


def sits(s: Situation, label: Label) -> str:
    """Why the trap cannot be scored; empty where it can."""
    if s.trap in NEEDS_FINE and label.status != "fine":
        return "not healthy without the trap"
    if s.trap in NEEDS_FAULT and (label.status != "fault" or label.no_flag):
        return "no fault after the step"
    if s.trap == "contradictory" and not (label.status == "fault" and label.no_flag):
        return "a flag cures it"
    if s.trap == "trade_off" and not (label.status == "fault" and label.no_flag):
        return "a flag cures it"
    return label.why if label.status == "dropped" and s.trap not in ("stale",) else ""
