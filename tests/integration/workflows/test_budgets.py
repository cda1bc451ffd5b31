"""Budgets from a store: few reads, the same answer as from every page."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Sequence

import pytest

from perf_service.analysis.error_budget import error_budget
from perf_service.analysis.slo_monitor import evaluate
from perf_service.models.metrics import Counter, Engine, Hist, Histogram, Snapshot
from perf_service.models.slo import SLOTarget
from perf_service.models.window import Window
from perf_service.workflows.budgets import Budgets, history

DAY, NOW = 86_400.0, 1_800_000_000.0
TARGET = SLOTarget("ttft_p99", 0.5)


class Pages:
    """A store of one instance's pages that counts how often it is read."""

    def __init__(self, pages: Sequence[Snapshot]) -> None:
        self.pages, self.reads = list(pages), 0
        self.times = [page.collected_at or 0.0 for page in pages]

    async def snapshot_at(self, instance_id: str, at: float) -> Snapshot | None:
        self.reads += 1
        return self.pages[max(0, bisect_right(self.times, at) - 1)] if self.pages else None


def life(days: float, step: float, restarts: Sequence[float], *, tells_start: bool = True) -> list[Snapshot]:
    """Pages every `step` seconds up to now; restarts in days before now, half a step after a page."""
    pages = []
    good = bad = 0.0
    begun, rng = NOW - 90 * DAY, random.Random(1)
    waiting = sorted((NOW - r * DAY for r in restarts), reverse=True)
    for i in range(int(days * DAY / step) + 1):
        at = NOW - days * DAY + i * step
        if waiting and waiting[-1] <= at:
            begun, good, bad = waiting.pop(), 0.0, 0.0
        good, bad = good + rng.randrange(80, 120), bad + rng.randrange(3)
        histogram = Histogram(good + bad, 1.0, (0.5, 1.0), (good, good))
        pages.append(
            Snapshot(
                "i",
                Engine.VLLM,
                at,
                counters={Counter.REQUESTS_SUCCEEDED: good + bad},
                histograms={Hist.TTFT_SECONDS: histogram},
                process_start_time=begun if tells_start else None,
            )
        )
    return pages


@pytest.mark.parametrize("restarts", [[], [12.3], [0.01, 0.1, 3.7, 20.0, 20.001, 29.9]])
async def test_a_handful_of_reads_tells_thirty_days(restarts: list[float]) -> None:
    store = Pages(life(35, 3600.0, restarts))
    found = await history(store, "i", NOW)
    assert store.reads <= 6 + len(restarts)
    few, all_pages = (error_budget(TARGET, {"i": pages}, NOW) for pages in (found, store.pages))
    assert few == all_pages
    assert few is not None
    assert few.requests > 50_000


async def test_without_a_start_time_restarts_are_looked_for() -> None:
    store = Pages(life(31, 3600.0, [12.3, 3.7], tells_start=False))
    found = await history(store, "i", NOW)
    assert store.reads < 250
    few, all_pages = (error_budget(TARGET, {"i": pages}, NOW) for pages in (found, store.pages))
    assert few is not None
    assert all_pages is not None
    assert few.requests == all_pages.requests
    assert few.bad_low == all_pages.bad_low


async def test_nothing_stored_is_no_budget_at_all() -> None:
    budgets = Budgets(Pages([]))
    statuses = evaluate(Window("i", Engine.VLLM, None, None, None, 0), [TARGET, SLOTarget("ttft", 0.5)])
    with_budget, without = await budgets.added(statuses, ["i"], NOW)
    assert with_budget.budget is not None
    assert with_budget.budget.message == "No request is known in the last 30 days."
    assert without.budget is None


async def test_an_answer_is_used_again_as_long_as_it_is_young_enough() -> None:
    store = Pages(life(1, 300.0, []))
    budgets = Budgets(store)
    statuses = evaluate(Window("i", Engine.VLLM, None, None, None, 0), [TARGET])
    first = await budgets.added(statuses, ["i"], NOW, max_age_seconds=60.0)
    reads = store.reads
    assert await budgets.added(statuses, ["i"], NOW + 59, max_age_seconds=60.0) == first
    assert store.reads == reads
    await budgets.added(statuses, ["i"], NOW + 61, max_age_seconds=60.0)
    assert store.reads > reads
