"""The simulated engine as a program: the core in real time behind the engine's own HTTP endpoints.

The only waiting in here is the duration of the step in flight: that is the physics being simulated.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

from perf_service.simulator.api import Completions, GenerateApi, InvalidBodyError
from perf_service.simulator.args import ServerOptions
from perf_service.simulator.core import EngineCore, RejectedError, Request
from perf_service.simulator.exposition import CONTENT_TYPE, PageContext, render
from perf_service.simulator.http import Connection, Exchange
from perf_service.simulator.introspection import info_routes

_CATCH_UP_SECONDS = 0.05  # a late wake-up up to this long is no part of the simulated step


class Engine:
    """Runs the core against the wall clock and hands tokens to whoever waits for them."""

    def __init__(self, core: EngineCore) -> None:
        self.core = core
        self._sinks: dict[int, Callable[[bool], None]] = {}
        self._wake = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._offset = time.time() - self._loop.time()  # the loop's clock cannot jump; pages show Unix time
        self._last_submit = 0.0

    def now(self) -> float:
        """Unix seconds on a clock that never goes back."""
        return self._loop.time() + self._offset

    def submit(self, request: Request, sink: Callable[[bool], None]) -> int:
        """Queues a request; ``sink(last)`` is called for each token. Raises RejectedError."""
        self._last_submit = self.now()
        request_id = self.core.submit(request, self._last_submit)
        self._sinks[request_id] = sink
        self._wake.set()
        return request_id

    def abort(self, request_id: int) -> None:
        """The client has gone."""
        if self._sinks.pop(request_id, None) is not None:
            self.core.abort(request_id)

    @property
    def idle(self) -> bool:
        return not self._sinks

    async def run(self) -> None:
        """Steps for ever."""
        end = 0.0
        while True:
            now = self.now()
            # A late wake-up is made good, but no step starts before the requests it may serve.
            start = max(end, self._last_submit) if now - end < _CATCH_UP_SECONDS else now
            duration = self.core.begin_step(start)
            if duration is None:
                self._wake.clear()
                await self._wake.wait()
                end = 0.0
                continue
            end = start + duration
            await asyncio.sleep(max(end - self.now(), 0))
            result = self.core.finish_step()
            finished = set(result.finished)
            for request_id in result.tokens:
                last = request_id in finished
                sink = self._sinks.pop(request_id, None) if last else self._sinks.get(request_id)
                if sink is not None:
                    sink(last)


class SimulatedServer:
    """Routes of one engine kind over an Engine."""

    def __init__(self, options: ServerOptions) -> None:
        self.options = options
        self.core = EngineCore(options.engine)
        self.engine = Engine(self.core)
        self.started = time.time()
        self.ready_at = 0.0
        self.draining = False
        self.connections: set[Connection] = set()
        self.http: dict[str, int] = {}
        completions = Completions(options)
        self._posts: dict[str, Completions | GenerateApi] = {
            "/v1/completions": completions,
            "/v1/chat/completions": Completions(options, chat=True),
        }
        if options.engine.flags.engine == "tgi":
            self._posts |= {"/generate": GenerateApi(options), "/generate_stream": GenerateApi(options, stream=True)}
        self._infos = info_routes(options, self.core)

    @property
    def kind(self) -> str:
        return self.options.engine.flags.engine

    def handle(self, exchange: Exchange) -> None:
        """Answers one request, now or when its tokens come."""
        request = exchange.request
        if request.path in self._posts:
            if request.method != "POST":
                exchange.respond_json(405, {"detail": "Method Not Allowed"})
            else:
                self._complete(exchange, self._posts[request.path])
        elif request.method not in ("GET", "HEAD"):
            exchange.respond_json(404, {"detail": "Not Found"})
        elif request.path in ("/health", "/ping", "/health_generate", "/ready"):
            exchange.respond(200 if self.ready_at and not self.draining else 503)
        elif request.path == "/metrics" and self.options.metrics:
            exchange.respond(200, self.page(), CONTENT_TYPE)
        elif request.path in self._infos:
            exchange.respond_json(200, self._infos[request.path](request.query))
        else:
            exchange.respond_json(404, {"detail": "Not Found"})

    def page(self) -> str:
        """The /metrics text now."""
        usage = resource.getrusage(resource.RUSAGE_SELF)
        context = PageContext(
            model_name=self.options.model_name,
            process_start=self.started,
            ready_at=self.ready_at or self.started,
            process={
                "process_cpu_seconds_total": round(usage.ru_utime + usage.ru_stime, 2),
                "process_resident_memory_bytes": usage.ru_maxrss * 1024.0,
                "process_virtual_memory_bytes": usage.ru_maxrss * 1024.0,
                "process_open_fds": 16.0 + len(self.connections),
                "process_max_fds": float(resource.getrlimit(resource.RLIMIT_NOFILE)[0]),
            },
            http=self.http,
            pid=os.getpid(),
        )
        return render(self.core, context, time.time())

    def _complete(self, exchange: Exchange, api: Completions | GenerateApi) -> None:
        begun = time.time()
        if not self.ready_at or self.draining:
            exchange.respond_json(503, api.error(503, "the server is not ready"))
            return
        try:
            answer = api.begin(exchange, begun)
        except InvalidBodyError as error:
            self.core.stats.add("failed_validation")
            self._answered(error.status, begun)
            exchange.respond_json(error.status, api.error(error.status, str(error)))
            return

        def sink(last: bool) -> None:
            answer.token(last)
            if last:
                self._answered(200, begun)

        try:
            request_id = self.engine.submit(answer.request, sink)
        except RejectedError as error:
            self._answered(error.status, begun)
            exchange.respond_json(error.status, api.error(error.status, str(error)))
            return
        exchange.on_disconnect = lambda: self.engine.abort(request_id)
        answer.accepted()

    def _answered(self, status: int, begun: float) -> None:
        key = f"{status // 100}xx"
        self.http[key] = self.http.get(key, 0) + 1
        seconds = time.time() - begun
        self.core.stats.hist("http_highr").observe(seconds)
        self.core.stats.hist("http").observe(seconds)


def _say(event: str, **more: Any) -> None:
    sys.stdout.write(json.dumps({"event": event, **more}) + "\n")
    sys.stdout.flush()


async def serve(options: ServerOptions) -> int:
    """Runs until SIGTERM or SIGINT. Raises OSError when the address cannot be bound.

    As with the real engines, nothing listens while vLLM or TGI start, and SGLang listens but answers
    503. A second signal stops at once.
    """
    loop = asyncio.get_running_loop()
    stop, hurry = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        (hurry if stop.is_set() else stop).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    server = SimulatedServer(options)
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((options.host, options.port))  # a taken port fails now, not after the start-up time
        port = sock.getsockname()[1]
        early = server.kind == "sglang"
        if not early and await _stopped_within(stop, options.startup_seconds):
            return 0
        listener = await loop.create_server(lambda: Connection(server.handle, server.connections), sock=sock, backlog=1024)
        _say("listening", host=options.host, port=port, engine=server.kind, pid=os.getpid())
        try:
            if early and await _stopped_within(stop, options.startup_seconds):
                return 0
            server.ready_at = time.time()
            stepping = loop.create_task(server.engine.run())
            _say("ready")
            waiter = loop.create_task(stop.wait())
            await asyncio.wait({stepping, waiter}, return_when=asyncio.FIRST_COMPLETED)
            if stepping.done():
                stepping.result()  # a bug in the core: raise it, do not serve on
            server.draining = True
            listener.close()
            await _drain(server, hurry, options.shutdown_timeout)
            stepping.cancel()
        finally:
            listener.close()
            for connection in list(server.connections):
                connection.close()
            await asyncio.sleep(0)  # lets the transports flush and close
    finally:
        sock.close()
    _say("stopped")
    return 0


async def _stopped_within(stop: asyncio.Event, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        return False
    return True


async def _drain(server: SimulatedServer, hurry: asyncio.Event, timeout: float) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    while not server.engine.idle and not hurry.is_set() and loop.time() < deadline:
        await _stopped_within(hurry, 0.02)
