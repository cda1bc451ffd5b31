"""Prediction of throughput and latency under a config, fitted from an instance's own windows. Independent of the simulator."""

from perf_service.optimization.predictor.parts import parts_of
from perf_service.optimization.predictor.predictor import Predictor
from perf_service.optimization.predictor.service import Limits, Request, Steady, steady
from perf_service.optimization.predictor.steptime import StepCost, StepFit, fit, observations_of
from perf_service.optimization.predictor.workload import Workload, read_workload

__all__ = [
    "Limits",
    "Predictor",
    "Request",
    "Steady",
    "StepCost",
    "StepFit",
    "Workload",
    "fit",
    "observations_of",
    "parts_of",
    "read_workload",
    "steady",
]
