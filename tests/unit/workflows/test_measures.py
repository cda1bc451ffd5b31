"""Metric keys, reading them off windows, and groups of replicas."""

from __future__ import annotations

import pytest

from perf_service.models.metrics import Counter, Engine, Gauge, Hist, Histogram, Snapshot
from perf_service.models.slo import SLOTarget
from perf_service.workflows import measures
from perf_service.workflows.sampler import covered_seconds, from_base, measure_range, measure_sample

BOUNDS = (0.1, 0.5, 1.0, 5.0)


def page(name: str, at: float, requests: float, *, ttft: float = 0.3, failed: float = 0.0, started: float = 1.0) -> Snapshot:
    """A page of an engine that has served so many requests of one TTFT since its start."""
    below = tuple(requests if bound >= ttft else 0.0 for bound in BOUNDS)
    hist = Histogram(requests, requests * ttft, BOUNDS, below)
    return Snapshot(
        name,
        Engine.VLLM,
        at,
        gauges={Gauge.KV_CACHE_USAGE_RATIO: 0.5},
        counters={
            Counter.REQUESTS_SUCCEEDED: requests,
            Counter.REQUESTS_FAILED: failed,
            Counter.GENERATION_TOKENS: requests * 10,
            Counter.PROCESS_CPU_SECONDS: at,
        },
        histograms={Hist.TTFT_SECONDS: hist, Hist.E2E_SECONDS: hist},
        process_start_time=started,
    )


@pytest.mark.parametrize(
    ("target", "key", "limit"),
    [
        (SLOTarget("ttft", 0.5), "ttft_seconds_mean", 0.5),
        (SLOTarget("ttft_p95", 0.5), "ttft_seconds_p95", 0.5),
        (SLOTarget("e2e_latency_p999", 9.0), "e2e_seconds_p99.9", 9.0),
        (SLOTarget("throughput", 100.0, "greater_than"), "throughput_tokens_per_second", 100.0),
        (SLOTarget("ttft", 0.5, objective_ratio=0.99), "ttft_seconds_within_0.5", 0.99),
    ],
)
def test_keys_of_objectives(target: SLOTarget, key: str, limit: float) -> None:
    assert measures.slo_key(target) == key
    assert measures.slo_limit(target) == limit


def test_attainment_is_met_above_its_share() -> None:
    target = SLOTarget("ttft", 0.5, objective_ratio=0.99)
    assert measures.slo_met(target, 0.995)
    assert not measures.slo_met(target, 0.98)


@pytest.mark.parametrize(
    ("metric", "name"),
    [("itl_seconds_p95", "itl"), ("itl_seconds", "itl"), ("itl", "itl"), ("throughput_tokens_per_second", "throughput_tokens_per_second")],
)
def test_hypotheses_name_metrics_loosely(metric: str, name: str) -> None:
    assert measures.loose_name(metric) == name


def test_a_group_is_read_as_one() -> None:
    series = {
        "r0": [page("r0", 100.0, 10), page("r0", 110.0, 30, failed=0.0)],
        "r1": [page("r1", 100.0, 10), page("r1", 110.0, 50, failed=10.0)],
    }
    found = measure_sample(series, measures.keys_for(()), need_all=True)
    assert found is not None
    assert found.values["ttft_seconds_mean"] == pytest.approx(0.3)
    assert found.samples["ttft_seconds_mean"] == 60
    assert found.values["error_ratio"] == pytest.approx(10 / 70)
    assert found.values["requests_per_second"] == pytest.approx(7.0)
    assert found.values["throughput_tokens_per_second"] == pytest.approx(60.0)
    assert (found.start, found.end) == (100.0, 110.0)
    assert "itl_seconds_mean" not in found.values, "absent is not zero"


def test_a_silent_or_restarted_replica_voids_the_changed_group_but_not_the_control() -> None:
    good = [page("r0", 100.0, 10), page("r0", 110.0, 30)]
    for bad in ([], [page("r1", 110.0, 5)], [page("r1", 100.0, 50), page("r1", 110.0, 3, started=105.0)]):
        series = {"r0": good, "r1": bad}
        assert measure_sample(series, ("ttft_seconds_mean",), need_all=True) is None
        control = measure_sample(series, ("ttft_seconds_mean",), need_all=False)
        assert control is not None
        assert control.samples["ttft_seconds_mean"] == 20


def test_a_frozen_page_is_no_measurement() -> None:
    frozen = page("r0", 100.0, 10)
    later = Snapshot(**{f: getattr(frozen, f) for f in frozen.__dataclass_fields__} | {"collected_at": 110.0})
    assert measure_sample({"r0": [frozen, later]}, ("ttft_seconds_mean",), need_all=True) is None


def test_ranges_and_coverage() -> None:
    series = {"r0": [page("r0", 100.0, 10), page("r0", 160.0, 30)], "r1": [page("r1", 110.0, 10), page("r1", 160.0, 30)], "r2": []}
    assert covered_seconds(series) == 50.0
    assert covered_seconds({}) == 0.0
    assert measure_range({"r0": [page("r0", 1.0, 1)]}, ("ttft_seconds_mean",)) is None, "one page is no range"
    found = measure_range(series, ("ttft_seconds_mean", "kv_cache_usage_ratio"))
    assert found is not None
    assert found.values["kv_cache_usage_ratio"] == pytest.approx(0.5)


def test_mix_shift() -> None:
    before = {"prompt_tokens_per_request_mean": 100.0, "generation_tokens_per_request_mean": 50.0}
    assert not measures.mix_shift(before, before | {"prompt_tokens_per_request_mean": 119.0})
    assert "output" in measures.mix_shift(before, before | {"generation_tokens_per_request_mean": 100.0})
    assert not measures.mix_shift({}, before), "unknown is no shift"


def test_samples_join_although_replicas_are_scraped_at_different_moments() -> None:
    """The sample before ended with the latest page of all (110.2); r0's own last page is a little older and must still be the base."""
    pages = [page("r0", 100.0, 10), page("r0", 110.0, 20), page("r0", 120.0, 40)]
    assert [p.collected_at for p in from_base(pages, 110.2)] == [110.0, 120.0]
    assert [p.collected_at for p in from_base(pages, 90.0)] == [100.0, 110.0, 120.0]
    assert from_base([], 1.0) == []


def test_a_range_of_all_replicas_is_void_without_one_of_them() -> None:
    """Rates are sums: a fleet of which one replica was not yet measured twice would seem to serve half."""
    series = {"r0": [page("r0", 1.0, 1), page("r0", 11.0, 101)], "r1": [page("r1", 10.0, 50)]}
    keys = ("throughput_tokens_per_second",)
    assert measure_range(series, keys, need_all=True) is None
    half = measure_range(series, keys)
    assert half is not None
    assert half.values == {"throughput_tokens_per_second": pytest.approx(100.0)}
