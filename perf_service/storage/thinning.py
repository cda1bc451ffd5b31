"""Which snapshots of a long history may go. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple


class Mark(NamedTuple):
    """What thinning looks at of a snapshot. `taken_at` and `started_at` are unix seconds; see `snapshot_codec.progress_of`."""

    snapshot_id: str
    instance_id: str
    taken_at: float
    started_at: float | None
    progress: float


def surplus(marks: Iterable[Mark], keep_every_seconds: float, *, before: float = math.inf) -> Iterator[str]:
    """Ids of the snapshots that add nothing but resolution. `marks` come by instance, then by time.

    Kept are the first of each instance in each interval of this length (counted from the epoch), and the last one before and the first
    one after every restart: counters are cumulative, so differences over what is kept are then exactly those over all. The newest of each
    instance is kept too, because what follows it is not known yet, and everything from `before` on.
    """
    last: Mark | None = None
    is_spare = False  # whether `last` may go, unless a restart follows it
    for mark in marks:
        if last is None or last.instance_id != mark.instance_id or _restarted(last, mark):
            is_spare = False
        else:
            if is_spare and last.taken_at < before:
                yield last.snapshot_id
            is_spare = mark.taken_at // keep_every_seconds == last.taken_at // keep_every_seconds
        last = mark


def _restarted(before: Mark, after: Mark) -> bool:
    return after.progress < before.progress or (
        after.started_at is not None and before.started_at is not None and after.started_at != before.started_at
    )
