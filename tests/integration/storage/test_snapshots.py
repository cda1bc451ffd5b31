"""Snapshots, and the analyses and plans made of them, alike in every store."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from perf_service.models.analysis import Analysis
from perf_service.models.config import EngineConfig
from perf_service.models.metrics import Counter, Engine, Hist, Histogram, Snapshot
from perf_service.models.plan import Plan
from perf_service.storage import SqlStore


def snapshot(at: float | None, instance_id: str = "i", value: float = 1.0) -> Snapshot:
    return Snapshot(
        instance_id,
        Engine.VLLM,
        at,
        counters={Counter.PROMPT_TOKENS: value},
        histograms={Hist.TTFT_SECONDS: Histogram(3.0, 1.5, (0.1, 1.0), (1.0, 2.0))},
        config=EngineConfig.of({"max_num_seqs": 2, "ratio": 1.0, "flag": True}),
    )


async def test_snapshots_by_time(store: SqlStore) -> None:
    stored = [await store.add_snapshot(snapshot(float(at))) for at in (30, 10, 20)]
    await store.add_snapshot(snapshot(15.0, "other"))
    assert await store.latest_snapshot("i") == stored[0]
    assert await store.latest_snapshot("nobody") is None
    assert await store.snapshots_between("i", 10.0, 20.0) == [stored[1], stored[2]]
    assert await store.snapshots_between("i", 0.0, 99.0, limit=2) == [stored[2], stored[0]]
    assert [s.collected_at for s in (await store.list_snapshots("i", start=15.0)).items] == [30.0, 20.0]


async def test_some_snapshots_evenly_spaced(store: SqlStore) -> None:
    for at in (*range(10, 111, 10), 500):
        await store.add_snapshot(snapshot(float(at)))
        await store.add_snapshot(snapshot(float(at), "other"))
    for most, times in ((11, [*range(10, 111, 10)]), (6, [10, 30, 50, 70, 90, 110]), (3, [10, 60, 110]), (2, [10, 110])):
        found = await store.snapshots_spread(["other", "i"], 10.0, 110.0, most=most)
        assert [[s.collected_at for s in found[name]] for name in ("i", "other")] == [times, times]
        assert {s.instance_id for s in found["i"]} == {"i"}
    found = await store.snapshots_spread(["i", "nobody"], 10.0, 110.0, most=3)
    assert found == {"i": (await store.snapshots_between("i", 10.0, 110.0))[::5], "nobody": []}


async def test_a_page_without_a_time_is_placed_by_its_arrival(store: SqlStore) -> None:
    await store.add_snapshot(snapshot(None))
    [found] = await store.snapshots_between("i", 1000.0, 1000.0)
    assert found.collected_at is None


async def test_the_snapshot_at_a_time(store: SqlStore) -> None:
    assert await store.snapshot_at("i", 50.0) is None
    for at in (10, 20, 30):
        await store.add_snapshot(snapshot(float(at)))
    await store.add_snapshot(snapshot(21.0, "other"))
    found = [await store.snapshot_at("i", at) for at in (5.0, 10.0, 29.9, 30.0, 99.0)]
    assert [s.collected_at for s in found if s is not None] == [10.0, 10.0, 20.0, 30.0, 30.0]


async def test_a_snapshot_is_stored_once_and_never_changed(store: SqlStore) -> None:
    first = await store.add_snapshot(snapshot(1.0))
    assert await store.add_snapshot(first) == first
    assert len((await store.list_snapshots("i")).items) == 1
    with pytest.raises(ValueError, match="never change"):
        await store.add_snapshot(replace(first, counters={}))


async def test_a_moment_of_an_instance_is_stored_once_whoever_saw_it(store: SqlStore) -> None:
    """Kept in the background, collected, imported, read back from a Prometheus: what came first stays."""
    first = await store.add_snapshot(snapshot(1.25, value=1.0))
    assert await store.add_snapshot(snapshot(1.25, value=2.0)) == first
    assert await store.add_snapshots([snapshot(1.25), snapshot(1.25, "other"), snapshot(1.5), snapshot(1.250001)]) == 3
    assert await store.add_snapshots([snapshot(1.25), snapshot(1.5)]) == 0
    assert [s.collected_at for s in await store.snapshots_between("i", 0.0, 9.0)] == [1.25, 1.250001, 1.5]
    # Of an unknown moment each is another.
    assert await store.add_snapshots([snapshot(None), snapshot(None)]) == 2


async def test_a_moment_that_an_earlier_version_stored_under_a_random_id_is_not_stored_again(store: SqlStore) -> None:
    old = [await store.add_snapshot(replace(snapshot(at, "old"), snapshot_id=f"snap-random-{at}")) for at in (1.25, 1.5)]
    again = [snapshot(1.25, "old"), snapshot(1.5, "old"), snapshot(1.75, "old"), snapshot(1.25, "new")]
    assert await store.add_snapshots(again) == 2
    assert await store.add_snapshot(snapshot(1.5, "old", value=2.0)) == old[1]
    assert [s.snapshot_id for s in await store.snapshots_between("old", 0.0, 1.5)] == [s.snapshot_id for s in old]


async def test_retention(store: SqlStore) -> None:
    for at in range(0, 100, 10):
        await store.add_snapshot(snapshot(float(at)))
    await store.add_snapshot(snapshot(95.0, "other"))
    assert await store.prune_snapshots(before=20.0) == 2
    # Of 20, 30, ..., 80 (older than 85) the first of each half minute stays: 20, 30, 60.
    assert await store.thin_snapshots(before=85.0, keep_every_seconds=30.0) == 4
    assert [s.collected_at for s in await store.snapshots_between("i", 0.0, 99.0)] == [20.0, 30.0, 60.0, 90.0]
    assert await store.latest_snapshot("other") is not None


async def test_the_snapshots_of_a_deregistered_instance_are_gone(store: SqlStore, build: Any) -> None:
    await store.create_instance(build.instance())
    await store.add_snapshot(snapshot(1.0))
    await store.delete_instance("i")
    assert await store.latest_snapshot("i") is None


async def test_analyses_and_plans(store: SqlStore, clock: Any) -> None:
    analysis = await store.add_analysis(Analysis("i", Engine.VLLM, fleet_id="f"))
    plan = await store.add_plan(Plan(Engine.VLLM, instance_id="i", analysis_id=analysis.analysis_id))
    assert analysis.created_at == clock.now
    assert await store.get_analysis(analysis.analysis_id) == analysis
    assert await store.get_plan(plan.plan_id) == plan
    assert (await store.list_analyses(fleet_id="f")).items == (analysis,)
    assert (await store.list_plans(instance_id="other")).items == ()
