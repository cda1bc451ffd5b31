"""Gates: what one sample says, and what all samples of a stage say. Pure; no data is never a pass.

Three kinds. Hard limits end a rollout at once. Objectives of the operator (SLOs) must hold in all but a few of the last samples, unless
the baseline missed them already. Relative gates compare the changed replicas with those not yet changed (or, once all are changed, with
what was recorded before the first effect) by an anytime-valid test, so that looking after every sample costs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from perf_service.models.plan import Direction
from perf_service.models.slo import SLOTarget
from perf_service.models.workflow import Judgement, MetricSample, StageSample, Workflow
from perf_service.workflows import measures
from perf_service.workflows.evidence import more_errors_e_value, pooled_ratio, worse_e_value
from perf_service.workflows.stages import stage_policy, unchanged_replicas
from perf_service.workflows.types import Measured

CONCURRENT_MARGIN_SHARE = 0.25
"""Of the tolerated regression: what replicas side by side may differ for reasons of their own (5 % at the default 20 %)."""
GROSS_FACTOR = 5.0
"""Times the tolerated regression (a doubling at the default): beyond it a few samples of enough requests suffice."""
GROSS_MIN_REQUESTS = 10.0
HARD_MIN_ERRORS = 3.0
"""Errors that a sample, or the stage, needs before the error limit says anything: one failed request of two is not 50 %."""
LOAD_TOLERANCE_RATIO = 0.2
UNDECLARED_LOSS_RATIO = 2.0


@dataclass(frozen=True, slots=True)
class StageVerdict:
    """What all samples of a stage say, with the gate that says it."""

    judgement: Judgement
    text: str
    gate: str = ""  # name of the deciding gate, for the failure's reason


# --- one sample ---------------------------------------------------------------------------------------------------------------------


def judge_sample(workflow: Workflow, canary: Measured | None, baseline: Measured | None, *, start: float, end: float) -> StageSample:
    """One sample of the present stage from both groups' measurements. Without `baseline` the recorded one stands in.

    In a dry run nothing changed, so there is nothing to judge; a scrape that worked is all it shows.
    """
    if canary is None:
        return StageSample(start, end, 0.0, 0.0, (), Judgement.NO_DATA, "no two usable pages of every changed replica in this interval")
    requests = canary.samples.get(measures.REQUEST_RATE, 0.0)
    others = baseline.samples.get(measures.REQUEST_RATE, 0.0) if baseline else 0.0
    if workflow.dry_run:
        return StageSample(start, end, requests, others, (), Judgement.NOT_APPLICABLE, "dry run: nothing was changed")
    if requests <= 0:
        return StageSample(start, end, 0.0, others, (), Judgement.NO_DATA, "no request ended on the changed replicas")
    against: Mapping[str, float] = baseline.values if baseline else workflow.baseline
    shift = "" if baseline else measures.mix_shift(workflow.baseline, canary.values)
    limits = {measures.slo_key(t): t for t in workflow.slo_targets if not t.builtin}
    metrics = [_metric(workflow, key, canary, against, limits.get(key), shift) for key in measures.keys_for(workflow.slo_targets)]
    failed = [m for m in metrics if m.judgement is Judgement.FAIL]
    text = "; ".join(m.text for m in failed) or shift or f"{requests:.0f} requests on the changed replicas"
    return StageSample(start, end, requests, others, tuple(metrics), Judgement.FAIL if failed else Judgement.PASS, text)


def _metric(
    workflow: Workflow, key: str, canary: Measured, against: Mapping[str, float], target: SLOTarget | None, shift: str
) -> MetricSample:
    value, other = canary.values.get(key), against.get(key)
    limit = measures.slo_limit(target) if target else None
    if value is None:
        return MetricSample(key, None, other, limit, Judgement.NO_DATA, f"{key}: no data")
    if target is None:
        mixed = bool(shift) and measures.is_latency(key)
        return MetricSample(key, value, other, None, Judgement.NOT_APPLICABLE if mixed else Judgement.PASS, shift if mixed else "")
    if measures.slo_met(target, value):
        return MetricSample(key, value, other, limit, Judgement.PASS)
    reason = _excuse(workflow, key, target, value, other)
    if reason:
        return MetricSample(key, value, other, limit, Judgement.NOT_APPLICABLE, reason)
    return MetricSample(key, value, other, limit, Judgement.FAIL, f"{key} is {value:.4g}, the objective is {target}")


def _excuse(workflow: Workflow, key: str, target: SLOTarget, value: float, other: float | None) -> str:
    """Why a missed objective is not this rollout's fault, empty where it is: a broken baseline must not veto its own cure."""
    recorded = workflow.baseline.get(key)
    if recorded is not None and not measures.slo_met(target, recorded):
        return f"{key} missed {target} before the rollout already ({recorded:.4g})"
    if other is not None and not measures.slo_met(target, other):
        allowed = 1.0 + workflow.policy.max_relative_regression_ratio * CONCURRENT_MARGIN_SHARE
        lower_is_better = not measures.slo_met(target, math.inf)
        if (value <= other * allowed) if lower_is_better else (value * allowed >= other):
            return f"{key} misses {target} on the unchanged replicas too ({other:.4g})"
    return ""


# --- all samples of a stage ---------------------------------------------------------------------------------------------------------


def breach(workflow: Workflow) -> StageVerdict | None:
    """What ends the rollout at once, looked at after every sample: a hard limit, an objective, or enough evidence of a regression."""
    if workflow.dry_run:
        return None
    samples = usable_samples(workflow)
    return _error_limit(workflow, samples) or _objectives(workflow, samples) or _regressions(workflow, samples)


def judge_stage(workflow: Workflow) -> StageVerdict:
    """The verdict at the end of the bake: PASS needs enough samples, requests, comparable metrics and no breach."""
    if workflow.dry_run:
        scraped = [s for s in workflow.samples if s.judgement is Judgement.NOT_APPLICABLE]
        if scraped:
            text = f"dry run: nothing was changed, so there is nothing to judge; {len(scraped)} scrapes"
            return StageVerdict(Judgement.NOT_APPLICABLE, text)
        return StageVerdict(Judgement.NO_DATA, "no replica could be scraped during this stage", "no_data")
    failed = breach(workflow)
    if failed:
        return failed
    short = shortage(workflow)
    if short:
        return StageVerdict(Judgement.INCONCLUSIVE, short, "no_data")
    samples = usable_samples(workflow)
    ratios = {key: pooled for key in compared_keys(workflow) if (pooled := pooled_ratio(log_ratios(workflow, samples, key))) is not None}
    measured_objective = any(m.limit is not None and m.judgement in (Judgement.PASS, Judgement.FAIL) for s in samples for m in s.metrics)
    if not ratios and not measured_objective:
        shift = next((m.text for s in reversed(samples) for m in s.metrics if m.judgement is Judgement.NOT_APPLICABLE), "")
        return StageVerdict(Judgement.INCONCLUSIVE, f"no metric could be compared{': ' + shift if shift else ''}", "not_comparable")
    for key, ratio in ratios.items():
        allowed = allowed_ratio(workflow, key)
        if allowed is not None and ratio > allowed:
            load = _load_note(workflow, samples)
            text = f"{key} is {_percent(ratio)} against the baseline, more than {_percent(allowed)}, but not yet beyond doubt{load}"
            return StageVerdict(Judgement.INCONCLUSIVE, text, "relative")
    best = sorted(ratios.items(), key=lambda item: item[1])[:2]
    text = "; ".join(f"{key} {_percent(ratio)}" for key, ratio in best) or "every objective holds"
    return StageVerdict(Judgement.PASS, f"{len(samples)} samples, {_requests(samples):.0f} requests: {text}")


def shortage(workflow: Workflow) -> str:
    """What a stage still lacks to be judged at all, as a sentence; empty where nothing."""
    policy = stage_policy(workflow)
    samples = usable_samples(workflow)
    if len(samples) < policy.min_samples:
        last = workflow.samples[-1].text if workflow.samples else "nothing was scraped"
        return f"{len(samples)} of {policy.min_samples} samples with data ({last})"
    requests = _requests(samples)
    if requests < policy.min_requests:
        return f"{requests:.0f} of {policy.min_requests} requests on the changed replicas"
    return ""


def usable_samples(workflow: Workflow) -> list[StageSample]:
    """Samples of the present stage that say something."""
    return [s for s in workflow.samples if s.judgement in (Judgement.PASS, Judgement.FAIL)]


def compared_keys(workflow: Workflow) -> tuple[str, ...]:
    """Latencies that the relative gates compare."""
    own = (measures.slo_key(t) for t in workflow.slo_targets if not t.builtin)
    return tuple(dict.fromkeys((*measures.COMPARED, *(key for key in own if measures.is_latency(key)))))


def allowed_ratio(workflow: Workflow, key: str) -> float | None:
    """How much worse a latency may be against the baseline; None where the hypothesis holds it to its absolute bound instead.

    A metric that the plan declares it will worsen may worsen as far as predicted; with an objective of its own that the baseline met,
    the objective is its bound (a cured queue raises ITL: a relative gate on it would veto every correct fix). A loss that is only
    predicted, not declared (a change given by a person), is tolerated up to a doubling: beyond it the prediction is a warning. It
    counts as declared once the change has been seen to cure an objective of the operator that the baseline missed.
    """
    tolerated = 1.0 + workflow.policy.max_relative_regression_ratio
    name = measures.loose_name(key)
    effects = [e for e in workflow.predicted_effects if measures.loose_name(e.metric) == name and e.direction is Direction.WORSENS]
    declared = any(measures.loose_name(loser) == name for loser in workflow.expected_losers)
    if not declared and not (effects and _objective_cured(workflow)):
        mild = [e.ratio.high for e in effects if e.metric == key and e.ratio.value <= UNDECLARED_LOSS_RATIO]
        return max(tolerated, min(max(mild), UNDECLARED_LOSS_RATIO) * tolerated) if mild else tolerated
    for target in workflow.slo_targets:
        key_of_target = measures.slo_key(target)
        recorded = workflow.baseline.get(key_of_target)
        same = not target.builtin and measures.loose_name(key_of_target) == name
        if same and recorded is not None and measures.slo_met(target, recorded):
            return None
    predicted = [e.ratio.high for e in effects if e.metric == key]
    return max(tolerated, max(predicted) * tolerated) if predicted else None


def _objective_cured(workflow: Workflow) -> bool:
    """Whether an objective of the operator that the baseline missed is met in every sample that measured it."""
    for target in workflow.slo_targets:
        key = measures.slo_key(target)
        recorded = workflow.baseline.get(key)
        if target.builtin or recorded is None or measures.slo_met(target, recorded):
            continue
        seen = [m.canary for s in usable_samples(workflow) for m in s.metrics if m.metric == key and m.canary is not None]
        if seen and all(measures.slo_met(target, value) for value in seen):
            return True
    return False


def is_concurrent(workflow: Workflow) -> bool:
    """Whether unchanged replicas are left to compare with."""
    return bool(unchanged_replicas(workflow))


def log_ratios(workflow: Workflow, samples: list[StageSample], key: str) -> list[float]:
    """log(canary / baseline) of one latency over the samples in which both were measured and comparable."""
    found = []
    for sample in samples:
        for metric in sample.metrics:
            comparable = metric.judgement is not Judgement.NOT_APPLICABLE or metric.limit is not None
            if metric.metric == key and metric.canary and metric.baseline and comparable:
                found.append(math.log(metric.canary / metric.baseline))
    return found


def _error_limit(workflow: Workflow, samples: list[StageSample]) -> StageVerdict | None:
    limit = workflow.policy.max_error_ratio
    counted = [(e, n) for s in samples if (e := _errors(s)) is not None for n in (s.canary_requests,)]
    groups = [("the last sample", counted[-1:]), ("this stage", counted)]
    for name, group in groups:
        errors, requests = math.fsum(e for e, _ in group), math.fsum(n for _, n in group)
        if errors >= HARD_MIN_ERRORS and errors > limit * requests:
            text = f"{errors:.0f} of {requests:.0f} requests of {name} failed on the changed replicas, the limit is {limit:.1%}"
            recorded = workflow.baseline.get(measures.ERROR_RATIO, 0.0)
            others = _baseline_error_ratio(samples) if is_concurrent(workflow) else recorded
            if errors / requests <= max(recorded, others or 0.0) + 0.01:
                continue  # the baseline fails as often: the change is not to blame
            return StageVerdict(Judgement.FAIL, text, "max_error_ratio")
    return None


def _objectives(workflow: Workflow, samples: list[StageSample]) -> StageVerdict | None:
    policy = workflow.policy
    last = samples[-policy.slo_window :]
    missed: dict[str, list[MetricSample]] = {}
    for sample in last:
        for metric in sample.metrics:
            if metric.limit is not None and metric.judgement is Judgement.FAIL:
                missed.setdefault(metric.metric, []).append(metric)
    for metrics in missed.values():
        if len(metrics) >= policy.slo_failures:
            text = f"{metrics[-1].text}, missed in {len(metrics)} of the last {len(last)} samples; the baseline met it"
            return StageVerdict(Judgement.FAIL, text, "slo")
    return None


def _regressions(workflow: Workflow, samples: list[StageSample]) -> StageVerdict | None:
    policy = workflow.policy
    keys = compared_keys(workflow)
    threshold = (len(keys) + 1) * len(policy.stages) / policy.false_alarm_probability
    concurrent = is_concurrent(workflow)
    worse_load = _load_note(workflow, samples)
    for key in keys:
        allowed = allowed_ratio(workflow, key)
        if allowed is None:
            continue
        tolerated = 1.0 + policy.max_relative_regression_ratio
        expected = allowed > tolerated
        margin = allowed - 1.0 if expected or not concurrent else policy.max_relative_regression_ratio * CONCURRENT_MARGIN_SHARE
        ratios = log_ratios(workflow, samples, key)
        # More load than before the rollout explains a latency that has nothing to compare with at its side.
        if worse_load:
            continue
        if worse_e_value(ratios, margin_ratio=margin) >= threshold:
            pooled = pooled_ratio(ratios) or 1.0
            against = f"against {_control(concurrent)} over {len(ratios)} samples"
            text = f"{key} is {_percent(pooled)} {against}, beyond doubt worse than {margin:+.0%}"
            return StageVerdict(Judgement.FAIL, text, "relative")
        gross = math.log1p((allowed - 1.0) * GROSS_FACTOR)
        big = [s for s in samples[-policy.slo_window :] if s.canary_requests >= GROSS_MIN_REQUESTS]
        high = [r for r in log_ratios(workflow, big, key) if r > gross]
        if len(high) >= policy.slo_failures:
            pooled = pooled_ratio(high) or 1.0
            text = f"{key} is {_percent(pooled)} against {_control(concurrent)} in {len(high)} of the last samples"
            return StageVerdict(Judgement.FAIL, text, "relative")
    return _more_errors(workflow, samples, threshold, concurrent)


def _more_errors(workflow: Workflow, samples: list[StageSample], threshold: float, concurrent: bool) -> StageVerdict | None:
    counted = [s for s in samples if _errors(s) is not None]
    canary = [(_errors(s) or 0.0, s.canary_requests) for s in counted]
    baseline = [((_baseline_error(s) or 0.0) * s.baseline_requests, s.baseline_requests) for s in counted] if concurrent else []
    recorded = workflow.baseline.get(measures.ERROR_RATIO, 0.0)
    if more_errors_e_value(canary, baseline, floor=recorded) < threshold:
        return None
    errors, requests = math.fsum(e for e, _ in canary), math.fsum(n for _, n in canary)
    others = _baseline_error_ratio(counted) if concurrent else recorded
    share = f"{errors / requests:.2%} of {requests:.0f} requests fail on the changed replicas"
    text = f"{share}, {others or 0.0:.2%} with {_control(concurrent)}"
    return StageVerdict(Judgement.FAIL, text, "error_ratio")


def _errors(sample: StageSample) -> float | None:
    ratio = next((m.canary for m in sample.metrics if m.metric == measures.ERROR_RATIO), None)
    return None if ratio is None else ratio * sample.canary_requests


def _baseline_error(sample: StageSample) -> float | None:
    return next((m.baseline for m in sample.metrics if m.metric == measures.ERROR_RATIO), None)


def _baseline_error_ratio(samples: list[StageSample]) -> float:
    requests = math.fsum(s.baseline_requests for s in samples)
    return math.fsum((_baseline_error(s) or 0.0) * s.baseline_requests for s in samples) / requests if requests else 0.0


def _load_note(workflow: Workflow, samples: list[StageSample]) -> str:
    """A remark where, without a control, the load rose since the baseline: then more latency proves nothing."""
    if is_concurrent(workflow):
        return ""
    was = workflow.baseline.get(measures.REQUEST_RATE)
    rates = [m.canary for s in samples for m in s.metrics if m.metric == measures.REQUEST_RATE and m.canary is not None]
    if not was or not rates:
        return ""
    now = math.fsum(rates) / len(rates)
    return f"; the load rose from {was:.3g} to {now:.3g} requests/s" if now > was * (1.0 + LOAD_TOLERANCE_RATIO) else ""


def _requests(samples: list[StageSample]) -> float:
    return math.fsum(s.canary_requests for s in samples)


def _control(concurrent: bool) -> str:
    return "the replicas not yet changed" if concurrent else "the time before the rollout"


def _percent(ratio: float) -> str:
    return f"{(ratio - 1.0) * 100:+.0f} %"
