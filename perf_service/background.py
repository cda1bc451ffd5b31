"""What runs for as long as the service does: tasks that a defect does not end, and the housekeeping among them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import structlog

from perf_service.models.errors import PerfServiceError
from perf_service.storage.history import History
from perf_service.storage.ports import RequestLog

_log = structlog.get_logger("perf_service.background")
_RESTART_SECONDS = 1.0
_HOUSEKEEPING_SECONDS = 60.0
"""Little at a time: what is deleted has the store to itself meanwhile."""
_REQUESTS_KEPT_SECONDS = 86_400.0
"""A client that retries after a day has lost its connection to more than us."""


class Background:
    """The tasks of one event loop."""

    def __init__(self) -> None:
        self._tasks: list[asyncio.Task[None]] = []

    def spawn(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        """Run `work` until it returns or `stop`. A defect is logged and the work begun anew: the others must go on."""

        async def forever() -> None:
            while True:
                try:
                    await work()
                    return
                except Exception as error:
                    _log.error("background work failed; begun anew", work=name, exc_info=error)
                    await asyncio.sleep(_RESTART_SECONDS)

        self._tasks.append(asyncio.create_task(forever(), name=name))

    async def stop(self) -> None:
        """Cancel all, and wait for their ends."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class Housekeeping:
    """Deletes what has been kept for long enough."""

    def __init__(self, history: History, requests: RequestLog) -> None:
        self._history = history
        self._requests = requests

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self.tidy_up(time.time())
            await asyncio.sleep(_HOUSEKEEPING_SECONDS)

    async def tidy_up(self, now: float) -> None:
        """Each step by itself: one that always fails must not keep the others from being done. `now` in unix seconds."""
        for name, step in (("history", self._tidy_history), ("requests", self._prune_requests)):
            try:
                await step(now)
            except PerfServiceError as error:
                _log.warning("housekeeping failed", step=name, reason=error.reason.value, error=error.message)
            except Exception as error:
                _log.error("housekeeping failed", step=name, exc_info=error)

    async def _tidy_history(self, now: float) -> None:
        tidied = await self._history.tidy(now)
        if tidied.thinned or tidied.pruned:
            _log.debug("history tidied", thinned=tidied.thinned, pruned=tidied.pruned)

    async def _prune_requests(self, now: float) -> None:
        await self._requests.prune_requests(before=now - _REQUESTS_KEPT_SECONDS)
