"""What a person reads of an analysis, at 80 columns, without colour."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from perf_service.analysis.explain import NAMES
from perf_service.cli.diagnosis_view import analysis_view, cause_name, measured_table
from perf_service.cli.render import sections
from perf_service.models.analysis import (
    Analysis,
    Bottleneck,
    BottleneckType,
    BudgetState,
    BurnRate,
    Cause,
    ErrorBudget,
    Evidence,
    HealthPart,
    HealthStatus,
    PhaseShares,
    Severity,
    SLOState,
    SLOStatus,
    Verdict,
)
from perf_service.models.metrics import DataIssue, DataQuality, Engine, Gauge, IssueCode, IssueLevel
from perf_service.models.slo import SLOTarget
from perf_service.models.window import GaugeStats, Window

BATCH = Bottleneck(
    BottleneckType.QUEUE_BUILDUP, Severity.HIGH, "Only 2 requests run at a time.", "waiting_requests", 23.0, 1.0, "Raise max_num_seqs.",
    cause=Cause.BATCH_LIMIT, confidence_ratio=0.93, evidence=(Evidence("kv", "max", 0.1, "KV cache is free: its use peaks at 10 %."),),
    alternative=Cause.KV_EXHAUSTED, would_settle="the launch arguments",
)  # fmt: skip
MISSED = SLOStatus(
    SLOTarget("ttft", 0.1, builtin=True), SLOState.MISSED, 8.33, samples=90, phases=PhaseShares(0.9, 0.06, 0.03, 0.01), message="Mean TTFT."
)


def shown(analysis: Analysis) -> str:
    console = Console(file=io.StringIO(), width=80, no_color=True, highlight=False)
    sections(console, analysis_view(analysis))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert all(len(line) <= 80 for line in text.splitlines())
    return str(text)


def analysis(**more: Any) -> Analysis:
    given: dict[str, Any] = {
        "bottlenecks": (BATCH,),
        "slo_statuses": (MISSED,),
        "verdict": Verdict.TUNE,
        "health_status": HealthStatus.DEGRADED,
    }
    parts = (HealthPart("objective:ttft < 0.1", 20.0, "Mean TTFT."), HealthPart("queue", 18.0, "23.1 requests wait while 1.9 run."))
    return Analysis("i", Engine.VLLM, **{**given, "overall_health_score": 62.0, "health_parts": parts, **more})


def test_cause_symptoms_evidence_verdict_in_this_order_each_said_once() -> None:
    symptom = replace(BATCH, description="Mean TTFT is 8.33 s, over the target of 100 ms.", symptom_of=Cause.BATCH_LIMIT)
    text = shown(analysis(bottlenecks=(BATCH, symptom, symptom), cause_confidences={Cause.KV_EXHAUSTED: 0.02}))
    places = [text.index(label) for label in ("CAUSE", "SYMPTOMS", "EVIDENCE", "VERDICT", "SLO", "TIME", "HEALTH")]
    assert places == sorted(places)
    assert text.count("Mean TTFT is 8.33 s") == 1
    for part in (
        "batch limit  HIGH  confidence 93%",
        "? next guess: KV cache exhausted (2%)",
        "? to be sure: the launch arguments",
        "tune the engine's configuration",
        "ttft < 100 ms *",
        "ttft: 90% waiting, 6% prefill, 3% decode, 1% preempted",
        "62 of 100, degraded",
        "-20  missed objective: ttft < 100 ms",
        "-18  23.1 requests wait while 1.9 run.",
    ):
        assert part in text, part


@pytest.mark.parametrize(
    ("verdict", "summary", "parts"),
    [
        (Verdict.NOTHING_TO_DO, "x", ("only a built-in default is missed", "If it matters to you: Raise max_num_seqs.")),
        (Verdict.WAIT, "x", ("wait, then look again", "Too little has been seen yet", "If it lasts: Raise")),
        (Verdict.WAIT, "Wait: Arrivals doubled.", ("wait, then look again", "Arrivals doubled.")),
    ],
)
def test_a_verdict_that_differs_from_the_first_findings_says_why(verdict: Verdict, summary: str, parts: tuple[str, ...]) -> None:
    text = shown(analysis(verdict=verdict, summary=summary))
    assert all(part in text for part in parts)
    assert "tune the engine" not in text


@pytest.mark.parametrize(
    ("status", "words"), [(HealthStatus.NO_LOAD, "no load yet: there is nothing to score"), (HealthStatus.UNKNOWN, "unknown: not enough")]
)
def test_no_score_is_told_as_what_it_is(status: HealthStatus, words: str) -> None:
    text = shown(analysis(bottlenecks=(), overall_health_score=None, health_parts=(), health_status=status, verdict=Verdict.NOTHING_TO_DO))
    assert f"HEALTH     {words}" in text


def test_objectives_show_bounds_where_only_they_are_known() -> None:
    undecided = SLOStatus(SLOTarget("ttft_p95", 0.3), SLOState.UNDECIDED, 0.4, 0.25, 0.5, message="TTFT p95 is somewhere.")
    open_ended = SLOStatus(SLOTarget("ttft_p99", 1.0), SLOState.MISSED, 80.0, 80.0, float("inf"))
    lowest = SLOStatus(SLOTarget("ttft_p50", 1.0), SLOState.MET, 0.1, 0.0, 0.1)
    share = SLOStatus(SLOTarget("ttft", 0.3, objective_ratio=0.99), SLOState.MISSED, 0.2, attainment_low=0.4, attainment_high=0.9)
    text = shown(analysis(slo_statuses=(undecided, open_ended, lowest, share)))
    for part in ("~ 400 ms", "more than 80.0 s", "at most 100 ms", "40.0 to 90.0 %", "99 % of ttft < 300 ms", "? TTFT p95 is somewhere."):
        assert part in text, part


def test_a_budget_shows_what_is_left_of_how_much_and_how_fast_it_burns() -> None:
    burns = BurnRate(3600.0, 300.0, 14.4, 22.1, 24.5, 22.1, 24.5), BurnRate(21_600.0, 1800.0, 6.0, 5.9, 25.5, 7.9, 29.0)
    budget = ErrorBudget(
        0.99, 30 * 86_400.0, 9 * 86_400.0, 90_000, 1_100, 1_100, -0.2, -0.2, 0.0, burns, BudgetState.FAST_BURN, "It is overspent."
    )
    calm = replace(budget, left_low=0.75, left_high=0.76, state=BudgetState.OK, burns=(), message="Most is left.")
    own, other = SLOTarget("ttft_p99", 0.5), SLOTarget("e2e_p99", 9.0)
    statuses = SLOStatus(own, SLOState.MISSED, 0.6, budget=budget), SLOStatus(other, SLOState.MET, 5.0, budget=calm)
    text = shown(analysis(slo_statuses=statuses))
    [line] = [row for row in text.splitlines() if "overspent   " in row]
    assert line.split() == ["ttft_p99", "<", "500", "ms", "overspent", "9", "days", "22.1/24.5", "<7.9/<29"]
    assert "! ttft_p99 < 500 ms, fast burn: it is overspent." in text
    assert "75-76 %" in text
    assert "Most is left" not in text


def test_every_cause_has_a_name_for_people() -> None:
    assert set(NAMES) == set(Cause)
    assert cause_name("kv_exhausted") == NAMES[Cause.KV_EXHAUSTED]
    assert cause_name("of_a_newer_server") == "of a newer server"


def test_sums_over_replicas_are_told_as_sums() -> None:
    stats = GaugeStats(30.0, 20.0, 40.0, 30.0, 6)
    console = Console(file=io.StringIO(), width=80, no_color=True)
    console.print(measured_table(Window("f", Engine.VLLM, 0.0, 60.0, 60.0, 2, gauges={Gauge.RUNNING_REQUESTS: stats}, replicas=3)))
    assert "running at scrapes, sum" in console.file.getvalue()  # type: ignore[attr-defined]


def test_what_is_wrong_with_many_replicas_is_said_once() -> None:
    issues = [DataIssue(IssueCode.GAP, IssueLevel.WARNING, f"r{i}: Pages are missing for 9 s.") for i in range(5)]
    own = DataIssue(IssueCode.GAP, IssueLevel.WARNING, "The rates are rough.")
    one = DataIssue(IssueCode.STALE, IssueLevel.WARNING, "r1: The page is stale.")
    text = shown(analysis(quality=DataQuality((*issues, own, one)), window=Window("f", Engine.VLLM, None, None, None, 2, replicas=5)))
    for line in ("! 5 replicas (r0, r1, r2, ...): Pages are missing for 9 s.", "! The rates are rough.", "! r1: The page is stale."):
        assert line in text
