"""Work without progress: an engine, or one of its data-parallel ranks, that stands still now or did inside the window."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import groupby, takewhile

from perf_service.analysis import thresholds as t
from perf_service.analysis.candidates import compact, fact
from perf_service.analysis.facts import Facts
from perf_service.analysis.rules_events import finding
from perf_service.models.analysis import Bottleneck, Cause, Severity, Verdict
from perf_service.models.metrics import Counter, Gauge, Hist
from perf_service.models.window import Window

_PROGRESS = (
    Counter.GENERATION_TOKENS,
    Counter.PROMPT_TOKENS,
    Counter.REQUESTS_SUCCEEDED,
    Counter.REQUESTS_ABORTED,
    Counter.REQUESTS_FAILED,
)


def _stands_still(window: Window) -> bool:
    """No progress of any kind, although the counters are there.

    A long prompt is booked when its last chunk is computed; until then each of its steps shows in the KV cache alone.
    """
    if not any(counter in window.counters for counter in _PROGRESS):
        return False
    filled = (window.gauge(Gauge.KV_CACHE_USAGE_RATIO), window.gauge(Gauge.KV_USED_TOKENS))
    if any(stats is not None and stats.min != stats.max for stats in filled):
        return False
    return not any(window.counters.get(counter, 0.0) > 0 for counter in _PROGRESS) and window.count(Hist.ITERATION_TOKENS) <= 0


def _has_work(window: Window) -> bool:
    running, waiting = window.gauge(Gauge.RUNNING_REQUESTS), window.gauge(Gauge.WAITING_REQUESTS)
    return (running is not None and running.min > 0) or (waiting is not None and waiting.min > 0)


def _clients_piling_up(parts: Sequence[Window]) -> float:
    """Descriptors that the API process gained over the parts, 0 where any part lost some.

    An engine that hangs between two requests freezes its gauges at zero; each new client then only shows as an open connection.
    """
    seen = [part.gauge(Gauge.OPEN_FILE_DESCRIPTORS) for part in parts]
    known = [stats for stats in seen if stats is not None]
    if not known or len(known) < len(seen) or any(stats.last < stats.max for stats in known):
        return 0.0
    return known[-1].last - known[0].min


def hang(facts: Facts) -> Bottleneck | None:
    """Work is there and no token comes, while the page itself is alive. Looked for at the end of the window."""
    parts = tuple(reversed(facts.series or (facts.window,)))
    tail_parts = [*takewhile(lambda part: not part.lifetime and _stands_still(part), parts)][::-1]
    if not tail_parts:
        return None
    # Before the work came, it stood still because nobody asked it anything.
    busy = [*takewhile(_has_work, reversed(tail_parts))][::-1]
    piled = 0.0 if busy else _clients_piling_up(tail_parts)
    if not busy and piled < t.PILED_UP_CLIENTS.value:
        return None
    tail_parts = busy or tail_parts
    still = sum(part.duration_seconds or 0.0 for part in tail_parts)
    scrapes = 1 + sum(part.scrapes - 1 for part in tail_parts)
    needed = _stall_needed(facts)
    if still < needed:
        return None
    running = facts.running.last if facts.running else 0.0
    waiting = facts.waiting.last if facts.waiting else 0.0
    alive = facts.window.counters.get(Counter.PROCESS_CPU_SECONDS, 0.0) > 0
    detail = f"no token for {still:.0f} s over {scrapes} scrapes with {running:.0f} running and {waiting:.0f} waiting requests."
    if piled:
        detail = f"no token for {still:.0f} s over {scrapes} scrapes, while {piled:.0f} more connections were opened and none was answered."
    evidence = (
        fact(facts, "generation_tokens", "delta", 0.0, f"No token was generated for {still:.0f} s.", threshold=needed, unit="tokens"),
        fact(facts, "open_file_descriptors", "delta", piled, f"The API process holds {piled:.0f} more open connections than before.")
        if piled
        else fact(
            facts, "running_requests", "last", running, f"{running:.0f} requests are running, {waiting:.0f} waiting.", unit="requests"
        ),
        *compact(
            (
                fact(facts, "process_cpu_seconds", "delta", 1.0, "The page is alive: the API process used CPU between the scrapes.")
                if alive
                else None,
            )
        ),
    )
    return finding(
        Cause.ENGINE_HANG,
        facts,
        Severity.CRITICAL,
        Verdict.RESTART,
        "generation_tokens",
        0.0,
        needed,
        detail,
        evidence,
        0.85 if piled else 0.95 if alive else 0.7,
    )


STALLED_SECONDS = "stalled_seconds"
"""The metric of a standstill that is over."""


def stalled(facts: Facts) -> Bottleneck | None:
    """The longest time in which the engine stood still although it had work, and which is over. None where it never did."""
    runs = [[*run] for still, run in groupby(facts.series, lambda part: _stands_still(part) and _has_work(part)) if still]
    lengths = [sum(part.duration_seconds or 0.0 for part in run) for run in runs]
    longest = max(lengths, default=0.0)
    needed = _stall_needed(facts)
    if longest < needed or facts.series[-1] in runs[-1]:
        return None
    since = sum(part.duration_seconds or 0.0 for part in facts.series[facts.series.index(runs[lengths.index(longest)][-1]) + 1 :])
    text = f"No token was generated for {longest:.0f} s in the middle of the window, with requests running or waiting."
    evidence = (fact(facts, "generation_tokens", "delta", 0.0, text, threshold=needed, unit="tokens"),)
    found = finding(
        Cause.ENGINE_HANG, facts, Severity.HIGH, Verdict.NOT_ENOUGH_EVIDENCE, STALLED_SECONDS, longest, needed, "", evidence, 0.9
    )
    advice = "Look for what held it (its log, the host: suspended, swapping, a device that was reset); if it comes back, take a stack dump."
    description = f"The engine stood still for {longest:.0f} s although it had work; it moves again since {since:.0f} s."
    return replace(found, description=description, recommendation=advice, would_settle="the engine's log and the host's over the same time")


def anywhere(rule: Callable[[Facts], Bottleneck | None], facts: Facts) -> Bottleneck | None:
    """What `hang` or `stalled` says of the engine, else of the first data-parallel rank of which it says something: in the sums of the
    page one that stands still beside others that work is not seen."""
    found = rule(facts)
    named = facts.window.ranks
    if found is not None or len(named) < 2 or any(Gauge.RANK_GENERATION_TOKENS not in gauges for gauges in named.values()):
        return found
    for rank, gauges in sorted(named.items()):
        alone = replace(
            facts,
            window=_of_rank(facts.window, rank),
            series=tuple(_of_rank(part, rank) for part in facts.series),
            running=gauges.get(Gauge.RUNNING_REQUESTS),
            waiting=gauges.get(Gauge.WAITING_REQUESTS),
        )
        if (found := rule(alone)) is not None:
            return replace(found, description=found.description.replace("The engine", f"Rank {rank} of the engine", 1))
    return None


def _of_rank(window: Window, rank: str) -> Window:
    gauges = window.ranks.get(rank, {})
    cpu = Counter.PROCESS_CPU_SECONDS
    counters: dict[Counter, float] = {cpu: window.counters[cpu]} if cpu in window.counters else {}
    if (tokens := gauges.get(Gauge.RANK_GENERATION_TOKENS)) is not None:
        counters[Counter.GENERATION_TOKENS] = tokens.max - tokens.min
    return replace(window, gauges=gauges, counters=counters, histograms={}, ranks={})


def _stall_needed(facts: Facts) -> float:
    """Seconds without a token that are longer than any pause of this engine."""
    usual = max(facts.prefill or 0.0, facts.itl or 0.0)
    tail = facts.window.quantile(Hist.ITL_SECONDS, 0.99)
    if tail is not None and tail.high != float("inf"):
        usual = max(usual, tail.high)
    return max(t.STALL_SECONDS.value, t.STALL_STEPS.value * usual)
