"""One sentence per finding, with the numbers and their units in it, for somebody who was woken up by it.

Counts of a fleet are sums over its replicas, and the sentence says so; times are per request.
"""

from __future__ import annotations

from collections.abc import Callable

from perf_service.analysis import attribution as phase
from perf_service.analysis import thresholds as t
from perf_service.analysis.facts import Facts
from perf_service.models.analysis import Cause
from perf_service.models.metrics import Counter, Engine, Hist
from perf_service.models.units import count_of, number, percent, seconds


def sentence(cause: Cause, facts: Facts, phase_name: str) -> str:
    """What a cause does to the requests of this window. `phase_name`: where the time is lost, for a cause that is not known."""
    made = _SENTENCES.get(cause)
    text = made(facts) if made is not None else _unknown(facts, phase_name)
    return f"{text[0].upper()}{text[1:]}."


def together(facts: Facts) -> str:
    """What to add to a count that is a sum."""
    return f" (sum of {facts.window.replicas} replicas)" if facts.window.replicas > 1 else ""


def waiting_text(facts: Facts) -> str:
    """`23.1 requests wait on average`. Queue times say how many waited while there was work; the gauge, how many at the scrapes."""
    by_gauge = facts.waiting is not None and facts.waiting.mean >= (facts.waiting_occupancy or 0.0)
    when = "at the scrapes" if by_gauge else "while there is work"
    return f"{number(facts.waiting_mean)} requests wait on average {when}{together(facts)}"


def _wait(facts: Facts) -> str:
    """`a request waits 8.27 s of the 8.33 s to its first token`, as far as it is known; empty where nothing is."""
    if facts.queue is not None and facts.ttft:
        return f"a request waits {seconds(min(facts.queue, facts.ttft))} of the {seconds(facts.ttft)} to its first token"
    if facts.queue is not None:
        return f"a request waits {seconds(facts.queue)}"
    return waiting_text(facts) if facts.waiting_mean > 0 else ""


def _and(*clauses: str) -> str:
    return ", and ".join(clause for clause in clauses if clause)


def _batch_limit(facts: Facts) -> str:
    replicas = facts.window.replicas
    where = f" on each of {replicas} replicas" if replicas > 1 else ""
    top = facts.running_top / replicas
    many = f"{number(top)} requests" if replicas > 1 else count_of(top, "request")
    count = f"only {many} run at a time{where}" if top > 0 else "few requests run"
    free = ""
    if facts.kv_peak is not None:
        left, used = percent(1.0 - facts.kv_peak), percent(facts.kv_peak)
        free = f" although {left} of the KV cache stays free" if facts.kv_peak < t.KV_FREE_MAX.value else f" (KV use peaks at {used})"
    wait = _wait(facts)
    return f"{count}{free}" + (f": {wait}" if wait else "")


def _kv_exhausted(facts: Facts) -> str:
    told = []
    if facts.kv_peak is not None:
        told.append(f"use peaks at {percent(facts.kv_peak)}")
    if facts.preemptions:
        word = "retraction" if facts.engine is Engine.SGLANG else "preemption"
        told.append(f"{count_of(facts.preemptions, word)} in {count_of(facts.finished, 'finished request')}")
    detail = f" ({', '.join(told)})" if told else ""
    is_full = facts.kv_peak is None or facts.kv_peak >= t.KV_FREE_MAX.value or facts.preemptions
    return _and(f"the KV cache {'is full' if is_full else 'has no room for one more request'}{detail}", _wait(facts))


def _small_budget(facts: Facts) -> str:
    budget, prompt = facts.token_budget, facts.computed_tokens
    what = f"a prompt of {number(prompt)} tokens" if prompt is not None else "a prompt"
    limit = f"the budget of {number(budget)} tokens per step" if budget is not None else "the small token budget per step"
    took = f", which takes {seconds(facts.prefill)}" if facts.prefill is not None else ""
    return _and(f"{limit} cuts {what} into many steps{took}", _wait(facts))


def _large_budget(facts: Facts) -> str:
    tail, middle = facts.window.quantile(Hist.ITL_SECONDS, 0.99), facts.window.quantile(Hist.ITL_SECONDS, 0.5)
    prompts = f" (prompts have {number(facts.prompt_tokens)} tokens on average)" if facts.prompt_tokens is not None else ""
    pauses = ""
    if tail and middle:
        pauses = f": one pause between tokens in a hundred lasts {seconds(tail.value)} or more, the median {seconds(middle.value)}"
    return f"steps that compute long prompts hold up the answers that are being written{prompts}{pauses}"


def _prefill(facts: Facts) -> str:
    if facts.prefill is None:
        return "computing the prompts is the limit"
    of = f" of the {seconds(facts.ttft)} to the first token" if facts.ttft and facts.prefill <= facts.ttft else ""
    what = f"a prompt of {number(facts.computed_tokens)} tokens" if facts.computed_tokens is not None else "a prompt"
    return f"computing {what} (prefill) takes {seconds(facts.prefill)}{of}{_beside_answers(facts)}{_before_the_step(facts)}"


_STEPS_SHARED = 0.7
"""A prompt's own share of the steps that compute it, below which the answers in them are worth a word."""


def _beside_answers(facts: Facts) -> str:
    running = facts.running_mean
    if running is None or phase.own_prefill_share(facts) >= _STEPS_SHARED:
        return ""
    pace = f" of {seconds(facts.itl)}" if facts.itl else ""
    return f", as it shares the steps{pace} with {number(running)} requests{together(facts)}, most of which decode"


def _before_the_step(facts: Facts) -> str:
    """Where a good part of the first token's time passes before the engine looks at the request."""
    before = facts.preschedule
    if facts.engine is Engine.TGI or not before or not facts.ttft or before < t.PREFILL_SHARE_MIN.value * facts.ttft:
        return ""
    return f"; {seconds(before)} pass before, mostly until the step that runs is over"


def _decode(facts: Facts) -> str:
    running = facts.running_mean
    each = " on each replica" if facts.window.replicas > 1 else ""
    batch = (
        f"with {number(running / facts.window.replicas)} requests decoding together{each}" if running is not None else "at this batch size"
    )
    pace = f" a token takes {seconds(facts.itl)}" if facts.itl is not None else " tokens come slowly"
    share = f", and decoding is {percent(facts.decode / facts.e2e)} of a request's time" if facts.decode is not None and facts.e2e else ""
    return f"{batch}{pace}{share}"


def _prefix_off(facts: Facts) -> str:
    prompt = f" ({number(facts.prompt_tokens)} tokens on average)" if facts.prompt_tokens is not None else ""
    cost = ""
    if facts.prefill is not None and facts.ttft:
        cost = f": {seconds(facts.prefill)} of the {seconds(facts.ttft)} to the first token"
    return f"prefix caching is off, so each prompt{prompt} is computed in full{cost}"


def _thrashing(facts: Facts) -> str:
    hits = (
        f"only {percent(facts.hit_ratio)} of the prompt tokens are found" if facts.hit_ratio is not None else "few prompt tokens are found"
    )
    full = f" while the KV cache's use peaks at {percent(facts.kv_peak)}" if facts.kv_peak is not None else ""
    return f"{hits} in the prefix cache{full}: prefixes are evicted before they are used again"


def _head_of_line(facts: Facts) -> str:
    high, middle = facts.window.quantile(Hist.PROMPT_TOKENS, 0.95), facts.window.quantile(Hist.PROMPT_TOKENS, 0.5)
    size = f" (one in twenty has {number(high.value)} tokens or more, the median {number(middle.value)})" if high and middle else ""
    first = f", and the first token takes {seconds(facts.ttft)}" if facts.ttft else ""
    return f"a few very long prompts hold up the short ones{size}{first}"


def _not_capacity(facts: Facts) -> str:
    share = f"{percent(facts.deferred_share)} of the waiting requests" if facts.deferred_share is not None else "the waiting requests"
    if facts.adapters_short:
        adapters, slots = facts.adapters_short
        return f"{share} wait for a LoRA slot: {adapters} adapters take turns at {slots} (max_loras; {_wait(facts) or waiting_text(facts)})"
    return f"{share} wait for a LoRA slot, a KV transfer or a grammar, not for a free place ({waiting_text(facts)})"


def _under_admission(facts: Facts) -> str:
    usage = facts.kv.mean / facts.kv.nonzero_share if facts.kv and facts.kv.nonzero_share > 0 else None
    used = f" while {percent(usage)} of the KV cache is in use" if usage is not None else " while KV cache is free"
    return f"the engine holds requests back{used}: {_wait(facts) or waiting_text(facts)}"


def _reservation(facts: Facts) -> str:
    share = f"up to {percent(facts.kv_peak)}" if facts.kv_peak is not None else "much"
    wait = _wait(facts) or waiting_text(facts)
    return f"{share} of the batch's token budget is reserved for the longest answers that clients may ask for: {wait}"


def _cpu(facts: Facts) -> str:
    late = facts.preschedule
    first = (
        f"{seconds(late)} of the {seconds(facts.ttft)} to the first token pass before the scheduler sees a request"
        if late and facts.ttft
        else ""
    )
    cores = f"the API process uses {number(facts.cpu_cores)} CPU cores" if facts.cpu_cores is not None else ""
    return _and(first, cores) or "time is lost on the CPU, around the accelerator"


def _speculation(facts: Facts) -> str:
    drafts, accepted = facts.window.delta(Counter.SPEC_DRAFTS), facts.window.delta(Counter.SPEC_ACCEPTED_TOKENS)
    yields = (
        f"a draft yields {number(accepted / drafts)} accepted tokens" if drafts and accepted is not None else "drafts are rarely accepted"
    )
    return f"{yields}: speculative decoding costs more time than it saves"


def _overload(facts: Facts) -> str:
    running = (
        f"{number(facts.running_mean)} requests run{together(facts)}" if facts.running_mean is not None else "as many requests run as can"
    )
    pace = f" at {seconds(facts.itl)} per token" if facts.itl is not None else ""
    return f"more requests come than can be served at the objectives: {running}{pace}, and {_wait(facts) or waiting_text(facts)}"


def _unknown(facts: Facts, phase_name: str) -> str:
    what = {
        phase.QUEUE: _wait(facts) or waiting_text(facts),
        phase.DECODE: f"a token takes {seconds(facts.itl)}" if facts.itl is not None else "tokens come slowly",
    }.get(phase_name) or (f"the first token takes {seconds(facts.ttft)}" if facts.ttft else "the first token is late")
    few = f" (only {count_of(facts.finished, 'request')} finished)" if facts.finished < t.REQUESTS_MIN.value else ""
    return f"{what}, and the data do not name the cause{few}"


_SENTENCES: dict[Cause, Callable[[Facts], str]] = {
    Cause.BATCH_LIMIT: _batch_limit,
    Cause.KV_EXHAUSTED: _kv_exhausted,
    Cause.TOKEN_BUDGET_TOO_SMALL: _small_budget,
    Cause.TOKEN_BUDGET_TOO_LARGE: _large_budget,
    Cause.PREFILL_COMPUTE: _prefill,
    Cause.DECODE_BOUND: _decode,
    Cause.PREFIX_CACHE_OFF: _prefix_off,
    Cause.PREFIX_CACHE_THRASHING: _thrashing,
    Cause.HEAD_OF_LINE_BLOCKING: _head_of_line,
    Cause.WAITING_NOT_CAPACITY: _not_capacity,
    Cause.UNDER_ADMISSION: _under_admission,
    Cause.RESERVATION_LIMIT: _reservation,
    Cause.CPU_OVERHEAD: _cpu,
    Cause.SPECULATION_NOT_PAYING: _speculation,
    Cause.OVERLOAD: _overload,
}
