"""Pages that reach beyond the load: judged is the time under load, and that it is over is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from perf_service.analysis.engine import AnalysisEngine, analyze_fleet
from perf_service.analysis.load_time import load_time
from perf_service.models.analysis import Cause, Verdict
from perf_service.models.metrics import Counter, Engine, Gauge, Hist, Histogram, IssueCode, Snapshot
from perf_service.models.slo import SLOTarget


def page(at: float, done: float, *, running: float, waiting: float = 0.0, mean: float = 2.0) -> Snapshot:
    """A page with `done` requests of 20 tokens so far, each with `mean` seconds to its first token, 90 % of it in the queue."""
    times = {
        Hist.TTFT_SECONDS: mean,
        Hist.QUEUE_SECONDS: 0.9 * mean,
        Hist.PREFILL_SECONDS: 0.1 * mean,
        Hist.DECODE_SECONDS: 1.0,
        Hist.INFERENCE_SECONDS: 1.0 + 0.1 * mean,
        Hist.E2E_SECONDS: 1.0 + mean,
        Hist.PROMPT_TOKENS: 100.0,
        Hist.GENERATION_TOKENS: 20.0,
    }
    return Snapshot(
        "i",
        Engine.VLLM,
        at,
        gauges={Gauge.RUNNING_REQUESTS: running, Gauge.WAITING_REQUESTS: waiting, Gauge.KV_CACHE_USAGE_RATIO: 0.01},
        counters={Counter.GENERATION_TOKENS: 20 * done, Counter.REQUESTS_SUCCEEDED: done, Counter.PROCESS_CPU_SECONDS: at / 10},
        histograms={hist: Histogram(done, mean * done) for hist, mean in times.items()},
    )


def run(before: int, under_load: int, after: int) -> list[Snapshot]:
    """Scrapes every 10 s: idle, 20 requests between two of them with four running and twelve waiting, idle again."""
    pages = [page(10.0 * n, 0, running=0) for n in range(before)]
    pages += [page(10.0 * (before + n), 20 * n, running=4, waiting=12) for n in range(under_load)]
    total = before + under_load
    return pages + [page(10.0 * (total + n), 20 * (under_load - 1), running=0) for n in range(after)]


def test_the_time_under_load_is_judged_and_its_end_is_told() -> None:
    lasting, over = AnalysisEngine().analyze(run(0, 6, 0)), AnalysisEngine().analyze(run(5, 6, 24))
    assert [b.cause for b in over.bottlenecks] == [b.cause for b in lasting.bottlenecks]
    assert over.root_cause is not None
    assert over.root_cause.cause is Cause.BATCH_LIMIT
    assert over.window is not None
    assert over.window.duration_seconds == pytest.approx(70)
    assert "The load ended 3 min 50 s before the last page" in over.summary
    assert any(issue.code is IssueCode.IDLE for issue in over.quality.issues)
    assert not lasting.quality.has(IssueCode.IDLE)


def test_a_pause_of_the_load_is_not_its_end() -> None:
    """Requests that come every 40 s are followed by 40 s without any."""
    pages = [page(10.0 * n, float(n // 4), running=0) for n in range(21)]
    assert load_time([pages]) is None
    assert load_time([run(0, 6, 2)]) is None  # too short to tell


def test_without_times_or_without_load_nothing_is_cut() -> None:
    assert load_time([[page(10.0 * n, 5, running=0) for n in range(20)]]) is None
    untimed = [Snapshot("i", Engine.VLLM, None, counters={Counter.GENERATION_TOKENS: float(n)}) for n in range(5)]
    assert load_time([untimed]) is None


def test_of_a_fleet_an_idle_replica_beside_a_busy_one_has_not_ended() -> None:
    def fleet(*replicas: Sequence[Snapshot]) -> str:
        return analyze_fleet({str(n): pages for n, pages in enumerate(replicas)}).summary

    assert "The load ended" not in fleet(run(0, 30, 0), run(0, 6, 24))
    assert "The load ended 3 min 50 s" in fleet(run(0, 6, 24), run(0, 4, 26))


def test_nobody_is_sent_for_capacity_when_the_load_is_over() -> None:
    pages = [page(10.0 * n, 20 * n, running=100, waiting=0, mean=0.2) for n in range(6)]
    pages = [replace(p, histograms={**p.histograms, Hist.ITL_SECONDS: Histogram(400 * n, 80 * n)}) for n, p in enumerate(pages)]
    idle = replace(pages[-1], gauges=dict.fromkeys(pages[-1].gauges, 0.0))
    tail = [replace(idle, collected_at=60.0 + 10 * n, counters={**idle.counters, Counter.PROCESS_CPU_SECONDS: 6.0 + n}) for n in range(10)]
    goal = [SLOTarget("itl", 0.05, "less_than")]
    during, after = AnalysisEngine().analyze(pages, slo_targets=goal), AnalysisEngine().analyze([*pages, *tail], slo_targets=goal)
    assert (during.verdict, after.verdict) == (Verdict.SCALE, Verdict.WAIT)
    assert after.summary.startswith("Wait: The load ended")


def test_one_short_standstill_in_an_hour_hides_nothing() -> None:
    pages = [page(15.0 * n, 30.0 * (n if n < 100 else n - 1), running=4, waiting=12) for n in range(240)]
    analysis = AnalysisEngine().analyze(pages, slo_targets=[SLOTarget("ttft", 0.5, "less_than")])
    assert analysis.root_cause is not None
    assert (analysis.root_cause.cause, analysis.verdict) == (Cause.BATCH_LIMIT, Verdict.TUNE)
    assert Cause.ENGINE_HANG in {b.cause for b in analysis.bottlenecks}  # told all the same


@pytest.mark.parametrize("start", [1.7e12, 1e300])
def test_a_start_of_the_process_that_is_no_date_breaks_nothing(start: float) -> None:
    before = [replace(one, process_start_time=start) for one in run(0, 4, 0)]
    after = [replace(one, collected_at=100.0 + (one.collected_at or 0.0), process_start_time=start * 1.5) for one in run(0, 4, 0)]
    assert AnalysisEngine().analyze([*before, *after]).quality.has(IssueCode.RESET)


def test_an_engine_that_has_too_little_to_do_has_too_little_when_idle() -> None:
    pages = [page(10.0 * n, n, running=0.2, mean=0.01) for n in range(61)]
    assert AnalysisEngine().analyze(pages).verdict is Verdict.SCALE
    idle = [page(600.0 + 10.0 * n, 60, running=0, mean=0.01) for n in range(1, 61)]
    assert AnalysisEngine().analyze([*pages, *idle]).verdict is Verdict.SCALE
