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
from perf_service.collectors.saved import read_saved, snapshots_of
from perf_service.collectors.window import windows_of
from perf_service.models.config import EngineConfig
from perf_service.models.metrics import Engine, Hist
from perf_service.models.plan import Calibration, Direction, Estimate, PredictedEffect, Prediction
from perf_service.optimization.predictor import Limits, Predictor, Request, StepCost, fit, read_workload, steady
from perf_service.optimization.predictor.estimates import interval, weighted_quantile
from perf_service.optimization.predictor.steptime import UNKNOWN_PRIOR, Observation
from tests.support.real_runs import CAPTURES, client, overall, windows

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


def test_unknown_sharing_gives_a_wide_interval_and_says_so() -> None:
    _, prediction, effects = forecast("f_prefix_off", {"max_num_seqs": 64}, {"enable_prefix_caching": True})
    assert effects["ttft_seconds_mean"].direction is Direction.IMPROVES
    assert effects["e2e_seconds_mean"].direction is Direction.IMPROVES
    throughput = effects["throughput_tokens_per_second"].ratio
    assert throughput.low <= 1.0 <= 4.7 <= throughput.high
    assert any("share" in note for note in prediction.notes)
    assert prediction.calibration is Calibration.EXTRAPOLATED


def test_an_unknown_token_budget_is_spread_over_what_it_may_be() -> None:
    _, prediction, effects = forecast("d_prefill_bad_r2", {}, {"max_num_batched_tokens": 2048})
    truth = client("d_prefill_fixed_r2")["output_tok_per_s"] / client("d_prefill_bad_r2")["output_tok_per_s"]
    ratio = effects["throughput_tokens_per_second"].ratio
    assert ratio.low <= truth <= ratio.high
    assert prediction.calibration is Calibration.EXTRAPOLATED
    assert any("token budget is not known" in note for note in prediction.notes)


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


REQUESTS = st.builds(lambda p, h, o: Request(p, max(1.0, p * (1 - h)), o, 0.3), st.floats(1, 4000), st.floats(0, 0.95), st.floats(1, 1000))


COSTS = st.builds(StepCost, st.floats(1e-3, 0.05), st.floats(1e-6, 5e-3), st.floats(1e-7, 1e-3))


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


def test_a_limit_out_of_reach_changes_nothing() -> None:
    _, _, effects = forecast("a_healthy", {"max_num_seqs": 64, "max_num_batched_tokens": 2048}, {"max_num_seqs": 128})
    assert all(e.direction is Direction.UNCHANGED for e in effects.values())


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


def test_a_token_budget_that_is_not_told_is_weighed_by_what_was_measured() -> None:
    """The hypotheses of an untold budget are held against the measured rate and ITL: the prediction is then that of the told one."""
    saved = snapshots_of(read_saved(CAPTURES.parent / "held_out" / "prefill_budget64"), "prefill_budget64")

    def predicted(**told: int) -> Prediction:
        return Predictor().predict(windows_of(saved), EngineConfig.of(told), {"max_num_batched_tokens": 512})[1]

    known, hidden = predicted(max_num_batched_tokens=64, max_num_seqs=16), predicted()
    for of in ("ttft_seconds", "itl_seconds", "e2e_seconds"):
        assert getattr(hidden, of).mean.value == pytest.approx(getattr(known, of).mean.value, rel=0.1), of
    assert known.itl_seconds is not None
    assert hidden.itl_seconds is not None
    assert hidden.itl_seconds.mean.high >= known.itl_seconds.mean.high
