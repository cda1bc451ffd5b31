"""The faults that are planted, one function a kind, and how often each is drawn.

The planted kind only steers the draw; what is true is decided by interventions (``labels.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from benchmarks.diagnosis.drawing import (
    FULL_BUDGET,
    FULL_SEQS,
    UNSHARED,
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
    mean,
    open_,
    physics,
    sound_flags,
    wished,
)
from perf_service.simulator.flags import EngineKind
from perf_service.simulator.workload import Lengths

Maker = Callable[[Draw], Situation]


def batch_limit(d: Draw, engine: EngineKind | None = None) -> Situation:
    engine, times = engine or any_engine(d), physics(d)
    prompt, output = chat(d)
    limit = d.whole(1, 16)
    if d.chance(0.6):
        load = closed(prompt, output, min(80, round(limit * d.between(2.5, 7)) + 1))
    else:
        shape = closed(prompt, output, 1)
        ceiling = capacity(times, shape, 64)
        rate = min(capacity(times, shape, limit) * d.between(1.15, 1.8), 0.8 * ceiling)
        load = open_(prompt, output, rate)
    sound = sound_flags(d, engine, longest(load))
    return finish(d, "batch_limit", times, replace(sound, max_num_seqs=limit), sound, load)


def kv_small(d: Draw, engine: EngineKind | None = None) -> Situation:
    engine, times = engine or d.pick("vllm", "vllm", "sglang"), physics(d)
    prompt = Lengths.lognormal(d.between(200, 1000), 0.4, 16, 3000)
    output = Lengths.lognormal(d.between(80, 250), 0.4, 4, 900)
    clients = d.whole(14, 56)
    load = closed(prompt, output, clients)
    sound = sound_flags(d, engine, longest(load))
    flags = kv_flags(sound, clients * (mean(prompt) + mean(output)) * d.between(0.22, 0.6))
    return finish(d, "kv_small", times, flags, sound, load)


def budget_small(d: Draw) -> Situation:
    engine, times = d.pick("vllm", "vllm", "sglang", "tgi"), physics(d)
    prompt = Lengths.lognormal(d.between(400, 2200), 0.4, 64, 6000)
    output = Lengths.lognormal(d.between(1, 50), 0.4, 1, 200)
    budget = d.pick(16, 32, 48, 64, 96, 128, 256)
    load = closed(prompt, output, d.whole(2, 12))
    if d.chance(0.35):
        chunked = times.base / budget + times.per_prefill_token
        per_request = mean(prompt) * chunked + mean(output) * times.base / 4
        load = open_(prompt, output, d.between(0.5, 1.1) / per_request)
    sound = replace(sound_flags(d, engine, longest(load)), max_num_seqs=d.pick(16, 64, 256))
    if engine == "vllm":
        sound = replace(sound, max_num_seqs=min(sound.max_num_seqs, budget))
    return finish(d, "budget_small", times, replace(sound, max_num_batched_tokens=budget), sound, load)


def budget_large(d: Draw) -> Situation:
    """Prompts that take a quarter to half of the engine's time, each in one long step, between answers that are being written."""
    engine, times = d.pick("vllm", "vllm", "sglang"), physics(d)
    prompt = Lengths.lognormal(d.between(1500, 4000), 0.4, 200, 14000)
    output = Lengths.lognormal(d.between(60, 180), 0.4, 10, 600)
    while mean(prompt) * times.per_prefill_token > 15 * (times.base + 8 * times.per_seq):
        times = physics(d)  # with so long a step there are too few of them to be one pause in a hundred
    load = open_(prompt, output, d.between(0.25, 0.5) / (mean(prompt) * times.per_prefill_token))
    sound = replace(sound_flags(d, engine, longest(load)), max_num_batched_tokens=512)
    wishes = (Wish("ttft", "mean", d.between(1.5, 3)), Wish("itl", "p99", d.between(1.2, 1.8)))
    flags = replace(sound, max_num_batched_tokens=d.pick(8192, 16384))
    return finish(d, "budget_large", times, flags, sound, load, wishes=wishes)


def prefill_bound(d: Draw) -> Situation:
    engine, times = any_engine(d), physics(d)
    prompt = Lengths.lognormal(d.between(1200, 5000), 0.3, 100, 14000)
    output = Lengths.lognormal(d.between(1.5, 10), 0.3, 1, 40)
    load = closed(prompt, output, d.whole(3, 12))
    if d.chance(0.4):
        load = open_(prompt, output, capacity(times, load, 8) * d.between(0.75, 1.05))
    sound = replace(sound_flags(d, engine, longest(load)), max_num_batched_tokens=FULL_BUDGET)
    wishes = (Wish("ttft", d.pick("mean", "p95"), d.between(0.25, 0.6)), Wish("itl", "mean", d.between(1.5, 2.5)))
    return finish(d, "prefill_bound", times, sound, sound, load, wishes=wishes if d.chance(0.7) else ())


def decode_bound(d: Draw) -> Situation:
    engine, times = any_engine(d), physics(d)
    times = replace(times, per_seq=max(times.per_seq, times.base / 60))
    prompt = Lengths.lognormal(d.between(16, 120), 0.3, 4, 600)
    output = Lengths.lognormal(d.between(100, 300), 0.3, 10, 900)
    load = closed(prompt, output, d.whole(32, 80))
    sound = sound_flags(d, engine, longest(load))
    wishes = (Wish("ttft", "mean", d.between(2, 4)), Wish("itl", "mean", d.between(0.35, 0.7)))
    return finish(d, "decode_bound", times, sound, sound, load, wishes=wishes)


def prefix_off(d: Draw) -> Situation:
    """Not for TGI: neither its pages nor its flags tell of prefix caching."""
    engine, times = d.pick("vllm", "vllm", "sglang"), physics(d)
    shared = d.whole(512, 3000)
    prompt = Lengths.uniform(shared + 16, shared + d.whole(32, 250))
    load = replace(
        closed(prompt, Lengths.lognormal(d.between(4, 60), 0.4, 1, 300), d.whole(3, 16)),
        shared_prefix_tokens=shared,
        prefixes=d.pick(1, 1, 2, 4),
        shared_prefix_share=d.pick(1.0, 1.0, 0.8),
    )
    sound = sound_flags(d, engine, longest(load))
    return finish(d, "prefix_off", times, replace(sound, enable_prefix_caching=False), sound, load)


def prefix_thrash(d: Draw) -> Situation:
    engine, times = d.pick("vllm", "vllm", "sglang"), physics(d)
    shared, prefixes = d.whole(700, 2500), d.whole(24, 90)
    prompt = Lengths.uniform(shared + 16, shared + d.whole(32, 150))
    output = Lengths.lognormal(d.between(4, 30), 0.4, 1, 150)
    load = replace(closed(prompt, output, d.whole(2, 6)), shared_prefix_tokens=shared, prefixes=prefixes)
    need = (load.concurrency or 1) * (mean(prompt) + mean(output))
    sound = sound_flags(d, engine, longest(load))
    flags = kv_flags(sound, max(1.7 * need, shared * prefixes * d.between(0.15, 0.35)))
    return finish(d, "prefix_thrash", times, flags, sound, load)


def head_of_line(d: Draw) -> Situation:
    """A few very long prompts among many short ones, and nothing that keeps them apart."""
    times = physics(d)
    prompt = Lengths.lognormal(d.between(40, 150), 0.4, 8, 600)
    output = Lengths.lognormal(d.between(8, 40), 0.4, 1, 200)
    long, share = d.whole(5000, 12000), d.rng.uniform(0.06, 0.15)
    work = (share * long + (1 - share) * mean(prompt)) * times.per_prefill_token
    # A "prefix" that next to nobody shares is how some prompts get long here.
    load = replace(
        open_(prompt, output, d.between(0.4, 0.6) / work), shared_prefix_tokens=long, shared_prefix_share=share, prefixes=UNSHARED
    )
    flags = replace(sound_flags(d, "vllm", longest(load)), max_num_batched_tokens=FULL_BUDGET)
    sound = replace(flags, long_prefill_token_threshold=512)
    wishes = (Wish("ttft", "mean", d.between(0.8, 1.2)), Wish("itl", "mean", d.between(2.0, 3.0)))
    # A long look: few long prompts make for a lot of chance.
    return finish(d, "head_of_line", times, flags, sound, load, wishes=wishes, duration=d.pick(120.0, 180.0))


def under_admission(d: Draw) -> Situation:
    times = physics(d)
    prompt = Lengths.lognormal(d.between(100, 600), 0.4, 16, 2000)
    output = Lengths.lognormal(d.between(60, 160), 0.4, 4, 500)
    clients = d.whole(16, 64)
    asked = d.pick(1024, 2048)
    load = replace(closed(prompt, output, clients), max_tokens=asked)
    sound = sound_flags(d, "sglang", longest(load))
    pool = clients * (mean(prompt) + mean(output)) * d.between(1.05, 1.6) + asked
    sound = replace(kv_flags(sound, pool), schedule_conservativeness=0.3)
    flags = replace(sound, schedule_conservativeness=d.pick(1.0, 1.5, 2.0, 3.0))
    return finish(d, "under_admission", times, flags, sound, load)


def retraction(d: Draw) -> Situation:
    times = physics(d)
    prompt = Lengths.lognormal(d.between(100, 400), 0.4, 16, 1500)
    output = Lengths.lognormal(d.between(150, 300), 0.3, 20, 900)
    clients = d.whole(20, 56)
    load = closed(prompt, output, clients)
    sound = sound_flags(d, "sglang", longest(load))
    pool = clients * (mean(prompt) + mean(output)) * d.between(0.3, 0.6)
    flags = replace(kv_flags(sound, pool), schedule_conservativeness=d.pick(0.05, 0.1, 0.2, 0.3))
    return finish(d, "retraction", times, flags, sound, load)


def reservation(d: Draw) -> Situation:
    times = physics(d)
    prompt = Lengths.lognormal(d.between(80, 500), 0.4, 16, 2000)
    output = Lengths.lognormal(d.between(40, 140), 0.4, 4, 500)
    asked, clients = d.pick(512, 1024, 2048), d.whole(12, 56)
    load = replace(closed(prompt, output, clients), max_tokens=asked)
    sound = sound_flags(d, "tgi", longest(load))
    flags = kv_flags(sound, clients * (mean(prompt) + asked) * d.between(0.1, 0.4))
    return finish(d, "reservation", times, flags, sound, load)


def overload(d: Draw) -> Situation:
    engine, times = any_engine(d), physics(d)
    prompt, output = chat(d)
    load = open_(prompt, output, capacity(times, closed(prompt, output, 1), 96) * d.between(1.15, 1.8))
    sound = sound_flags(d, engine, longest(load))
    wishes = (Wish("ttft", "mean", d.between(0.1, 0.3)), Wish("itl", "mean", d.between(0.3, 0.7)))
    return finish(d, "overload", times, sound, sound, load, wishes=wishes if d.chance(0.6) else ())


def rejections(d: Draw) -> Situation:
    engine, times = d.pick("tgi", "vllm"), physics(d)
    prompt, output = chat(d)
    allowed = d.whole(4, 12)
    load = open_(prompt, output, capacity(times, closed(prompt, output, 1), allowed) * d.between(1.1, 1.6))
    sound = sound_flags(d, engine, longest(load))
    flags = replace(sound, max_concurrent_requests=allowed) if engine == "tgi" else replace(sound, max_num_queued_reqs=allowed)
    return finish(d, "rejections", times, flags, sound, load)


def imbalance(d: Draw) -> Situation:
    engine, times = any_engine(d), physics(d)
    prompt, output = chat(d)
    replicas = d.pick(3, 4)
    busy = d.rng.uniform(0.6, 0.85)
    shares = (busy, *((1 - busy) / (replicas - 1),) * (replicas - 1))
    shape = closed(prompt, output, 1)
    # The busy replica gets more than its hardware gives at any batch size worth having; evenly shared, all have room.
    total = min(capacity(times, shape, 128) * d.between(1.1, 1.4) / busy, 0.75 * replicas * capacity(times, shape, 64))
    sound = sound_flags(d, engine, longest(shape))
    load = open_(prompt, output, total)
    return finish(d, "imbalance", times, sound, sound, load, shares=shares)


# -- two at once --------------------------------------------------------------------------------------


def two_batch_prefix(d: Draw) -> Situation:
    s = prefix_off(d)
    limit = d.whole(2, 6)
    load = replace(s.workload, concurrency=limit * d.whole(3, 5), output=Lengths.lognormal(d.between(40, 120), 0.4, 2, 400))
    flags = replace(s.flags, max_num_seqs=limit)
    return finish(d, "two:batch+prefix", s.times, flags, s.sound, load)


def two_batch_budget(d: Draw) -> Situation:
    s = budget_small(d)
    limit = d.pick(2, 3, 4)
    load = replace(s.workload, rate=None, concurrency=limit * d.whole(3, 6), output=Lengths.lognormal(d.between(20, 80), 0.4, 2, 300))
    flags = replace(s.flags, max_num_seqs=limit)
    sound = replace(s.sound, max_num_seqs=FULL_SEQS)
    return finish(d, "two:batch+budget", s.times, flags, sound, load)


def two_kv_prefix(d: Draw) -> Situation:
    engine, times = d.pick("vllm", "sglang"), physics(d)
    shared = d.whole(500, 1500)
    prompt = Lengths.uniform(shared + 16, shared + d.whole(50, 300))
    output = Lengths.lognormal(d.between(60, 160), 0.4, 4, 500)
    clients = d.whole(12, 40)
    load = replace(closed(prompt, output, clients), shared_prefix_tokens=shared)
    sound = sound_flags(d, engine, longest(load))
    flags = replace(kv_flags(sound, clients * (mean(prompt) + mean(output)) * d.between(0.2, 0.45)), enable_prefix_caching=False)
    return finish(d, "two:kv+prefix", times, flags, sound, load)


def two_budget_prefix(d: Draw) -> Situation:
    s = prefix_off(d)
    budget = d.pick(64, 96, 128, 256)
    flags = replace(s.flags, max_num_batched_tokens=budget)
    return finish(d, "two:budget+prefix", s.times, flags, s.sound, s.workload)


# -- nothing wrong ------------------------------------------------------------------------------------


def healthy(d: Draw) -> Situation:
    engine, times = any_engine(d), physics(d)
    prompt, output = chat(d)
    style = d.pick("open", "open", "closed", "shared", "long")
    if style == "long":
        prompt = Lengths.lognormal(d.between(700, 2500), 0.4, 50, 8000)
    shape = closed(prompt, output, 1)
    load = open_(prompt, output, capacity(times, shape, 24) * d.between(0.15, 0.65))
    if style == "closed":
        load = closed(prompt, output, d.whole(2, 24))
    if style == "shared":
        shared = d.whole(256, 1500)
        load = replace(load, prompt=Lengths.uniform(shared + 16, shared + 200), shared_prefix_tokens=shared, prefixes=d.pick(1, 4))
    sound = sound_flags(d, engine, longest(load))
    return finish(d, "healthy", times, sound, sound, load, wishes=wished(d) if d.chance(0.7) else ())


def idle(d: Draw) -> Situation:
    engine, times = any_engine(d), physics(d)
    prompt, output = chat(d)
    rate = 0.0 if d.chance(0.5) else d.between(0.02, 0.1)
    load = open_(prompt, output, rate)
    sound = sound_flags(d, engine, longest(load))
    return finish(d, "idle", times, sound, sound, load, duration=d.pick(60.0, 120.0, 400.0), wishes=wished(d, (2.0, 4.0)))


def healthy_fleet(d: Draw) -> Situation:
    """Replicas that share the load about evenly, as chance has it."""
    engine, times = any_engine(d), physics(d)
    prompt, output = chat(d)
    shape = closed(prompt, output, 1)
    replicas = d.pick(2, 3, 4)
    weights = [d.rng.uniform(0.85, 1.15) for _ in range(replicas)]
    load = open_(prompt, output, replicas * capacity(times, shape, 16) * d.between(0.2, 0.5))
    sound = sound_flags(d, engine, longest(shape))
    shares = tuple(weight / sum(weights) for weight in weights)
    return finish(d, "healthy_fleet", times, sound, sound, load, shares=shares, wishes=wished(d, (2.0, 3.5), (1.8, 2.5)))


def rank_imbalance(d: Draw) -> Situation:
    """Data-parallel ranks of one vLLM server, all on one page, of which one gets most of the load."""
    s = imbalance(d)
    while s.engine != "vllm":
        s = imbalance(d)
    busy = s.shares[0]
    return replace(s, kind="rank_imbalance", shares=(busy, *((1 - busy) / (len(s.shares) - 1),) * (len(s.shares) - 1)))


#: Kinds and how many of each hundred draws they get.
FAULTS: tuple[tuple[Maker, int], ...] = (
    (batch_limit, 9), (kv_small, 7), (budget_small, 7), (budget_large, 5), (prefill_bound, 4), (decode_bound, 4), (prefix_off, 6),
    (prefix_thrash, 3), (head_of_line, 2), (under_admission, 3), (retraction, 2), (reservation, 3), (overload, 4), (rejections, 2),
    (imbalance, 2), (two_batch_prefix, 2), (two_batch_budget, 2), (two_kv_prefix, 2), (two_budget_prefix, 1), (healthy, 14), (idle, 4),
)  # fmt: skip


#: Fleets and ranks, and more of the faults that the label rules drop often.
MORE: tuple[tuple[Maker, int], ...] = (
    (healthy_fleet, 2), (rank_imbalance, 1), (imbalance, 1), (budget_large, 2), (head_of_line, 2), (under_admission, 2),
)  # fmt: skip


def schedule(makers: Sequence[tuple[Maker, int]]) -> list[Maker]:
    """The makers in a fixed, well mixed order with their shares (largest remainder, round robin)."""
    total = sum(weight for _, weight in makers)
    slots = [((k + 0.5) / weight, index, maker) for index, (maker, weight) in enumerate(makers) for k in range(weight)]
    assert len(slots) == total
    return [maker for _, _, maker in sorted(slots, key=lambda slot: slot[:2])]
