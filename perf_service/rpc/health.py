"""grpc.health.v1 for each service, reflection, and channelz on the admin port."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

import grpc
from grpc_channelz.v1 import channelz
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from perf_service.rpc.methods import service_names

_Response = health_pb2.HealthCheckResponse


class HealthServicer(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """`Check` and `Watch` as the protocol says. Watches end with the server: the library's own would hold its stop up for all its grace."""

    def __init__(self) -> None:
        self._statuses: dict[str, int] = {"": _Response.NOT_SERVING}
        self._changed = asyncio.Event()
        self._ended = False

    def set(self, statuses: Mapping[str, int], *, last: bool = False) -> None:
        """What is told from now on; with `last` every watch ends after it."""
        if self._ended:
            return
        self._statuses.update(statuses)
        self._ended = last
        self._changed.set()
        self._changed = asyncio.Event()

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Any) -> health_pb2.HealthCheckResponse:
        """The status of one service now."""
        status = self._statuses.get(request.service)
        if status is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"there is no service {request.service!r} here")
        return _Response(status=status)

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Any) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """The status of one service, and every change of it."""
        told: int | None = None
        while True:
            changed, status = self._changed, self._statuses.get(request.service, _Response.SERVICE_UNKNOWN)
            if status != told:
                yield _Response(status=status)
                told = status
            if self._ended:
                return
            await changed.wait()


class Health:
    """The health of this server, as a load balancer or Kubernetes asks for it. The empty name stands for the server as a whole."""

    def __init__(self) -> None:
        self.servicer = HealthServicer()

    def serving(self) -> None:
        """Tell it for every service, watchers included."""
        self.servicer.set(dict.fromkeys(("", *service_names()), _Response.SERVING))

    def going_down(self) -> None:
        """Not serving, told to every watcher, whose stream then ends."""
        self.servicer.set(dict.fromkeys(("", *service_names()), _Response.NOT_SERVING), last=True)

    def add_to(self, server: Any) -> None:
        """Serve it."""
        health_pb2_grpc.add_HealthServicer_to_server(self.servicer, server)


def add_reflection(server: Any) -> None:
    """Let tools list the services and their messages."""
    names = (*service_names(), health.SERVICE_NAME, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server)


def add_channelz(server: Any) -> None:
    """Let tools look into the process's channels and sockets. On the admin port only: it tells who is connected."""
    channelz.add_channelz_servicer(server)
