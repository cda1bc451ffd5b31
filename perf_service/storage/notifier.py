"""Wakes those who wait for a workflow's next event. A wake-up is only a doorbell: the event table is the truth."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Final

# Other processes' events are seen by one shared query at this interval, whatever the number of watchers.
POLL_SECONDS: Final = 0.25
POLL_BESIDE_LISTENER_SECONDS: Final = 1.0


class EventNotifier:
    """Waiters by workflow. Events of this process wake at once; those of others by polling, where there can be others."""

    def __init__(self, last_sequences: Callable[[Collection[str]], Awaitable[Mapping[str, int]]], *, poll_seconds: float | None) -> None:
        """`poll_seconds` None: all events come from this process."""
        self._last_sequences = last_sequences
        self._poll_seconds = poll_seconds
        self._lock = threading.Lock()
        self._waiters: dict[str, set[tuple[int, asyncio.AbstractEventLoop, asyncio.Future[bool]]]] = {}
        self._poller: asyncio.Task[None] | None = None

    def publish(self, workflow_id: str, last_sequence: int) -> None:
        """Tell that events up to `last_sequence` are committed. From any thread."""
        with self._lock:
            waiting = [w for w in self._waiters.get(workflow_id, ()) if w[0] < last_sequence]
        for _, loop, future in waiting:
            with contextlib.suppress(RuntimeError):  # that loop has been closed, and its waiters with it
                loop.call_soon_threadsafe(_wake, future)

    async def wait(self, workflow_id: str, after_sequence: int, timeout_seconds: float) -> bool:
        """True once there are events after `after_sequence`, False when the time is over."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[bool] = loop.create_future()
        waiter = (after_sequence, loop, future)
        with self._lock:
            self._waiters.setdefault(workflow_id, set()).add(waiter)
        try:
            # Asked after the registration: an event committed in between rings the bell or is seen here.
            if (await self._last_sequences([workflow_id])).get(workflow_id, 0) > after_sequence:
                return True
            self._start_poller(loop)
            async with asyncio.timeout(timeout_seconds):
                return await future
        except TimeoutError:
            return False
        finally:
            with self._lock:
                self._waiters[workflow_id].discard(waiter)
                if not self._waiters[workflow_id]:
                    del self._waiters[workflow_id]

    def _start_poller(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._poll_seconds is not None and (self._poller is None or self._poller.done() or self._poller.get_loop() is not loop):
            self._poller = loop.create_task(self._poll_others(self._poll_seconds), name="store-event-poll")

    async def _poll_others(self, interval: float) -> None:
        """Runs while anybody waits. A store that is away for a moment is asked again: waiters have their own time-outs."""
        while True:
            await asyncio.sleep(interval)
            with self._lock:
                names = tuple(self._waiters)
            if not names:
                return
            with contextlib.suppress(Exception):
                for workflow_id, last in (await self._last_sequences(names)).items():
                    self.publish(workflow_id, last)

    async def close(self) -> None:
        """Stop polling; waiters run into their time-outs."""
        poller, self._poller = self._poller, None
        if poller is not None and not poller.get_loop().is_closed():
            poller.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await poller


def _wake(future: asyncio.Future[bool]) -> None:
    if not future.done():
        future.set_result(True)
