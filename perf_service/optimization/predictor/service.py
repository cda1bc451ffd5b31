"""Steady state of continuous batching at the level of means.

With x requests a second, each of P prompt tokens to compute and D decode steps, a step of t seconds holds n = x D t decodes and
p = x P t prompt tokens, and lasts t = base + per_sequence n + per_token p. Hence t = base / (1 - x w) with the work of a request
w = per_sequence D + per_token P, and x can never reach 1/w. Sequence limit, token budget, KV capacity and the number of clients
each bound x; all of them are monotone in x, so the throughput is found by bisection.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from perf_service.optimization.predictor.steptime import StepCost


@dataclass(frozen=True, slots=True)
class Request:
    """The mean request, in tokens."""

    prompt: float  # KV that its prompt holds
    computed: float  # prompt tokens to compute
    output: float
    output_cv: float


@dataclass(frozen=True, slots=True)
class Limits:
    """What the config bounds. Infinite: no bound."""

    sequences: float = math.inf
    token_budget: float = math.inf
    kv_tokens: float = math.inf
    kv_block: float = 16.0
    preemptions_per_request: float = 0.3  # where the KV cache is what binds
    mixed: bool = True  # prompt chunks and decodes share the budget (SGLang: they alternate)


@dataclass(frozen=True, slots=True)
class Steady:
    """Means (seconds, requests, tokens) and quantiles of the steady state."""

    requests_per_second: float
    step_seconds: float
    itl: float
    itl_p50: float
    itl_p95: float
    queue: float
    prefill: float
    ttft: float
    ttft_p95: float
    e2e: float
    e2e_p50: float
    e2e_p95: float
    running: float
    kv_ratio: float | None
    preemptions_per_second: float
    overloaded: bool  # arrivals exceed what the config can serve: waiting grows without bound


def steady(request: Request, cost: StepCost, limits: Limits, *, users: float | None = None, arrivals: float | None = None) -> Steady:
    """The steady state for a number of clients that each wait for their answer, or for arrivals per second (give one of them)."""
    held = request.prompt + request.output / 2 + limits.kv_block / 2
    fits = limits.kv_tokens / held
    first = _solve(request, cost, limits, fits, users, arrivals, again=0.0)
    # Where the KV cache is what binds, some requests are preempted and computed again; that work lowers what can be served.
    binds = math.isfinite(fits) and first.running >= 0.93 * fits and min(limits.sequences, users or math.inf) > 1.02 * fits
    again = limits.preemptions_per_request if binds else 0.0
    return _solve(request, cost, limits, fits, users, arrivals, again=again) if again else first


def _solve(
    request: Request, cost: StepCost, limits: Limits, fits: float, users: float | None, arrivals: float | None, again: float
) -> Steady:
    decodes = max(0.0, request.output - 1.0)
    computed = request.computed + again * (request.prompt + request.output / 2)
    work = cost.per_sequence * decodes + cost.per_token * computed

    def at(x: float) -> tuple[float, float, float, float]:
        """(step seconds, decodes in a step, prompt tokens in a step, seconds in prefill) at x requests a second."""
        t = cost.base / max(1e-9, 1.0 - x * work)
        n = x * decodes * t
        room = limits.token_budget - n if limits.mixed else limits.token_budget
        chunks = max(1.0, computed / max(1.0, room)) if math.isfinite(room) else 1.0
        # The steps of a prompt are not mean steps: they hold its own tokens.
        own = chunks * cost.seconds(n, computed / chunks)
        return t, n, x * computed * t, max(t * chunks, own)

    # A client of a closed loop meets the other ones only (arrival theorem): a lone one never waits for a step.
    others = (users - 1.0) / users if users is not None and users > 1.0 else float(users is None)

    def residual(x: float, t: float) -> float:
        """Seconds until the running step ends, seen at random: E[t^2] / 2 E[t], steps with prompts being the long ones."""
        return others * (t + x * (cost.per_token * min(computed, limits.token_budget)) ** 2) / 2

    def served(x: float) -> bool:
        t, n, p, prefill = at(x)
        inside = n + x * prefill
        return (
            inside <= limits.sequences
            and inside <= max(1.0, fits)
            and (n if limits.mixed else 0.0) + p <= limits.token_budget
            and (users is None or inside + x * residual(x, t) <= users)
        )

    low, high = 0.0, (1.0 - 1e-6) / work if work > 0 else 1e6
    for _ in range(32):  # to 2e-10 of the highest rate there can be
        middle = (low + high) / 2
        low, high = (middle, high) if served(middle) else (low, middle)
    capacity = low
    overloaded = arrivals is not None and arrivals >= 0.99 * capacity
    x = min(capacity, arrivals) if arrivals is not None else capacity
    t, n, p, prefill = at(x)
    inside = n + x * prefill
    seen = t
    if arrivals is not None and not overloaded:
        # An arriving request finds the others and adds itself: at low load that is a step with one decode, not with none.
        seen = cost.seconds(min(n + 1.0, max(1.0, limits.sequences)), p)
    elif users is None or users <= 1.5:
        seen = max(t, cost.seconds(1.0))
    if users is not None:
        queue = max(0.0, users - inside - x * residual(x, t)) / x if x > 0 else 0.0
        queue_p95 = 1.5 * queue
    else:
        queue, queue_p95 = _open_queue(x, capacity, request, min(limits.sequences, fits), decodes * seen + prefill)
    join = residual(x, t) if n > 0.5 else 0.0
    # Clients whose answers end together come back together: their prompts share steps.
    waits = users is not None and users - inside > 0.1 * users  # a queue in front of the engine spreads them out again
    bunch = 0.0 if waits else max(0.0, math.sqrt(inside) - 1.0)
    together = bunch * cost.per_token * computed if limits.token_budget >= 2 * computed else 0.0
    ttft = queue + join + prefill + together
    decode = decodes * seen
    e2e = ttft + decode
    spread = math.sqrt(math.log1p((request.output_cv * decode / e2e) ** 2)) if e2e > 0 else 0.0
    prompts = x * t  # prompts that finish prefill in a mean step
    plain = cost.seconds(n) if decodes else t
    return Steady(
        requests_per_second=x,
        step_seconds=t,
        itl=seen,
        itl_p50=plain if prompts < math.log(2) else seen,  # Poisson: more than half of the steps carry no prompt
        itl_p95=max(seen, plain + cost.per_token * computed * _poisson_p95(prompts)),
        queue=queue,
        prefill=join + prefill + together,
        ttft=ttft,
        ttft_p95=queue_p95 + join * 2 + prefill + 2 * together,
        e2e=e2e,
        e2e_p50=e2e / math.sqrt(math.exp(spread**2)),
        e2e_p95=max(e2e / math.sqrt(math.exp(spread**2)) * math.exp(1.645 * spread), queue_p95 + prefill + decode),
        running=inside,
        kv_ratio=min(1.0, inside / fits) if math.isfinite(fits) else None,
        preemptions_per_second=again * x,
        overloaded=overloaded,
    )


def _open_queue(x: float, capacity: float, request: Request, servers: float, service: float) -> tuple[float, float]:
    """Mean and 95th percentile of the wait for admission: Allen-Cunneen's M/G/c approximation with c concurrent requests."""
    if not math.isfinite(servers) or capacity <= 0:
        return 0.0, 0.0
    load = min(0.99, x / capacity)
    c = max(1.0, servers)
    # Sakasegawa's closed form of the Erlang delay: load ** (sqrt(2 (c + 1)) - 1) / (c (1 - load)).
    mean = service * load ** (math.sqrt(2 * (c + 1)) - 1) / (c * (1 - load)) * (1 + request.output_cv**2) / 2
    return mean, 3.0 * mean


def _poisson_p95(mean: float) -> float:
    """The 95th percentile of a Poisson number, by its own recursion (the mean is at most a few dozens).

    Between whole numbers by interpolation: prompts differ in length, so the step that one more of them joins is no sudden thing.
    """
    if mean > 50:
        return mean + 1.645 * math.sqrt(mean)
    below, probability = 0.0, math.exp(-mean)
    total, k = probability, 0
    while total < 0.95:
        k += 1
        probability *= mean / k
        below, total = total, total + probability
    return k - 1 + (0.95 - below) / probability if k else 0.0
