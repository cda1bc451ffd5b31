"""Objectives held against predictions, above all those whose quantile is not one of the predicted three."""

from __future__ import annotations

from dataclasses import replace

import pytest

from perf_service.models.config import EngineConfig
from perf_service.models.metrics import Engine, Hist, Histogram
from perf_service.models.plan import Calibration, Estimate, LatencyEstimate, Prediction
from perf_service.models.slo import SLOTarget
from perf_service.models.window import Window
from perf_service.optimization.objectives import Objectives
from perf_service.optimization.predictor.estimates import observed

# 92 % of the times between tokens are within 25 ms: the 90th percentile is 24.7 ms, the 95th 55 ms.
TIMES = Histogram(24_000.0, 480.0, (0.01, 0.025, 0.1, 0.2), (0.0, 22_000.0, 24_000.0, 24_000.0))
WINDOW = Window("i", Engine.VLLM, 0.0, 60.0, 60.0, 7, histograms={Hist.ITL_SECONDS: TIMES})


def prediction(itl: LatencyEstimate | None) -> Prediction:
    return Prediction(EngineConfig(), Calibration.FITTED, itl_seconds=itl)


MEASURED = observed([WINDOW], Hist.ITL_SECONDS) or LatencyEstimate(Estimate(0, 0, 0))
BASELINE = prediction(MEASURED)


def estimate(value: float) -> Estimate:
    return Estimate(value, value, value)


def goals(target: SLOTarget) -> Objectives:
    return Objectives.of([target], (), BASELINE, [WINDOW])


def after(target: SLOTarget, itl: LatencyEstimate) -> tuple[float | None, bool | None, bool]:
    """(value, met, allowed) of an objective where such a time between tokens is predicted."""
    asked = goals(target)
    then = asked.under(prediction(itl))
    return then[0].value.value if then[0].value else None, then[0].met, asked.allows(then)


@pytest.mark.parametrize("target", [SLOTarget("itl_p90", 0.03), SLOTarget("itl", 0.03, objective_ratio=0.9)])
def test_a_90th_percentile_is_not_broken_by_the_95th(target: SLOTarget) -> None:
    now = goals(target).now[0]
    assert now.met
    assert now.value is not None
    assert now.value.value == pytest.approx(0.02473, rel=1e-3)
    value, met, allowed = after(target, replace(MEASURED, p95=estimate(0.042)))
    assert value == pytest.approx(0.02473 * 0.042 / 0.055, rel=1e-3), "as measured, less what the 95th gains"
    assert (met, allowed) == (True, True)
    assert after(target, replace(MEASURED, p95=estimate(0.08)))[1:] == (False, False)


def test_without_quantiles_the_mean_tells_the_change() -> None:
    value, _, _ = after(SLOTarget("itl_p90", 0.03), LatencyEstimate(estimate(0.01)))
    assert value == pytest.approx(0.02473 / 2, rel=1e-3)


@pytest.mark.parametrize("quantile", ["itl_p97", "itl_p999"])
def test_a_tail_that_nothing_tells_of_is_not_predicted_and_breaks_nothing(quantile: str) -> None:
    assert after(SLOTarget(quantile, 0.15), replace(MEASURED, p95=estimate(0.9), p99=estimate(0.9))) == (None, None, True)
    assert "is not predicted" in goals(SLOTarget(quantile, 0.15)).risks(goals(SLOTarget(quantile, 0.15)).under(None))[0]


def test_nothing_changes_where_nothing_is_changed() -> None:
    asked = goals(SLOTarget("itl_p80", 0.03))
    then = asked.under(BASELINE)
    assert then[0].value is not None
    assert asked.now[0].value is not None
    assert then[0].value.value == asked.now[0].value.value
