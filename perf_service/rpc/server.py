"""The gRPC server: interceptors in their order, ports, and going down without breaking anybody's call."""

from __future__ import annotations

import asyncio
import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from prometheus_client import CollectorRegistry

from perf_service.models.errors import ErrorReason, InvalidArgumentError
from perf_service.rpc.context import Services
from perf_service.rpc.health import Health, add_channelz, add_reflection
from perf_service.rpc.interceptors.access import Access, Audit
from perf_service.rpc.interceptors.boundary import ErrorBoundary
from perf_service.rpc.interceptors.idempotency import Idempotency
from perf_service.rpc.interceptors.limits import Limits
from perf_service.rpc.interceptors.observe import CallMetrics, Observe
from perf_service.rpc.interceptors.validation import Validation
from perf_service.rpc.services import add_services

_LAST_MESSAGES_SECONDS = 0.25
"""For what the last calls answered to leave the process."""


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """How the server is reached. Files are PEM."""

    host: str = "127.0.0.1"
    port: int = 50051  # 0: any free one
    token: str = ""
    tls_cert_file: Path | None = None
    tls_key_file: Path | None = None
    tls_client_ca_file: Path | None = None  # set: clients must show a certificate of this authority
    allow_insecure_bind: bool = False
    reflection: bool = True
    admin_port: int | None = None  # loopback only

    @property
    def authenticates(self) -> bool:
        """Whether a caller must show who he is."""
        return bool(self.token or self.tls_client_ca_file)


class RpcServer:
    """One server over the use cases. Belongs to one event loop."""

    def __init__(self, services: Services, options: ServerOptions, *, registry: CollectorRegistry) -> None:
        check_bind(options)
        self._services = services
        self._options = options
        self._health = Health()
        self._admin: Any = None
        limits = services.limits
        self._limits = Limits(services.lifecycle, max_calls=limits.max_concurrent_calls, max_streams=limits.max_concurrent_streams)
        # Outermost first. Idempotency comes after validation, so that nothing invalid is remembered, and inside the audit, so that a
        # repeat is written down as well.
        interceptors = (
            Observe(CallMetrics(registry)),
            ErrorBoundary(),
            Access(options.token),
            self._limits,
            Validation(max_message_bytes=limits.max_message_bytes),
            Audit(services.store, clock=services.clock),
            Idempotency(services.store, clock=services.clock),
        )
        self._server = grpc.aio.server(interceptors=interceptors, options=_channel_options(limits.max_message_bytes))
        add_services(services, self._server)
        self._health.add_to(self._server)
        if options.reflection:
            add_reflection(self._server)
        self.port = _bind(self._server, f"{_bracketed(options.host)}:{options.port}", _credentials(options))

    async def start(self) -> None:
        """Serve."""
        await self._server.start()
        if self._options.admin_port is not None:
            self._admin = grpc.aio.server()
            add_channelz(self._admin)
            self._health.add_to(self._admin)
            _bind(self._admin, f"127.0.0.1:{self._options.admin_port}", None)
            await self._admin.start()
        self._health.serving()

    async def stop(self, grace: float) -> None:
        """Go down: not serving, nothing new, last messages of the streams, then at most `grace` seconds for the calls that run.

        Who only holds a connection or a tool's stream (reflection) open is not waited for.
        """
        self._health.going_down()
        self._services.lifecycle.drain()
        # Streams end by themselves now; what is left at the end of the grace is cut off by grpc with an error instead of a last message.
        stopping = asyncio.ensure_future(self._server.stop(grace if grace > 0 else None))
        idle = asyncio.ensure_future(self._limits.idle())
        await asyncio.wait((stopping, idle), return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait((stopping,), timeout=_LAST_MESSAGES_SECONDS)
        idle.cancel()
        if not stopping.done():
            await self._server.stop(None)
        await stopping
        if self._admin is not None:
            await self._admin.stop(None)

    async def wait(self) -> None:
        """Until it has been stopped."""
        await self._server.wait_for_termination()


def check_bind(options: ServerOptions) -> None:
    """Refuses to serve the network without authentication. Raises SETTINGS_INVALID."""
    if is_loopback(options.host) or options.authenticates or options.allow_insecure_bind:
        return
    raise InvalidArgumentError(
        f"refusing to listen on {options.host!r} without authentication: anybody who reaches it could change your fleets. Set "
        "PERF_SERVICE_TOKEN or PERF_SERVICE_TLS_CLIENT_CA_FILE, or listen on 127.0.0.1, or set PERF_SERVICE_ALLOW_INSECURE_BIND=true "
        "where something in front authenticates",
        field="host",
        reason=ErrorReason.SETTINGS_INVALID,
        metadata={"setting": "PERF_SERVICE_HOST", "value": options.host},
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _channel_options(max_message_bytes: int) -> list[tuple[str, int]]:
    return [
        # Above what validation allows: its refusal says what to do, the transport's does not.
        ("grpc.max_receive_message_length", 2 * max_message_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.so_reuseport", 0),
        # A watch lies idle: let clients ping it, but not more often than every 20 s.
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 20_000),
        ("grpc.keepalive_permit_without_calls", 1),
    ]


def _bind(server: Any, address: str, credentials: grpc.ServerCredentials | None) -> int:
    try:
        bound = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
    except RuntimeError as error:
        bound = 0
        reason = str(error)
    else:
        reason = "the address is in use, or not of this machine"
    if not bound:
        raise InvalidArgumentError(
            f"cannot listen on {address}: {reason}",
            field="port",
            reason=ErrorReason.SETTINGS_INVALID,
            metadata={"setting": "PERF_SERVICE_PORT", "value": address},
        )
    return int(bound)


def _credentials(options: ServerOptions) -> grpc.ServerCredentials | None:
    if options.tls_cert_file is None or options.tls_key_file is None:
        return None
    authority = options.tls_client_ca_file.read_bytes() if options.tls_client_ca_file else None
    pair = (options.tls_key_file.read_bytes(), options.tls_cert_file.read_bytes())
    return grpc.ssl_server_credentials([pair], root_certificates=authority, require_client_auth=authority is not None)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host and not host.startswith("[") else host
