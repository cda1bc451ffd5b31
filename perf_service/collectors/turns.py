"""Bursts of work in small portions, so that an event loop with a thousand answers to read still serves its callers in between."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

DEFAULT_AT_ONCE: Final = 8
"""Pages read in one turn of the loop: about 5 ms, of 50 kB each."""


class Turns:
    """Lets at most `at_once` callers go on in each turn of the event loop, in the order they came.

    For work on the loop's own thread that takes some hundred microseconds: after a moment without the processor, answers of hundreds of
    servers wait at once, and reading them all in one go would hold up everything else for as long.
    """

    def __init__(self, at_once: int = DEFAULT_AT_ONCE) -> None:
        self._at_once = at_once
        self._left = at_once
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._is_renewing = False

    async def wait(self) -> None:
        """Returns when it is the caller's turn: at once, unless there are many."""
        if not self._is_renewing:
            self._is_renewing = True
            asyncio.get_running_loop().call_soon(self._renew)
        if self._left > 0 and not self._waiting:
            self._left -= 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        await turn

    def _renew(self) -> None:
        self._left = self._at_once
        while self._waiting and self._left > 0:
            turn = self._waiting.popleft()
            if not turn.done():  # cancelled meanwhile
                turn.set_result(None)
                self._left -= 1
        self._is_renewing = bool(self._waiting) or self._left < self._at_once
        if self._is_renewing:
            asyncio.get_running_loop().call_soon(self._renew)
