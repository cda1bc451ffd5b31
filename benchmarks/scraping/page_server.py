"""Serves the metrics pages of many replicas, one port each, as cheaply as can be: every page is ready before the first request.

Program: reads commands from standard input (JSON lines) and answers each with a JSON line; ends with its input.
  {"do": "stats"}            requests by client, and the time of each by replica and client
  {"do": "hang", "first": N} the first N replicas answer no more
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
import sys
import time

from pages import SCENARIOS, versions

_MISSING = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"


class Replica:
    """One engine's page over time, for each client from its beginning."""

    def __init__(self, answers: list[tuple[bytes, bytes]]) -> None:
        self.answers = answers
        self.arrivals: dict[str, list[float]] = {}
        self.hangs = False

    def answer(self, request: bytes) -> bytes:
        """The whole response to a request; nothing where it hangs."""
        path = request.split(b" ", 2)[1]
        if not path.endswith(b"/metrics"):
            return _MISSING
        client = "prometheus" if b"Prometheus/" in request else "perf-service"
        arrivals = self.arrivals.setdefault(client, [])
        arrivals.append(time.monotonic())
        if self.hangs:
            return b""
        plain, packed = self.answers[min(len(arrivals), len(self.answers)) - 1]
        return packed if packed and b"gzip" in request else plain


class Conversation(asyncio.Protocol):
    """One kept connection."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._transport.write(self._replica.answer(data))  # type: ignore[attr-defined]


def _response(body: bytes, encoding: bytes = b"") -> bytes:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n%bContent-Length: %d\r\n\r\n"
    return head % (encoding, len(body)) + body


def _answers(scenario: str, count: int, with_gzip: bool) -> list[tuple[bytes, bytes]]:
    pages = versions(scenario, count)
    packed = (lambda page: _response(gzip.compress(page, 6), b"Content-Encoding: gzip\r\n")) if with_gzip else (lambda _: b"")
    return [(_response(page), packed(page)) for page in pages]


async def serve(replicas: int, count: int, scenarios: int, with_gzip: bool) -> None:
    """Until standard input ends."""
    loop = asyncio.get_running_loop()
    ready = [_answers(name, count, with_gzip) for name in SCENARIOS[:scenarios]]
    fleet = [Replica(ready[index % len(ready)]) for index in range(replicas)]
    ports = []
    for replica in fleet:
        server = await loop.create_server(lambda replica=replica: Conversation(replica), "127.0.0.1", 0)
        ports.append(server.sockets[0].getsockname()[1])
    print(json.dumps({"ports": ports, "page_bytes": len(ready[0][0][0])}), flush=True)
    commands = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    while line := await commands.readline():
        command = json.loads(line)
        if command["do"] == "hang":
            for replica in fleet[: command["first"]]:
                replica.hangs = True
            print(json.dumps({"at": time.monotonic()}), flush=True)
        else:
            print(json.dumps([replica.arrivals for replica in fleet]), flush=True)


def main() -> None:
    """Serve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicas", type=int, default=200)
    parser.add_argument("--versions", type=int, default=200)
    parser.add_argument("--scenarios", type=int, default=len(SCENARIOS))
    parser.add_argument("--gzip", action="store_true", help="packed pages for those who ask")
    options = parser.parse_args()
    work = serve(options.replicas, options.versions, options.scenarios, options.gzip)
    try:
        import uvloop
    except ImportError:
        asyncio.run(work)
    else:
        uvloop.run(work)


if __name__ == "__main__":
    main()
