"""The stand-in for a target that cannot be opened."""

from __future__ import annotations

from collections.abc import Mapping

from perf_service.models.config import EngineConfig
from perf_service.models.errors import PerfServiceError
from perf_service.targets.base import FleetState, Op, PreflightReport


class MissingTarget:
    """See `base.Target`. Every call raises the error for which the real one could not be opened; nothing is touched."""

    def __init__(self, error: PerfServiceError) -> None:
        self._error = error

    async def observe(self) -> FleetState:
        """Raises the error."""
        raise self._error

    async def preflight(self, desired: Mapping[str, EngineConfig]) -> PreflightReport:
        """Raises the error."""
        raise self._error

    async def apply(self, instance_id: str, desired: EngineConfig, *, expect_hash: str, op: Op) -> None:
        """Raises the error."""
        raise self._error

    async def restore(self, instance_id: str, recorded: EngineConfig, *, op: Op) -> None:
        """Raises the error."""
        raise self._error

    async def close(self) -> None:
        """There is nothing to close."""
