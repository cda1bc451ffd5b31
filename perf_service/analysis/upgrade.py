"""A regression after an upgrade: another engine version, the same load, slower tokens."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from perf_service.analysis import thresholds as t
from perf_service.analysis.explain import CAUSE_TYPES, TITLES
from perf_service.collectors.window import spans_of, window_over
from perf_service.models.analysis import Bottleneck, Cause, Evidence, Severity, Verdict
from perf_service.models.metrics import Hist, Snapshot
from perf_service.models.window import Window


def regression(snapshots: Sequence[Snapshot]) -> Bottleneck | None:
    """The latest change of version after which tokens are slower at the same load and configuration; None where there is none."""
    spans = [span for span in spans_of(snapshots) if len(span) > 1]
    for before, after in reversed(list(pairwise(spans))):
        old, new = before[-1].engine_version, after[-1].engine_version
        if not old or not new or old == new or before[-1].config.values() != after[-1].config.values():
            continue
        return _compared(window_over(before), window_over(after), old, new)
    return None


def _compared(before: Window, after: Window, old: str, new: str) -> Bottleneck | None:
    was, now = before.mean(Hist.ITL_SECONDS), after.mean(Hist.ITL_SECONDS)
    enough = min(before.count(Hist.E2E_SECONDS), after.count(Hist.E2E_SECONDS)) >= t.REQUESTS_CERTAIN.value
    if not was or not now or not enough or now < t.REGRESSION_RATIO.value * was or not _same_load(before, after):
        return None
    text = f"a token takes {now * 1000:.0f} ms with {new} and took {was * 1000:.0f} ms with {old}, at the same load and flags."
    samples = after.count(Hist.ITL_SECONDS)
    return Bottleneck(
        type=CAUSE_TYPES[Cause.UPGRADE_REGRESSION],
        severity=Severity.MEDIUM,
        description=f"{TITLES[Cause.UPGRADE_REGRESSION]}: {text}",
        metric_name="itl",
        current_value=now,
        threshold_value=was,
        recommendation=f"Pin or roll back to {old} and report the regression; do not tune around it.",
        cause=Cause.UPGRADE_REGRESSION,
        verdict=Verdict.ROLL_BACK_UPGRADE,
        confidence_ratio=0.8,
        evidence=(Evidence("itl_seconds", "mean", now, f"{text[0].upper()}{text[1:]}", was, "s", samples, after.duration_seconds),),
    )


def _same_load(before: Window, after: Window) -> bool:
    pairs = [(before.mean(h), after.mean(h)) for h in (Hist.PROMPT_TOKENS, Hist.GENERATION_TOKENS)]
    rates = [w.count(Hist.E2E_SECONDS) / w.duration_seconds if w.duration_seconds else None for w in (before, after)]
    pairs.append((rates[0], rates[1]))
    limit = t.LOAD_ALIKE_RATIO.value
    return all(a and b and 1 / limit <= b / a <= limit for a, b in pairs)
