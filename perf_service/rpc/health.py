"""grpc.health.v1 for each service, reflection, and channelz on the admin port."""

from __future__ import annotations

from typing import Any

from grpc_channelz.v1 import channelz
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from perf_service.rpc.methods import service_names


class Health:
    """The health of this server, as a load balancer or Kubernetes asks for it. The empty name stands for the server as a whole."""

    def __init__(self) -> None:
        self.servicer = health.aio.HealthServicer()

    async def set_serving(self, serving: bool) -> None:
        """Tell it for every service, watchers included."""
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ("", *service_names()):
            await self.servicer.set(name, status)

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
