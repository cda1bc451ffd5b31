"""Gates over whole stages: what passes, what fails, what is not known; and the operator's objectives."""

from __future__ import annotations

from dataclasses import replace

import pytest

from perf_service.models.plan import Direction, Estimate, PredictedEffect
from perf_service.models.slo import SLOTarget
from perf_service.models.workflow import Judgement, MetricSample, StageSample, Workflow
from perf_service.workflows import gates
from perf_service.workflows.measures import COMPARED, ERROR_RATIO, REQUEST_RATE
from perf_service.workflows.types import Measured
from tests.support.machine_driver import baking, policy, sample

TTFT = SLOTarget("ttft_p95", 1.0)


def with_samples(made: Workflow, *ratios: float, errors: float = 0.0, requests: float = 50.0) -> Workflow:
    return replace(
        made, samples=tuple(sample(10.0 * i, 10.0 * i + 10, ratio=r, errors=errors, requests=requests) for i, r in enumerate(ratios))
    )


def measured(value: float, *, requests: float = 50.0, errors: float = 0.0, **values: float) -> Measured:
    found = dict.fromkeys(COMPARED, value) | {ERROR_RATIO: errors, REQUEST_RATE: requests / 10.0} | values
    return Measured(0.0, 10.0, found, dict.fromkeys(found, requests))


def effect(metric: str, ratio: float, high: float) -> PredictedEffect:
    one = Estimate(1.0, 1.0, 1.0)
    return PredictedEffect(metric, Direction.WORSENS, one, one, Estimate(ratio, 1.0, high))


# --- a stage ---


def test_equal_groups_pass() -> None:
    verdict = gates.judge_stage(with_samples(baking(), 1.0, 1.05, 0.95, 1.0, 1.0))
    assert verdict.judgement is Judgement.PASS


def test_improvement_passes_and_says_how_much() -> None:
    verdict = gates.judge_stage(with_samples(baking(), *[0.3] * 5))
    assert verdict.judgement is Judgement.PASS
    assert "-70 %" in verdict.text


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (baking(), "0 of 4 samples"),
        (with_samples(baking(), 1.0, 1.0), "2 of 4 samples"),
        (with_samples(baking(), *[1.0] * 5, requests=3.0), "15 of 40 requests"),
        (with_samples(baking(), *[1.0] * 5, requests=0.0), "0 of 4 samples"),
    ],
)
def test_too_little_is_inconclusive_never_a_pass(made: Workflow, why: str) -> None:
    verdict = gates.judge_stage(made)
    assert verdict.judgement is Judgement.INCONCLUSIVE
    assert why in verdict.text


def test_nothing_comparable_is_inconclusive() -> None:
    empty = StageSample(0.0, 10.0, 50.0, 50.0, (MetricSample(ERROR_RATIO, 0.0, 0.0, None, Judgement.PASS),), Judgement.PASS)
    verdict = gates.judge_stage(replace(baking(), samples=(empty,) * 5))
    assert verdict.judgement is Judgement.INCONCLUSIVE
    assert verdict.gate == "not_comparable"


def test_a_gross_regression_fails_after_few_samples() -> None:
    assert gates.breach(with_samples(baking(), 3.0, 3.0)) is None
    verdict = gates.breach(with_samples(baking(), 3.0, 3.0, 3.0))
    assert verdict is not None
    assert verdict.gate == "relative"


def test_a_gross_ratio_of_a_handful_of_requests_proves_nothing() -> None:
    assert gates.breach(with_samples(baking(), 3.0, 3.0, 3.0, requests=4.0)) is None


def test_one_error_of_two_requests_is_not_a_breach() -> None:
    assert gates.breach(with_samples(baking(), 1.0, errors=0.5, requests=2.0)) is None


def test_errors_that_the_unchanged_replicas_have_too_are_not_the_changes_fault() -> None:
    metrics = tuple(
        [MetricSample(key, 0.5, 0.5, None, Judgement.PASS) for key in COMPARED]
        + [MetricSample(ERROR_RATIO, 0.3, 0.31, None, Judgement.PASS)]
    )
    same = StageSample(0.0, 10.0, 100.0, 100.0, metrics, Judgement.PASS)
    assert gates.breach(replace(baking(), samples=(same,) * 6)) is None


# --- the hypothesis ---


def test_an_expected_loser_may_worsen_as_far_as_predicted() -> None:
    made = baking(predicted_effects=(effect("itl_seconds_mean", 1.6, 2.0),), expected_losers=("itl_seconds",))
    assert gates.allowed_ratio(made, "itl_seconds_mean") == pytest.approx(2.4)
    assert gates.allowed_ratio(made, "itl_seconds_p95") is None, "not predicted: not held to a relative bound"
    assert gates.allowed_ratio(made, "ttft_seconds_mean") == pytest.approx(1.2)
    plain = baking()
    slow_itl = [
        replace(s, metrics=tuple(replace(m, canary=(m.canary or 0) * 1.8) if m.metric.startswith("itl") else m for m in s.metrics))
        for s in with_samples(plain, *[0.5] * 20).samples
    ]
    assert gates.judge_stage(replace(made, samples=tuple(slow_itl))).judgement is Judgement.PASS
    assert gates.judge_stage(replace(plain, samples=tuple(slow_itl))).judgement in (Judgement.INCONCLUSIVE, Judgement.PASS)
    itl_worse = [
        replace(s, metrics=tuple(replace(m, canary=1.8 * (m.baseline or 0)) if m.metric.startswith("itl") else m for m in s.metrics))
        for s in slow_itl
    ]
    assert gates.judge_stage(replace(made, samples=tuple(itl_worse))).judgement is Judgement.PASS
    assert gates.judge_stage(replace(plain, samples=tuple(itl_worse))).judgement is Judgement.FAIL


def test_a_predicted_loss_of_a_given_change_counts_as_declared_once_the_change_cured_an_objective() -> None:
    missed = dict.fromkeys(COMPARED, 0.5) | {"ttft_seconds_p95": 2.0}
    made = baking(predicted_effects=(effect("itl_seconds_mean", 1.6, 3.0),), slo_targets=(TTFT,), baseline=missed)
    still_missed = replace(made, samples=(sample(0.0, 10.0, baseline=2.0),))
    assert gates.allowed_ratio(still_missed, "itl_seconds_mean") == pytest.approx(2.4), "capped at a doubling"
    assert gates.allowed_ratio(still_missed, "itl_seconds_p95") == pytest.approx(1.2)
    cured = replace(made, samples=(sample(0.0, 10.0, baseline=0.5),))
    assert gates.allowed_ratio(cured, "itl_seconds_mean") == pytest.approx(3.6)
    assert gates.allowed_ratio(cured, "itl_seconds_p95") is None
    assert gates.allowed_ratio(cured, "e2e_seconds_mean") == pytest.approx(1.2), "nobody foresaw that one"
    met_before = replace(cured, baseline=dict.fromkeys(COMPARED, 0.5))
    assert gates.allowed_ratio(met_before, "itl_seconds_mean") == pytest.approx(2.4), "nothing was cured"


def test_an_expected_loser_with_an_objective_is_held_to_that() -> None:
    made = baking(
        slo_targets=(SLOTarget("itl_p95", 0.8),),
        expected_losers=("itl",),
        predicted_effects=(effect("itl_seconds_p95", 1.6, 2.0),),
    )
    assert gates.allowed_ratio(made, "itl_seconds_p95") is None
    judged = gates.judge_sample(made, measured(0.9), measured(0.5), start=0.0, end=10.0)
    assert judged.judgement is Judgement.FAIL


# --- one sample and the objectives ---


def test_k_of_n_samples_beyond_an_objective_that_the_baseline_met() -> None:
    made = baking(slo_targets=(TTFT,))
    bad = gates.judge_sample(made, measured(1.5), measured(0.5), start=0.0, end=10.0)
    good = gates.judge_sample(made, measured(0.6), measured(0.5), start=0.0, end=10.0)
    assert (bad.judgement, good.judgement) == (Judgement.FAIL, Judgement.PASS)
    assert "ttft_seconds_p95" in bad.text
    assert gates.breach(replace(made, samples=(good, bad, good, bad))) is None
    verdict = gates.breach(replace(made, samples=(bad, good, bad, good, bad)))
    assert verdict is not None
    assert verdict.gate == "slo"
    assert gates.breach(replace(made, samples=(bad, bad, *[good] * 5, bad))) is None, "only the last five count"


def test_an_objective_that_the_baseline_missed_does_not_veto_an_improvement() -> None:
    made = baking(slo_targets=(TTFT,), baseline=dict.fromkeys(COMPARED, 9.0))
    judged = gates.judge_sample(made, measured(2.0), measured(9.0), start=0.0, end=10.0)
    assert judged.judgement is Judgement.PASS
    assert gates.judge_stage(replace(made, samples=(judged,) * 6)).judgement is Judgement.PASS


def test_a_load_spike_that_hits_both_groups_is_not_the_changes_fault() -> None:
    made = baking(slo_targets=(TTFT,))
    assert gates.judge_sample(made, measured(1.5), measured(1.5), start=0.0, end=10.0).judgement is Judgement.PASS
    assert gates.judge_sample(made, measured(3.0), measured(1.5), start=0.0, end=10.0).judgement is Judgement.FAIL


def test_builtin_objectives_do_not_gate() -> None:
    made = baking(slo_targets=(replace(TTFT, builtin=True),))
    assert gates.judge_sample(made, measured(1.5), measured(1.5), start=0.0, end=10.0).judgement is Judgement.PASS


def test_no_page_or_no_request_is_no_data() -> None:
    made = baking()
    assert gates.judge_sample(made, None, measured(0.5), start=0.0, end=10.0).judgement is Judgement.NO_DATA
    assert gates.judge_sample(made, measured(0.5, requests=0.0), measured(0.5), start=0.0, end=10.0).judgement is Judgement.NO_DATA


# --- without a control ---


def test_once_all_are_changed_the_recorded_baseline_stands_in() -> None:
    made = baking(replicas=1, changed=1, baseline=dict.fromkeys(COMPARED, 0.5) | {REQUEST_RATE: 5.0})
    judged = gates.judge_sample(made, measured(1.5), None, start=0.0, end=10.0)
    assert {m.baseline for m in judged.metrics if m.metric in COMPARED} == {0.5}
    verdict = gates.breach(replace(made, samples=(judged,) * 4))
    assert verdict is not None
    assert "before the rollout" in verdict.text


def test_a_shift_of_the_workload_is_not_compared() -> None:
    made = baking(replicas=1, changed=1, baseline=dict.fromkeys(COMPARED, 0.5) | {"prompt_tokens_per_request_mean": 100.0})
    judged = gates.judge_sample(made, measured(1.5, prompt_tokens_per_request_mean=400.0), None, start=0.0, end=10.0)
    assert "400 tokens" in judged.text
    shifted = replace(made, samples=(judged,) * 6)
    assert gates.breach(shifted) is None
    verdict = gates.judge_stage(shifted)
    assert verdict.judgement is Judgement.INCONCLUSIVE
    assert "400 tokens" in verdict.text


def test_more_load_than_before_explains_more_latency_but_passes_nothing() -> None:
    made = baking(replicas=1, changed=1, baseline=dict.fromkeys(COMPARED, 0.5) | {REQUEST_RATE: 2.0})
    judged = gates.judge_sample(made, measured(1.5), None, start=0.0, end=10.0)
    loaded = replace(made, samples=(judged,) * 6)
    assert gates.breach(loaded) is None
    verdict = gates.judge_stage(loaded)
    assert verdict.judgement is Judgement.INCONCLUSIVE
    assert "the load rose" in verdict.text


def test_a_dry_run_is_not_judged_but_must_have_been_scraped() -> None:
    made = baking(dry_run=True)
    seen = gates.judge_sample(made, Measured(0.0, 10.0), None, start=0.0, end=10.0)
    assert seen.judgement is Judgement.NOT_APPLICABLE
    assert gates.judge_stage(replace(made, samples=(seen,))).judgement is Judgement.NOT_APPLICABLE
    assert gates.judge_stage(made).judgement is Judgement.NO_DATA


def test_policy_window_is_used() -> None:
    made = baking(slo_targets=(TTFT,), policy=policy(slo_failures=1, slo_window=1))
    bad = gates.judge_sample(made, measured(1.5), measured(0.5), start=0.0, end=10.0)
    assert gates.breach(replace(made, samples=(bad,))) is not None
