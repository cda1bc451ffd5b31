"""When to scrape whom: pure timing, no clock and no tasks. Times are seconds of any monotonic clock."""

from __future__ import annotations

import heapq
import math
import random
from dataclasses import dataclass
from typing import Final

MAX_BACKOFF_SECONDS: Final = 60.0
"""An engine that is back after a restart is seen again within this time; see `Schedule.hurry` for sooner."""
_BACKOFF_JITTER_RATIO: Final = 0.1


@dataclass(slots=True)
class _Target:
    interval: float
    due: float
    generation: int
    registration: int
    failures: int = 0
    is_running: bool = False
    is_hurried: bool = False  # while it was running


class Schedule:
    """Due times of targets, with jitter and back-off.

    The first scrape of a target lies at a random point of its first interval, so that targets added together are spread.
    The following ones are an interval apart from when each was due, so that slow scrapes do not drift; missed beats are
    skipped. After `n` failures in a row the next try is `interval * 2^n` later, at most a minute or one interval, whichever is
    longer. A target is never handed out twice at a time, and none waits for another.
    """

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._targets: dict[str, _Target] = {}
        self._queue: list[tuple[float, int, str]] = []
        self._generation = 0

    def __len__(self) -> int:
        return len(self._targets)

    def __contains__(self, key: str) -> bool:
        return key in self._targets

    def add(self, key: str, interval_seconds: float, now: float) -> None:
        """Add a target, or begin anew with another interval. Raises ValueError unless the interval is positive."""
        if not interval_seconds > 0 or math.isinf(interval_seconds):
            raise ValueError(f"interval_seconds must be positive and finite, not {interval_seconds}")
        self._generation += 1
        self._targets[key] = _Target(interval_seconds, now + self._rng.random() * interval_seconds, self._generation, self._generation)
        self._push(key)

    def remove(self, key: str) -> None:
        """Forget a target; unknown ones are fine."""
        self._targets.pop(key, None)

    def hurry(self, key: str, now: float) -> None:
        """Make a target due now and forget its failures, as after a restart that was asked for.

        One that is being scraped is due again as soon as that is done: the scrape may be of the time before, or hang on what is gone.
        """
        target = self._targets.get(key)
        if target is not None and target.is_running:
            target.is_hurried = True
        elif target is not None:
            self._generation += 1
            target.due, target.failures, target.generation = now, 0, self._generation
            self._push(key)

    def due(self, now: float, limit: int) -> list[str]:
        """Up to `limit` targets that are due, the longest waiting first. Each must be answered with `done`."""
        keys: list[str] = []
        while self._queue and len(keys) < limit and self._queue[0][0] <= now:
            _, generation, key = heapq.heappop(self._queue)
            target = self._targets.get(key)
            if target is not None and target.generation == generation and not target.is_running:
                target.is_running = True
                keys.append(key)
        return keys

    def registration(self, key: str) -> int:
        """Which `add` a target is of, to tell its scrapes from those of an earlier one. Raises KeyError for an unknown target."""
        return self._targets[key].registration

    def done(self, key: str, now: float, succeeded: bool, registration: int | None = None) -> None:
        """Report a scrape and plan the target's next one. A target that was removed or begun anew meanwhile is passed over.

        Without the `registration` that the scrape was begun for, an old one's end is taken for that of a new one under way.
        """
        target = self._targets.get(key)
        if target is None or not target.is_running or registration not in (None, target.registration):
            return
        target.is_running = False
        if target.is_hurried:
            target.is_hurried, target.failures, target.due = False, 0, now
        elif succeeded:
            target.failures = 0
            beats = max(1, math.ceil((now - target.due) / target.interval))
            target.due += beats * target.interval
        else:
            target.failures += 1
            wait = min(max(MAX_BACKOFF_SECONDS, target.interval), target.interval * 2.0 ** min(target.failures, 30))
            # Jitter, so that targets that failed together do not come back together.
            target.due = now + wait * (1.0 + _BACKOFF_JITTER_RATIO * self._rng.random())
        self._push(key)

    def next_due(self) -> float | None:
        """When the next target is due; None when none is planned."""
        while self._queue:
            due, generation, key = self._queue[0]
            target = self._targets.get(key)
            if target is not None and target.generation == generation and not target.is_running:
                return due
            heapq.heappop(self._queue)
        return None

    def _push(self, key: str) -> None:
        target = self._targets[key]
        heapq.heappush(self._queue, (target.due, target.generation, key))
