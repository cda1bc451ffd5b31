"""False alarms and power of the whole gate, by simulation with seeded noise."""

from __future__ import annotations

import random
from dataclasses import replace

from perf_service.models.workflow import Judgement, MetricSample, StageSample, Workflow
from perf_service.workflows import gates
from perf_service.workflows.measures import COMPARED, ERROR_RATIO
from tests.support.machine_driver import baking, sample


def simulated_stage(rng: random.Random, slowdown: float, samples: int) -> Workflow:
    """A stage in which each latency has noise of its own around a common disturbance, both arms sharing the load."""
    made = []
    for i in range(samples):
        arm = rng.gauss(0.0, 0.07), rng.gauss(0.0, 0.07)
        metrics = []
        for key in COMPARED:
            base = 0.5 * (1.0 + rng.gauss(0.0, 0.15))
            canary = base * (1.0 + slowdown) * (1.0 + arm[0] + rng.gauss(0.0, 0.07))
            metrics.append(MetricSample(key, canary, base * (1.0 + arm[1] + rng.gauss(0.0, 0.07)), None, Judgement.PASS))
        metrics.append(MetricSample(ERROR_RATIO, 0.0, 0.0, None, Judgement.PASS))
        made.append(StageSample(10.0 * i, 10.0 * i + 10, 50.0, 50.0, tuple(metrics), Judgement.PASS))
    return replace(baking(), samples=tuple(made))


def breached(slowdown: float, samples: int, runs: int) -> float:
    rng = random.Random(11)
    stages = [simulated_stage(rng, slowdown, samples) for _ in range(runs)]
    return sum(gates.breach(made) is not None for made in stages) / runs


def test_whole_gate_false_alarms_and_power() -> None:
    """All metrics and the split of alpha together: A/A at most 2 %, +20 % mostly caught, +40 % always."""
    assert breached(0.0, 40, 50) <= 0.02
    assert breached(0.2, 60, 20) >= 0.7
    assert breached(0.4, 30, 20) >= 0.95


def test_five_percent_errors_always_end_it() -> None:
    for seed in range(20):
        rng = random.Random(seed)
        made = baking()
        samples = []
        for i in range(20):
            failed = sum(rng.random() < 0.05 for _ in range(60)) / 60
            samples.append(sample(10.0 * i, 10.0 * i + 10, errors=failed, requests=60.0))
        assert gates.breach(replace(made, samples=tuple(samples))) is not None
