"""From facts to findings: which phase costs too much, what is behind it, one root cause first, symptoms referring to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from perf_service.analysis import attribution as phase
from perf_service.analysis import explain, rules_events, rules_prefill, rules_stall, severity, steps, trust
from perf_service.analysis import thresholds as t
from perf_service.analysis.candidates import Candidate, Harm
from perf_service.analysis.facts import Facts
from perf_service.analysis.harms import harms, throughput_missed
from perf_service.analysis.sentences import sentence
from perf_service.models.analysis import (
    Bottleneck,
    BottleneckType,
    Cause,
    Evidence,
    EvidenceRole,
    Severity,
    SLOState,
    SLOStatus,
    Verdict,
)
from perf_service.models.metrics import Engine, Gauge, Hist
from perf_service.models.window import GaugeStats

_PHASE_TYPES = {
    phase.QUEUE: BottleneckType.QUEUE_BUILDUP,
    phase.PREFILL: BottleneckType.HIGH_LATENCY,
    phase.DECODE: BottleneckType.HIGH_LATENCY,
    phase.PRESCHEDULE: BottleneckType.HIGH_LATENCY,
    phase.UNKNOWN: BottleneckType.HIGH_LATENCY,
}
_MINOR_HARM_RATIO = 0.1
"""A phase with less than this share of the root's harm is not told as a finding of its own."""


@dataclass(frozen=True, slots=True)
class Detection:
    """The findings, root cause first, and the belief in every cause that was weighed for the first harm."""

    bottlenecks: tuple[Bottleneck, ...]
    confidences: Mapping[Cause, float]


def detect(facts: Facts, statuses: Sequence[SLOStatus], loads: Mapping[str, Mapping[Gauge, GaugeStats]] | None = None) -> Detection:
    """Findings of one window. `loads`: gauges by replica or rank, for imbalance."""
    hang = rules_stall.anywhere(rules_stall.hang, facts)
    if hang is not None:
        return Detection((hang,), {Cause.ENGINE_HANG: hang.confidence_ratio})
    found = harms(facts, statuses)
    latency = _latency_findings(facts, statuses, found)
    events = list(rules_events.errors(facts))
    uneven = rules_events.imbalance(facts, loads if loads is not None else facts.window.ranks)
    findings = _ordered(facts, latency, events, uneven)
    if not findings and (unused := _under_use(facts, statuses)) is not None:
        findings = [unused]
    stall = rules_stall.anywhere(rules_stall.stalled, facts)
    if stall is not None:
        whole = facts.window.duration_seconds or 0.0
        if findings and stall.current_value < t.STALL_MATERIAL.value * whole:
            findings.append(replace(stall, severity=Severity.MEDIUM))  # too short to be why the rest is as it is
        else:  # what was measured is of the time in which nothing moved
            findings = [stall, *(replace(f, symptom_of=f.symptom_of or Cause.ENGINE_HANG) for f in findings)]
    confidences = dict(found[0].beliefs()) if found else {}
    if findings and findings[0].cause not in confidences:
        confidences[findings[0].cause] = findings[0].confidence_ratio
    return Detection(tuple(findings), confidences)


def _latency_findings(facts: Facts, statuses: Sequence[SLOStatus], found: Sequence[Harm]) -> list[Bottleneck]:
    findings: list[Bottleneck] = []
    for harm in found:
        if findings and harm.missed < _MINOR_HARM_RATIO * found[0].missed:
            continue
        finding = _harm_finding(facts, statuses, harm)
        if any(other.cause is finding.cause and finding.cause is not Cause.UNKNOWN for other in findings):
            continue
        findings.append(finding)
    if findings:
        findings = _contradicted(facts, findings)
        findings += _beside(facts, statuses, findings)
        findings += _symptoms(facts, statuses, findings)
    elif throughput_missed(statuses):
        findings += _client_limited(facts, statuses)
    return findings


def _beside(facts: Facts, statuses: Sequence[SLOStatus], findings: Sequence[Bottleneck]) -> list[Bottleneck]:
    """Second causes: whatever holds requests back, part of their service might be saved besides."""
    named = {finding.cause for finding in findings}
    found = []
    for candidate in rules_prefill.savings(facts, Cause.KV_EXHAUSTED in named):
        if candidate.cause not in named:
            second = _harm_finding(facts, statuses, Harm(phase.PREFILL, 0.0, (candidate,), 0.8))
            found.append(replace(second, severity=min(second.severity, Severity.MEDIUM, key=lambda s: s.rank)))
    return found


def _contradicted(facts: Facts, findings: list[Bottleneck]) -> list[Bottleneck]:
    """Where a told limit cannot be true, the queue's finding says so instead of guessing around it."""
    issue = trust.told_limit_refuted(facts)
    queue = next((f for f in findings if f.type is BottleneckType.QUEUE_BUILDUP or f.metric_name == "waiting_requests"), None)
    if issue is None or queue is None:
        return findings
    finding = replace(
        queue,
        type=BottleneckType.QUEUE_BUILDUP,
        description=f"The told configuration is contradicted by the data: {issue.message}",
        recommendation="Compare the told launch arguments with those of the running process before changing anything.",
        cause=Cause.UNKNOWN,
        verdict=Verdict.NOT_ENOUGH_EVIDENCE,
        alternative=Cause.BATCH_LIMIT,
        margin_ratio=None,
        would_settle="the launch arguments of the running process (its command line, its log, or /server_info)",
    )
    return [finding if f is queue else f for f in findings]


def _harm_finding(facts: Facts, statuses: Sequence[SLOStatus], harm: Harm) -> Bottleneck:
    ranked = harm.ranked()
    top, belief = ranked[0] if ranked else (Candidate(Cause.UNKNOWN, 0.0), 0.0)
    second = ranked[1] if len(ranked) > 1 else None
    named = belief >= t.CONFIDENCE_NAMED.value
    cause = top.cause if named else Cause.UNKNOWN
    verdict = top.verdict if named else Verdict.NOT_ENOUGH_EVIDENCE
    evidence = tuple(dict.fromkeys((*top.evidence, *harm.evidence)))
    relevant = [s for s in statuses if _concerns(s, harm.phase, facts)]
    level = severity.of_cause(cause, facts, relevant or list(statuses), belief)
    if not relevant and level.rank > Severity.MEDIUM.rank and not any(s.state is SLOState.MISSED for s in statuses):
        level = Severity.MEDIUM
    metric, value, limit = _headline(harm, top if named else None, statuses, facts)
    alternative = (second[0].cause if second else None) if named else (top.cause if ranked else None)
    margin = belief - second[1] if second and named else None
    # Told whenever it is close, or a launch argument that would decide is not known.
    close = (margin is not None and margin < 0.5) or (harm.phase != phase.DECODE and _limits_unknown(cause, facts))
    return Bottleneck(
        type=explain.CAUSE_TYPES[cause] if named else _PHASE_TYPES[harm.phase],
        severity=level,
        description=sentence(cause, facts, harm.phase),
        metric_name=metric,
        current_value=value,
        threshold_value=limit,
        recommendation=explain.recommendation(cause, facts, verdict),
        cause=cause,
        verdict=verdict,
        confidence_ratio=belief if named else max(0.0, 1.0 - sum(b for _, b in ranked)),
        evidence=evidence,
        alternative=alternative,
        margin_ratio=margin,
        would_settle=top.settle if close or not named or cause is Cause.PREFIX_CACHE_OFF else "",
    )


def _limits_unknown(cause: Cause, facts: Facts) -> bool:
    if cause not in (Cause.BATCH_LIMIT, Cause.TOKEN_BUDGET_TOO_SMALL, Cause.PREFILL_COMPUTE):
        return False
    return facts.sequence_limit is None or facts.token_budget is None


def _concerns(status: SLOStatus, name: str, facts: Facts) -> bool:
    """Whether a missed objective is about this phase."""
    if status.state is not SLOState.MISSED:
        return False
    hist = status.target.histogram
    if hist is None:
        return name == phase.QUEUE
    if name in (phase.QUEUE, phase.PRESCHEDULE):
        return hist in (Hist.TTFT_SECONDS, Hist.E2E_SECONDS, Hist.QUEUE_SECONDS)
    if name == phase.DECODE:
        return hist in (Hist.ITL_SECONDS, Hist.TPOT_SECONDS, Hist.DECODE_SECONDS, Hist.E2E_SECONDS)
    return phase.phase_shares(facts, hist).get(name, 0.0) > 0.1 or name == phase.UNKNOWN


def _headline(harm: Harm, top: Candidate | None, statuses: Sequence[SLOStatus], facts: Facts) -> tuple[str, float, float]:
    """The one metric of a finding: the strongest fact for its cause that has a threshold, else the objective that is missed."""
    pool: tuple[Evidence, ...] = (*(top.evidence if top else ()), *harm.evidence)
    headed_by_queue = top is None or top.cause in (Cause.BATCH_LIMIT, Cause.OVERLOAD, Cause.PREFILL_COMPUTE)
    if harm.phase == phase.QUEUE and headed_by_queue and (facts.waiting_mean > 0 or facts.queue_share is None):
        return "waiting_requests", facts.waiting_mean, t.WAITING_GAUGE_MIN.value
    for item in pool:
        if item.threshold is not None and item.role is EvidenceRole.FOR:
            return item.metric, item.value, item.threshold
    missed = [s for s in statuses if s.state is SLOState.MISSED and s.current_value is not None]
    for status in sorted(missed, key=lambda s: not _concerns(s, harm.phase, facts)):
        return status.metric_name, status.current_value or 0.0, status.target_value
    first = pool[0] if pool else None
    return (first.metric, first.value, 0.0) if first else ("waiting_requests", facts.waiting_mean, t.WAITING_GAUGE_MIN.value)


def _symptoms(facts: Facts, statuses: Sequence[SLOStatus], findings: Sequence[Bottleneck]) -> list[Bottleneck]:
    """One HIGH_LATENCY finding per missed latency metric that no finding is headed by, referring to the root."""
    root = findings[0]
    told = {finding.metric_name for finding in findings}
    symptoms = []
    seen: set[Hist] = set()
    for status in sorted(statuses, key=lambda s: -severity.of_status(s).rank if s.state is SLOState.MISSED else 0):
        hist = status.target.histogram
        if (
            status.state is not SLOState.MISSED
            or hist is None
            or hist in seen
            or status.metric_name in told
            or status.current_value is None
        ):
            continue
        seen.add(hist)
        cause = next((f.cause for f in findings if _explains(f, hist, facts)), None)
        if cause is None and root.type is BottleneckType.HIGH_LATENCY:
            cause = root.cause
        level = severity.of_status(status)
        symptoms.append(
            Bottleneck(
                type=BottleneckType.HIGH_LATENCY,
                severity=min(level, root.severity, key=lambda s: s.rank) if cause is not None else level,
                description=status.message,
                metric_name=status.metric_name,
                current_value=status.current_value,
                threshold_value=status.target_value,
                recommendation=root.recommendation,
                cause=cause or Cause.UNKNOWN,
                verdict=root.verdict,
                confidence_ratio=root.confidence_ratio,
                symptom_of=cause or root.cause,
            )
        )
    return symptoms


def _explains(finding: Bottleneck, hist: Hist, facts: Facts) -> bool:
    decode = hist in (Hist.ITL_SECONDS, Hist.TPOT_SECONDS, Hist.DECODE_SECONDS)
    decode_causes = (Cause.DECODE_BOUND, Cause.TOKEN_BUDGET_TOO_LARGE, Cause.SPECULATION_NOT_PAYING, Cause.OVERLOAD)
    if decode:
        return finding.cause in decode_causes or steps.interference_share(facts) > 0.3 or finding.cause is Cause.KV_EXHAUSTED
    return finding.cause not in decode_causes or finding.cause is Cause.OVERLOAD or hist is Hist.E2E_SECONDS


def _client_limited(facts: Facts, statuses: Sequence[SLOStatus]) -> list[Bottleneck]:
    """Throughput below its objective while nothing waits: the clients do not ask for more."""
    status = next(s for s in statuses if s.state is SLOState.MISSED and s.target.histogram is None)
    if status.current_value is None or (facts.waiting is None and facts.queue is None):
        return []
    return [
        Bottleneck(
            type=BottleneckType.LOW_THROUGHPUT,
            severity=Severity.LOW,
            description=f"{status.message} Nothing waits ({facts.waiting_mean:.1f} requests): the clients do not ask for more.",
            metric_name=status.metric_name,
            current_value=status.current_value,
            threshold_value=status.target_value,
            recommendation="Look at the load generator or the router: the engine has room for more requests.",
            cause=Cause.UNKNOWN,
            verdict=Verdict.LOOK_AT_CLIENT,
            confidence_ratio=0.8,
            would_settle="the client's own concurrency limit",
        )
    ]


def _ordered(facts: Facts, latency: list[Bottleneck], events: list[Bottleneck], uneven: Bottleneck | None) -> list[Bottleneck]:
    """Root first: uneven load before the queue it makes, serious errors before latency, the rest after the latency root."""
    queue_root = bool(latency) and latency[0].type is BottleneckType.QUEUE_BUILDUP
    if queue_root:
        linked = (Cause.CLIENT_ABORTS, Cause.REJECTIONS)
        events = [replace(e, symptom_of=latency[0].cause) if e.cause in linked else e for e in events]
    grave = [e for e in events if e.symptom_of is None and (e.severity.rank >= Severity.HIGH.rank or _many_fail(e))]
    rest = [e for e in events if e not in grave]
    result = [*grave, *latency, *rest]
    if uneven is not None:
        if not latency:
            return [uneven, *result] if not grave else [*result, uneven]
        level = max(uneven.severity, latency[0].severity, key=lambda s: s.rank)
        marked = [replace(f, symptom_of=f.symptom_of or Cause.REPLICA_IMBALANCE) for f in latency]
        return [*grave, replace(uneven, severity=level), *marked, *rest]
    return result


def _many_fail(event: Bottleneck) -> bool:
    """Told first even where one page cannot make it more than MEDIUM."""
    of_server = event.metric_name in ("requests_failed", "requests_rejected")
    return of_server and event.current_value >= t.ERROR_RATIO_HIGH.value


def _under_use(facts: Facts, statuses: Sequence[SLOStatus]) -> Bottleneck | None:
    """Far below capacity for minutes, with every objective met."""
    running, duration = facts.running_mean, facts.window.duration_seconds
    if running is None or duration is None or duration < 300 or facts.window.lifetime or facts.idle:
        return None
    if (
        any(s.state is SLOState.MISSED for s in statuses)
        or running >= t.UNDER_USE_RUNNING.value * facts.window.replicas
        or facts.waiting_mean > 0.1
    ):
        return None
    if (facts.kv_peak or 0.0) > 0.2 and facts.engine is not Engine.TGI:
        return None
    detail = f"{running:.2f} requests run on average, nothing waits, every objective is met."
    return rules_events.finding(
        Cause.UNDER_USE,
        facts,
        Severity.LOW,
        Verdict.SCALE,
        "running_requests",
        running,
        t.UNDER_USE_RUNNING.value,
        detail,
        confidence=0.8,
    )
