"""How many replicas the diagnosis asks for."""

from __future__ import annotations

import pytest

from perf_service.models.analysis import Analysis, Bottleneck, BottleneckType, Cause, Severity, Verdict
from perf_service.models.metrics import Engine, Gauge
from perf_service.models.window import GaugeStats, Window
from perf_service.rpc.services.scaler import needed_replicas


def analysis(verdict: Verdict, cause: Cause, *, waiting: float = 0.0, running: float = 0.0) -> Analysis:
    gauges = {name: GaugeStats(v, v, v, v, 3) for name, v in ((Gauge.WAITING_REQUESTS, waiting), (Gauge.RUNNING_REQUESTS, running))}
    finding = Bottleneck(BottleneckType.QUEUE_BUILDUP, Severity.HIGH, "", "waiting_requests", waiting, 0, "", cause=cause, verdict=verdict)
    return Analysis("", Engine.VLLM, (finding,), verdict=verdict, window=Window("", Engine.VLLM, 0, 60, 60, 5, gauges=gauges), fleet_id="f")


@pytest.mark.parametrize(
    ("verdict", "cause", "waiting", "running", "present", "needed"),
    [
        (Verdict.TUNE, Cause.BATCH_LIMIT, 500, 10, 4, 4),  # a flag is the cure: growing would hide it
        (Verdict.NOTHING_TO_DO, Cause.UNKNOWN, 0, 10, 4, 4),
        (Verdict.SCALE, Cause.OVERLOAD, 5, 10, 4, 6),
        (Verdict.SCALE, Cause.OVERLOAD, 500, 10, 4, 8),  # at most twice at a time
        (Verdict.SCALE, Cause.OVERLOAD, 0, 10, 4, 5),  # but at least one more
        (Verdict.SCALE, Cause.OVERLOAD, 3, 0, 1, 2),
        (Verdict.SCALE, Cause.UNDER_USE, 0, 1, 4, 3),
        (Verdict.SCALE, Cause.UNDER_USE, 0, 1, 1, 1),
    ],
)
def test_needed_replicas(verdict: Verdict, cause: Cause, waiting: float, running: float, present: int, needed: int) -> None:
    assert needed_replicas(analysis(verdict, cause, waiting=waiting, running=running), present) == needed
