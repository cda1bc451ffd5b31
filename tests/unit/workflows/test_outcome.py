"""The realised effect: measured, comparable or not, harmful or not, and as a ledger entry."""

from __future__ import annotations

from dataclasses import replace

import pytest

from perf_service.models.plan import Direction, Estimate, PredictedEffect
from perf_service.models.workflow import Outcome, Workflow
from perf_service.workflows.outcome import is_harmful, ledger_entry, measure_outcome, noise_ratio, objective_ratio
from perf_service.workflows.types import Measured
from tests.support.machine_driver import CHANGE, S, workflow

BEFORE = {
    "ttft_seconds_mean": 2.0,
    "e2e_seconds_mean": 4.0,
    "itl_seconds_mean": 0.02,
    "requests_per_second": 5.0,
    "prompt_tokens_per_request_mean": 100.0,
}
WINS = PredictedEffect("ttft_seconds_mean", Direction.IMPROVES, Estimate(2, 2, 2), Estimate(0.5, 0.3, 0.8), Estimate(0.25, 0.15, 0.4))


def done(**changes: object) -> Workflow:
    made = workflow(
        status=S.COMPLETED, baseline=BEFORE, baseline_samples=dict.fromkeys(BEFORE, 500.0), predicted_effects=(WINS,), changes=(CHANGE,)
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def after(**values: float) -> Measured:
    found = BEFORE | values
    return Measured(0.0, 60.0, found, dict.fromkeys(found, 500.0))


def test_predicted_beside_realised() -> None:
    outcome = measure_outcome(done(), after(ttft_seconds_mean=0.6))
    effect = next(e for e in outcome.effects if e.metric == "ttft_seconds_mean")
    assert (effect.before, effect.after) == (2.0, 0.6)
    assert effect.ratio == pytest.approx(0.3)
    assert effect.within_prediction is True
    assert outcome.comparable
    assert "-70 %" in outcome.summary
    missed = measure_outcome(done(), after(ttft_seconds_mean=1.8))
    assert next(e for e in missed.effects if e.metric == "ttft_seconds_mean").within_prediction is False


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"prompt_tokens_per_request_mean": 50.0}, "prompt"),
        ({"requests_per_second": 2.0, "ttft_seconds_mean": 0.5}, "fell"),
        ({"requests_per_second": 9.0, "ttft_seconds_mean": 3.0}, "rose"),
    ],
)
def test_another_workload_is_not_comparable(values: dict[str, float], reason: str) -> None:
    outcome = measure_outcome(done(), after(**values))
    assert not outcome.comparable
    assert reason in outcome.summary


def test_more_load_and_still_better_is_comparable() -> None:
    assert measure_outcome(done(), after(requests_per_second=15.0, ttft_seconds_mean=0.5)).comparable


def test_nothing_measured_is_said() -> None:
    assert "could not be measured" in measure_outcome(done(), None).summary
    assert not measure_outcome(done(), None).comparable


def test_harm_is_beyond_noise() -> None:
    for ratio, harmful in ((0.5, False), (1.05, False), (1.5, True)):
        made = done()
        outcome = measure_outcome(made, after(ttft_seconds_mean=2.0 * ratio))
        assert is_harmful(replace(made, outcome=outcome)) is harmful
    assert noise_ratio(10) > noise_ratio(1000) > 0.05
    assert is_harmful(done(status=S.ROLLED_BACK, failure_reason="relative"))
    assert not is_harmful(done(status=S.ROLLED_BACK, failure_reason="min_improvement"))


def test_a_throughput_objective_is_turned_round() -> None:
    wins = replace(WINS, metric="throughput_tokens_per_second")
    made = done(predicted_effects=(wins,), baseline=BEFORE | {"throughput_tokens_per_second": 100.0})
    outcome = measure_outcome(made, after(throughput_tokens_per_second=200.0))
    assert objective_ratio(made, outcome) == pytest.approx(0.5)
    assert objective_ratio(made, Outcome()) is None


def test_ledger_entry() -> None:
    outcome = measure_outcome(done(), after(ttft_seconds_mean=0.6))
    entry = ledger_entry(done(outcome=outcome, plan_id="p", finished_at=9.0), causes=["batch_limit", "batch_limit"], engine_version="0.9")
    assert entry.causes == ("batch_limit",)
    assert entry.parameters == ("max_num_seqs",)
    assert entry.effects == outcome.effects
    assert (entry.harmful, entry.finished_at, entry.engine) == (False, 9.0, "vllm")
