"""What changed inside the window, and whether the conclusion outlives it: a load step, a slower or a faster engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from perf_service.analysis import series
from perf_service.models.analysis import Analysis, Bottleneck, BottleneckType, Cause, Severity, Verdict
from perf_service.models.metrics import DataIssue, IssueCode, IssueLevel, Snapshot
from perf_service.models.window import Window

_SETTLE_SECONDS = 60.0  # after a load step a queue needs about this long to show whether it stays


def corrected(analysis: Analysis, pages: list[Snapshot], parts: list[Window], again: Callable[[list[Snapshot]], Analysis]) -> Analysis:
    """The analysis corrected for a load step or a slowdown inside the window, where that changes the conclusion."""
    root = analysis.bottlenecks[0]
    if root.cause is Cause.ENGINE_HANG:
        return analysis
    step = series.load_step(parts)
    if step is not None:
        before, after = again(pages[: step.index + 1]), again(pages[step.index :])
        if _root(before) is _root(after):
            return analysis
        note = DataIssue(IssueCode.DERIVED, IssueLevel.INFO, f"{step.text} Only the time after it is judged.")
        settled = (after.window.duration_seconds or 0.0) >= _SETTLE_SECONDS if after.window else False
        after = replace(after, quality=after.quality.plus(note))
        if settled or not after.bottlenecks:
            return replace(after, summary=f"{step.text} {after.summary}")
        capped = tuple(replace(b, severity=min(b.severity, Severity.MEDIUM, key=lambda s: s.rank)) for b in after.bottlenecks)
        summary = f"Wait: {step.text} What follows from it has not settled yet."
        return replace(after, bottlenecks=capped, verdict=Verdict.WAIT, summary=summary)
    slower = series.slowdown(parts)
    if slower is not None:
        before = again(pages[: slower.index + 1])
        if _root(before) is not root.cause:
            return _slowed(analysis, slower)
    faster = series.speedup(parts)
    if faster is not None:
        after = again(pages[faster.index :])
        if _root(after) is not root.cause:
            return _recovered(after, faster.text)
    start = len(parts) // 3
    if series.same_load_since(parts, start):
        after = again(pages[start:])
        if not after.bottlenecks and after.quality.usable:
            return _recovered(after, "as many requests come since, and no objective is missed.")
    return analysis


def _recovered(after: Analysis, how: str) -> Analysis:
    """The engine was slow at first and is not any more (start-up, compilation, a neighbour that left): judged on the time after."""
    text = f"The engine was slow at first and is not any more: {how} Only the time after is judged."
    note = DataIssue(IssueCode.DERIVED, IssueLevel.INFO, text)
    return replace(after, quality=after.quality.plus(note), summary=f"{text} {after.summary}")


def _root(analysis: Analysis) -> Cause | None:
    return analysis.bottlenecks[0].cause if analysis.bottlenecks else None


def led_by(analysis: Analysis, finding: Bottleneck) -> Analysis:
    """The analysis with a new root; what was found before is its symptom."""
    level = max((finding.severity, *(b.severity for b in analysis.bottlenecks)), key=lambda s: s.rank)
    symptoms = tuple(replace(b, symptom_of=b.symptom_of or finding.cause) for b in analysis.bottlenecks)
    root = replace(finding, severity=level)
    return replace(analysis, bottlenecks=(root, *symptoms), verdict=root.verdict, summary=root.description)


def _slowed(analysis: Analysis, change: series.Change) -> Analysis:
    """The engine became slower by itself: what followed is a symptom, and no flag is at fault."""
    first = analysis.bottlenecks[0]
    finding = Bottleneck(
        type=BottleneckType.HIGH_LATENCY,
        severity=first.severity,
        description=f"The engine became {change.factor:.1f} times slower while the load stayed the same. {change.text}",
        metric_name="itl",
        current_value=change.after,
        threshold_value=change.before,
        recommendation="Look at the host first (noisy neighbour, CPU steal, clocks, throttling); no flag changed, so none is at fault.",
        cause=Cause.UNKNOWN,
        verdict=Verdict.NOT_ENOUGH_EVIDENCE,
        confidence_ratio=0.7,
        alternative=first.cause,
        would_settle="CPU steal and clock rates of the host over the same time",
    )
    return led_by(analysis, finding)
