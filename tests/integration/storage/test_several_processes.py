"""Several servers on one store, and servers that are killed."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from perf_service.models.errors import ConflictError, ErrorReason, WrongStateError
from perf_service.models.workflow import Workflow
from perf_service.storage import SqlStore
from perf_service.storage import workflows as workflows_module

Opener = Callable[..., SqlStore]


async def test_of_many_simultaneous_starts_one_wins(shared_url: str, opened: Opener, build: Any) -> None:
    stores = [opened(shared_url) for _ in range(2)]

    async def start(number: int) -> str:
        name = f"w{number}"
        try:
            return (await stores[number % 2].create_workflow(build.workflow(name), build.events(name, 1))).workflow_id
        except WrongStateError as error:
            return f"{error.reason} {error.metadata['workflow_id']}"

    results = await asyncio.gather(*(start(n) for n in range(20)))
    [winner] = [r for r in results if " " not in r]
    assert results.count(f"{ErrorReason.WORKFLOW_ACTIVE_ON_FLEET} {winner}") == 19


async def test_simultaneous_starts_of_one_request_are_one_workflow(shared_url: str, opened: Opener, build: Any) -> None:
    stores = [opened(shared_url) for _ in range(2)]
    created = await asyncio.gather(
        *(stores[n % 2].create_workflow(build.workflow(f"w{n}", request_id="r"), build.events(f"w{n}", 1)) for n in range(10))
    )
    assert len({w.workflow_id for w in created}) == 1


async def test_each_workflow_is_claimed_by_one_server(shared_url: str, opened: Opener, build: Any) -> None:
    stores = [opened(shared_url) for _ in range(2)]
    for n in range(10):
        await stores[0].create_workflow(build.workflow(f"w{n}", f"f{n}"), build.events(f"w{n}", 1))

    async def claim(owner: int) -> list[str]:
        mine = []
        while (lease := await stores[owner].acquire_lease(f"server-{owner}", 60.0)) is not None:
            mine.append(lease.workflow_id)
        return mine

    first, second = await asyncio.gather(claim(0), claim(1))
    # SKIP LOCKED may let a claimant leave while the other holds the last row, so both lists together are what counts.
    assert sorted(first + second) == [f"w{n}" for n in range(10)]


async def test_concurrent_writers_never_lose_an_update(shared_url: str, opened: Opener, build: Any) -> None:
    stores = [opened(shared_url) for _ in range(2)]
    await stores[0].create_workflow(build.workflow(), build.events("w", 1))

    refusals = set()

    async def count(store: SqlStore, times: int) -> None:
        while times:
            workflow = await store.get_workflow("w")
            more = build.events("w", workflow.last_sequence + 1)
            try:
                await store.save_workflow(
                    replace(workflow, message=str(int(workflow.message or 0) + 1)), more, expect_version=workflow.version, fence=None
                )
            except ConflictError as error:
                refusals.add(error.reason)
            else:
                times -= 1

    await asyncio.gather(*(count(store, 8) for store in stores))
    assert refusals <= {ErrorReason.ETAG_MISMATCH}
    final = await stores[0].get_workflow("w")
    assert (final.message, final.version, final.last_sequence) == ("16", 17, 17)
    assert [e.sequence for e in await stores[1].events_after("w", 0)] == list(range(1, 18))


async def test_a_watcher_at_another_server_sees_the_event(shared_url: str, opened: Opener, build: Any) -> None:
    writer, watcher = opened(shared_url), opened(shared_url)
    workflow = await writer.create_workflow(build.workflow(), build.events("w", 1))
    waiting = [asyncio.create_task(watcher.wait_for_events("w", 1, 30.0)) for _ in range(20)]
    await asyncio.sleep(0)
    begun = time.monotonic()
    await writer.save_workflow(workflow, build.events("w", 2), expect_version=1, fence=None)
    assert await asyncio.gather(*waiting) == [True] * 20
    assert time.monotonic() - begun < 5


async def test_postgresql_rings_the_bell_itself(postgres_url: str, opened: Opener, build: Any) -> None:
    writer, watcher = opened(postgres_url), opened(postgres_url)
    watcher._notifier._poll_seconds = None
    workflow = await writer.create_workflow(build.workflow(), build.events("w", 1))
    # Until the listener's connection stands nothing can be heard, so the writer goes on until somebody has woken.
    waiting = asyncio.create_task(watcher.wait_for_events("w", 10, 60.0))
    while not waiting.done():
        events = build.events("w", workflow.last_sequence + 1)
        workflow = await writer.save_workflow(workflow, events, expect_version=workflow.version, fence=None)
        await asyncio.wait({waiting}, timeout=0.02)
    assert waiting.result()


async def test_leases_run_on_the_database_clock(postgres_url: str, opened: Opener, build: Any, clock: Any) -> None:
    wrong = opened(postgres_url, clock=clock)  # a server whose clock is decades behind
    right = opened(postgres_url)
    await wrong.create_workflow(build.workflow(), build.events("w", 1))
    lease = await wrong.acquire_lease("wrong", 60.0)
    assert lease is not None
    assert abs(lease.expires_at - time.time() - 60) < 30
    assert await right.acquire_lease("right", 60.0) is None
    await wrong.renew_lease(lease, 0.0)
    assert await right.acquire_lease("right", 60.0) is not None


async def test_a_failure_between_state_and_events_leaves_neither(
    store: SqlStore, started: Workflow, build: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object) -> None:
        raise RuntimeError("crash between the two writes")

    with monkeypatch.context() as patch:
        patch.setattr(workflows_module, "_insert_events", crash)
        with pytest.raises(RuntimeError):
            await store.save_workflow(replace(started, message="half"), build.events("w", 3), expect_version=1, fence=None)
    assert await store.get_workflow("w") == started
    assert len(await store.events_after("w", 0)) == 2
    await store.save_workflow(started, build.events("w", 3), expect_version=1, fence=None)


_WRITER = """
import asyncio, sys
from dataclasses import replace
from perf_service.models.metrics import Engine
from perf_service.models.workflow import Event, EventKind, Gate, Workflow, WorkflowRequest, WorkflowStatus
from perf_service.storage import SqlStore

async def main():
    store = SqlStore.open(sys.argv[1])
    workflow = await store.create_workflow(Workflow("w", WorkflowRequest("i"), Engine.VLLM, fleet_id="f"), [])
    while True:
        n = workflow.last_sequence + 1
        event = Event("w", n, float(n), EventKind.STATE_CHANGED, WorkflowStatus.PENDING, Gate.OPEN, "x" * 2000)
        workflow = await store.save_workflow(replace(workflow, message=str(n)), [event], expect_version=workflow.version, fence=None)
        print(n, flush=True)

asyncio.run(main())
"""


async def test_a_writer_killed_at_any_moment_leaves_a_whole_store(shared_url: str, opened: Opener, build: Any) -> None:
    writer = subprocess.Popen(  # noqa: ASYNC220 - nothing else runs meanwhile
        [sys.executable, "-c", _WRITER, shared_url], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    with writer.stdout:
        for _ in range(30):
            acknowledged = int(writer.stdout.readline())
        writer.send_signal(signal.SIGKILL)
        acknowledged = max([acknowledged, *(int(line) for line in writer.stdout if line.endswith("\n"))])
        writer.wait(10)

    store = opened(shared_url)
    workflow = await store.get_workflow("w")
    events = await store.events_after("w", 0)
    assert workflow.last_sequence >= acknowledged, "what was acknowledged is there"
    assert [e.sequence for e in events] == list(range(1, workflow.last_sequence + 1))
    assert workflow.message == str(workflow.last_sequence), "state and events are from one transaction"
    await store.save_workflow(workflow, build.events("w", workflow.last_sequence + 1), expect_version=workflow.version, fence=None)


def test_servers_that_start_together_make_one_schema(shared_url: str) -> None:
    errors: list[BaseException] = []

    def start() -> None:
        try:
            asyncio.run(SqlStore.open(shared_url, lock_timeout_seconds=30.0).close())
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
