"""Watching over the engines of local fleets for as long as the service runs, also while no rollout does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

from perf_service.models.errors import PerfServiceError
from perf_service.models.fleet import Fleet, Instance, TargetKind
from perf_service.targets.registry import TargetPool

Fleets = Callable[[], Awaitable[Sequence[tuple[Fleet, Sequence[Instance]]]]]


class LocalSupervision:
    """Opens the target of every local fleet that `fleets` tells of. Targets of rollouts may act on the same engines meanwhile.

    `failed` is told of each fleet that cannot be watched over, with the reason, once until that changes.
    """

    def __init__(
        self,
        fleets: Fleets,
        *,
        state_dir: Path,
        clock: Callable[[], float],
        failed: Callable[[str, PerfServiceError], None],
        environment: Mapping[str, str] | None = None,
        interval_seconds: float = 5.0,
    ) -> None:
        self._fleets = fleets
        self._pool = TargetPool(state_dir=state_dir, clock=clock, environment=environment)
        self._failed = failed
        self._interval_seconds = interval_seconds
        self._told: dict[str, str] = {}
        self._watched: set[str] = set()

    async def run(self) -> None:
        """Until cancelled. Raises what `fleets` raises."""
        while True:
            await self.look()
            await asyncio.sleep(self._interval_seconds)

    async def look(self) -> None:
        """Open the targets of new and changed fleets, close those of fleets that are gone. Their engines are left as they are."""
        present = {fleet.fleet_id: (fleet, members) for fleet, members in await self._fleets() if fleet.target.kind is TargetKind.LOCAL}
        for gone in self._watched - present.keys():
            await self._pool.drop(gone)
        self._watched = set(present)
        self._told = {fleet_id: text for fleet_id, text in self._told.items() if fleet_id in present}
        for fleet_id, (fleet, members) in present.items():
            try:
                # The first look starts the target's own watching; later ones are cheap beside it.
                await (await self._pool.get(fleet, members)).observe()
                self._told.pop(fleet_id, None)
            except PerfServiceError as error:
                if self._told.get(fleet_id) != error.message:
                    self._told[fleet_id] = error.message
                    self._failed(fleet_id, error)

    async def close(self) -> None:
        """Let go of every fleet; engines keep running."""
        await self._pool.close()
