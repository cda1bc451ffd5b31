"""The sequential tests on series whose answer is plain."""

from __future__ import annotations

import math

import pytest

from perf_service.workflows.evidence import more_errors_e_value, pooled_ratio, worse_e_value


def test_one_wild_sample_decides_nothing() -> None:
    calm = [0.0] * 10
    assert worse_e_value([*calm, math.log(1000.0)], margin_ratio=0.05) < 2.0


def test_no_samples_no_evidence() -> None:
    assert worse_e_value([], margin_ratio=0.05) == 1.0
    assert pooled_ratio([]) is None
    assert pooled_ratio([math.log(2.0), math.log(0.5)]) == pytest.approx(1.0)


def test_a_steady_regression_is_caught_and_a_steady_equality_is_not() -> None:
    noise = [0.08, -0.11, 0.03, -0.05, 0.1, -0.02, 0.06, -0.09] * 4
    assert worse_e_value([math.log(1.3) + n for n in noise], margin_ratio=0.05) > 100
    assert worse_e_value(noise, margin_ratio=0.05) < 2
    assert worse_e_value([math.log(0.7) + n for n in noise], margin_ratio=0.05) < 2


def test_more_errors_than_the_control_or_the_floor_are_caught() -> None:
    none, some, many = [(0.0, 60.0)] * 20, [(3.0, 60.0)] * 20, [(6.0, 60.0)] * 20
    assert more_errors_e_value(some, none) > 100
    assert more_errors_e_value(some, some) < 2
    assert more_errors_e_value(many, some) > 100
    assert more_errors_e_value(many, [], floor=0.0) > 100
    assert more_errors_e_value(many, [], floor=0.1) < 100, "they were there before"
