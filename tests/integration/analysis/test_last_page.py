"""The last page of a real run alone: totals since the process started, gauges of one moment in which often nothing runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from perf_service.analysis import steps
from perf_service.analysis.engine import AnalysisEngine
from perf_service.analysis.measure import facts_of
from perf_service.collectors.saved import read_saved, snapshots_of
from perf_service.collectors.window import lifetime_window, overall_window
from perf_service.models.analysis import Cause, Severity, Verdict
from perf_service.models.config import EngineConfig
from perf_service.models.metrics import Snapshot

FIXTURES = Path(__file__).parents[2] / "fixtures"


def last_page(run: str) -> Snapshot:
    return snapshots_of(read_saved(FIXTURES / run), "one")[-1]


@pytest.mark.parametrize("run", ["captures/d_prefill_bad_r2", "captures/d_prefill_bad_r3", "held_out/prefill_budget64"])
def test_a_small_budget_shows_in_the_totals_of_a_life(run: str) -> None:
    (root, *_) = AnalysisEngine().analyze(last_page(run)).bottlenecks
    assert root.cause is Cause.TOKEN_BUDGET_TOO_SMALL
    assert root.severity is Severity.MEDIUM
    assert "max_num_batched_tokens" in root.would_settle


@pytest.mark.parametrize("run", ["captures/d_prefill_fixed_r2", "captures/b_queue_fixed_r2", "captures/f_prefix_on"])
def test_a_large_one_is_not_taken_for_small(run: str) -> None:
    analysis = AnalysisEngine().analyze(last_page(run))
    assert all(b.cause is not Cause.TOKEN_BUDGET_TOO_SMALL for b in analysis.bottlenecks)
    assert analysis.verdict in (Verdict.NOTHING_TO_DO, Verdict.NOT_ENOUGH_EVIDENCE)


@pytest.mark.parametrize(("run", "limit"), [("held_out/queue_seqs4", 4), ("captures/b_queue_bad_r2", 2), ("captures/e_decode_seqs8", 8)])
def test_how_many_ran_is_told_by_the_tokens_of_a_step(run: str, limit: int) -> None:
    found = facts_of(lifetime_window(last_page(run)), EngineConfig.of({}))
    assert found.running is None or found.running.mean == 0
    assert found.running_mean == pytest.approx(limit, rel=0.15)


def test_no_single_page_is_certain_of_a_cause() -> None:
    for run in ("held_out/queue_seqs4", "held_out/kv_blocks24", "captures/b_queue_bad_r2"):
        analysis = AnalysisEngine().analyze(last_page(run))
        assert all(b.confidence_ratio < 0.75 for b in analysis.bottlenecks), run


@pytest.mark.parametrize(("run", "at_a_time"), [("prefill_budget64", 1.0), ("kv_blocks24", 1.88), ("kv_full_no_preemption", 1.33)])
def test_a_budget_that_cuts_prompts_ends_one_in_a_step(run: str, at_a_time: float) -> None:
    window = overall_window(snapshots_of(read_saved(FIXTURES / "held_out" / run), run))
    assert window is not None
    found = facts_of(window, window.config)
    assert steps.prompts_per_step(found) == pytest.approx(at_a_time, abs=0.01)
    assert (steps.chunks(found).most <= 2.0) is (at_a_time >= 1.3)


def test_steps_without_a_token_make_the_count_no_sample() -> None:
    """Prompts of one answer token each, computed in many steps that nobody counts, after a warm-up with answers."""
    assert facts_of(lifetime_window(last_page("captures/d_prefill_bad_r2")), EngineConfig.of({})).running_mean is None
