from __future__ import annotations

import pytest

from perf_service.models.errors import InvalidArgumentError
from perf_service.models.metrics import Hist
from perf_service.models.slo import Comparison, SLOTarget, parse_slo


@pytest.mark.parametrize(
    ("text", "base", "quantile", "value", "comparison"),
    [
        ("ttft_p95<0.5", "ttft", 0.95, 0.5, Comparison.LESS_THAN),
        ("itl < 50ms", "itl", None, 0.05, Comparison.LESS_THAN),
        ("time_to_first_token_p99 <= 1s", "ttft", 0.99, 1.0, Comparison.LESS_THAN),
        ("e2e_mean<2", "e2e", None, 2.0, Comparison.LESS_THAN),
        ("throughput>=1000", "throughput_tokens_per_second", None, 1000.0, Comparison.GREATER_THAN),
        ("error_rate<1%", "error_ratio", None, 0.01, Comparison.LESS_THAN),
        ("ttft_seconds<0.2", "ttft", None, 0.2, Comparison.LESS_THAN),
    ],
)
def test_an_objective_is_read_from_text(text: str, base: str, quantile: float | None, value: float, comparison: Comparison) -> None:
    target = parse_slo(text)
    assert (target.base_metric, target.quantile, target.comparison) == (base, quantile, comparison)
    assert target.target_value == pytest.approx(value)


@pytest.mark.parametrize("text", ["ttft", "ttft<", "ttft=0.5", "ttft<fast", "<0.5", "colour<3", "ttft<1e999"])
def test_what_is_no_objective_is_refused_with_its_text(text: str) -> None:
    with pytest.raises(InvalidArgumentError):
        parse_slo(text)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("ttft_p95<500", "500ms or 500s"),
        ("itl_p99<50", "50ms meant"),
        ("ttft<120s", "120ms meant"),
        ("e2e_p95<30000s", "30000ms meant"),
        ("itl_p99<50%", "is a time"),
        ("ttft_p95<-1s", "never below zero"),
        ("throughput>500ms", "not in ms"),
        ("requests_per_second>5%", "not in %"),
        ("error_ratio<5", "5% meant"),
        ("error_ratio<5s", "not in s"),
    ],
)
def test_a_slip_of_unit_or_sign_is_refused(text: str, why: str) -> None:
    with pytest.raises(InvalidArgumentError, match=why):
        parse_slo(text)


@pytest.mark.parametrize("text", ["e2e<600s", "e2e<60", "ttft_p95<500ms", "error_ratio<1", "prefix_cache_hit_ratio>60%", "throughput>500"])
def test_a_large_value_that_can_be_meant_is_taken(text: str) -> None:
    assert parse_slo(text).target_value > 0


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("ttft_p95>0.5", "ttft_p95<0.5"),
        ("itl>=50ms", "itl<50ms"),
        ("error_ratio>1%", "error_ratio<1%"),
        ("throughput<500", "throughput>500"),
    ],
)
def test_an_objective_the_wrong_way_round_is_refused(text: str, meant: str) -> None:
    with pytest.raises(InvalidArgumentError, match=f"write {meant}"):
        parse_slo(text)


def test_kv_cache_use_may_be_wanted_high_or_low() -> None:
    assert parse_slo("kv_cache_usage_ratio<0.9").comparison != parse_slo("kv_cache_usage_ratio>0.3").comparison


def test_a_wrong_comparison_names_the_two_allowed_ones() -> None:
    with pytest.raises(InvalidArgumentError, match=r"less_than.*greater_than.*'below'"):
        SLOTarget("ttft", 0.1, "below")


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.5])
def test_an_attainment_objective_lies_between_0_and_1(ratio: float) -> None:
    with pytest.raises(InvalidArgumentError, match="objective_ratio"):
        SLOTarget("ttft", 0.1, objective_ratio=ratio)


def test_met_by_knows_both_directions() -> None:
    assert SLOTarget("ttft", 0.1).met_by(0.1)
    assert not SLOTarget("ttft", 0.1).met_by(0.2)
    assert SLOTarget("throughput", 100, "greater_than").met_by(150)
    assert not SLOTarget("throughput", 100, "greater_than").met_by(50)


def test_the_histogram_is_named_by_the_metric() -> None:
    assert SLOTarget("ttft_p95", 0.5).histogram is Hist.TTFT_SECONDS
    assert SLOTarget("throughput", 5, "greater_than").histogram is None
