"""A fleet's window is the sum of its replicas'."""

from __future__ import annotations

from dataclasses import replace

import pytest

from perf_service.collectors.fleet_window import fleet_window
from perf_service.models.errors import InvalidArgumentError
from perf_service.models.metrics import Counter, DataIssue, DataQuality, Engine, Gauge, Hist, Histogram, IssueCode, IssueLevel
from perf_service.models.window import GaugeStats, Window


def replica(name: str, running: float, usage: float, tokens: float, seconds: float = 10.0) -> Window:
    def stats(value: float) -> GaugeStats:
        return GaugeStats(value, value / 2, value * 2, value, 3)

    return Window(
        name,
        Engine.VLLM,
        100.0,
        100.0 + seconds,
        seconds,
        3,
        gauges={Gauge.RUNNING_REQUESTS: stats(running), Gauge.KV_CACHE_USAGE_RATIO: stats(usage)},
        counters={Counter.GENERATION_TOKENS: tokens},
        histograms={Hist.TTFT_SECONDS: Histogram(4, 8.0, (1.0,), (2.0,))},
    )


def test_counters_and_histograms_add_and_gauges_follow_their_nature() -> None:
    fleet = fleet_window("f", [replica("a", 8, 0.9, 100), replica("b", 2, 0.1, 300)])
    assert (fleet.instance_id, fleet.replicas, fleet.scrapes) == ("f", 2, 6)
    assert fleet.rate(Counter.GENERATION_TOKENS) == 40
    assert fleet.histograms[Hist.TTFT_SECONDS] == Histogram(8, 16.0, (1.0,), (4.0,))
    running, usage = fleet.gauges[Gauge.RUNNING_REQUESTS], fleet.gauges[Gauge.KV_CACHE_USAGE_RATIO]
    assert (running.mean, running.min, running.max) == (10, 5, 20)
    assert (usage.mean, usage.min, usage.max) == pytest.approx((0.5, 0.05, 1.8))
    assert fleet.ranks["a"][Gauge.RUNNING_REQUESTS].mean == 8


def test_what_a_replica_lacks_is_told() -> None:
    lacking = replace(replica("b", 1, 0.1, 0), counters={})
    fleet = fleet_window("f", [replica("a", 1, 0.1, 100), lacking])
    assert fleet.counters[Counter.GENERATION_TOKENS] == 100
    assert "1 of 2 replicas" in next(issue.message for issue in fleet.quality.issues if issue.code is IssueCode.UNDERCOUNT)


def test_a_replica_that_is_not_usable_is_left_out_and_named() -> None:
    stale = replace(replica("b", 1, 0.1, 7), quality=DataQuality((DataIssue(IssueCode.STALE, IssueLevel.BLOCKING, "old"),)))
    fleet = fleet_window("f", [replica("a", 1, 0.1, 1), stale])
    assert [(issue.message, issue.level) for issue in fleet.quality.issues] == [("b: old", IssueLevel.WARNING)]
    assert (fleet.replicas, fleet.counters[Counter.GENERATION_TOKENS]) == (1, 1)
    assert not fleet_window("f", [stale]).quality.usable


def test_unequal_or_unknown_durations() -> None:
    assert fleet_window("f", [replica("a", 1, 0.1, 1), replica("b", 1, 0.1, 1, 30.0)]).quality.has(IssueCode.GAP)
    unknown = replace(replica("b", 1, 0.1, 1), duration_seconds=None, start=None)
    fleet = fleet_window("f", [replica("a", 1, 0.1, 1), unknown])
    assert (fleet.duration_seconds, fleet.start) == (None, None)


def test_nonsense_is_refused() -> None:
    with pytest.raises(InvalidArgumentError):
        fleet_window("f", [])
    with pytest.raises(InvalidArgumentError, match="one engine"):
        fleet_window("f", [replica("a", 1, 0.1, 1), replace(replica("b", 1, 0.1, 1), engine=Engine.TGI)])


def test_the_same_adapter_on_each_replica_is_one_adapter() -> None:
    seen = {Gauge.LORA_ADAPTERS_SEEN: GaugeStats(1, 1, 1, 1, 3)}
    one, other = (replace(replica(name, 1, 0.1, 10), gauges=seen) for name in "ab")
    assert fleet_window("f", [one, other]).gauges[Gauge.LORA_ADAPTERS_SEEN].last == 1
