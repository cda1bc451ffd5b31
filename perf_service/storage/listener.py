"""PostgreSQL's LISTEN/NOTIFY as a doorbell: watchers at every server wake as soon as an event is committed anywhere."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

from sqlalchemy import Connection, func, select
from sqlalchemy.engine import URL

CHANNEL: Final = "perf_service_events"
_LOOK_UP_SECONDS: Final = 0.5  # how soon a stop is seen
_RECONNECT_SECONDS: Final = 2.0


def ring(connection: Connection, workflow_id: str, last_sequence: int) -> None:
    """Announce events; PostgreSQL delivers it when, and only if, the transaction commits."""
    connection.execute(select(func.pg_notify(CHANNEL, f"{last_sequence} {workflow_id}")))


class Listener:
    """One connection and one thread, begun at the first use. While the database is away the notifier's polling stands in."""

    def __init__(self, url: URL, publish: Callable[[str, int], None]) -> None:
        self._conninfo = url.set(drivername="postgresql").render_as_string(hide_password=False)
        self._publish = publish
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Listen from now on. May be called again."""
        if self._thread is None and not self._stop.is_set():
            self._thread = threading.Thread(target=self._run, name="store-listen", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Close the connection and wait for the thread. Blocks for up to half a second."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=10)

    def _run(self) -> None:
        import psycopg

        while not self._stop.is_set():
            try:
                with psycopg.connect(self._conninfo, autocommit=True, connect_timeout=5) as connection:
                    connection.execute(f"LISTEN {CHANNEL}")
                    while not self._stop.is_set():
                        for notice in connection.notifies(timeout=_LOOK_UP_SECONDS):
                            self._hear(notice.payload)
            except psycopg.Error:
                self._stop.wait(_RECONNECT_SECONDS)

    def _hear(self, payload: str) -> None:
        last_sequence, _, workflow_id = payload.partition(" ")
        if last_sequence.isdigit():  # anybody may notify on a channel
            self._publish(workflow_id, int(last_sequence))
