"""Findings that need no latency: errors, rejections, aborts, imbalance, under-use."""

from __future__ import annotations

from collections.abc import Mapping

from perf_service.analysis import explain
from perf_service.analysis import thresholds as t
from perf_service.analysis.candidates import fact
from perf_service.analysis.facts import Facts
from perf_service.models.analysis import Bottleneck, Cause, Evidence, Severity, Verdict
from perf_service.models.metrics import Counter, Gauge, Hist
from perf_service.models.units import number, percent
from perf_service.models.window import GaugeStats


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
