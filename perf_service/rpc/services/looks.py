"""One look for all who watch the same: the cost of watching grows with what is watched, not with the watchers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Hashable
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

T = TypeVar("T")

MAX_AGE_SECONDS: Final = 15.0
"""Who looks seldom wants the present all the same; an instance is scraped each 15 s unless told otherwise."""


@dataclass(slots=True)
class _Look(Generic[T]):
    begun: float
    task: asyncio.Task[T]
    waiting: int = 0


class SharedLooks(Generic[T]):
    """Results by key, each made once for all who ask while it is under way or fresh. Belongs to one event loop.

    A caller that waits `interval_seconds` from one answer to its next question never gets the same look twice, so that looks in a row
    that agree are evidence of their own. An error is everybody's who waited for it, and is not kept.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._looks: dict[Hashable, _Look[T]] = {}

    async def get(self, key: Hashable, interval_seconds: float, take: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """A look that was begun less than `interval_seconds` ago (at most `MAX_AGE_SECONDS`) or is under way, else a new one by `take`."""
        look = self._looks.get(key)
        if look is None or (look.task.done() and self._clock() - look.begun >= min(interval_seconds, MAX_AGE_SECONDS)):
            self._forget_old()
            look = self._looks[key] = _Look(self._clock(), asyncio.create_task(take()))
        look.waiting += 1
        try:
            # Shielded: one watcher's end is not the others'.
            return await asyncio.shield(look.task)
        finally:
            look.waiting -= 1
            if not look.waiting and not look.task.done():
                look.task.cancel()
            is_kept = look.task.done() and not look.task.cancelled() and look.task.exception() is None
            if not is_kept and not look.waiting and self._looks.get(key) is look:
                del self._looks[key]

    def _forget_old(self) -> None:
        now = self._clock()
        for key, look in list(self._looks.items()):
            if look.task.done() and now - look.begun >= MAX_AGE_SECONDS:
                del self._looks[key]
