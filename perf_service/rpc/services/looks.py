"""One look for all who watch the same: the cost of watching grows with what is watched, not with the watchers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Hashable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Generic, TypeVar

T = TypeVar("T")

MAX_AGE_SECONDS: Final = 15.0
"""Who looks seldom wants the present all the same; an instance is scraped each 15 s unless told otherwise."""

_SHARE: Final = 3.0
"""A look that takes long is fresh for so many times as long, so that looks at one thing run a third of the time at the most."""


@dataclass(slots=True)
class _Look(Generic[T]):
    begun: float
    task: asyncio.Task[T]
    took: float = 0.0
    waiting: int = 0


class SharedLooks(Generic[T]):
    """Results by key, each made once for all who ask while it is under way or fresh. Belongs to one event loop.

    A caller that gets the same object again has learned nothing new. An error is everybody's who waited for it, and is not kept.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._looks: dict[Hashable, _Look[T]] = {}

    async def get(self, key: Hashable, interval_seconds: float, take: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """A look that was begun less than `interval_seconds` ago (at most `MAX_AGE_SECONDS`) or is under way, else a new one by `take`.

        One that took long is given for three times as long as it took.
        """
        look = self._looks.get(key)
        if look is None or not self._is_fresh(look, min(interval_seconds, MAX_AGE_SECONDS)):
            self._forget_old()
            look = self._looks[key] = _Look(self._clock(), asyncio.create_task(take()))
            look.task.add_done_callback(partial(self._ended, look))
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

    def _ended(self, look: _Look[T], _: asyncio.Task[T]) -> None:
        look.took = self._clock() - look.begun

    def _is_fresh(self, look: _Look[T], seconds: float) -> bool:
        return not look.task.done() or self._clock() - look.begun < max(seconds, _SHARE * look.took)

    def _forget_old(self) -> None:
        for key, look in list(self._looks.items()):
            if not self._is_fresh(look, MAX_AGE_SECONDS):
                del self._looks[key]
