"""Bringing a store to this version's schema at open, and refusing one from a newer version."""

from __future__ import annotations

from sqlalchemy import Connection, insert, inspect, select, text, update

from perf_service.models.errors import ErrorReason, StoreError
from perf_service.storage.database import Database
from perf_service.storage.errors import describe
from perf_service.storage.tables import REVISIONS, alembic_version, metadata

# Arbitrary, but fixed for ever: servers that start together migrate one after the other.
_MIGRATION_LOCK = 0x70657266


def prepare(db: Database) -> None:
    """Create or migrate the schema. Raises StoreError STORE_SCHEMA_NEWER, STORE_READ_ONLY or STORE_UNAVAILABLE; then nothing is changed."""
    if db.is_sqlite and not db.in_memory:
        _use_wal(db)
    db.transact(lambda connection: _upgrade(connection, db), writing=True)


def _use_wal(db: Database) -> None:
    """Readers do not wait for the writer in WAL mode. The mode is a property of the file and cannot be set inside a transaction."""

    def pragma(connection: Connection) -> None:
        connection.exec_driver_sql("ROLLBACK")
        if connection.exec_driver_sql("PRAGMA journal_mode").scalar() != "wal":
            connection.exec_driver_sql("PRAGMA journal_mode = WAL")
        connection.exec_driver_sql("BEGIN")

    db.transact(pragma, writing=False)


def _upgrade(connection: Connection, db: Database) -> None:
    if not db.is_sqlite:
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
    found = stored_revision(connection)
    if found == REVISIONS[-1]:
        # SQLite begins a "writing" transaction on a read-only file without complaint; a server that cannot write must not start.
        connection.execute(update(alembic_version).values(version_num=found))
        return
    if found is not None and found not in REVISIONS:
        raise StoreError(
            ErrorReason.STORE_SCHEMA_NEWER,
            f"{describe(db.url)} has schema revision {found}; this version of perf-service knows revisions up to {REVISIONS[-1]}. "
            "It was written by a newer version: run that version, or restore a backup made before the upgrade.",
            {"found_revision": found, "known_revision": REVISIONS[-1]},
        )
    if db.in_memory:
        create_all(connection)
    else:
        migrate(connection)


def stored_revision(connection: Connection) -> str | None:
    """The revision a store is at, None for an empty database."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    row = connection.execute(select(alembic_version.c.version_num)).first()
    return str(row[0]) if row else None


def create_all(connection: Connection) -> None:
    """The newest schema at once: loading Alembic and its scripts would dominate the opening of an in-memory store."""
    metadata.create_all(connection)
    alembic_version.create(connection)
    connection.execute(insert(alembic_version).values(version_num=REVISIONS[-1]))


def migrate(connection: Connection, revision: str = "head") -> None:
    """Run the migrations up to `revision` inside the connection's transaction."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", "perf_service.storage:migrations")
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    command.upgrade(config, revision)
