"""The sequential tests, by simulation with seeded noise: false alarms stay rare however often one looks, regressions are caught."""

from __future__ import annotations

import math
import random

import pytest

from perf_service.workflows.evidence import more_errors_e_value, worse_e_value

ALPHA = 0.01


RUNS = 100


def log_ratios(rng: random.Random, samples: int, slowdown: float) -> list[float]:
    """log(canary / baseline) of p95-like series: 10 % noise of each arm's own; what both arms share (load) cancels in the ratio."""
    return [math.log(1.0 + slowdown) + rng.gauss(0.0, 0.1) - rng.gauss(0.0, 0.1) for _ in range(samples)]


def rejected(slowdown: float, *, samples: int, margin: float = 0.05, alpha: float = ALPHA, runs: int = 100) -> float:
    rng = random.Random(42)
    hits = sum(worse_e_value(log_ratios(rng, samples, slowdown), margin_ratio=margin) >= 1 / alpha for _ in range(runs))
    return hits / runs


@pytest.mark.parametrize("samples", [10, 60, 120])
def test_false_alarms_stay_rare_at_every_look(samples: int) -> None:
    """The largest value ever reached is tested, so this is looking after every sample."""
    assert rejected(0.0, samples=samples) <= 0.02
    assert rejected(0.05, samples=samples) <= 0.02, "a difference of the margin itself is none"


def test_regressions_are_caught_the_sooner_the_larger() -> None:
    assert rejected(0.2, samples=40) >= 0.8
    assert rejected(0.4, samples=20) >= 0.95
    assert rejected(-0.3, samples=60) == 0.0


def test_false_alarms_with_heavy_tails_and_common_mode_load() -> None:
    rng = random.Random(7)
    hits = 0
    for _ in range(RUNS):
        ratios = [math.log(rng.paretovariate(2.5) / rng.paretovariate(2.5)) for _ in range(60)]
        hits += worse_e_value(ratios, margin_ratio=0.05) >= 1 / ALPHA
    assert hits / RUNS <= 0.02


def errors(rng: random.Random, samples: int, requests: int, ratio: float) -> list[tuple[float, float]]:
    return [(float(sum(rng.random() < ratio for _ in range(requests))), float(requests)) for _ in range(samples)]


@pytest.mark.parametrize("baseline", [0.0, 0.01, 0.05])
def test_five_points_more_errors_are_caught_and_equal_ones_are_not(baseline: float) -> None:
    rng = random.Random(3)
    caught = false = 0
    for _ in range(40):
        control = errors(rng, 20, 60, baseline)
        caught += more_errors_e_value(errors(rng, 20, 60, baseline + 0.05), control) >= 1 / ALPHA
        false += more_errors_e_value(errors(rng, 20, 60, baseline), control) >= 1 / ALPHA
    assert caught >= (38 if baseline < 0.05 else 34)
    assert false <= 1


def test_errors_that_were_there_before_are_not_held_against_the_change() -> None:
    rng = random.Random(5)
    canary = errors(rng, 20, 60, 0.1)
    assert more_errors_e_value(canary, [], floor=0.1) < 100
    assert more_errors_e_value(canary, [], floor=0.0) > 100
