"""Real runs as windows, and findings made by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from perf_service.analysis.engine import AnalysisEngine
from perf_service.collectors.saved import read_saved, snapshots_of
from perf_service.collectors.window import overall_window, windows_of
from perf_service.models.analysis import Bottleneck, BottleneckType, Cause, Severity, Verdict
from perf_service.models.config import EngineConfig, Source
from perf_service.models.metrics import Snapshot
from perf_service.models.plan import Plan
from perf_service.models.slo import parse_slo
from perf_service.models.window import Window
from perf_service.optimization.engine import OptimizationEngine

CAPTURES = Path(__file__).parents[1] / "fixtures" / "captures"


@cache
def snapshots(scenario: str) -> tuple[Snapshot, ...]:
    return tuple(snapshots_of(read_saved(CAPTURES / scenario), scenario))


@cache
def windows(scenario: str) -> tuple[Window, ...]:
    return tuple(windows_of(snapshots(scenario)))


@cache
def overall(scenario: str) -> Window:
    found = overall_window(snapshots(scenario))
    assert found is not None
    return found


@cache
def client(scenario: str) -> dict[str, Any]:
    """What the load generator measured: the truth that no page tells."""
    loaded: dict[str, Any] = json.loads((CAPTURES / scenario / "client.json").read_text())
    return loaded


def finding(
    kind: BottleneckType = BottleneckType.QUEUE_BUILDUP,
    cause: Cause = Cause.UNKNOWN,
    verdict: Verdict = Verdict.TUNE,
    severity: Severity = Severity.HIGH,
    symptom_of: Cause | None = None,
) -> Bottleneck:
    return Bottleneck(
        kind, severity, "requests wait", "waiting_requests", 30.0, 1.0, "do something",
        cause=cause, verdict=verdict, symptom_of=symptom_of,
    )  # fmt: skip


def plan_of(scenario: str, config: dict[str, Any] | None = None, slo: Sequence[str] = ()) -> Plan:
    """The plan for a real run, with the launch flags and the objectives that are told."""
    targets = [parse_slo(s) for s in slo] or None
    known = EngineConfig.of(config, Source.LAUNCH_ARGS) if config else None
    analysis = AnalysisEngine().analyze(snapshots(scenario), "vllm", targets, config=known)
    return OptimizationEngine().generate_plan(analysis, known, slo_targets=targets, windows=windows(scenario))
