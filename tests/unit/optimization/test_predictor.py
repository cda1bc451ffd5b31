"""The predictor against real pairs of runs, and the model's own properties."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perf_service.collectors.fleet_window import fleet_window
from perf_service.models.config import EngineConfig, Source
from perf_service.models.errors import ErrorReason, InvalidArgumentError
from perf_service.models.fleet import Hardware
from perf_service.models.metrics import Engine, Hist
from perf_service.models.plan import Calibration, Direction, Estimate, PredictedEffect, Prediction
from perf_service.optimization.predictor import Limits, Predictor, Request, StepCost, fit, observations_of, read_workload, steady
from perf_service.optimization.predictor.estimates import interval, weighted_quantile
from perf_service.optimization.predictor.roofline import accelerator, break_even_tokens, prior_of
from perf_service.optimization.predictor.steptime import CPU_PRIOR, GPU_PRIOR, UNKNOWN_PRIOR, Observation
from tests.support.real_runs import client, overall, windows

# (before, after, launch args as they were, the change)
PAIRS = [
    ("b_queue_bad_r2", "b_queue_fixed_r2", {"max_num_seqs": 2, "max_num_batched_tokens": 2048}, {"max_num_seqs": 64}),
    ("b_queue_bad_r2", "b_queue_fixed_r2", {}, {"max_num_seqs": 64}),
    ("c_kv_bad_r2", "c_kv_fixed_r2", {"max_num_seqs": 64, "max_num_batched_tokens": 2048}, {"num_gpu_blocks_override": None}),
    ("c_kv_bad_r2", "c_kv_fixed_r2", {"max_num_seqs": 64, "max_num_batched_tokens": 2048}, {"num_gpu_blocks_override": 2048}),
    ("d_prefill_bad_r2", "d_prefill_fixed_r2", {"max_num_seqs": 16, "max_num_batched_tokens": 32}, {"max_num_batched_tokens": 2048}),
    ("d_prefill_bad_r3", "d_prefill_fixed_r3", {"max_num_seqs": 16, "max_num_batched_tokens": 32}, {"max_num_batched_tokens": 2048}),
    ("e_decode_bad", "e_decode_seqs8", {"max_num_seqs": 64, "max_num_batched_tokens": 2048}, {"max_num_seqs": 8}),
]
Forecast = tuple[Prediction, Prediction, dict[str, PredictedEffect]]


def forecast(before: str, config: dict[str, Any], changes: dict[str, Any], *, split: bool = True) -> Forecast:
    parts = windows(before) if split else overall(before)
    baseline, prediction, effects = Predictor().predict(parts, EngineConfig.of(config), changes)
    return baseline, prediction, {e.metric: e for e in effects}


@pytest.mark.parametrize(("before", "after", "config", "changes"), PAIRS)
@pytest.mark.parametrize("split", [True, False], ids=["windows", "overall"])
def test_throughput_of_the_fix_is_foretold(before: str, after: str, config: dict[str, Any], changes: dict[str, Any], split: bool) -> None:
    _, _, effects = forecast(before, config, changes, split=split)
    truth = client(after)["output_tok_per_s"] / client(before)["output_tok_per_s"]
    ratio = effects["throughput_tokens_per_second"].ratio
    assert ratio.low <= truth <= ratio.high
    assert ratio.value == pytest.approx(truth, rel=0.3)


@pytest.mark.parametrize(("before", "after", "config", "changes"), PAIRS)
def test_latencies_of_the_fix_move_as_they_did(before: str, after: str, config: dict[str, Any], changes: dict[str, Any]) -> None:
    _, _, effects = forecast(before, config, changes)
    for hist in (Hist.TTFT_SECONDS, Hist.ITL_SECONDS, Hist.E2E_SECONDS):
        metric = f"{hist.value}_mean"
        was, then = overall(before).mean(hist), overall(after).mean(hist)
        if metric not in effects or not was or not then:
            continue
        effect = effects[metric]
        assert (effect.direction is Direction.IMPROVES) == (then < was), metric
        assert effect.ratio.low <= then / was <= effect.ratio.high, metric


def test_the_baseline_is_what_was_measured() -> None:
    baseline, _, _ = forecast("b_queue_bad_r2", {"max_num_seqs": 2}, {"max_num_seqs": 64})
    assert baseline.throughput_tokens_per_second is not None
    assert baseline.throughput_tokens_per_second.value == pytest.approx(client("b_queue_bad_r2")["output_tok_per_s"], rel=0.1)
    assert baseline.ttft_seconds is not None
    assert baseline.ttft_seconds.mean.value == pytest.approx(overall("b_queue_bad_r2").mean(Hist.TTFT_SECONDS), rel=0.05)
    assert baseline.calibration is Calibration.FITTED


def test_unknown_sharing_gives_a_wide_interval_and_says_so() -> None:
    _, prediction, effects = forecast("f_prefix_off", {"max_num_seqs": 64}, {"enable_prefix_caching": True})
    assert effects["ttft_seconds_mean"].direction is Direction.IMPROVES
    assert effects["e2e_seconds_mean"].direction is Direction.IMPROVES
    throughput = effects["throughput_tokens_per_second"].ratio
    assert throughput.low <= 1.0 <= 4.7 <= throughput.high
    assert any("share" in note for note in prediction.notes)
    assert prediction.calibration is Calibration.EXTRAPOLATED


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


def test_a_limit_out_of_reach_changes_nothing() -> None:
    _, _, effects = forecast("a_healthy", {"max_num_seqs": 64, "max_num_batched_tokens": 2048}, {"max_num_seqs": 128})
    assert all(e.direction is Direction.UNCHANGED for e in effects.values())


def test_an_unknown_token_budget_is_spread_over_what_it_may_be() -> None:
    _, prediction, effects = forecast("d_prefill_bad_r2", {}, {"max_num_batched_tokens": 2048})
    truth = client("d_prefill_fixed_r2")["output_tok_per_s"] / client("d_prefill_bad_r2")["output_tok_per_s"]
    ratio = effects["throughput_tokens_per_second"].ratio
    assert ratio.low <= truth <= ratio.high
    assert prediction.calibration is Calibration.EXTRAPOLATED
    assert any("token budget is not known" in note for note in prediction.notes)


def test_an_unknown_budget_that_nothing_shows_to_bind_is_taken_not_to() -> None:
    _, prediction, effects = forecast("b_queue_bad_r2", {"max_num_seqs": 2}, {"max_num_batched_tokens": 4096})
    assert any("taken not to" in note for note in prediction.notes)
    assert effects["throughput_tokens_per_second"].direction is Direction.UNCHANGED


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"gpu_memory_utilization": 0.95}, "depends on the weights"),
        ({"watermark": 0.02}, "watermark avoids"),
        ({"watermark": 0.02, "stream_interval": 2}, "stream_interval"),
    ],
)
def test_softer_cures_of_a_full_cache_are_predicted_with_what_they_assume(changes: dict[str, Any], note: str) -> None:
    _, prediction, effects = forecast("c_kv_bad_r2", {"max_num_seqs": 64, "gpu_memory_utilization": 0.9}, changes)
    assert any(note in n for n in prediction.notes)
    ratio = effects["throughput_tokens_per_second"].ratio
    assert 0.9 < ratio.value < 1.3, "a little more room is no cure"
    assert prediction.calibration is Calibration.EXTRAPOLATED


@pytest.mark.parametrize(("value", "direction"), [(0.3, Direction.IMPROVES), (1.3, None)])
def test_conservativeness_of_sglang(value: float, direction: Direction | None) -> None:
    window = replace(overall("b_queue_bad_r2"), engine=Engine.SGLANG)
    _, prediction, effects = Predictor().predict(window, EngineConfig(), {"schedule_conservativeness": value})
    by_metric = {e.metric: e for e in effects}
    assert any("conservativeness" in n for n in prediction.notes)
    if direction:
        assert by_metric["throughput_tokens_per_second"].direction is direction


def test_a_prefix_cache_that_is_on_already_keeps_its_hits() -> None:
    _, _, effects = forecast("f_prefix_on", {"max_num_seqs": 64, "enable_prefix_caching": True}, {"enable_prefix_caching": True})
    assert all(e.direction is Direction.UNCHANGED for e in effects.values())
    _, _, off = forecast("f_prefix_on", {"max_num_seqs": 64}, {"enable_prefix_caching": False})
    truth = client("f_prefix_off")["output_tok_per_s"] / client("f_prefix_on")["output_tok_per_s"]
    ratio = off["throughput_tokens_per_second"].ratio
    assert ratio.low <= truth <= ratio.high


def test_a_fleets_added_up_windows_are_predicted_for_one_replica() -> None:
    one = overall("b_queue_bad_r2")
    fleet = fleet_window("f", [one, replace(one, instance_id="other")])
    config = EngineConfig.of({"max_num_seqs": 2})
    _, alone, _ = Predictor().predict(one, config, {"max_num_seqs": 64})
    _, among, _ = Predictor().predict(fleet, config, {"max_num_seqs": 64})
    assert alone.throughput_tokens_per_second is not None
    assert among.throughput_tokens_per_second is not None
    assert among.throughput_tokens_per_second.value == pytest.approx(alone.throughput_tokens_per_second.value, rel=0.1)
    assert any("one of the engines" in n for n in among.notes)


# ---- Workload ----


def test_clients_that_wait_are_told_from_arrivals_of_their_own() -> None:
    queue, decode, healthy = (read_workload(windows(s)) for s in ("b_queue_bad_r2", "e_decode_bad", "a_healthy"))
    assert queue is not None
    assert decode is not None
    assert healthy is not None
    assert queue.closed_weight > 0.8
    assert queue.users == pytest.approx(32, abs=2)
    assert decode.users == pytest.approx(48, rel=0.15)
    assert healthy.closed_weight < 0.5
    assert queue.prompt == pytest.approx(60.7, abs=0.5)


# ---- Step times ----


@settings(max_examples=15, deadline=None)
@given(
    base=st.floats(0.002, 0.05), sequence=st.floats(1e-5, 2e-3), token=st.floats(1e-6, 5e-4),
)  # fmt: skip
def test_well_spread_points_recover_the_coefficients(base: float, sequence: float, token: float) -> None:
    cost = StepCost(base, sequence, token)
    points = [Observation(cost.seconds(n, p), 1.0, n, p, 0.03) for n, p in ((1, 0), (4, 50), (16, 10), (64, 200), (64, 0))]
    points.append(Observation(cost.seconds(8, 1500), 1.0, 8, 1500, 0.05))
    found = fit(points, UNKNOWN_PRIOR)
    assert found is not None
    for n, p in ((2, 0), (32, 20), (64, 100)):
        said = sum(q.weight * q.cost.seconds(n, p) for q in found.particles)
        assert said == pytest.approx(cost.seconds(n, p), rel=0.35)


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
REQUESTS = st.builds(lambda p, h, o: Request(p, max(1.0, p * (1 - h)), o, 0.3), st.floats(1, 4000), st.floats(0, 0.95), st.floats(1, 1000))
COSTS = st.builds(StepCost, st.floats(1e-3, 0.05), st.floats(1e-6, 5e-3), st.floats(1e-7, 1e-3))


def test_one_client_alone_gets_the_plain_sum() -> None:
    state = steady(Request(60, 60, 48, 0.2), COST, Limits(), users=1)
    assert state.e2e == pytest.approx(COST.seconds(0, 60) + 47 * COST.seconds(1), rel=0.05)
    assert state.queue == pytest.approx(0, abs=1e-6)


@settings(max_examples=15, deadline=None)
@given(REQUESTS, COSTS, st.integers(1, 256), st.integers(1, 256), st.sampled_from([32.0, 512.0, 8192.0, math.inf]))
def test_littles_law_and_limits_hold(request: Request, cost: StepCost, users: int, sequences: int, budget: float) -> None:
    state = steady(request, cost, Limits(sequences, budget, 50_000.0), users=users)
    assert state.requests_per_second > 0
    assert state.running <= sequences * 1.001
    assert state.running <= users * 1.001
    inside = state.requests_per_second * (state.queue + (request.output - 1) * state.itl)
    assert inside <= users * 1.6, "requests in the system are at most the clients (single ones meet no steady stream of steps)"
    assert 0 <= state.ttft <= state.e2e
    assert state.itl_p50 <= state.itl_p95 * 1.001
    assert state.kv_ratio is not None
    assert 0 <= state.kv_ratio <= 1


@settings(max_examples=15, deadline=None)
@given(REQUESTS, COSTS, st.integers(2, 128))
def test_more_sequences_serve_no_less(request: Request, cost: StepCost, users: int) -> None:
    served = [steady(request, cost, Limits(sequences=s), users=users).requests_per_second for s in (1, 2, 8, 64, 512)]
    assert all(b >= a * 0.999 for a, b in pairwise(served))


@settings(max_examples=15, deadline=None)
@given(REQUESTS, COSTS, st.integers(1, 64))
def test_more_budget_and_more_hits_serve_no_less(request: Request, cost: StepCost, users: int) -> None:
    small, large = (steady(request, cost, Limits(token_budget=b), users=users).requests_per_second for b in (128.0, 4096.0))
    cached = steady(replace(request, computed=request.computed / 2), cost, Limits(token_budget=4096.0), users=users).requests_per_second
    assert small <= large * (1.001 if users == 1 else 1.02)  # what waits for a step waits longer where steps are long
    assert large <= cached * 1.001


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


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.floats(0.01, 1), st.floats(1e-3, 1e3)), min_size=1, max_size=30), st.floats(0, 1))
def test_intervals_hold_their_value(pairs: list[tuple[float, float]], error: float) -> None:
    made = interval(pairs, error)
    assert isinstance(made, Estimate)
    assert made.low <= made.value <= made.high
    assert made.low <= weighted_quantile(pairs, 0.05) * 1.000001
    wider = interval(pairs, error + 0.5)
    assert wider is not None
    assert wider.high >= made.high


def test_no_samples_no_estimate() -> None:
    assert interval([], 0.1) is None
