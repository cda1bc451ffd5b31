"""Changes inside a window, and over an upgrade."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from perf_service.analysis import series
from perf_service.analysis.engine import AnalysisEngine
from perf_service.collectors.window import window_over
from perf_service.models.analysis import Cause, Verdict
from perf_service.models.metrics import Counter, Engine, Gauge, Hist, Histogram, Snapshot
from perf_service.models.window import Window


def pages(rates: list[float], *, itl: list[float] | None = None, prompts: list[float] | None = None, start: float = 0.0) -> list[Snapshot]:
    """A page every 10 s; between two pages `rate` requests/s of 50 tokens finish."""
    itl, prompts = itl or [0.02] * len(rates), prompts or [100.0] * len(rates)
    done = tokens = token_time = prompt_sum = e2e = 0.0
    found = []
    for index in range(len(rates) + 1):
        found.append(
            Snapshot(
                "i",
                Engine.VLLM,
                start + 10.0 * index,
                {Gauge.RUNNING_REQUESTS: max(1.0, round(rates[min(index, len(rates) - 1)])), Gauge.WAITING_REQUESTS: 0.0},
                {Counter.REQUESTS_SUCCEEDED: done, Counter.GENERATION_TOKENS: tokens},
                {
                    Hist.TTFT_SECONDS: Histogram(done, 0.05 * done),
                    Hist.E2E_SECONDS: Histogram(done, e2e),
                    Hist.ITL_SECONDS: Histogram(tokens, token_time),
                    Hist.PROMPT_TOKENS: Histogram(done, prompt_sum),
                    Hist.GENERATION_TOKENS: Histogram(done, 50.0 * done),
                },
                process_start_time=start - 100.0,
            )
        )
        if index < len(rates):
            new = 10.0 * rates[index]
            done, tokens = done + new, tokens + 50 * new
            token_time += 50 * new * itl[index]
            e2e += new * (0.05 + 50 * itl[index])
            prompt_sum += new * prompts[index]
    return found


def parts(snapshots: list[Snapshot]) -> list[Window]:
    return [window_over(pair) for pair in pairwise(snapshots)]


@pytest.mark.parametrize("rates", [[5.0] * 8, [5, 4, 6, 5, 4.5, 5.5, 5, 5], [5.0] * 3])
def test_steady_load_has_no_step(rates: list[float]) -> None:
    assert series.load_step(parts(pages(rates))) is None


def test_step_of_arrivals_is_found_where_it_happened() -> None:
    change = series.load_step(parts(pages([5.0] * 4 + [20.0] * 4)))
    assert change is not None
    assert (change.index, change.what) == (4, "arrivals")
    assert change.factor == pytest.approx(4.0, rel=0.1)


def test_longer_prompts_are_a_step() -> None:
    change = series.load_step(parts(pages([5.0] * 8, prompts=[100.0] * 4 + [900.0] * 4)))
    assert change is not None
    assert change.what == "prompt length"


def test_slowdown_needs_the_same_load() -> None:
    slow = [0.02] * 4 + [0.08] * 4
    found = series.slowdown(parts(pages([5.0] * 8, itl=slow)))
    assert found is not None
    assert found.factor == pytest.approx(4.0, rel=0.01)
    assert series.slowdown(parts(pages([5.0] * 4 + [20.0] * 4, itl=slow))) is None
    assert series.slowdown(parts(pages([5.0] * 8))) is None


def versions(old: list[Snapshot], new: list[Snapshot]) -> list[Snapshot]:
    return [*(replace(p, engine_version="0.31.0") for p in old), *(replace(p, engine_version="0.32.0") for p in new)]


def test_slower_after_an_upgrade_is_rolled_back() -> None:
    analysis = AnalysisEngine().analyze(versions(pages([5.0] * 4), pages([5.0] * 4, itl=[0.06] * 4, start=500.0)))
    assert analysis.bottlenecks[0].cause is Cause.UPGRADE_REGRESSION
    assert analysis.verdict is Verdict.ROLL_BACK_UPGRADE


@pytest.mark.parametrize("new", [{"itl": [0.02] * 4}, {"itl": [0.06] * 4, "prompts": [900.0] * 4}])
def test_upgrade_is_not_blamed_for_nothing_or_for_other_load(new: dict[str, list[float]]) -> None:
    analysis = AnalysisEngine().analyze(versions(pages([5.0] * 4), pages([5.0] * 4, start=500.0, **new)))
    assert Cause.UPGRADE_REGRESSION not in {b.cause for b in analysis.bottlenecks}
