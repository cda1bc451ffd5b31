"""Numbers as a person reads them."""

import math

import pytest

from perf_service.cli import text
from perf_service.models.window import Quantile, QuantileKind


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "-"), (math.nan, "-"), (math.inf, "-"), (0.0, "0"), (0.01234, "0.0123"), (1.239, "1.24"), (141.2, "141"),
        (12400.0, "12,400"), (1e-12, "1e-12"), (-8.333, "-8.33"),
    ],
)  # fmt: skip
def test_number(value: float | None, shown: str) -> None:
    assert text.number(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0123, "12.3 ms"), (0.0, "0 s"), (8.333, "8.33 s"), (250.0, "4 min 10 s"), (7500.0, "2 h 5 min"), (None, "-"), (math.inf, "-")],
)
def test_seconds(value: float | None, shown: str) -> None:
    assert text.seconds(value) == shown


@pytest.mark.parametrize(
    ("metric", "value", "shown"),
    [
        ("ttft_seconds_mean", 0.5, "500 ms"), ("ttft_p95", 0.5, "500 ms"), ("throughput_tokens_per_second", 141.2, "141/s"),
        ("error_ratio", 0.05, "5.00 %"), ("running_requests", 3.0, "3.00"), ("ttft", None, "-"), ("requests_per_second", 2.5, "2.50/s"),
    ],
)  # fmt: skip
def test_amount_takes_the_unit_from_the_name(metric: str, value: float | None, shown: str) -> None:
    assert text.amount(metric, value) == shown


def test_a_quantile_beyond_the_buckets_is_not_made_up() -> None:
    below = Quantile(0.5, 0.3, 0.0, 0.3, QuantileKind.AT_MOST, 10)
    above = Quantile(0.99, 60.0, 60.0, math.inf, QuantileKind.AT_LEAST, 10)
    assert text.quantile(below) == "<= 300 ms"
    assert text.quantile(above) == ">= 60.0 s"
    assert text.quantile(None) == "-"


def test_a_quantile_inside_a_bucket_is_marked_as_interpolated() -> None:
    assert text.quantile(Quantile(0.95, 4.8, 2.5, 5.0, QuantileKind.INTERPOLATED, 130)) == "~ 4.80 s"


def test_ratio() -> None:
    assert text.ratio(1.0) == "as before"
    assert text.ratio(0.12) == "x 0.120"
    assert text.ratio(math.nan) == "-"
