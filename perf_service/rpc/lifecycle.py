"""Going down in order: streams end by themselves with a last message before the server stops."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


class Lifecycle:
    """Whether the server is going down. Belongs to one event loop."""

    def __init__(self) -> None:
        self._draining = asyncio.Event()

    @property
    def draining(self) -> bool:
        """Whether nothing new is taken on."""
        return self._draining.is_set()

    def drain(self) -> None:
        """From now on nothing new is taken on, and streams end."""
        self._draining.set()

    async def unless_draining(self, work: Awaitable[T]) -> T | None:
        """The result of the work, or None as soon as the server is going down; the work is then cancelled."""
        task = asyncio.ensure_future(work)
        bell = asyncio.ensure_future(self._draining.wait())
        try:
            await asyncio.wait((task, bell), return_when=asyncio.FIRST_COMPLETED)
            return task.result() if task.done() else None
        finally:
            bell.cancel()
            if not task.done():
                task.cancel()
            await asyncio.gather(task, bell, return_exceptions=True)

    async def pause(self, seconds: float) -> None:
        """Wait, at most until the server is going down."""
        await self.unless_draining(asyncio.sleep(seconds))
