"""Plans, predictions and knobs."""

from __future__ import annotations

from perf_service.models.plan import (
    Estimate,
    Knob,
    LatencyEstimate,
    ObjectiveForecast,
    Optimization,
    Plan,
    PlanOption,
    PredictedEffect,
    Prediction,
)
from perf_service.rpc.convert import analysis as _analysis
from perf_service.rpc.convert import config as _config
from perf_service.rpc.convert.mirror import Mirror
from perf_service.v1 import knob_pb2, plan_pb2

_ = (_analysis, _config)  # the mirrors below stand on theirs
ESTIMATE = Mirror(Estimate, plan_pb2.Estimate)
LATENCY_ESTIMATE = Mirror(LatencyEstimate, plan_pb2.LatencyEstimate)
PREDICTION = Mirror(Prediction, plan_pb2.Prediction)
PREDICTED_EFFECT = Mirror(PredictedEffect, plan_pb2.PredictedEffect)
OPTIMIZATION = Mirror(Optimization, plan_pb2.Optimization)
OBJECTIVE_FORECAST = Mirror(ObjectiveForecast, plan_pb2.ObjectiveForecast)
PLAN_OPTION = Mirror(PlanOption, plan_pb2.PlanOption)
PLAN = Mirror(Plan, plan_pb2.Plan)
KNOB = Mirror(Knob, knob_pb2.Knob)
