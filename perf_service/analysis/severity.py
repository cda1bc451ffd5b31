"""How bad a finding is: by the operator's objectives; without them only a visibly harmful mechanism is HIGH."""

from __future__ import annotations

from collections.abc import Sequence

from perf_service.analysis import thresholds as t
from perf_service.analysis.facts import Facts
from perf_service.analysis.slo_monitor import miss_ratio
from perf_service.models.analysis import Cause, Severity, SLOState, SLOStatus

_BY_RANK = (Severity.LOW, Severity.MEDIUM, Severity.HIGH, Severity.CRITICAL)


def of_status(status: SLOStatus) -> Severity:
    """Severity of one missed objective: how far it is missed, one step lower where few requests say so."""
    ratio = miss_ratio(status)
    if status.target.builtin:
        return Severity.MEDIUM if ratio >= t.BUILTIN_RATIO_MEDIUM.value else Severity.LOW
    if status.target.objective_ratio is not None:
        rank = 3 if ratio >= t.BURN_CRITICAL.value else 2 if ratio >= t.BURN_HIGH.value else 1
    elif ratio >= t.SLO_RATIO_CRITICAL.value:
        rank = 3
    elif ratio >= t.SLO_RATIO_HIGH.value:
        rank = 2
    else:
        rank = 1 if ratio >= t.SLO_RATIO_MEDIUM.value else 0
    if status.samples < t.REQUESTS_CERTAIN.value:
        rank -= 1
    return _BY_RANK[max(0, rank)]


def worst(statuses: Sequence[SLOStatus]) -> Severity:
    """The worst of the missed objectives, LOW where none is missed."""
    found = [of_status(status) for status in statuses if status.state is SLOState.MISSED]
    return max(found, key=lambda s: s.rank, default=Severity.LOW)


def of_cause(cause: Cause, facts: Facts, statuses: Sequence[SLOStatus], confidence: float) -> Severity:
    """Severity of a root cause. Built-in objectives alone give MEDIUM at most; so does a cause that is only a guess."""
    severity = worst(statuses)
    if all(status.state is SLOState.NOT_MEASURED for status in statuses):
        severity = Severity.MEDIUM  # latency is not on the page: what piles up speaks for itself, but not louder
    waiting = facts.waiting.mean if facts.waiting is not None else 0.0
    if facts.window.lifetime and waiting >= max(t.WAITING_GAUGE_SINGLE_MIN.value, facts.running_top):
        severity = max(severity, Severity.MEDIUM, key=lambda s: s.rank)  # totals since the start know nothing of the queue there is now
    own_policy = any(not status.target.builtin for status in statuses)
    all_met = own_policy and all(status.state is not SLOState.MISSED for status in statuses)
    if _pathological(cause, facts) and not all_met and not facts.window.lifetime:
        severity = max(severity, Severity.HIGH, key=lambda s: s.rank)
    if not own_policy and not _pathological(cause, facts):
        severity = min(severity, Severity.MEDIUM, key=lambda s: s.rank)
    if facts.window.lifetime or (confidence < t.CONFIDENCE_NAMED.value and not own_policy):
        severity = min(severity, Severity.MEDIUM, key=lambda s: s.rank)  # totals since the start say nothing of now
    return severity


def _pathological(cause: Cause, facts: Facts) -> bool:
    """A mechanism that is wrong whatever the objectives, and that requests visibly suffer from."""
    queue = facts.queue or 0.0
    suffering = queue >= t.QUEUE_SUFFERING_SECONDS.value and (facts.queue_share or 0.0) >= t.QUEUE_SUFFERING_SHARE.value
    if cause in (Cause.BATCH_LIMIT, Cause.TOKEN_BUDGET_TOO_SMALL, Cause.UNDER_ADMISSION):
        return suffering
    if cause is Cause.KV_EXHAUSTED:
        per_request = facts.preemptions_per_request
        often = per_request is not None and per_request >= t.PREEMPTIONS_PATHOLOGICAL.value
        return often and (facts.waiting_mean >= t.WAITING_MIN.value or queue >= t.QUEUE_SUFFERING_SECONDS.value)
    return False
