"""Driver errors as StoreErrors that say what to do. The texts are SQLite's result messages and PostgreSQL's SQLSTATE classes."""

from __future__ import annotations

from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError

from perf_service.models.errors import ErrorReason, StoreError

_RETRY_SECONDS = 1.0
# PostgreSQL: 40001 serialization_failure, 40P01 deadlock_detected, 55P03 lock_not_available: the same transaction may pass next time.
TRANSIENT_SQLSTATES = frozenset({"40001", "40P01", "55P03"})


def describe(url: URL) -> str:
    """A store's name for people: never with a password."""
    if url.get_backend_name() == "sqlite":
        return f"the store {url.database}" if url.database and url.database != ":memory:" else "the in-memory store"
    return f"the store {url.render_as_string(hide_password=True)}"


def sqlstate(error: DBAPIError) -> str:
    """PostgreSQL's five-letter code, empty on SQLite or where the connection broke before one came."""
    return getattr(error.orig, "sqlstate", None) or ""


def translate(error: DBAPIError, url: URL, *, waited_seconds: float) -> StoreError:
    """The StoreError of a driver error. Constraint violations are the repositories' business and do not come here."""
    where = describe(url)
    text = str(error.orig).strip()
    lower = text.lower()
    if "readonly database" in lower or "read-only" in lower or sqlstate(error) == "25006":
        return StoreError(
            ErrorReason.STORE_READ_ONLY,
            f"{where} is read-only: {text}. Give this user write permission on the file and on its directory "
            "(SQLite writes -wal and -shm files beside it), or name another store.",
            {"store": where},
        )
    if "database is locked" in lower or "database table is locked" in lower or sqlstate(error) == "55P03":
        return StoreError(
            ErrorReason.STORE_UNAVAILABLE,
            f"{where} is locked by another process and did not become free within {waited_seconds:g} s. "
            "Find who holds it (a backup, a shell with an open transaction) and try again.",
            {"store": where, "waited_seconds": f"{waited_seconds:g}"},
            retry_after_seconds=_RETRY_SECONDS,
        )
    if "not a database" in lower or "malformed" in lower:
        return StoreError(
            ErrorReason.STORE_UNAVAILABLE,
            f"{where} is not a usable SQLite file: {text}. Restore it from a backup, or name another file.",
            {"store": where},
        )
    if "unable to open database file" in lower:
        return StoreError(
            ErrorReason.STORE_UNAVAILABLE,
            f"{where} cannot be opened: its directory does not exist or may not be written. Create the directory, or name another file.",
            {"store": where},
        )
    if "disk is full" in lower or "no space" in lower or sqlstate(error) == "53100":
        return StoreError(
            ErrorReason.STORE_UNAVAILABLE,
            f"the disk under {where} is full: {text}. Nothing of the last change was stored; make room and try again.",
            {"store": where},
            retry_after_seconds=30.0,
        )
    return StoreError(
        ErrorReason.STORE_UNAVAILABLE,
        f"{where} cannot be used now: {text.splitlines()[0] if text else type(error.orig).__name__}. "
        "Check that the database runs and that its address and password are right.",
        {"store": where},
        retry_after_seconds=_RETRY_SECONDS,
    )
