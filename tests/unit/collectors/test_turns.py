"""Work in portions."""

from __future__ import annotations

import asyncio

from perf_service.collectors.turns import Turns


async def test_a_burst_is_spread_over_turns_of_the_loop_in_its_order() -> None:
    turns, done, seen = Turns(3), list[int](), list[int]()

    async def work(number: int) -> None:
        await turns.wait()
        done.append(number)

    tasks = [asyncio.create_task(work(number)) for number in range(20)]
    while len(done) < 20:
        await asyncio.sleep(0)
        seen.append(len(done))
    await asyncio.gather(*tasks)
    assert done == sorted(done)
    assert max(b - a for a, b in zip([0, *seen], seen, strict=False)) <= 3


async def test_nobody_waits_without_need() -> None:
    turns = Turns(2)
    for _ in range(3):
        for _ in range(2):
            waiting = turns.wait()
            try:
                waiting.send(None)
            except StopIteration:
                continue
            raise AssertionError("it waited")
        for _ in range(3):
            await asyncio.sleep(0)


async def test_who_gives_up_takes_no_turn() -> None:
    turns, done = Turns(1), list[int]()

    async def work(number: int) -> None:
        await turns.wait()
        done.append(number)

    tasks = [asyncio.create_task(work(number)) for number in range(4)]
    await asyncio.sleep(0)
    tasks[1].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert done == [0, 2, 3]
