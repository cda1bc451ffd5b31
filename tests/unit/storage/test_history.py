"""What is asked of the store to keep to a policy, and how often."""

from __future__ import annotations

import pytest

from perf_service.models.errors import ErrorReason, StoreError
from perf_service.storage.history import History, HistoryPolicy, Tidied

POLICY = HistoryPolicy(
    raw_seconds=100, thinned_interval_seconds=10, thinned_seconds=1000, coarse_interval_seconds=60, retention_seconds=5000
)


class Store:
    def __init__(self) -> None:
        self.calls: list[tuple[float | None, float, float]] = []
        self.pruned: list[float] = []
        self.fails = False

    async def prune_snapshots(self, *, before: float) -> int:
        self.pruned.append(before)
        return 3

    async def thin_snapshots(self, *, before: float, keep_every_seconds: float, after: float | None = None) -> int:
        if self.fails:
            raise StoreError(ErrorReason.STORE_UNAVAILABLE, "gone")
        self.calls.append((after, before, keep_every_seconds))
        return 2


async def test_each_age_has_its_density_and_is_looked_at_once() -> None:
    store = Store()
    history = History(store, POLICY)
    assert await history.tidy(10_000.0) == Tidied(thinned=4, pruned=3)
    await history.tidy(10_060.0)
    assert store.pruned == [5000.0, 5060.0]
    assert store.calls == [(None, 9000.0, 60), (9000.0, 9900.0, 10), (9000.0, 9060.0, 60), (9900.0, 9960.0, 10)]


async def test_a_failure_is_made_up_for() -> None:
    store = Store()
    history = History(store, POLICY)
    await history.tidy(10_000.0)
    store.fails = True
    with pytest.raises(StoreError):
        await history.tidy(10_060.0)
    store.fails = False
    await history.tidy(10_120.0)
    assert store.calls[2:] == [(9000.0, 9120.0, 60), (9900.0, 10_020.0, 10)]


async def test_nothing_is_thinned_before_its_raw_age() -> None:
    store = Store()
    await History(store, HistoryPolicy(2000, 10, 1000, 60, 5000)).tidy(10_000.0)
    assert store.calls == [(None, 8000.0, 60)]


async def test_what_is_imported_later_is_thinned_too() -> None:
    store = Store()
    history = History(store, POLICY)
    await history.tidy(10_000.0)
    for imported_from in (9500.0, 8000.0, 9990.0):  # the oldest counts; the last is too young to be thinned
        history.look_back(imported_from)
    store.fails = True
    with pytest.raises(StoreError):
        await history.tidy(10_060.0)
    store.fails = False
    await history.tidy(10_060.0)
    await history.tidy(10_120.0)
    assert store.calls[2:] == [(8000.0, 9060.0, 60), (9060.0, 9960.0, 10), (9060.0, 9120.0, 60), (9960.0, 10_020.0, 10)]


async def test_what_is_imported_meanwhile_is_for_the_next_time() -> None:
    class Slow(Store):
        async def thin_snapshots(self, *, before: float, keep_every_seconds: float, after: float | None = None) -> int:
            if not self.calls:
                history.look_back(7000.0)
            return await super().thin_snapshots(before=before, keep_every_seconds=keep_every_seconds, after=after)

    store = Slow()
    history = History(store, POLICY)
    await history.tidy(10_000.0)
    await history.tidy(10_060.0)
    assert store.calls[2] == (7000.0, 9060.0, 60)
