"""Stores under test: in memory, a SQLite file, and a private PostgreSQL cluster (Debian's packages; no running server is touched)."""

from __future__ import annotations

import itertools
import os
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from perf_service.models.fleet import Fleet, Instance
from perf_service.models.metrics import Engine
from perf_service.models.workflow import Event, EventKind, Gate, Workflow, WorkflowRequest, WorkflowStatus
from perf_service.storage import SqlStore
from tests.support import postgres


class Clock:
    """Time that moves only when told."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class Build:
    """Nouns with as little said as possible."""

    @staticmethod
    def fleet(fleet_id: str = "f", **more: Any) -> Fleet:
        return Fleet(fleet_id, Engine.VLLM, **more)

    @staticmethod
    def instance(instance_id: str = "i", **more: Any) -> Instance:
        return Instance(instance_id, Engine.VLLM, "http://127.0.0.1:8000", **more)

    @staticmethod
    def workflow(workflow_id: str = "w", fleet_id: str = "f", *, request_id: str = "", **more: Any) -> Workflow:
        return Workflow(workflow_id, WorkflowRequest("i", request_id=request_id), Engine.VLLM, fleet_id=fleet_id, **more)

    @staticmethod
    def events(workflow_id: str, first: int, count: int = 1, status: WorkflowStatus = WorkflowStatus.PENDING) -> list[Event]:
        return [
            Event(workflow_id, n, float(n), EventKind.STATE_CHANGED, status, Gate.OPEN, f"event {n}") for n in range(first, first + count)
        ]


@pytest.fixture
def build() -> Build:
    return Build()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="session")
def postgres_cluster() -> Iterator[str]:
    """URL, with {database} to fill in, of a cluster for these tests."""
    if not postgres.is_installed():
        if os.environ.get("PERF_SERVICE_REQUIRE_POSTGRES"):
            pytest.fail("PERF_SERVICE_REQUIRE_POSTGRES is set, but initdb and pg_ctl are not installed (apt-get install postgresql)")
        pytest.skip("NOT TESTED ON POSTGRESQL: initdb and pg_ctl are not installed (apt-get install postgresql)")
    with postgres.cluster() as url:
        yield url


_database_numbers = itertools.count()


@pytest.fixture
def postgres_url(postgres_cluster: str) -> Iterator[str]:
    """A new database of the cluster."""
    import psycopg

    name = f"test_{next(_database_numbers)}"
    admin = postgres_cluster.format(database="postgres").replace("+psycopg", "")
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    yield postgres_cluster.format(database=name)
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(params=["file", "postgres"])
def shared_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A store that several processes can open."""
    if request.param == "file":
        return f"sqlite:///{tmp_path}/store.db"
    return str(request.getfixturevalue("postgres_url"))


@pytest.fixture(params=["memory", "file", "postgres"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Every kind of store."""
    if request.param == "memory":
        return "sqlite://"
    return f"sqlite:///{tmp_path}/store.db" if request.param == "file" else str(request.getfixturevalue("postgres_url"))


Opener = Callable[..., SqlStore]


@pytest.fixture
async def opened() -> AsyncIterator[Opener]:
    """Opens stores and closes them all at the end."""
    stores: list[SqlStore] = []

    def open_store(url: str, **more: Any) -> SqlStore:
        stores.append(SqlStore.open(url, **more))
        return stores[-1]

    yield open_store
    for store in stores:
        await store.close()


@pytest.fixture
def store(store_url: str, clock: Clock, opened: Opener) -> SqlStore:
    """The store under test; its leases run on the test's clock."""
    return opened(store_url, clock=clock, lease_clock=clock)


@pytest.fixture
async def started(store: SqlStore, build: Build) -> Workflow:
    """A workflow "w" on fleet "f" with two events."""
    return await store.create_workflow(build.workflow(), build.events("w", 1, 2))


@pytest.fixture
def end(build: Build) -> Callable[[Workflow], tuple[Workflow, list[Event]]]:
    """A workflow's last state, with its event."""

    def ended(workflow: Workflow) -> tuple[Workflow, list[Event]]:
        events = build.events(workflow.workflow_id, workflow.last_sequence + 1, status=WorkflowStatus.COMPLETED)
        return replace(workflow, status=WorkflowStatus.COMPLETED), events

    return ended
