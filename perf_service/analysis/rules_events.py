"""Findings that need no latency: hang, errors, rejections, aborts, imbalance, under-use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby, takewhile

from perf_service.analysis import explain
from perf_service.analysis import thresholds as t
from perf_service.analysis.candidates import compact, fact
from perf_service.analysis.facts import Facts
from perf_service.models.analysis import Bottleneck, Cause, Evidence, Severity, Verdict
from perf_service.models.metrics import Counter, Gauge, Hist
from perf_service.models.units import number, percent
from perf_service.models.window import GaugeStats, Window


def finding(
    cause: Cause,
    facts: Facts,
    severity: Severity,
    verdict: Verdict,
    metric: str,
    value: float,
    threshold: float,
    detail: str,
    evidence: tuple[Evidence, ...] = (),
    confidence: float = 0.9,
) -> Bottleneck:
    """A bottleneck of a cause that stands by itself."""
    return Bottleneck(
        type=explain.CAUSE_TYPES[cause],
        severity=severity,
        description=f"{explain.TITLES[cause]}: {detail}",
        metric_name=metric,
        current_value=value,
        threshold_value=threshold,
        recommendation=explain.recommendation(cause, facts, verdict),
        cause=cause,
        verdict=verdict,
        confidence_ratio=confidence,
        evidence=evidence,
    )


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


def _stall_needed(facts: Facts) -> float:
    """Seconds without a token that are longer than any pause of this engine."""
    usual = max(facts.prefill or 0.0, facts.itl or 0.0)
    tail = facts.window.quantile(Hist.ITL_SECONDS, 0.99)
    if tail is not None and tail.high != float("inf"):
        usual = max(usual, tail.high)
    return max(t.STALL_SECONDS.value, t.STALL_STEPS.value * usual)


def errors(facts: Facts) -> tuple[Bottleneck, ...]:
    """Failed, rejected, malformed and abandoned requests, each with its own share."""
    window = facts.window
    get = window.counters.get
    rejected = get(Counter.REQUESTS_REJECTED, 0.0)
    failed = max(get(Counter.REQUESTS_FAILED, 0.0), get(Counter.HTTP_5XX_RESPONSES, 0.0) - rejected)
    malformed, aborted = get(Counter.HTTP_4XX_RESPONSES, 0.0), get(Counter.REQUESTS_ABORTED, 0.0)
    aborted = max(aborted, _vanished(facts))
    total = _ended(facts) + max(0.0, failed - get(Counter.REQUESTS_FAILED, 0.0)) + rejected + malformed
    since = " since the start; one page cannot say whether they still do" if window.lifetime else ""
    found = []
    for cause, count, metric, verdict in (
        (Cause.REQUEST_ERRORS, failed, "requests_failed", Verdict.NOT_ENOUGH_EVIDENCE),
        (Cause.REJECTIONS, rejected, "requests_rejected", Verdict.SCALE),
    ):
        share = count / total if total else 0.0
        if count >= t.EVENTS_MIN.value and share >= t.ERROR_RATIO.value:
            severity = Severity.MEDIUM
            if share >= t.ERROR_RATIO_HIGH.value:
                severity = Severity.CRITICAL if share >= t.ERROR_RATIO_CRITICAL.value else Severity.HIGH
            if window.lifetime:
                severity = Severity.MEDIUM
            detail = f"{count:.0f} of {total:.0f} requests ({percent(share)}){since}."
            word = "failed" if cause is Cause.REQUEST_ERRORS else "were rejected"
            text = f"{percent(share)} of the requests {word} (from {percent(t.ERROR_RATIO.value)} on it is told)."
            evidence = (fact(facts, metric, "share", share, text, threshold=t.ERROR_RATIO.value, unit="ratio", samples=total),)
            found.append(finding(cause, facts, severity, verdict, metric, share, t.ERROR_RATIO.value, detail, evidence))
    share = malformed / total if total else 0.0
    if malformed >= t.EVENTS_MIN.value and share >= t.ERROR_RATIO_HIGH.value:
        counted = f"{malformed:.0f} of {total:.0f} requests ({percent(share)})"
        detail = f"{counted} were answered with HTTP 4xx: the client sends what the server refuses."
        evidence = (
            fact(facts, "http_4xx_responses", "share", share, detail, threshold=t.ERROR_RATIO_HIGH.value, unit="ratio", samples=total),
        )
        found.append(
            finding(
                Cause.REQUEST_ERRORS,
                facts,
                Severity.MEDIUM,
                Verdict.LOOK_AT_CLIENT,
                "http_4xx_responses",
                share,
                t.ERROR_RATIO_HIGH.value,
                detail,
                evidence,
            )
        )
    begun = max(facts.started, facts.finished + aborted)
    share = aborted / begun if begun else 0.0
    if aborted >= t.EVENTS_MIN.value and share >= t.ABORT_RATIO.value:
        detail = f"{aborted:.0f} of {begun:.0f} requests ({percent(share)})."
        text = f"{percent(share)} of the requests that had begun were given up (from {percent(t.ABORT_RATIO.value)} on it is told)."
        evidence = (fact(facts, "requests_aborted", "share", share, text, threshold=t.ABORT_RATIO.value, unit="ratio", samples=begun),)
        found.append(
            finding(
                Cause.CLIENT_ABORTS,
                facts,
                Severity.MEDIUM,
                Verdict.LOOK_AT_CLIENT,
                "requests_aborted",
                share,
                t.ABORT_RATIO.value,
                detail,
                evidence,
                0.8,
            )
        )
    return tuple(found)


def _ended(facts: Facts) -> float:
    """Requests that the engine brought to an end, well or not. vLLM times those that fail too, so they are in the latencies already."""
    failed, succeeded = facts.window.counters.get(Counter.REQUESTS_FAILED, 0.0), facts.window.delta(Counter.REQUESTS_SUCCEEDED)
    return facts.finished + failed if succeeded is None else max(facts.finished, succeeded + failed)


def _vanished(facts: Facts) -> float:
    """Requests that got a first token and neither finished nor run any more: vLLM books a disconnect in no outcome counter."""
    window = facts.window
    if window.lifetime or Hist.TTFT_SECONDS not in window.histograms or Hist.E2E_SECONDS not in window.histograms:
        return 0.0
    gap = window.count(Hist.TTFT_SECONDS) - window.count(Hist.E2E_SECONDS)
    if facts.running is None:
        return 0.0
    # Those still running, or preempted and waiting again, are not gone.
    return max(0.0, gap - facts.running.last - (facts.waiting.last if facts.waiting else 0.0))


def imbalance(facts: Facts, loads: Mapping[str, Mapping[Gauge, GaugeStats]]) -> Bottleneck | None:
    """One replica or rank carries the queue while others have room."""
    sums = {
        name: sum(gauges[g].mean for g in (Gauge.RUNNING_REQUESTS, Gauge.WAITING_REQUESTS) if g in gauges)
        for name, gauges in loads.items()
        if Gauge.RUNNING_REQUESTS in gauges
    }
    if len(sums) < 2:
        return None
    mean = sum(sums.values()) / len(sums)
    name, top = max(sums.items(), key=lambda item: (item[1], item[0]))
    waiting = loads[name].get(Gauge.WAITING_REQUESTS)
    if mean <= 0 or top / mean < min(t.IMBALANCE_RATIO.value, 0.8 * len(sums)) or top - mean < t.IMBALANCE_EXCESS.value:
        return None
    queued = waiting is not None and waiting.mean >= t.WAITING_GAUGE_MIN.value
    kind = "rank " if loads is facts.window.ranks else ""
    detail = f"{kind}{name} has {number(top)} requests running or waiting, the mean of {len(sums)} is {number(mean)}."
    evidence = tuple(
        fact(
            facts,
            "running_and_waiting_requests",
            "mean",
            value,
            f"{kind}{rank}: {number(value)} requests running or waiting.",
            unit="requests",
        )
        for rank, value in sorted(sums.items(), key=lambda item: -item[1])[:8]
    )
    return finding(
        Cause.REPLICA_IMBALANCE,
        facts,
        Severity.MEDIUM if queued else Severity.LOW,
        Verdict.LOOK_AT_CLIENT,
        "running_and_waiting_requests",
        top / mean,
        t.IMBALANCE_RATIO.value,
        detail,
        evidence,
        0.8,
    )
