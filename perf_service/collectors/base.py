"""What the three collectors have in common: fetch a page, read it through the engine's dialect, return the snapshot."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, ClassVar, Self

import httpx

from perf_service.collectors.dialects import Binding, dialect_of
from perf_service.collectors.exposition import DEFAULT_MAX_BODY_BYTES
from perf_service.collectors.fetch import DEFAULT_TIMEOUT_SECONDS, Fetcher
from perf_service.collectors.snapshot import SnapshotBuilder
from perf_service.collectors.transport import NetworkPolicy
from perf_service.models.config import EngineConfig
from perf_service.models.metrics import Counter, Engine, Snapshot


@dataclass(frozen=True, slots=True)
class RequestMetrics:
    """Finished requests by outcome, lifetime totals. Nothing counted is zero here, for callers that add up."""

    success_total: int = 0
    failure_total: int = 0
    aborted_total: int = 0
    rejected_total: int = 0


class BaseCollector:
    """Collects snapshots of engines of one kind. An async context manager.

    `timeout` is the total time in seconds for one page; `client` the HTTP client while the collector is open.
    """

    engine: ClassVar[Engine]

    def __init__(
        self,
        timeout: float = DEFAULT_TIMEOUT_SECONDS,
        *,
        max_body_bytes: int = DEFAULT_MAX_BODY_BYTES,
        policy: NetworkPolicy | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.timeout = timeout
        self._max_body_bytes = max_body_bytes
        self._policy = policy
        self._clock = clock
        self._builder = SnapshotBuilder(self.engine, max_body_bytes=max_body_bytes)
        self._fetcher: Fetcher | None = None

    @property
    def client(self) -> httpx.AsyncClient | None:
        """The HTTP client; None before the collector is entered and after it is closed. Another one may be put in its place."""
        return self._fetcher.client if self._fetcher else None

    @client.setter
    def client(self, client: httpx.AsyncClient) -> None:
        self._fetcher = Fetcher(self.timeout, client=client)

    async def __aenter__(self) -> Self:
        if self._fetcher is None:
            self._fetcher = self._new_fetcher()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        fetcher, self._fetcher = self._fetcher, None
        if fetcher is not None:
            await fetcher.aclose()

    async def collect(self, instance_id: str, endpoint: str, *, config: EngineConfig | None = None, engine_version: str = "") -> Snapshot:
        """One snapshot of the engine at `endpoint` (base URL, /metrics URL or host:port).

        A body without any known metric gives a snapshot whose `quality` says so. Outside of `async with` each call uses a
        connection of its own.

        Raises:
            EndpointTimeoutError: no answer within `timeout`.
            EndpointUnreachableError: no connection, or it broke.
            EndpointStatusError: an HTTP status other than 200.
            CollectError: ENDPOINT_INVALID, ENDPOINT_FORBIDDEN, BODY_TOO_LARGE, TOO_MANY_SERIES.
        """
        if self._fetcher is not None:
            page = await self._fetcher.fetch(endpoint, check_body=False)
        else:
            async with self._new_fetcher() as fetcher:
                page = await fetcher.fetch(endpoint, check_body=False)
        return self._builder.build(
            page.body,
            instance_id,
            self._clock(),
            endpoint=endpoint,
            config=config,
            engine_version=engine_version,
            content_type=page.content_type,
        )

    def _new_fetcher(self) -> Fetcher:
        return Fetcher(self.timeout, max_body_bytes=self._max_body_bytes, policy=self._policy)

    def _extract_request_metrics(self, samples: Iterable[Sequence[Any]]) -> RequestMetrics:
        """Outcomes of requests from parsed samples, each beginning with name, labels, value (as prometheus_client's do)."""
        dialect = dialect_of(self.engine)
        totals: dict[Counter, float] = {}
        for name, labels, value, *_ in samples:
            binding = dialect.bind(name, labels)
            if not isinstance(binding, Binding) or not math.isfinite(value) or value < 0:
                continue
            for slot in binding.slots:
                target = dialect.rules[slot.rule].target
                if isinstance(target, Counter):
                    totals[target] = totals.get(target, 0.0) + value
        return RequestMetrics(
            success_total=int(totals.get(Counter.REQUESTS_SUCCEEDED, 0.0)),
            failure_total=int(totals.get(Counter.REQUESTS_FAILED, 0.0)),
            aborted_total=int(totals.get(Counter.REQUESTS_ABORTED, 0.0)),
            rejected_total=int(totals.get(Counter.REQUESTS_REJECTED, 0.0)),
        )
