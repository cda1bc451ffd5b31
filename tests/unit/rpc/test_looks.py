"""Looks that watchers share."""

from __future__ import annotations

import asyncio

import pytest

from perf_service.rpc.services.looks import SharedLooks


class Counted:
    """A look that takes until it is told to end."""

    def __init__(self) -> None:
        self.taken = self.ended = 0
        self.go = asyncio.Event()
        self.failure: Exception | None = None
        self.now = 0.0
        self.looks: SharedLooks[int] = SharedLooks(lambda: self.now)

    async def take(self) -> int:
        self.taken += 1
        mine = self.taken
        try:
            await self.go.wait()
        finally:
            self.ended += 1
        if self.failure:
            raise self.failure
        return mine

    def ask(self, key: str = "a", interval: float = 5.0) -> asyncio.Task[int]:
        return asyncio.create_task(self.looks.get(key, interval, self.take))


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_many_watchers_cost_one_look_each_interval() -> None:
    counted = Counted()
    first = [counted.ask() for _ in range(20)]
    other = counted.ask("b")
    await turns()
    assert counted.taken == 2
    counted.now = 4.0
    late = counted.ask(interval=1.0)  # one under way is joined, however old it is
    await turns()
    counted.go.set()
    assert await asyncio.gather(*first, late) == [1] * 21
    assert await other == 2
    for now, looks in ((11.0, 1), (12.0, 3), (16.0, 3), (17.0, 4), (18.0, 4)):  # the first took 4 s, so it is kept for 12
        counted.now = now
        assert await counted.ask() == looks, now


async def test_one_that_waits_its_interval_sees_no_look_twice_and_the_present_is_at_most_15_s_old() -> None:
    counted = Counted()
    counted.go.set()
    seen = []
    for counted.now in (0.0, 5.0, 10.0):
        seen.append(await counted.ask())
        assert await counted.ask(interval=3600.0) == seen[-1]
    assert seen == [1, 2, 3]
    counted.now = 25.0
    assert await counted.ask(interval=3600.0) == 4


async def test_a_look_ends_with_the_last_who_waits_for_it() -> None:
    counted = Counted()
    one, two = counted.ask(), counted.ask()
    await turns()
    one.cancel()
    await turns()
    assert (counted.taken, counted.ended) == (1, 0)
    two.cancel()
    await turns()
    assert counted.ended == 1
    counted.go.set()
    assert await counted.ask() == 2


async def test_an_error_is_told_to_all_and_not_kept() -> None:
    counted = Counted()
    counted.failure = ValueError("gone")
    counted.go.set()
    results = await asyncio.gather(counted.ask(), counted.ask(), return_exceptions=True)
    assert [str(error) for error in results] == ["gone", "gone"]
    counted.failure = None
    assert await counted.ask() == 2
    assert await counted.ask() == 2


async def test_who_asks_right_after_the_last_one_left_gets_a_look_of_its_own() -> None:
    counted = Counted()
    one = counted.ask()
    await turns()
    one.cancel()
    with pytest.raises(asyncio.CancelledError):
        await one
    counted.go.set()
    assert await counted.ask() == 2
