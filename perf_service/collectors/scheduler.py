"""The background scraper: every registered instance at its interval, bounded, with nobody waiting for a hung one."""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Protocol

from perf_service.collectors.schedule import Schedule
from perf_service.collectors.source import MetricsSource
from perf_service.models.errors import CollectError, ErrorReason
from perf_service.models.fleet import Instance
from perf_service.models.metrics import Snapshot

DEFAULT_CONCURRENCY: Final = 1024
"""A hung target holds its place for the fetch timeout; this many can hang before any other waits."""
COALESCE_SECONDS: Final = 0.1
"""Scrapes due within this time begin together: at hundreds a second, waking up for each alone costs as much as reading its page."""
_STARTED_AT_ONCE: Final = 25
"""In one turn of the event loop: some milliseconds of work."""

OnSnapshot = Callable[[Instance, Snapshot], Awaitable[None]]
OnFailure = Callable[[Instance, CollectError], Awaitable[None]]


class Clock(Protocol):
    """Time as the scheduler sees it. Tests give a virtual one."""

    def monotonic(self) -> float:
        """Seconds that never go back."""
        ...

    def time(self) -> float:
        """Unix seconds, stamped on snapshots."""
        ...


class WallClock:
    """The `Clock` of this host."""

    def monotonic(self) -> float:
        """Seconds that never go back."""
        return time.monotonic()

    def time(self) -> float:
        """Unix seconds."""
        return time.time()


@dataclass(frozen=True, slots=True)
class ScrapeCounts:
    """What the scheduler did since its start."""

    succeeded: int = 0
    failed: int = 0
    running: int = 0


class ScrapeScheduler:
    """Scrapes instances in the background and hands each snapshot to a callback.

    `add`, `remove` and `hurry` may be called at any time from the loop's thread. A callback that raises counts as a failed
    scrape (INTERNAL) and stops nothing. `run` is the task; cancel it to stop, it waits for no running scrape.
    """

    def __init__(
        self,
        source: MetricsSource,
        on_snapshot: OnSnapshot,
        on_failure: OnFailure | None = None,
        *,
        clock: Clock,
        rng: random.Random,
        concurrency: int = DEFAULT_CONCURRENCY,
    ) -> None:
        self._source = source
        self._on_snapshot = on_snapshot
        self._on_failure = on_failure
        self._clock = clock
        self._concurrency = concurrency
        self._schedule = Schedule(rng)
        self._instances: dict[str, Instance] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._wake_at = math.inf
        self._succeeded = self._failed = 0

    @property
    def counts(self) -> ScrapeCounts:
        """Scrapes so far and now."""
        return ScrapeCounts(self._succeeded, self._failed, len(self._tasks))

    def add(self, instance: Instance) -> None:
        """Scrape this instance from now on; replaces an earlier registration of the same id.

        Raises:
            ValueError: when its scrape interval is not positive.
        """
        self._schedule.add(instance.instance_id, instance.scrape_interval_seconds, self._clock.monotonic())
        self._instances[instance.instance_id] = instance
        self._changed.set()

    def renew(self, instance: Instance) -> None:
        """What is registered of it has changed (its flags after a rollout): later scrapes carry that, their rhythm stays.

        Unknown ids are passed over.
        """
        if instance.instance_id in self._instances:
            self._instances[instance.instance_id] = instance

    def remove(self, instance_id: str) -> None:
        """Stop scraping it; unknown ids are fine."""
        self._schedule.remove(instance_id)
        self._instances.pop(instance_id, None)

    def hurry(self, instance_id: str) -> None:
        """Scrape it at once, as after a restart that was asked for."""
        self._schedule.hurry(instance_id, self._clock.monotonic())
        self._changed.set()

    async def run(self) -> None:
        """Scrape until cancelled."""
        try:
            while True:
                if self.start_due() < _STARTED_AT_ONCE:
                    await self._wait()
                else:
                    await asyncio.sleep(0)
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def start_due(self) -> int:
        """Start scrapes of instances that are due, as far as places are free; returns how many. `run` calls it again and again."""
        self._changed.clear()
        free = min(self._concurrency - len(self._tasks), _STARTED_AT_ONCE)
        keys = self._schedule.due(self._clock.monotonic(), free) if free > 0 else []
        for key in keys:
            task = asyncio.create_task(self._scrape(self._instances[key], self._schedule.registration(key)), name=f"scrape {key}")
            self._tasks.add(task)
            task.add_done_callback(self._finished)
        return len(keys)

    async def _wait(self) -> None:
        """Until something is due, or has changed."""
        due = self._schedule.next_due() if len(self._tasks) < self._concurrency else None
        if due is None:
            self._wake_at = math.inf
            await self._changed.wait()
            return
        wait = max(COALESCE_SECONDS, due - self._clock.monotonic())
        self._wake_at = self._clock.monotonic() + wait
        alarm = asyncio.get_running_loop().call_later(wait, self._changed.set)
        try:
            await self._changed.wait()
        finally:
            alarm.cancel()

    def _finished(self, task: asyncio.Task[None]) -> None:
        was_full = len(self._tasks) >= self._concurrency
        self._tasks.discard(task)
        due = self._schedule.next_due()
        if was_full or (due is not None and due < self._wake_at):
            self._changed.set()

    async def _scrape(self, instance: Instance, registration: int) -> None:
        is_ok = False
        try:
            snapshot = await self._source.snapshot(instance, self._clock.time())
            if self._instances.get(instance.instance_id) is instance:
                await self._on_snapshot(instance, snapshot)
            is_ok = True
        except CollectError as error:
            await self._fail(instance, registration, error)
        except Exception as error:
            await self._fail(
                instance, registration, CollectError(ErrorReason.INTERNAL, f"collecting {instance.instance_id} failed: {error!r}")
            )
        finally:
            self._succeeded += is_ok
            self._failed += not is_ok
            self._schedule.done(instance.instance_id, self._clock.monotonic(), is_ok, registration)

    async def _fail(self, instance: Instance, registration: int, error: CollectError) -> None:
        # One that was renewed meanwhile is down none the less; one that was removed or added anew is not what this was a scrape of.
        key = instance.instance_id
        if self._on_failure is None or key not in self._schedule or self._schedule.registration(key) != registration:
            return
        with contextlib.suppress(Exception):
            await self._on_failure(self._instances[key], error)
