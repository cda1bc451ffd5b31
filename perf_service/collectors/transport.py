"""The network side of fetching: which addresses may be reached, and how many bytes may come back.

An httpx transport of our own, so that `httpx.AsyncClient.get` stays the one call through which pages are fetched while the
body is cut off at the limit as it arrives, before and after decompression, and the address is checked after name
resolution (a name that resolves to a metadata service is refused; checking the name alone would not help).
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from typing import Final

import httpcore
import httpx

from perf_service.collectors.addresses import Address, forms_of
from perf_service.collectors.exposition import body_too_large
from perf_service.collectors.gunzip import DamagedGzipError, Gunzip
from perf_service.models.errors import CollectError, ErrorReason

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network

DEFAULT_DENIED_NETWORKS: Final[tuple[_Network, ...]] = (
    ipaddress.ip_network("169.254.0.0/16"),
    ipaddress.ip_network("fe80::/10"),
    ipaddress.ip_network("fd00:ec2::254/128"),
)
"""Link-local addresses: the metadata services of the clouds (the last one is Amazon's over IPv6)."""

KEEPALIVE_SECONDS: Final = 60.0
CONNECT_TIMEOUT_SECONDS: Final = 3.0
_HTTPCORE_TO_HTTPX: Final[tuple[tuple[type[Exception], type[httpx.TransportError]], ...]] = (
    (httpcore.ConnectTimeout, httpx.ConnectTimeout),
    (httpcore.ReadTimeout, httpx.ReadTimeout),
    (httpcore.PoolTimeout, httpx.PoolTimeout),
    (httpcore.TimeoutException, httpx.WriteTimeout),
    (httpcore.ConnectError, httpx.ConnectError),
    (httpcore.NetworkError, httpx.ReadError),
    (httpcore.RemoteProtocolError, httpx.RemoteProtocolError),
    (httpcore.ProtocolError, httpx.LocalProtocolError),
    (httpcore.UnsupportedProtocol, httpx.UnsupportedProtocol),
)


@dataclass(frozen=True, slots=True)
class NetworkPolicy:
    """Which addresses may be fetched from. A denied network wins; a non-empty `allowed` admits nothing else.

    Denied is also what only leads to a denied address (`addresses.forms_of`): 64:ff9b::a9fe:a9fe is 169.254.169.254 behind a NAT64.
    Allowed is only what is itself allowed: who fetches through a NAT64 adds its prefix.
    """

    denied: tuple[_Network, ...] = DEFAULT_DENIED_NETWORKS
    allowed: tuple[_Network, ...] = ()

    @classmethod
    def of(cls, denied: Iterable[str] | None = None, allowed: Iterable[str] = ()) -> NetworkPolicy:
        """A policy from networks in CIDR notation. `denied` None keeps the default.

        Raises:
            ValueError: when a text is not a network.
        """
        networks = DEFAULT_DENIED_NETWORKS if denied is None else tuple(map(ipaddress.ip_network, denied))
        return cls(networks, tuple(map(ipaddress.ip_network, allowed)))

    def check(self, host: str, address: str) -> None:
        """Raise CollectError (ENDPOINT_FORBIDDEN) unless the address that `host` resolved to may be reached."""
        forms = forms_of(address)
        denied = next((ip for ip in forms if _is_in(ip, self.denied)), None)
        if denied is None and (not self.allowed or _is_in(forms[0], self.allowed)):
            return
        at = denied or forms[0]
        raise CollectError(
            ErrorReason.ENDPOINT_FORBIDDEN,
            f"{host} is at {at}, which is not among the networks that may be fetched from. "
            "Change the endpoint, or the service's allowed and denied networks.",
            {"host": host, "address": str(at)},
        )


def _is_in(address: Address, networks: Iterable[_Network]) -> bool:
    return any(address in network for network in networks)


class GuardedBackend(httpcore.AsyncNetworkBackend):
    """Connects to what a name resolves to, after checking every address of it."""

    def __init__(self, policy: NetworkPolicy) -> None:
        self._policy = policy
        self._inner = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Resolve, check, connect to the first address that answers."""
        addresses = await self._resolve(host, port, timeout)
        for address in addresses:
            self._policy.check(host, address)
        failure: httpcore.ConnectError | None = None
        for address in addresses:
            try:
                return await self._inner.connect_tcp(address, port, timeout, local_address, socket_options)
            except httpcore.ConnectError as error:
                failure = error
        raise failure or httpcore.ConnectError(f"{host} has no address")

    async def sleep(self, seconds: float) -> None:
        """Wait, as httpcore does between retries of its own."""
        await asyncio.sleep(seconds)

    async def _resolve(self, host: str, port: int, timeout: float | None) -> list[str]:
        try:
            return [str(ipaddress.ip_address(host))]
        except ValueError:
            pass
        try:
            async with asyncio.timeout(timeout):
                found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except TimeoutError as error:
            raise httpcore.ConnectTimeout(f"{host} was not resolved in {timeout} s") from error
        except (OSError, UnicodeError) as error:  # UnicodeError: a label that no name can have ("a..b")
            raise httpcore.ConnectError(f"{host} cannot be resolved: {getattr(error, 'strerror', None) or error}") from error
        return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def guarded_client(accept: str, timeout: float, *, max_body_bytes: int, policy: NetworkPolicy | None) -> httpx.AsyncClient:
    """A client over `LimitedTransport` that asks for `accept`, follows no redirect and heeds no proxy of the environment.

    `timeout` is in seconds, for each of its steps.
    """
    return httpx.AsyncClient(
        transport=LimitedTransport(policy or NetworkPolicy(), max_body_bytes),
        timeout=httpx.Timeout(timeout, connect=min(timeout, CONNECT_TIMEOUT_SECONDS)),
        follow_redirects=False,
        trust_env=False,
        headers={"Accept": accept, "Accept-Encoding": "gzip", "User-Agent": "perf-service"},
    )


class LimitedTransport(httpx.AsyncBaseTransport):
    """HTTP/1.1 with keep-alive, no proxy, no redirects, checked addresses and a limit on the size of bodies."""

    def __init__(self, policy: NetworkPolicy, max_body_bytes: int, max_connections: int = 1000) -> None:
        self._max_body_bytes = max_body_bytes
        self._pool = httpcore.AsyncConnectionPool(
            max_connections=max_connections,
            max_keepalive_connections=max_connections,
            keepalive_expiry=KEEPALIVE_SECONDS,
            network_backend=GuardedBackend(policy),
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request; the body is limited while it is read."""
        try:
            response = await self._pool.handle_async_request(
                httpcore.Request(
                    method=request.method,
                    url=httpcore.URL(
                        scheme=request.url.raw_scheme,
                        host=request.url.raw_host,
                        port=request.url.port,
                        target=request.url.raw_path,
                    ),
                    headers=request.headers.raw,
                    content=request.stream,
                    extensions=request.extensions,
                )
            )
        except (httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError, httpcore.UnsupportedProtocol) as error:
            raise _as_httpx(error) from error
        headers = httpx.Headers(response.headers)
        is_gzip = headers.get("content-encoding", "").strip().lower() in ("gzip", "x-gzip")
        if is_gzip:
            # Decompressed here, within the limit; httpx would inflate whatever it is given.
            del headers["content-encoding"]
        return httpx.Response(
            response.status,
            headers=headers,
            stream=_LimitedStream(response, self._max_body_bytes, is_gzip),
            extensions=response.extensions,
        )

    async def aclose(self) -> None:
        """Close every connection."""
        await self._pool.aclose()


class _LimitedStream(httpx.AsyncByteStream):
    def __init__(self, response: httpcore.Response, limit: int, is_gzip: bool) -> None:
        self._response = response
        self._limit = limit
        self._gunzip = Gunzip(limit) if is_gzip else None

    async def __aiter__(self) -> AsyncIterator[bytes]:
        raw = 0
        try:
            async for chunk in self._response.aiter_stream():
                raw += len(chunk)
                if raw > self._limit:
                    raise body_too_large(self._limit)
                yield chunk if self._gunzip is None else self._gunzip.feed(chunk)
            if self._gunzip is not None:
                self._gunzip.finish()
        except DamagedGzipError as error:
            raise httpx.DecodingError(f"the gzip body is damaged: {error}") from error
        except (httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError) as error:
            raise _as_httpx(error) from error

    async def aclose(self) -> None:
        await self._response.aclose()


def _as_httpx(error: Exception) -> httpx.TransportError:
    for ours, theirs in _HTTPCORE_TO_HTTPX:
        if isinstance(error, ours):
            return theirs(str(error) or ours.__name__)
    return httpx.NetworkError(str(error))
