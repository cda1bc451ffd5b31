"""The doorbell of the event table."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping

from perf_service.storage.notifier import EventNotifier


class Table:
    """Last sequences as another process would have left them."""

    def __init__(self) -> None:
        self.last: dict[str, int] = {}
        self.asked: list[tuple[str, ...]] = []
        self.broken = 0

    async def __call__(self, names: Collection[str]) -> Mapping[str, int]:
        self.asked.append(tuple(names))
        if self.broken:
            self.broken -= 1
            raise RuntimeError("away")
        return {n: self.last[n] for n in names if n in self.last}


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_publication_wakes_those_behind_it_only() -> None:
    notifier = EventNotifier(Table(), poll_seconds=None)
    behind = asyncio.create_task(notifier.wait("w", 1, 30.0))
    level = asyncio.create_task(notifier.wait("w", 2, 30.0))
    await settle()
    notifier.publish("w", 2)
    assert await behind
    assert not level.done()
    level.cancel()


async def test_an_event_before_the_wait_is_seen_at_once() -> None:
    table = Table()
    table.last["w"] = 3
    assert await EventNotifier(table, poll_seconds=None).wait("w", 2, 30.0)


async def test_the_time_can_be_over() -> None:
    assert not await EventNotifier(Table(), poll_seconds=None).wait("w", 0, 0.001)


async def test_nothing_is_kept_of_those_who_left() -> None:
    notifier = EventNotifier(Table(), poll_seconds=None)
    waiting = asyncio.create_task(notifier.wait("w", 0, 30.0))
    await settle()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert notifier._waiters == {}


async def test_one_poll_serves_all_watchers_and_survives_a_lost_store() -> None:
    table = Table()
    notifier = EventNotifier(table, poll_seconds=0.001)
    waiting = [asyncio.create_task(notifier.wait("w", 0, 30.0)) for _ in range(50)]
    await settle()
    table.asked.clear()
    table.broken = 2
    table.last["w"] = 1
    assert all(await asyncio.gather(*waiting))
    assert len(table.asked) < 10
    await notifier.close()
