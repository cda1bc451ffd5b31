"""What a rollout really did: before against after, beside what was predicted; and its entry in the ledger."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from perf_service.models.plan import Direction, PredictedEffect
from perf_service.models.workflow import Judgement, Outcome, RealisedEffect, Workflow, WorkflowStatus
from perf_service.storage.ports import LedgerEntry
from perf_service.workflows import measures
from perf_service.workflows.types import Measured

REPORTED: tuple[str, ...] = (*measures.COMPARED, measures.THROUGHPUT, measures.ERROR_RATIO)
_DEFAULT_OBJECTIVES = ("ttft_seconds_mean", "e2e_seconds_mean")
_BASE_NOISE_RATIO = 0.05
"""Two windows of one unchanged engine differ by a few per cent whatever their size."""
LOAD_TOLERANCE_RATIO = 0.2


def measure_outcome(workflow: Workflow, after: Measured | None) -> Outcome:
    """The realised effect over the last stage, with every replica changed, against the recorded baseline."""
    if workflow.dry_run:
        return Outcome((), False, "dry run completed: every stage was walked and nothing was changed, so there is no effect to measure")
    if after is None or not workflow.baseline:
        return Outcome((), False, "completed; the effect could not be measured: no metrics before or after")
    effects = _effects(workflow, workflow.baseline, workflow.baseline_samples, after.values, after.samples)
    reason = _why_not_comparable(workflow, effects, after)
    wanted = [e for e in effects if e.metric in objectives(workflow)] or [e for e in effects if e.metric in _DEFAULT_OBJECTIVES]
    shown = "; ".join(_sentence(e) for e in wanted) or "no metric in common"
    note = f" (not comparable: {reason})" if reason else ""
    return Outcome(effects, not reason, f"completed: {shown}{note}")


def outcome_of_samples(workflow: Workflow) -> Outcome | None:
    """What a rollout that is rolled back did, read off the present stage's samples: changed replicas against the baseline."""
    samples = [s for s in workflow.samples if s.judgement in (Judgement.PASS, Judgement.FAIL)]
    if not samples:
        return None
    before, after = _mean_of(samples, "baseline"), _mean_of(samples, "canary")
    counted = {key: math.fsum(s.canary_requests for s in samples) for key in after}
    others = {key: math.fsum(s.baseline_requests for s in samples) or workflow.baseline_samples.get(key, 0.0) for key in before}
    effects = _effects(workflow, before, others, after, counted)
    return Outcome(effects, True, "rolled back: " + ("; ".join(_sentence(e) for e in effects[:3]) or "no metric in common"))


def objectives(workflow: Workflow) -> tuple[str, ...]:
    """Metrics that the change is meant to improve: the predicted winners, else the mean TTFT and end-to-end latency."""
    wins = sorted((e for e in workflow.predicted_effects if e.direction is Direction.IMPROVES), key=lambda e: e.ratio.value)
    named = tuple(dict.fromkeys(e.metric for e in wins if measures.is_latency(e.metric) or e.metric == measures.THROUGHPUT))
    return named[:3] or _DEFAULT_OBJECTIVES


def objective_ratio(workflow: Workflow, outcome: Outcome) -> float | None:
    """after / before of the foremost objective that was measured, turned so that lower is better."""
    by_metric = {e.metric: e for e in outcome.effects}
    for metric in objectives(workflow):
        effect = by_metric.get(metric)
        if effect and effect.ratio > 0:
            return effect.ratio if measures.is_latency(metric) else 1.0 / effect.ratio
    return None


def is_harmful(workflow: Workflow) -> bool:
    """Whether the change made the objective worse beyond noise, or was rolled back by a gate on what it did."""
    if workflow.status in (WorkflowStatus.ROLLED_BACK, WorkflowStatus.ROLLBACK_INCOMPLETE):
        return workflow.failure_reason != "min_improvement"
    outcome = workflow.outcome
    if outcome is None or not outcome.comparable:
        return False
    ratio = objective_ratio(workflow, outcome)
    if ratio is None:
        return False
    smallest = min((min(e.before_samples, e.after_samples) for e in outcome.effects if e.metric in objectives(workflow)), default=0.0)
    return ratio > 1.0 + noise_ratio(smallest)


def noise_ratio(samples: float) -> float:
    """How far the ratio of two means of unchanged engines may be off: 5 % plus 1.64 standard errors at a coefficient of variation of 1."""
    return _BASE_NOISE_RATIO + 1.64 * math.sqrt(2.0 / max(samples, 1.0))


def ledger_entry(workflow: Workflow, *, causes: Iterable[str], engine_version: str) -> LedgerEntry:
    """The ledger entry of a finished workflow."""
    return LedgerEntry(
        workflow_id=workflow.workflow_id,
        plan_id=workflow.plan_id,
        engine=workflow.engine.value,
        engine_version=engine_version,
        causes=tuple(dict.fromkeys(causes)),
        parameters=tuple(c.parameter for c in workflow.changes),
        effects=workflow.outcome.effects if workflow.outcome else (),
        harmful=is_harmful(workflow),
        finished_at=workflow.finished_at or workflow.updated_at,
    )


def _effects(
    workflow: Workflow,
    before: Mapping[str, float],
    before_samples: Mapping[str, float],
    after: Mapping[str, float],
    after_samples: Mapping[str, float],
) -> tuple[RealisedEffect, ...]:
    predicted = {e.metric: e for e in workflow.predicted_effects}
    keys = dict.fromkeys((*REPORTED, *(measures.slo_key(t) for t in workflow.slo_targets), *predicted))
    return tuple(
        _effect(key, before[key], after[key], before_samples.get(key, 0.0), after_samples.get(key, 0.0), predicted.get(key))
        for key in keys
        if before.get(key) and key in after
    )


def _effect(key: str, before: float, after: float, n_before: float, n_after: float, predicted: PredictedEffect | None) -> RealisedEffect:
    ratio = after / before
    if predicted is None:
        return RealisedEffect(key, before, after, ratio, n_before, n_after)
    low, high = predicted.ratio.low, predicted.ratio.high
    return RealisedEffect(key, before, after, ratio, n_before, n_after, predicted.ratio.value, low, high, low <= ratio <= high)


def _mean_of(samples: Iterable[object], side: str) -> dict[str, float]:
    values: dict[str, list[float]] = {}
    for sample in samples:
        for metric in sample.metrics:  # type: ignore[attr-defined]
            value = getattr(metric, side)
            if value is not None:
                values.setdefault(metric.metric, []).append(value)
    return {key: math.fsum(found) / len(found) for key, found in values.items()}


def _why_not_comparable(workflow: Workflow, effects: tuple[RealisedEffect, ...], measured: Measured) -> str:
    """Less load flatters the change and more load slanders it. More load with a better objective is no excuse: a cured queue
    completes more requests, which is part of the effect.
    """
    after = measured.values
    shift = measures.mix_shift(workflow.baseline, after)
    if shift:
        return shift
    was, now = workflow.baseline.get(measures.REQUEST_RATE), after.get(measures.REQUEST_RATE)
    if not was or now is None:
        return ""
    ratio = objective_ratio(workflow, Outcome(effects))
    # Counts of arrivals differ by chance as well.
    counted = min(workflow.baseline_samples.get(measures.REQUEST_RATE, 0.0), measured.samples.get(measures.REQUEST_RATE, 0.0))
    tolerance = LOAD_TOLERANCE_RATIO + 1.64 * math.sqrt(2.0 / max(counted, 1.0))
    fell, rose = now < was * (1.0 - tolerance), now > was * (1.0 + tolerance)
    if fell or (rose and ratio is not None and ratio > 1.0):
        return f"the load {'fell' if fell else 'rose'} from {was:.3g} to {now:.3g} requests/s"
    return ""


def _sentence(effect: RealisedEffect) -> str:
    change = f"{effect.metric} {effect.before:.4g} -> {effect.after:.4g} ({(effect.ratio - 1) * 100:+.0f} %)"
    if effect.predicted_low is None or effect.predicted_high is None:
        return change
    return f"{change}, predicted {(effect.predicted_low - 1) * 100:+.0f} to {(effect.predicted_high - 1) * 100:+.0f} %"
