"""The predictor against real pairs of runs, and the model's own properties."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from perf_service.models.config import EngineConfig, Source
from perf_service.models.errors import ErrorReason, InvalidArgumentError
from perf_service.models.fleet import Hardware
from perf_service.models.metrics import Hist
from perf_service.models.plan import Calibration, Direction, PredictedEffect, Prediction
from perf_service.optimization.predictor import Limits, Predictor, Request, StepCost, fit, observations_of, steady
from perf_service.optimization.predictor.estimates import interval
from perf_service.optimization.predictor.roofline import accelerator, break_even_tokens, prior_of
from perf_service.optimization.predictor.steptime import CPU_PRIOR, GPU_PRIOR, UNKNOWN_PRIOR, Observation
from tests.support.real_runs import client, overall, windows

Forecast = tuple[Prediction, Prediction, dict[str, PredictedEffect]]


def forecast(before: str, config: dict[str, Any], changes: dict[str, Any], *, split: bool = True) -> Forecast:
    parts = windows(before) if split else overall(before)
    baseline, prediction, effects = Predictor().predict(parts, EngineConfig.of(config), changes)
    return baseline, prediction, {e.metric: e for e in effects}


def test_the_baseline_is_what_was_measured() -> None:
    baseline, _, _ = forecast("b_queue_bad_r2", {"max_num_seqs": 2}, {"max_num_seqs": 64})
    assert baseline.throughput_tokens_per_second is not None
    assert baseline.throughput_tokens_per_second.value == pytest.approx(client("b_queue_bad_r2")["output_tok_per_s"], rel=0.1)
    assert baseline.ttft_seconds is not None
    assert baseline.ttft_seconds.mean.value == pytest.approx(overall("b_queue_bad_r2").mean(Hist.TTFT_SECONDS), rel=0.05)
    assert baseline.calibration is Calibration.FITTED


def test_no_change_changes_nothing() -> None:
    baseline, prediction, effects = forecast("b_queue_bad_r2", {"max_num_seqs": 2}, {})
    assert effects == {}
    assert prediction == baseline


def test_an_idle_instance_gives_no_number() -> None:
    baseline, prediction, effects = forecast("g_idle", {}, {"max_num_seqs": 64})
    assert (baseline.calibration, prediction.calibration) == (Calibration.NONE, Calibration.NONE)
    assert prediction.throughput_tokens_per_second is None
    assert "no finished request" in prediction.notes[0]
    assert effects == {}


def test_what_is_not_modelled_is_not_guessed() -> None:
    _, prediction, effects = forecast("b_queue_bad_r2", {"max_num_seqs": 2}, {"stream_interval": 4})
    assert prediction.calibration is Calibration.NONE
    assert "stream_interval" in prediction.notes[0]
    assert effects == {}


def test_changes_are_checked() -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        Predictor().predict(overall("b_queue_bad_r2"), EngineConfig(), {"max_num_sqs": 64})
    assert caught.value.reason is ErrorReason.KNOB_UNKNOWN


def test_one_lifetime_page_without_times_still_gives_ratios() -> None:
    page = replace(overall("b_queue_bad_r2"), duration_seconds=None, start=None, end=None, lifetime=True)
    _, prediction, effects = Predictor().predict(page, EngineConfig.of({"max_num_seqs": 2}), {"max_num_seqs": 64})
    assert prediction.ttft_seconds is not None
    assert {e.metric for e in effects} >= {"ttft_seconds_mean", "itl_seconds_mean"}


def test_an_unknown_budget_that_nothing_shows_to_bind_is_taken_not_to() -> None:
    _, prediction, effects = forecast("b_queue_bad_r2", {"max_num_seqs": 2}, {"max_num_batched_tokens": 4096})
    assert any("taken not to" in note for note in prediction.notes)
    assert effects["throughput_tokens_per_second"].direction is Direction.UNCHANGED


# ---- Workload ----


# ---- Step times ----


def test_a_prefill_time_that_is_not_filled_in_tells_nothing() -> None:
    window = overall("b_queue_bad_r2")
    prefill = window.histograms[Hist.PREFILL_SECONDS]
    empty = replace(window, histograms={**window.histograms, Hist.PREFILL_SECONDS: replace(prefill, sum=0.0)})
    found = observations_of([empty], 64)
    assert found
    assert all(o.seconds > 0 for o in found)
    assert fit(found, CPU_PRIOR) is not None


def test_few_points_leave_the_growth_open() -> None:
    one = fit([Observation(0.0137, 1.0, 2.0, 2.5, 0.1)], UNKNOWN_PRIOR)
    assert one is not None
    far = [p.cost.seconds(32) for p in one.particles]
    assert max(far) / min(far) > 2.0
    assert fit([], UNKNOWN_PRIOR) is None


def test_a_known_budget_tells_how_many_steps_a_prompt_took() -> None:
    (known,) = observations_of(windows("d_prefill_bad_r2"), 32)
    assert known.steps == pytest.approx(1479 / 32, rel=0.1)
    assert known.seconds == pytest.approx(1.0, rel=0.1)


@pytest.mark.parametrize(
    ("hardware", "config", "prior"),
    [
        (None, {}, UNKNOWN_PRIOR),
        (Hardware("cpu"), {}, CPU_PRIOR),
        (Hardware("", 8, 80 << 30), {}, GPU_PRIOR),
        (None, {"block_size": 128, "kv_cache_memory_bytes": 1 << 30}, CPU_PRIOR),
        (None, {"block_size": 128}, UNKNOWN_PRIOR),
    ],
)
def test_the_prior_follows_what_is_known_of_the_hardware(hardware: Hardware | None, config: dict[str, int], prior: object) -> None:
    assert prior_of(hardware, EngineConfig.of(config, Source.PAGE)) is prior


def test_the_data_sheet_gives_the_break_even() -> None:
    found = accelerator("NVIDIA H100 80GB HBM3")
    assert found is not None
    assert break_even_tokens(found) == pytest.approx(295, abs=1)
    assert accelerator("L40S-48GB") != accelerator("L4")
    assert accelerator("abacus") is None
    assert prior_of(Hardware("H100-SXM"), EngineConfig()).base_tokens == pytest.approx(384, rel=0.01)


# ---- The model ----

COST = StepCost(0.01, 0.0013, 0.0003)
REQUEST = Request(prompt=60, computed=60, output=48, output_cv=0.2)


def test_one_client_alone_gets_the_plain_sum() -> None:
    state = steady(Request(60, 60, 48, 0.2), COST, Limits(), users=1)
    assert state.e2e == pytest.approx(COST.seconds(0, 60) + 47 * COST.seconds(1), rel=0.05)
    assert state.queue == pytest.approx(0, abs=1e-6)


def test_a_small_kv_cache_preempts_and_a_large_one_does_not() -> None:
    request = Request(300, 300, 196, 0.2)
    small = steady(request, COST, Limits(kv_tokens=2944, kv_block=128), users=16)
    large = steady(request, COST, Limits(kv_tokens=262_016, kv_block=128), users=16)
    assert small.preemptions_per_second > 0
    assert large.preemptions_per_second == 0
    assert large.requests_per_second > 1.2 * small.requests_per_second
    assert small.queue > 10 * large.queue


def test_arrivals_beyond_capacity_are_told_not_timed() -> None:
    state = steady(REQUEST, COST, Limits(sequences=2), arrivals=100.0)
    assert state.overloaded
    assert state.requests_per_second < 10
    assert not steady(REQUEST, COST, Limits(sequences=64), arrivals=1.0).overloaded


# ---- Estimates ----


def test_no_samples_no_estimate() -> None:
    assert interval([], 0.1) is None
