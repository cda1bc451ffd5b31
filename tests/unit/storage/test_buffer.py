"""Snapshots on their way into the store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from perf_service.models.errors import ErrorReason, StoreError
from perf_service.models.metrics import Engine, Snapshot
from perf_service.storage.buffer import SnapshotBuffer


class Store:
    def __init__(self) -> None:
        self.groups: list[list[str]] = []
        self.fails = False
        self.stored = asyncio.Event()

    async def add_snapshots(self, group: list[Snapshot]) -> int:
        await asyncio.sleep(0)
        if self.fails:
            raise StoreError(ErrorReason.STORE_UNAVAILABLE, "gone")
        self.groups.append([snapshot.snapshot_id for snapshot in group])
        self.stored.set()
        return len(group)


def put(buffer: SnapshotBuffer, *names: object) -> None:
    for name in names:
        buffer.put(Snapshot("i", Engine.VLLM, 1.0, snapshot_id=str(name)))


@asynccontextmanager
async def running(buffer: SnapshotBuffer) -> AsyncIterator[None]:
    task = asyncio.create_task(buffer.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_what_comes_together_is_stored_together_in_its_order() -> None:
    store = Store()
    buffer = SnapshotBuffer(store, trouble=lambda *_: None, linger_seconds=0.0)
    async with running(buffer):
        put(buffer, *range(3))
        await store.stored.wait()
        store.stored.clear()
        put(buffer, 3)
        await store.stored.wait()
    assert store.groups == [["0", "1", "2"], ["3"]]


async def test_a_store_that_fails_is_tried_again_and_loses_the_oldest_only() -> None:
    store, told = Store(), list[int]()
    buffer = SnapshotBuffer(store, trouble=lambda lost, _: told.append(lost), max_waiting=3)
    store.fails = True
    put(buffer, 0, 1)
    assert not await buffer.flush()
    assert (len(buffer), told) == (2, [0])
    put(buffer, 2, 3, 4)
    assert buffer.lost == 2
    store.fails = False
    assert await buffer.flush()
    assert store.groups == [["2", "3", "4"]]


async def test_what_comes_during_a_failure_keeps_the_bound() -> None:
    told = list[int]()

    class Slow(Store):
        async def add_snapshots(self, group: list[Snapshot]) -> int:
            put(buffer, *range(10, 13))
            raise StoreError(ErrorReason.STORE_UNAVAILABLE, "gone")

    buffer = SnapshotBuffer(Slow(), trouble=lambda lost, _: told.append(lost), max_waiting=4)
    put(buffer, 0, 1, 2)
    assert not await buffer.flush()
    assert (len(buffer), told, buffer.lost) == (4, [2], 2)


async def test_what_is_left_at_the_end_is_stored() -> None:
    store = Store()
    buffer = SnapshotBuffer(store, trouble=lambda *_: None, linger_seconds=3600.0)
    async with running(buffer):
        put(buffer, 0)
        for _ in range(3):
            await asyncio.sleep(0)
        assert store.groups == []
    assert store.groups == [["0"]]


async def test_what_was_being_stored_at_the_end_is_stored_again() -> None:
    begun = asyncio.Event()

    class Hanging(Store):
        async def add_snapshots(self, group: list[Snapshot]) -> int:
            if not begun.is_set():
                begun.set()
                await asyncio.Event().wait()
            return await super().add_snapshots(group)

    store = Hanging()
    buffer = SnapshotBuffer(store, trouble=lambda *_: None, linger_seconds=0.0)
    async with running(buffer):
        put(buffer, 0, 1)
        await begun.wait()
        put(buffer, 2)
    assert store.groups == [["0", "1", "2"]]
