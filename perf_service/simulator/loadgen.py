"""Load on OpenAI-compatible servers, real or simulated, and the truth as clients see it.

Streams ``/v1/completions`` with prompts of token ids over plain asyncio sockets (one connection per
request): cheap enough that the generator does not become the bottleneck it measures.
"""

from __future__ import annotations

import asyncio
import json
import random
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

from perf_service.models.errors import ErrorReason, InvalidArgumentError
from perf_service.simulator.core import Request
from perf_service.simulator.workload import Ledger, LoadReport, Workload

_RETRY_SECONDS = 0.25
_TOKEN_IDS = (10, 8000)  # inside the vocabulary of any real model
_CONNECT_SECONDS = 5.0
_LIMIT = 1 << 20


# Whatever a server sends is at worst the failure of one request, never of the run.
_REQUEST_ERRORS = (OSError, EOFError, TimeoutError, ValueError, LookupError, TypeError, asyncio.LimitOverrunError)


class _HttpStatusError(Exception):
    def __init__(self, status: int) -> None:
        super().__init__(f"http {status}")


class _Endpoint:
    """Where to send: a parsed base URL."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InvalidArgumentError(
                f"{url!r} is not an http(s) base URL such as http://127.0.0.1:8000", reason=ErrorReason.ENDPOINT_INVALID
            )
        self.host = parts.hostname
        self.port = parts.port or (443 if parts.scheme == "https" else 80)
        self.tls = ssl.create_default_context() if parts.scheme == "https" else None
        self.path = parts.path.rstrip("/").removesuffix("/v1") + "/v1/completions"
        self.authority = parts.netloc.rpartition("@")[2]


class LoadGenerator:
    """Runs one workload against servers, spread round robin. Use ``run`` once."""

    def __init__(
        self,
        base_urls: Sequence[str],
        workload: Workload,
        *,
        duration_seconds: float,
        drain_seconds: float = 30.0,
        seed: int = 0,
        model: str | None = None,
        max_in_flight: int = 2000,
    ) -> None:
        if not base_urls:
            raise InvalidArgumentError("a load needs at least one base URL")
        if not 0 < duration_seconds <= 86400:
            raise InvalidArgumentError(f"duration_seconds is {duration_seconds}; it must lie in (0, 86400]")
        self._endpoints = [_Endpoint(url) for url in base_urls]
        self._workload = workload
        self._duration = duration_seconds
        self._drain = drain_seconds
        self._rng = random.Random(seed)
        self._model = model
        self._limit = max_in_flight
        self._turn = 0
        self._prefixes: dict[int, list[int]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.ledger = Ledger()

    def use_endpoints(self, base_urls: Sequence[str]) -> None:
        """Replaces the servers in mid-run (a replica came back on another port)."""
        self._endpoints = [_Endpoint(url) for url in base_urls]

    async def run(self, stop: asyncio.Event | None = None) -> LoadReport:
        """Sends for ``duration_seconds`` (or until ``stop``), then waits up to ``drain_seconds`` for answers.

        A server that refuses or drops connections only yields counted errors.
        """
        loop = asyncio.get_running_loop()
        begun = loop.time()
        end = begun + self._duration
        stopped = stop or asyncio.Event()
        feed = self._open_loop if self._workload.rate is not None else self._closed_loop
        feeder = loop.create_task(feed(begun, end, stopped))
        watcher = loop.create_task(stopped.wait())
        try:
            await asyncio.wait({feeder, watcher}, timeout=self._duration, return_when=asyncio.FIRST_COMPLETED)
            stopped.set()
            await feeder
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=self._drain)
        finally:
            stopped.set()
            left = [t for t in (*self._tasks, feeder, watcher) if not t.done()]
            self.ledger.cancelled += len([t for t in self._tasks if not t.done()])
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)
        return self.ledger.report(loop.time() - begun)

    async def _open_loop(self, begun: float, end: float, stop: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        at = begun
        while not stop.is_set():
            at += self._workload.next_gap(self._rng, at - begun)
            if at >= end:
                return
            await _pause(stop, at - loop.time())
            if stop.is_set():
                return
            if len(self._tasks) >= self._limit:
                self.ledger.sent += 1
                self.ledger.failure("too many in flight")
            else:
                self._spawn(self._one())

    async def _closed_loop(self, begun: float, end: float, stop: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        clients = 0

        async def client(index: int) -> None:
            nonlocal clients
            while not stop.is_set() and index < round(self._workload.level(loop.time() - begun)):
                if not await self._one():
                    await _pause(stop, _RETRY_SECONDS)
            clients -= 1

        changes = sorted(begun + t for t, _ in self._workload.steps if begun + t < end)
        for moment in (begun, *changes):
            await _pause(stop, moment - loop.time())
            if stop.is_set():
                return
            want = min(round(self._workload.level(moment - begun)), self._limit)
            for index in range(clients, want):
                clients += 1
                self._spawn(client(index))
        await stop.wait()

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _body(self, request: Request) -> bytes:
        rng, (low, high) = self._rng, _TOKEN_IDS
        shared = request.shared_prefix_tokens
        if shared and request.prefix_id not in self._prefixes:
            own = random.Random(request.prefix_id)
            self._prefixes[request.prefix_id] = [own.randint(low, high) for _ in range(shared)]
        prefix = self._prefixes[request.prefix_id] if shared else []
        ids = prefix + [rng.randint(low, high) for _ in range(request.prompt_tokens - len(prefix))]
        body: dict[str, Any] = {
            "prompt": ids, "max_tokens": request.output_tokens, "ignore_eos": True, "temperature": 0.0,
            "stream": True, "stream_options": {"include_usage": True},
        }  # fmt: skip
        if self._model is not None:
            body["model"] = self._model
        return json.dumps(body).encode()

    async def _one(self) -> bool:
        loop = asyncio.get_running_loop()
        request = self._workload.draw(self._rng, loop.time())
        endpoint = self._endpoints[self._turn % len(self._endpoints)]
        self._turn += 1
        body = self._body(request)
        self.ledger.sent += 1
        sent, times, tokens = loop.time(), [], 0
        try:
            async for event in _stream(endpoint, body):
                if event.get("usage"):
                    tokens = int(event["usage"]["completion_tokens"])
                if event.get("choices"):
                    times.append(loop.time())
        except asyncio.CancelledError:
            raise
        except _HttpStatusError as error:
            self.ledger.failure(str(error))
            return False
        except _REQUEST_ERRORS as error:
            self.ledger.failure(_cause(error))
            return False
        self.ledger.success(sent, times, loop.time(), request.prompt_tokens, tokens or len(times))
        return True


def _cause(error: Exception) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, ConnectionError | asyncio.IncompleteReadError):
        return "connection reset"
    return type(error).__name__


async def _pause(stop: asyncio.Event, seconds: float) -> None:
    """Waits until a moment of the arrival process, or the stop."""
    if seconds <= 0:
        await asyncio.sleep(0)
        return
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        return


async def _stream(endpoint: _Endpoint, body: bytes) -> AsyncIterator[dict[str, Any]]:
    """JSON values of a server-sent event answer. Raises OSError, ValueError, IncompleteReadError."""
    async with asyncio.timeout(_CONNECT_SECONDS):
        reader, writer = await asyncio.open_connection(endpoint.host, endpoint.port, ssl=endpoint.tls, limit=_LIMIT)
    try:
        writer.write(
            f"POST {endpoint.path} HTTP/1.1\r\nhost: {endpoint.authority}\r\ncontent-type: application/json\r\n"
            f"accept: text/event-stream\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n".encode()
            + body
        )
        await writer.drain()
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        status = int(head.split(" ", 2)[1])
        if status != 200:
            raise _HttpStatusError(status)
        lines = _chunked_lines(reader) if "transfer-encoding: chunked" in head else _plain_lines(reader)
        done = False
        async for line in lines:  # to the end of the body, so that no reader is left half-way
            if line.startswith(b"data:"):
                data = line[5:].strip()
                if data == b"[DONE]":
                    done = True
                    continue
                value = json.loads(data)
                if isinstance(value, dict):
                    yield value
        if done:
            return
        raise asyncio.IncompleteReadError(b"", None)  # the stream broke off before [DONE]
    finally:
        writer.close()


async def _plain_lines(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while line := await reader.readline():
        yield line


async def _chunked_lines(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    rest = b""
    while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
        rest += (await reader.readexactly(size + 2))[:-2]
        *whole, rest = rest.split(b"\n")
        for line in whole:
            yield line


async def run_load(
    base_urls: Sequence[str],
    workload: Workload,
    duration_seconds: float,
    *,
    seed: int = 0,
    drain_seconds: float = 30.0,
    model: str | None = None,
    on_start: Callable[[LoadGenerator], None] | None = None,
) -> LoadReport:
    """Runs a workload once; see LoadGenerator."""
    generator = LoadGenerator(base_urls, workload, duration_seconds=duration_seconds, drain_seconds=drain_seconds, seed=seed, model=model)
    if on_start is not None:
        on_start(generator)
    return await generator.run()
