"""Scrape targets that keep what they served: the page that a Prometheus got is then known to the byte."""

from __future__ import annotations

import gzip
import json
import threading
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

NUMBER = "recorded_target_page_number"


@dataclass(frozen=True, slots=True)
class Served:
    """One page: when it was asked for and what was answered (None: an error)."""

    asked_at: float
    body: bytes | None


class RecordedTarget:
    """An HTTP server on a free port. `page` gives what to serve at the n-th scrape; None: HTTP 500.

    Each page ends with its number as a metric of its own, so that a scrape can be told by what it brought, however late it was answered.
    """

    def __init__(self, page: Callable[[int], bytes | None]) -> None:
        self.served: list[Served] = []
        lock = threading.Lock()
        target = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked = time.time()
                with lock:
                    body = page(len(target.served))
                    if body is not None:
                        body += b"%s %d\n" % (NUMBER.encode(), len(target.served))
                    target.served.append(Served(asked, body))
                self.send_response(200 if body is not None else 500)
                self.send_header("Content-Type", "text/plain; version=0.0.4")
                self.send_header("Content-Length", str(len(body or b"")))
                self.end_headers()
                self.wfile.write(body or b"")

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def forwarded(url: str) -> Callable[[int], bytes | None]:
    """The present page of another server."""

    def page(number: int) -> bytes | None:
        with urllib.request.urlopen(url, timeout=5) as response:
            body: bytes = response.read()
        return body

    return page


def saved(*folders: Path, failing: Sequence[int] = ()) -> Callable[[int], bytes | None]:
    """The pages of saved runs, one after the other, the last one again and again; errors at the scrapes in `failing`."""
    pages = []
    for folder in folders:
        rows = [json.loads(line) for line in (folder / "scrapes.jsonl").read_text().splitlines()]
        pages += [gzip.decompress((folder / row["file"]).read_bytes()) for row in rows if row.get("file")]
    return lambda number: None if number in failing else pages[min(number, len(pages) - 1)]
