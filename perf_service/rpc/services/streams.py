"""What the streams share: who is meant, heartbeats, the last message."""

from __future__ import annotations

import time
from typing import Any

from perf_service.models.fleet import Instance
from perf_service.rpc.context import Services
from perf_service.rpc.convert.mirror import timestamp
from perf_service.v1 import stream_pb2

RETRY_SECONDS = 2.0


class Metronome:
    """Says when a stream has been silent for too long. Monotonic: a clock that is set back must not silence it."""

    def __init__(self, interval_seconds: float) -> None:
        self._interval = interval_seconds
        self.reset()

    def reset(self) -> None:
        """Something was sent."""
        self._last = time.monotonic()

    @property
    def remaining_seconds(self) -> float:
        """Until it is time."""
        return max(0.0, self._last + self._interval - time.monotonic())

    def due(self) -> bool:
        """Whether it is time for a heartbeat, which counts as sent."""
        if time.monotonic() - self._last < self._interval:
            return False
        self.reset()
        return True


async def members(services: Services, request: Any) -> tuple[Instance, ...]:
    """The instances that a request with a `subject` is about. Raises INSTANCE_NOT_FOUND, FLEET_NOT_FOUND, NOT_ENOUGH_DATA."""
    if request.fleet_id:
        return await services.pipeline.pages.members(request.fleet_id)
    return (await services.store.get_instance(request.instance_id),)


async def instance_ids(services: Services, request: Any) -> tuple[str, ...]:
    """Their ids."""
    return tuple(instance.instance_id for instance in await members(services, request))


def heartbeat(services: Services) -> stream_pb2.Heartbeat:
    """The server lives."""
    return stream_pb2.Heartbeat(at=timestamp(services.clock()))


def draining() -> stream_pb2.Draining:
    """The server is going down."""
    return stream_pb2.Draining(message="the server is going down; reconnect with the last cursor", retry_after_seconds=RETRY_SECONDS)
