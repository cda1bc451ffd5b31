"""Fetches pages at a fraction of a full HTTP client's price, for the background scraper: one request, one answer, kept connections.

Does what `fetch.Fetcher` does, with the same limits and the same errors, and nothing else: no proxies, cookies, logins, redirects or
HTTP/2. http and https.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final

import httpx

from perf_service.collectors.connection import Connection, ConnectionLostError
from perf_service.collectors.exposition import DEFAULT_MAX_BODY_BYTES
from perf_service.collectors.fetch import (
    ACCEPT,
    DEFAULT_TIMEOUT_SECONDS,
    FetchedPage,
    check_body_of,
    checked_page,
    invalid,
    json_object,
    metrics_url,
    not_readable,
    timed_out,
    unreachable,
)
from perf_service.collectors.http1 import BadResponseError, ResponseReader, UnreadableBodyError, decoded
from perf_service.collectors.transport import CONNECT_TIMEOUT_SECONDS, KEEPALIVE_SECONDS, NetworkPolicy

_MAX_ROUTES: Final = 20_000
_RESOLVER_THREADS: Final = 16
"""Of our own: names that hang must not take the loop's default threads, on which analyses run."""

_LARGE_PACKED_BYTES: Final = 16_000
"""A page of some 256 kB, packed. What packs better than that is no page and has at most a thousandfold: 16 MB, some 20 ms."""

_Key = tuple[str, int, bool]


@dataclass(frozen=True, slots=True)
class _Route:
    """Where a URL leads and what is said there."""

    url: str
    host: str
    port: int
    is_tls: bool
    request: bytes

    @property
    def key(self) -> _Key:
        return (self.host, self.port, self.is_tls)


class _ConnectTimeoutError(Exception):
    def __init__(self, seconds: float) -> None:
        super().__init__(f"no connection within {seconds:g} s")
        self.seconds = seconds


class LeanFetcher:
    """Fetches pages over kept connections of its own. An async context manager; see `fetch.PageFetcher`.

    `timeout` is the total time in seconds for one page: resolving, connecting, waiting and reading. Bodies are asked for as they are
    unless `compressed`: a page of 50 kB costs the engine's API process far more to pack than a local network to carry.
    """

    def __init__(
        self,
        timeout: float = DEFAULT_TIMEOUT_SECONDS,
        *,
        max_body_bytes: int = DEFAULT_MAX_BODY_BYTES,
        policy: NetworkPolicy | None = None,
        compressed: bool = False,
        tls: ssl.SSLContext | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.timeout = timeout
        self._max_body_bytes = max_body_bytes
        self._policy = policy or NetworkPolicy()
        self._encoding = "gzip" if compressed else "identity"
        self._tls = tls
        self._clock = clock
        self._routes: dict[str, _Route] = {}
        self._pages: dict[str, str] = {}
        self._idle: dict[_Key, list[Connection]] = {}
        self._swept_at = clock()
        self._resolver = ThreadPoolExecutor(_RESOLVER_THREADS, "resolve")
        self._unpacker = ThreadPoolExecutor(1, "unpack")

    async def __aenter__(self) -> LeanFetcher:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        for connections in self._idle.values():
            for connection in connections:
                connection.abort()
        self._idle.clear()
        self._resolver.shutdown(wait=False, cancel_futures=True)
        self._unpacker.shutdown(wait=False, cancel_futures=True)
        await asyncio.sleep(0)  # the transports close in the loop's next turn

    async def fetch(self, endpoint: str) -> FetchedPage:
        """The metrics page of an engine: base URL, /metrics URL or host:port. Raises as `fetch.Fetcher.fetch`."""
        url = self._pages.get(endpoint)
        if url is None:
            url = metrics_url(endpoint)
            _bound(self._pages)
            self._pages[endpoint] = url
        page = await self._get(url)
        check_body_of(page)
        return page

    async def fetch_json(self, url: str) -> dict[str, Any]:
        """A JSON object from an engine's introspection endpoint. Raises as `fetch`, BODY_NOT_METRICS for other content."""
        return json_object(await self._get(url))

    async def _get(self, url: str) -> FetchedPage:
        route = self._routes.get(url)
        if route is None:
            route = self._route(url)
            _bound(self._routes)
            self._routes[url] = route
        try:
            async with asyncio.timeout(self.timeout):
                answer = await self._ask(route)
                body = await self._unpacked(answer)
        except TimeoutError as error:
            raise timed_out(url, self.timeout) from error
        except _ConnectTimeoutError as error:
            raise timed_out(url, error.seconds) from error
        except UnreadableBodyError as error:
            raise not_readable(url, str(error)) from error
        except (OSError, ConnectionLostError, BadResponseError) as error:
            raise unreachable(url, error) from error
        headers = answer.headers
        return checked_page(url, answer.status, body, headers.get("content-type", ""), headers.get("location", ""))

    async def _unpacked(self, answer: ResponseReader) -> bytes:
        """The body; a large one is unpacked in a thread. zlib works without the interpreter's lock, so that the loop goes on."""
        encoding = answer.headers.get("content-encoding", "")
        if not encoding or len(answer.body) <= _LARGE_PACKED_BYTES:
            return decoded(answer.body, encoding, self._max_body_bytes)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._unpacker, decoded, answer.body, encoding, self._max_body_bytes)

    async def _ask(self, route: _Route) -> ResponseReader:
        connection = self._kept(route.key)
        if connection is not None:
            try:
                return await self._exchange(connection, route)
            except ConnectionLostError as error:
                if not error.unanswered:
                    raise
                # The server had closed it before it saw the request: no fault of either.
        return await self._exchange(await self._connect(route), route)

    async def _exchange(self, connection: Connection, route: _Route) -> ResponseReader:
        answer = await connection.exchange(route.request, self._max_body_bytes)
        if answer.keeps_alive and connection.is_open:
            connection.idle_since = self._clock()
            self._idle.setdefault(route.key, []).append(connection)
        else:
            connection.abort()
        return answer

    def _kept(self, key: _Key) -> Connection | None:
        now = self._clock()
        if now - self._swept_at > KEEPALIVE_SECONDS:
            self._sweep(now)
        connections = self._idle.get(key, ())
        while connections:
            connection = connections.pop()
            if connection.is_open and now - connection.idle_since < KEEPALIVE_SECONDS:
                return connection
            connection.abort()
        return None

    def _sweep(self, now: float) -> None:
        """Close what nobody came back for, such as the connections of instances that were removed."""
        self._swept_at = now
        for key, connections in list(self._idle.items()):
            fresh = [c for c in connections if c.is_open and now - c.idle_since < KEEPALIVE_SECONDS]
            for connection in connections:
                if connection not in fresh:
                    connection.abort()
            if fresh:
                self._idle[key] = fresh
            else:
                del self._idle[key]

    async def _connect(self, route: _Route) -> Connection:
        """Resolve, check every address, connect to the first that answers."""
        loop = asyncio.get_running_loop()
        addresses = await self._resolve(route.host, route.port)
        for address in addresses:
            self._policy.check(route.host, address)
        tls: dict[str, Any] = {"ssl": self._tls_context(), "server_hostname": route.host} if route.is_tls else {}
        failure: Exception = OSError(f"{route.host} has no address")
        limit = min(self.timeout, CONNECT_TIMEOUT_SECONDS)
        for address in addresses:
            try:
                async with asyncio.timeout(limit) as deadline:
                    _, connection = await loop.create_connection(Connection, address, route.port, **tls)
                return connection
            except OSError as error:
                # The system's own ETIMEDOUT is a TimeoutError too.
                failure = _ConnectTimeoutError(limit) if deadline.expired() else error
        raise failure

    async def _resolve(self, host: str, port: int) -> list[str]:
        try:
            return [str(ipaddress.ip_address(host))]
        except ValueError:
            pass
        loop = asyncio.get_running_loop()
        try:
            found = await loop.run_in_executor(self._resolver, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:  # UnicodeError: a label that no name can have ("a..b")
            raise OSError(f"{host} cannot be resolved: {getattr(error, 'strerror', None) or error}") from error
        return list(dict.fromkeys(str(entry[4][0]) for entry in found))

    def _tls_context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = httpx.create_ssl_context(trust_env=False)
        return self._tls

    def _route(self, url: str) -> _Route:
        try:
            parsed = httpx.URL(url)
            host = parsed.raw_host.decode("ascii")
            is_tls = parsed.scheme == "https"
            if not host or parsed.scheme not in ("http", "https"):
                raise invalid(url, f"its scheme is {parsed.scheme!r}, not http or https")
        except (httpx.InvalidURL, UnicodeError) as error:
            raise invalid(url, str(error)) from error
        head = b"GET %b HTTP/1.1\r\nHost: %b\r\nAccept: %b\r\nAccept-Encoding: %b\r\nUser-Agent: perf-service\r\n\r\n" % (
            parsed.raw_path,
            parsed.netloc,
            ACCEPT.encode(),
            self._encoding.encode(),
        )
        return _Route(url, host, (443 if is_tls else 80) if parsed.port is None else parsed.port, is_tls, head)


def _bound(memo: dict[str, Any]) -> None:
    if len(memo) >= _MAX_ROUTES:
        memo.clear()
