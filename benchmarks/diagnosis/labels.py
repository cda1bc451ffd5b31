"""What is true of a situation, found by experiment: which fix alone, with the same seed and load, cures what is violated.

Everything is measured on *badness*: the sum over the objectives of log(value / bound) where missed (each at most log 30), with an
error
ratio above 1 % as one objective more. The rules, fixed before anything was scored:

- below log 1.05 nothing is violated (but with a value above 75 % of its bound the situation is dropped); between that and
  log 1.25 it is dropped;
- a fix *cures* when it lowers badness by at least log 1.3, a quarter of the badness, and twice the difference of an A/A pair
  (other seed);
- a fix that makes the mean time of a whole request more than 10 % longer cures nothing: the wait has only moved;
- the time between tokens counts where answers have 8 tokens or more; a p95 or p99 of it makes no situation sound;
- the cause is the one whose fix lowers it most; a second one within 80 % of the best is accepted too; with more the situation is
  dropped;
- where the best fix stays below that, but reaches 60 % of it (noise aside), the situation is dropped;
- where two faults were planted and each fix alone cures, both are causes and both must be named; where one alone cures, but
  reaches less than
    70 % of what both do together, or only both together cure, either is accepted as the first cause; else the one is the whole
  story;
- where no flag cures, faster prefill, faster decode and less load are tried in the same way: capacity is the cause (where requests are
  refused for it, that may be said instead).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from benchmarks.diagnosis.drawing import BUILTIN, FULL_BUDGET, FULL_SEQS, UNSHARED, Objective, Situation, kv_flags, kv_tokens
from benchmarks.diagnosis.running import Seen, log_ratio
from perf_service.models.analysis import Cause

VIOLATED_MIN, BORDERLINE = math.log(1.25), math.log(1.05)
MET_MAX = 0.75
GAIN_MIN, GAIN_SHARE, NOISE_TIMES = math.log(1.3), 0.25, 2.0
CLEARLY_NOT, EQUAL_SHARE, TOGETHER_SHARE, ACCEPTED_MAX = 0.6, 0.8, 0.7, 2
ERROR_BOUND, ERROR_CAP = 0.01, 10.0
REQUESTS_MIN, PACE_TOKENS_MIN, E2E_WORSE_MAX = 10, 8, 1.1

Fix = Callable[[Situation], Situation | None]
Measure = Callable[[str, Callable[[], Situation]], Seen]
"""Gives what the clients of a named variant saw, from the cache where it was run before."""


def _itself(s: Situation) -> Situation:
    return s


def _with(s: Situation, **changes: Any) -> Situation:
    flags = replace(s.flags, **changes)
    if flags.engine == "vllm":
        flags = replace(flags, max_num_seqs=min(flags.max_num_seqs, flags.max_num_batched_tokens))
    return replace(s, flags=flags)


def _more_seqs(s: Situation) -> Situation | None:
    more = FULL_SEQS if s.flags.max_num_seqs < FULL_SEQS else 4 * FULL_SEQS
    return _with(s, max_num_seqs=more) if s.flags.max_num_seqs < min(more, s.flags.max_num_batched_tokens) else None


def _more_budget(s: Situation) -> Situation | None:
    return _with(s, max_num_batched_tokens=FULL_BUDGET) if s.flags.max_num_batched_tokens < 2048 else None


def _less_budget(s: Situation) -> Situation | None:
    return _with(s, max_num_batched_tokens=512) if s.flags.max_num_batched_tokens > 1024 else None


def _more_kv(s: Situation) -> Situation | None:
    return replace(s, flags=kv_flags(s.flags, 8 * kv_tokens(s.flags))) if kv_tokens(s.flags) < 500_000 else None


def _caching(s: Situation) -> Situation | None:
    return None if s.flags.enable_prefix_caching else _with(s, enable_prefix_caching=True)


def _bolder(s: Situation) -> Situation | None:
    if s.engine != "sglang" or s.flags.schedule_conservativeness <= 0.3:
        return None
    return _with(s, schedule_conservativeness=0.3)


def _timider(s: Situation) -> Situation | None:
    if s.engine != "sglang" or s.flags.schedule_conservativeness >= 1.0:
        return None
    return _with(s, schedule_conservativeness=1.5)


def _split_long(s: Situation) -> Situation | None:
    if s.engine != "vllm" or s.workload.prefixes != UNSHARED:
        return None
    return _with(s, long_prefill_token_threshold=512)


def _let_in(s: Situation) -> Situation | None:
    if s.engine == "tgi" and s.flags.max_concurrent_requests < 512:
        return _with(s, max_concurrent_requests=2048)
    return _with(s, max_num_queued_reqs=None) if s.flags.max_num_queued_reqs is not None else None


def _even(s: Situation) -> Situation | None:
    return replace(s, shares=(1 / len(s.shares),) * len(s.shares)) if s.shares else None


#: Fix name -> (the causes it proves, what it changes). Flags first; a fleet's balance is no flag but no capacity either.
FIXES: Mapping[str, tuple[Cause, Fix]] = {
    "more_seqs": (Cause.BATCH_LIMIT, _more_seqs),
    "more_budget": (Cause.TOKEN_BUDGET_TOO_SMALL, _more_budget),
    "less_budget": (Cause.TOKEN_BUDGET_TOO_LARGE, _less_budget),
    "more_kv": (Cause.KV_EXHAUSTED, _more_kv),
    "caching": (Cause.PREFIX_CACHE_OFF, _caching),
    "bolder": (Cause.UNDER_ADMISSION, _bolder),
    "timider": (Cause.KV_EXHAUSTED, _timider),
    "split_long": (Cause.HEAD_OF_LINE_BLOCKING, _split_long),
    "let_in": (Cause.REJECTIONS, _let_in),
    "even": (Cause.REPLICA_IMBALANCE, _even),
}


def _fast_prefill(s: Situation) -> Situation:
    return replace(s, times=replace(s.times, per_prefill_token=s.times.per_prefill_token / 3))


def _fast_decode(s: Situation) -> Situation:
    return replace(s, times=replace(s.times, base=s.times.base / 3, per_seq=s.times.per_seq / 3))


def _less_load(s: Situation) -> Situation:
    load = s.workload
    if load.rate is not None:
        return replace(s, workload=replace(load, rate=load.rate / 3))
    return replace(s, workload=replace(load, concurrency=max(1, (load.concurrency or 1) // 3)))


CAPACITY: Mapping[str, tuple[Cause, Callable[[Situation], Situation]]] = {
    "fast_prefill": (Cause.PREFILL_COMPUTE, _fast_prefill),
    "fast_decode": (Cause.DECODE_BOUND, _fast_decode),
    "less_load": (Cause.OVERLOAD, _less_load),
}

PAIRS: Mapping[str, tuple[str, str]] = {
    "two:batch+prefix": ("more_seqs", "caching"),
    "two:batch+budget": ("more_seqs", "more_budget"),
    "two:kv+prefix": ("more_kv", "caching"),
    "two:budget+prefix": ("more_budget", "caching"),
}


@dataclass(frozen=True)
class Label:
    """What is true. ``status``: ``fault``, ``fine`` or ``dropped`` (with ``why``)."""

    status: str
    accepted: tuple[Cause, ...] = ()
    both: tuple[Cause, ...] = ()  # to be named together
    no_flag: bool = False
    badness: float = 0.0
    gains: tuple[tuple[str, float], ...] = ()
    why: str = ""

    @property
    def name(self) -> str:
        if self.status != "fault":
            return self.status
        return "no flag helps" if self.no_flag else self.accepted[0].value


def objectives(s: Situation, measure: Measure) -> tuple[Objective, ...]:
    """The bounds the operator set, rounded as people do; the built-in ones where none are told."""
    if not s.wishes:
        return BUILTIN
    seen = measure("base" if s.sound == s.flags else "sound", lambda: replace(s, flags=_bootable(s), trap="", shares=_even_shares(s)))
    found = []
    for wish in s.wishes:
        value = seen.values[f"{wish.metric}_{wish.statistic}"]
        if value == value and value > 0:
            found.append(Objective(wish.metric, wish.statistic, max(0.002, float(f"{value * wish.ratio:.2g}"))))
    return tuple(found) or BUILTIN


def _bootable(s: Situation) -> Any:
    flags = s.sound
    return replace(flags, max_num_seqs=min(flags.max_num_seqs, flags.max_num_batched_tokens)) if flags.engine == "vllm" else flags


def _even_shares(s: Situation) -> tuple[float, ...]:
    return (1 / len(s.shares),) * len(s.shares) if s.shares else ()


def paced(seen: Seen) -> bool:
    """Whether answers are long enough for the time between tokens to mean anything."""
    return seen.values["itl_n"] >= PACE_TOKENS_MIN * seen.finished


def badness(seen: Seen, goals: tuple[Objective, ...]) -> float:
    """0 where all is met."""
    errors = log_ratio(seen.error_ratio, ERROR_BOUND, ERROR_CAP)
    return errors + sum(log_ratio(seen.values[goal.name], goal.bound) for goal in goals)


def label(s: Situation, goals: tuple[Objective, ...], measure: Measure) -> Label:
    """The label of a situation without its trap."""
    plain = replace(s, trap="")
    base = measure("base", lambda: plain)
    goals = tuple(goal for goal in goals if goal.metric != "itl" or paced(base))
    bad = badness(base, goals)
    if bad < BORDERLINE:
        close = max((base.values[goal.name] / goal.bound for goal in goals if base.values[goal.name] > 0), default=0.0)
        if close > MET_MAX or any(goal.metric == "itl" and goal.statistic != "mean" for goal in goals):
            return Label("dropped", why="objectives hardly met")
        if base.finished < REQUESTS_MIN and s.kind != "idle":
            return Label("dropped", why="too few requests")
        return Label("fine")
    if bad < VIOLATED_MIN:
        return Label("dropped", badness=bad, why="objectives hardly missed")
    if base.finished < REQUESTS_MIN:
        return Label("dropped", badness=bad, why="too few requests")
    noise = abs(badness(measure("again", lambda: replace(plain, seed=plain.seed + 500_000_000)), goals) - bad)
    least = max(GAIN_MIN, GAIN_SHARE * bad)
    margin = max(least, NOISE_TIMES * noise)
    if margin > bad:
        return Label("dropped", badness=bad, why="within the noise of an A/A pair")

    moved: dict[str, float] = {}

    def gain(name: str, variant: Situation) -> float:
        after = measure(name, lambda: variant)
        slower = after.values["e2e_mean"] > E2E_WORSE_MAX * base.values["e2e_mean"]
        better = bad - badness(after, goals)
        if slower and after.error_ratio > base.error_ratio - ERROR_BOUND:
            moved[name] = better
            return 0.0  # the wait has only moved
        return better

    gains = {name: gain(name, variant) for name, (_, fix) in FIXES.items() if (variant := fix(plain)) is not None}
    rounded = tuple((name, round(value, 2)) for name, value in sorted(gains.items(), key=lambda item: -item[1]))
    pair = PAIRS.get(s.kind)
    if pair is not None:
        told = _pair(plain, pair, gains, margin, bad, gain, rounded)
        if told is not None:
            return told
    best = max(gains.values(), default=0.0)
    if best >= margin:
        equal = [name for name, value in gains.items() if value >= max(margin, EQUAL_SHARE * best)]
        causes = _causes(plain, sorted(equal, key=lambda name: -gains[name]), gains, goals, measure)
        if len(causes) > ACCEPTED_MAX:
            return Label("dropped", badness=bad, gains=rounded, why="too many fixes help alike")
        return Label("fault", causes, badness=bad, gains=rounded)
    if best >= CLEARLY_NOT * least:
        return Label("dropped", badness=bad, gains=rounded, why="the best fix helps a little")
    if moved.get("less_budget", 0.0) >= CLEARLY_NOT * least:
        return Label("dropped", badness=bad, gains=rounded, why="a steadier pace for a longer whole")
    more = {name: gain(name, change(plain)) for name, (_, change) in CAPACITY.items()}
    rounded += tuple((name, round(value, 2)) for name, value in more.items())
    if max(more.values()) < margin:
        return Label("dropped", badness=bad, gains=rounded, why="nothing helps")
    accepted = tuple(CAPACITY[name][0] for name, value in more.items() if value >= max(margin, CLEARLY_NOT * max(more.values())))
    refused = (Cause.REJECTIONS,) if base.error_ratio > ERROR_BOUND else ()
    return Label("fault", tuple(dict.fromkeys((*accepted, Cause.OVERLOAD, *refused))), no_flag=True, badness=bad, gains=rounded)


def _pair(
    s: Situation, pair: tuple[str, str], gains: Mapping[str, float], margin: float, bad: float,
    gain: Callable[[str, Situation], float], rounded: tuple[tuple[str, float], ...],
) -> Label | None:  # fmt: skip
    """The label of two faults at once; None where one of them is the whole story."""
    first, second = pair
    one = FIXES[first][1](s)
    both = FIXES[second][1](one) if one is not None else None
    if both is None:
        return None
    order = sorted(pair, key=lambda name: -gains.get(name, 0.0))
    own = [name for name in order if gains.get(name, 0.0) >= margin]
    together = gain("+".join(pair), both)
    if together < margin or (len(own) == 1 and gains[own[0]] >= TOGETHER_SHARE * together):
        return None
    accepted = tuple(FIXES[name][0] for name in order)
    told = (*rounded, ("+".join(pair), round(together, 2)))
    return Label("fault", accepted, both=accepted if len(own) == 2 else (), badness=bad, gains=told)


def _causes(
    s: Situation, names: list[str], gains: Mapping[str, float], goals: tuple[Objective, ...], measure: Measure
) -> tuple[Cause, ...]:
    causes: list[Cause] = []
    for name in names:
        cause = FIXES[name][0]
        if name == "more_kv" and s.engine == "tgi":
            causes += [Cause.RESERVATION_LIMIT, Cause.KV_EXHAUSTED]  # one knob for both, and TGI always reserves the worst case
            return tuple(dict.fromkeys(causes))[:2]
        if name == "more_kv" and s.flags.enable_prefix_caching and s.workload.shared_prefix_tokens and s.workload.prefixes != UNSHARED:
            # Does more room help because requests fit, or because the cache lives longer? Without a cache only the first is left.
            off = replace(s, flags=replace(s.flags, enable_prefix_caching=False))
            before = badness(measure("uncached", partial(_itself, off)), goals)
            after = badness(measure("uncached+more_kv", partial(_itself, _more_kv(off) or off)), goals)
            share = (before - after) / gains[name]
            causes += [Cause.PREFIX_CACHE_THRASHING] if share < 0.7 else []
            causes += [Cause.KV_EXHAUSTED] if share > 0.3 else []
            continue
        causes.append(cause)
    return tuple(dict.fromkeys(causes))
