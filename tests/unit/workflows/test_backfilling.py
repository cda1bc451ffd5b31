"""The past of an instance, as far as the store keeps it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, cast

import pytest

from perf_service.models.errors import InvalidArgumentError
from perf_service.models.fleet import Instance, PrometheusSource
from perf_service.models.metrics import Engine, IssueCode, Snapshot
from perf_service.workflows.backfilling import Backfilling

NOW, KEPT = 100_000.0, 36_000.0


class World:
    """A store and a Prometheus in one."""

    def __init__(self) -> None:
        self.stored: list[Snapshot] = []
        self.asked: list[tuple[float, float]] = []
        self.told: list[float] = []
        self.past = Backfilling(
            cast("Any", self),
            self,
            retention_seconds=KEPT,
            imported=self.told.append,
            clock=lambda: NOW,
        )

    async def get_instance(self, instance_id: str) -> Instance:
        return Instance(instance_id, Engine.VLLM, "", prometheus=PrometheusSource("http://p", 'a="b"'))

    async def add_snapshots(self, group: Sequence[Snapshot]) -> int:
        fresh = [snapshot for snapshot in group if snapshot not in self.stored]
        self.stored += fresh
        return len(fresh)

    async def history(self, instance: Instance, start: float, end: float) -> AsyncIterator[Sequence[Snapshot]]:
        self.asked.append((start, end))
        for at in (start + 1, end - 1):
            yield [Snapshot(instance.instance_id, Engine.VLLM, at)]


async def test_what_is_kept_is_imported_whole() -> None:
    world = World()
    done = await world.past.backfill("i", NOW - KEPT, NOW)
    assert (done.imported, done.last.quality.issues) == (2, ())
    assert world.told == [NOW - KEPT + 1, NOW - 1]
    again = await world.past.backfill("i", NOW - KEPT, NOW)
    assert (again.imported, again.already_stored, len(world.told)) == (0, 2, 2)


async def test_what_is_older_is_left_out_and_told() -> None:
    world = World()
    done = await world.past.backfill("i", NOW - 2 * KEPT, NOW)
    assert world.asked == [(NOW - KEPT, NOW)]
    (issue,) = done.last.quality.issues
    assert issue.code is IssueCode.TRUNCATED
    assert "10 h (setting retention_hours)" in issue.message


async def test_a_range_that_is_older_as_a_whole_is_refused() -> None:
    world = World()
    with pytest.raises(InvalidArgumentError, match="older than what is kept, 10 h"):
        await world.past.backfill("i", 0.0, NOW - KEPT)
    assert (world.asked, world.stored) == ([], [])
