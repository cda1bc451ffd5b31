"""Stores that are locked, read-only, damaged, gone, or from a newer version: one clear error each, and nothing is changed."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, inspect, text

from perf_service.models.errors import ErrorReason, InvalidArgumentError, StoreError
from perf_service.storage import SqlStore
from perf_service.storage.schema import create_all, migrate
from perf_service.storage.tables import REVISIONS, metadata

Opener = Callable[..., SqlStore]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


@pytest.fixture
def intruder(path: Path) -> Iterator[sqlite3.Connection]:
    """Another program at the same file."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        yield connection


async def test_a_locked_store_is_waited_for_and_then_reported(path: Path, opened: Opener, intruder: sqlite3.Connection, build: Any) -> None:
    store = opened(f"sqlite:///{path}", lock_timeout_seconds=0.2)
    intruder.execute("BEGIN IMMEDIATE")
    begun = time.monotonic()
    with pytest.raises(StoreError, match=r"locked by another process.*0\.2 s") as info:
        await store.create_fleet(build.fleet())
    assert 0.15 < time.monotonic() - begun < 3
    assert info.value.reason is ErrorReason.STORE_UNAVAILABLE
    assert info.value.retry_after_seconds
    assert (await store.list_fleets()).items == (), "readers do not wait for a writer"
    intruder.execute("ROLLBACK")
    await store.create_fleet(build.fleet())


async def test_callers_do_not_pile_up_behind_a_locked_store(
    path: Path, opened: Opener, intruder: sqlite3.Connection, build: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("perf_service.storage.database._LEAST_TURN_SECONDS", 0.3)
    store = opened(f"sqlite:///{path}", lock_timeout_seconds=0.2)
    intruder.execute("BEGIN IMMEDIATE")
    begun = time.monotonic()
    results = await asyncio.gather(*(store.create_fleet(build.fleet(f"f{i}")) for i in range(40)), return_exceptions=True)
    assert time.monotonic() - begun < 4, "40 times the lock's time-out are 8 s"
    texts = [str(r) for r in results if isinstance(r, StoreError) and r.reason is ErrorReason.STORE_UNAVAILABLE and r.retry_after_seconds]
    assert len(texts) == 40
    assert "was busy with earlier calls" in texts[-1]
    intruder.execute("ROLLBACK")
    await store.create_fleet(build.fleet())


def test_a_store_locked_at_opening(path: Path, intruder: sqlite3.Connection) -> None:
    intruder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StoreError, match="locked") as info:
        SqlStore.open(f"sqlite:///{path}", lock_timeout_seconds=0.1)
    assert info.value.reason is ErrorReason.STORE_UNAVAILABLE


async def test_a_read_only_store_is_refused(path: Path) -> None:
    await SqlStore.open(f"sqlite:///{path}").close()
    with pytest.raises(StoreError, match="write permission") as info:
        SqlStore.open(f"sqlite:///file:{path}?mode=ro&uri=true")
    assert info.value.reason is ErrorReason.STORE_READ_ONLY


async def test_a_store_that_becomes_read_only(path: Path, opened: Opener, build: Any) -> None:
    store = opened(f"sqlite:///{path}")
    with store._db.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA query_only = ON")  # SQLite's own name for it; stays with the pooled connection
    with pytest.raises(StoreError) as info:
        await store.create_fleet(build.fleet())
    assert info.value.reason is ErrorReason.STORE_READ_ONLY


def test_a_read_only_postgresql(postgres_url: str, opened: Opener) -> None:
    opened(postgres_url)
    with pytest.raises(StoreError) as info:
        opened(postgres_url + "&options=-cdefault_transaction_read_only%3Don")
    assert info.value.reason is ErrorReason.STORE_READ_ONLY


async def test_a_store_of_a_newer_version_is_refused_and_left_alone(shared_url: str) -> None:
    await SqlStore.open(shared_url).close()
    engine = create_engine(shared_url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = 'f00d'"))
    with pytest.raises(StoreError, match=rf"f00d.*{REVISIONS[-1]}") as info:
        SqlStore.open(shared_url)
    assert info.value.reason is ErrorReason.STORE_SCHEMA_NEWER
    assert info.value.metadata == {"found_revision": "f00d", "known_revision": REVISIONS[-1]}
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT version_num FROM alembic_version")) == "f00d"
    engine.dispose()


def test_a_file_that_is_no_database(path: Path) -> None:
    path.write_bytes(b"these are my holiday photographs" * 100)
    before = path.read_bytes()
    with pytest.raises(StoreError, match="not a usable SQLite file") as info:
        SqlStore.open(f"sqlite:///{path}")
    assert info.value.reason is ErrorReason.STORE_UNAVAILABLE
    assert path.read_bytes() == before


def test_a_directory_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="directory does not exist"):
        SqlStore.open(f"sqlite:///{tmp_path}/no/such/store.db")


def test_a_postgresql_that_does_not_run(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="Check that the database runs") as info:
        SqlStore.open(f"postgresql+psycopg://someone:secret@/x?host={tmp_path}")
    assert info.value.reason is ErrorReason.STORE_UNAVAILABLE
    assert "secret" not in info.value.message


async def test_lost_connections_are_made_anew(postgres_url: str, opened: Opener, build: Any) -> None:
    store = opened(postgres_url)
    await store.create_fleet(build.fleet())
    engine = create_engine(postgres_url)
    with engine.begin() as connection:
        ended = connection.scalar(
            text(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
            )
        )
    engine.dispose()
    assert ended
    assert [f.fleet_id for f in (await store.list_fleets()).items] == ["f"]


async def test_a_damaged_document_names_what_it_was(path: Path, opened: Opener, intruder: sqlite3.Connection, build: Any) -> None:
    store = opened(f"sqlite:///{path}")
    await store.create_fleet(build.fleet())
    await store.create_fleet(build.fleet("g"))
    intruder.execute("UPDATE fleets SET document = '{\"fleet_id\": ' WHERE fleet_id = 'f'")
    with pytest.raises(StoreError, match="stored Fleet cannot be read"):
        await store.get_fleet("f")
    assert (await store.get_fleet("g")).fleet_id == "g"


async def test_a_full_disk_loses_nothing_that_was_there(path: Path, opened: Opener, build: Any) -> None:
    store = opened(f"sqlite:///{path}")
    await store.create_fleet(build.fleet())

    def limit(connection: Any) -> None:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")

    await store._db.write(limit)
    with pytest.raises(StoreError, match=r"disk under .* is full") as info:
        await store.create_fleet(replace(build.fleet("big"), display_name="x" * 1_000_000))
    assert info.value.reason is ErrorReason.STORE_UNAVAILABLE
    assert [f.fleet_id for f in (await store.list_fleets()).items] == ["f"]


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("nonsense", "cannot be read"),
        ("mysql://root:secret@host/db", "'mysql' is not supported"),
        ("postgresql+asyncpg://host/db", "'postgresql.asyncpg' is not supported"),
    ],
)
def test_a_url_that_cannot_be_used(url: str, expected: str) -> None:
    with pytest.raises(InvalidArgumentError, match=expected) as info:
        SqlStore.open(url)
    assert info.value.reason is ErrorReason.SETTINGS_INVALID
    assert "secret" not in info.value.message


# The schema has two descriptions, tables.py and the migrations: they must say the same.


def _description(url: str) -> dict[str, Any]:
    engine = create_engine(url)
    inspector = inspect(engine)
    found: dict[str, Any] = {}
    for table in inspector.get_table_names():
        found[table] = (
            [(c["name"], str(c["type"]), c["nullable"]) for c in inspector.get_columns(table)],
            inspector.get_pk_constraint(table),
            sorted(inspector.get_foreign_keys(table), key=repr),
            sorted(
                (i["name"], i["column_names"], bool(i["unique"]), sorted((k, str(v)) for k, v in i.get("dialect_options", {}).items()))
                for i in inspector.get_indexes(table)
            ),
        )
    engine.dispose()
    return found


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_the_migrations_make_what_the_tables_say(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    url = f"sqlite:///{tmp_path}/a.db" if kind == "sqlite" else request.getfixturevalue("postgres_url")
    engine = create_engine(url)
    with engine.begin() as connection:
        create_all(connection)
    at_once = _description(url)
    with engine.begin() as connection:
        metadata.drop_all(connection)
        connection.execute(text("DROP TABLE alembic_version"))
    with engine.begin() as connection:
        migrate(connection)
    engine.dispose()
    migrated = _description(url)
    assert set(migrated) == {*metadata.tables, "alembic_version"}
    for table in metadata.tables:
        assert migrated[table] == at_once[table], table


def test_every_revision_is_listed() -> None:
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", "perf_service.storage:migrations")
    config.set_main_option("path_separator", "os")
    revisions = [script.revision for script in ScriptDirectory.from_config(config).walk_revisions()]
    assert tuple(reversed(revisions)) == REVISIONS
