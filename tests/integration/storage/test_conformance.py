"""What every store does alike, whatever lies under it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from perf_service.models.analysis import Analysis
from perf_service.models.config import EngineConfig
from perf_service.models.errors import ConflictError, ErrorReason, InvalidArgumentError, NotFoundError, PerfServiceError, WrongStateError
from perf_service.models.metrics import Counter, Engine, Hist, Histogram, Snapshot
from perf_service.models.plan import Plan
from perf_service.models.workflow import Event, Workflow, WorkflowStatus
from perf_service.storage import AuditEntry, LedgerEntry, SqlStore

End = Callable[[Workflow], tuple[Workflow, list[Event]]]


def reason(info: pytest.ExceptionInfo[PerfServiceError]) -> ErrorReason:
    return info.value.reason


# Fleets and instances


async def test_a_fleet_comes_back_as_it_was(store: SqlStore, build: Any) -> None:
    created = await store.create_fleet(build.fleet(labels={"team": "a"}, model_name="m"))
    assert created.created_at == 1000.0
    assert created.etag
    assert await store.get_fleet("f") == created


async def test_creating_an_existing_id_is_refused(store: SqlStore, build: Any) -> None:
    await store.create_fleet(build.fleet())
    with pytest.raises(ConflictError) as fleet:
        await store.create_fleet(build.fleet())
    assert reason(fleet) is ErrorReason.FLEET_ALREADY_EXISTS
    await store.create_instance(build.instance())
    with pytest.raises(ConflictError) as instance:
        await store.create_instance(build.instance())
    assert reason(instance) is ErrorReason.INSTANCE_ALREADY_EXISTS


async def test_unknown_ids_are_not_found(store: SqlStore, build: Any) -> None:
    cases: list[tuple[Any, ErrorReason]] = [
        (store.get_fleet("x"), ErrorReason.FLEET_NOT_FOUND),
        (store.update_fleet(build.fleet("x")), ErrorReason.FLEET_NOT_FOUND),
        (store.delete_fleet("x"), ErrorReason.FLEET_NOT_FOUND),
        (store.create_instance(build.instance(fleet_id="x")), ErrorReason.FLEET_NOT_FOUND),
        (store.get_instance("x"), ErrorReason.INSTANCE_NOT_FOUND),
        (store.delete_instance("x"), ErrorReason.INSTANCE_NOT_FOUND),
        (store.get_analysis("x"), ErrorReason.ANALYSIS_NOT_FOUND),
        (store.get_plan("x"), ErrorReason.PLAN_NOT_FOUND),
        (store.get_workflow("x"), ErrorReason.WORKFLOW_NOT_FOUND),
        (store.events_after("x", 0), ErrorReason.WORKFLOW_NOT_FOUND),
    ]
    for call, expected in cases:
        with pytest.raises(NotFoundError, match="'x'") as info:
            await call
        assert reason(info) is expected


async def test_an_update_needs_the_present_etag(store: SqlStore, build: Any, clock: Any) -> None:
    first = await store.create_instance(build.instance())
    clock.now += 5
    second = await store.update_instance(replace(first, model_name="m"), expect_etag=first.etag)
    assert second.etag != first.etag
    assert (second.created_at, second.updated_at) == (1000.0, 1005.0)
    with pytest.raises(ConflictError) as info:
        await store.update_instance(replace(first, model_name="n"), expect_etag=first.etag)
    assert reason(info) is ErrorReason.ETAG_MISMATCH
    assert (await store.get_instance("i")).model_name == "m"


async def test_changing_back_is_not_the_same_version(store: SqlStore, build: Any) -> None:
    first = await store.create_fleet(build.fleet())
    await store.update_fleet(replace(first, display_name="other"))
    third = await store.update_fleet(first)
    assert third.display_name == first.display_name
    assert third.etag != first.etag


async def test_a_fleet_with_instances_is_not_deleted(store: SqlStore, build: Any) -> None:
    await store.create_fleet(build.fleet())
    await store.create_instance(build.instance(fleet_id="f"))
    with pytest.raises(WrongStateError, match="i"):
        await store.delete_fleet("f")
    await store.delete_instance("i")
    await store.delete_fleet("f")
    with pytest.raises(NotFoundError):
        await store.get_fleet("f")


async def test_what_a_rollout_acts_on_is_not_deleted(store: SqlStore, build: Any, end: End) -> None:
    await store.create_fleet(build.fleet())
    workflow = await store.create_workflow(build.workflow(), build.events("w", 1))
    with pytest.raises(WrongStateError) as info:
        await store.delete_fleet("f")
    assert reason(info) is ErrorReason.WORKFLOW_ACTIVE_ON_FLEET
    assert info.value.metadata["workflow_id"] == "w"
    await store.save_workflow(*end(workflow), expect_version=1, fence=None)
    await store.delete_fleet("f")


@pytest.fixture
def end(ended: End) -> End:
    return ended


async def test_instances_are_listed_by_fleet(store: SqlStore, build: Any) -> None:
    await store.create_fleet(build.fleet())
    await store.create_instance(build.instance("a", fleet_id="f"))
    await store.create_instance(build.instance("b"))
    ids = [[i.instance_id for i in (await store.list_instances(fleet_id=which)).items] for which in (None, "f", "")]
    assert ids == [["b", "a"], ["a"], ["b"]]


# Pages


async def test_pages_hold_everything_once_also_when_rows_come_and_go(store: SqlStore, build: Any, clock: Any) -> None:
    for number in range(7):
        clock.now += number % 2  # several share a time
        await store.create_fleet(build.fleet(f"f{number}"))
    page = await store.list_fleets(page_size=3)
    seen = [f.fleet_id for f in page.items]
    await store.create_fleet(build.fleet("newer", created_at=9999.0))
    await store.delete_fleet(seen[-1])
    while page.next_page_token:
        page = await store.list_fleets(page_size=3, page_token=page.next_page_token)
        seen += [f.fleet_id for f in page.items]
    assert seen == ["f6", "f5", "f4", "f3", "f2", "f1", "f0"]


async def test_a_token_of_another_listing_is_refused(store: SqlStore, build: Any) -> None:
    for name in ("a", "b"):
        await store.create_instance(build.instance(name))
    token = (await store.list_instances(page_size=1)).next_page_token
    for call in (
        store.list_instances(fleet_id="f", page_token=token),
        store.list_fleets(page_token=token),
        store.list_instances(page_token="nonsense"),
        store.list_instances(page_token=token[:-4]),
    ):
        with pytest.raises(InvalidArgumentError) as info:
            await call
        assert reason(info) is ErrorReason.PAGE_TOKEN_INVALID
    with pytest.raises(InvalidArgumentError, match="page_size"):
        await store.list_fleets(page_size=0)


# Snapshots, analyses, plans


def snapshot(at: float | None, instance_id: str = "i", value: float = 1.0) -> Snapshot:
    return Snapshot(
        instance_id,
        Engine.VLLM,
        at,
        counters={Counter.PROMPT_TOKENS: value},
        histograms={Hist.TTFT_SECONDS: Histogram(3.0, 1.5, (0.1, 1.0), (1.0, 2.0))},
        config=EngineConfig.of({"max_num_seqs": 2, "ratio": 1.0, "flag": True}),
    )


async def test_snapshots_by_time(store: SqlStore) -> None:
    stored = [await store.add_snapshot(snapshot(float(at))) for at in (30, 10, 20)]
    await store.add_snapshot(snapshot(15.0, "other"))
    assert await store.latest_snapshot("i") == stored[0]
    assert await store.latest_snapshot("nobody") is None
    assert await store.snapshots_between("i", 10.0, 20.0) == [stored[1], stored[2]]
    assert await store.snapshots_between("i", 0.0, 99.0, limit=2) == [stored[2], stored[0]]
    assert [s.collected_at for s in (await store.list_snapshots("i", start=15.0)).items] == [30.0, 20.0]


async def test_some_snapshots_evenly_spaced(store: SqlStore) -> None:
    for at in (*range(10, 111, 10), 500):
        await store.add_snapshot(snapshot(float(at)))
        await store.add_snapshot(snapshot(float(at), "other"))
    for most, times in ((11, [*range(10, 111, 10)]), (6, [10, 30, 50, 70, 90, 110]), (3, [10, 60, 110]), (2, [10, 110])):
        found = await store.snapshots_spread(["other", "i"], 10.0, 110.0, most=most)
        assert [[s.collected_at for s in found[name]] for name in ("i", "other")] == [times, times]
        assert {s.instance_id for s in found["i"]} == {"i"}
    found = await store.snapshots_spread(["i", "nobody"], 10.0, 110.0, most=3)
    assert found == {"i": (await store.snapshots_between("i", 10.0, 110.0))[::5], "nobody": []}


async def test_a_page_without_a_time_is_placed_by_its_arrival(store: SqlStore) -> None:
    await store.add_snapshot(snapshot(None))
    [found] = await store.snapshots_between("i", 1000.0, 1000.0)
    assert found.collected_at is None


async def test_the_snapshot_at_a_time(store: SqlStore) -> None:
    assert await store.snapshot_at("i", 50.0) is None
    for at in (10, 20, 30):
        await store.add_snapshot(snapshot(float(at)))
    await store.add_snapshot(snapshot(21.0, "other"))
    found = [await store.snapshot_at("i", at) for at in (5.0, 10.0, 29.9, 30.0, 99.0)]
    assert [s.collected_at for s in found if s is not None] == [10.0, 10.0, 20.0, 30.0, 30.0]


async def test_a_snapshot_is_stored_once_and_never_changed(store: SqlStore) -> None:
    first = await store.add_snapshot(snapshot(1.0))
    assert await store.add_snapshot(first) == first
    assert len((await store.list_snapshots("i")).items) == 1
    with pytest.raises(ValueError, match="never change"):
        await store.add_snapshot(replace(first, counters={}))


async def test_a_moment_of_an_instance_is_stored_once_whoever_saw_it(store: SqlStore) -> None:
    """Kept in the background, collected, imported, read back from a Prometheus: what came first stays."""
    first = await store.add_snapshot(snapshot(1.25, value=1.0))
    assert await store.add_snapshot(snapshot(1.25, value=2.0)) == first
    assert await store.add_snapshots([snapshot(1.25), snapshot(1.25, "other"), snapshot(1.5), snapshot(1.250001)]) == 3
    assert await store.add_snapshots([snapshot(1.25), snapshot(1.5)]) == 0
    assert [s.collected_at for s in await store.snapshots_between("i", 0.0, 9.0)] == [1.25, 1.250001, 1.5]
    # Of an unknown moment each is another.
    assert await store.add_snapshots([snapshot(None), snapshot(None)]) == 2


async def test_retention(store: SqlStore) -> None:
    for at in range(0, 100, 10):
        await store.add_snapshot(snapshot(float(at)))
    await store.add_snapshot(snapshot(95.0, "other"))
    assert await store.prune_snapshots(before=20.0) == 2
    # Of 20, 30, ..., 80 (older than 85) the first of each half minute stays: 20, 30, 60.
    assert await store.thin_snapshots(before=85.0, keep_every_seconds=30.0) == 4
    assert [s.collected_at for s in await store.snapshots_between("i", 0.0, 99.0)] == [20.0, 30.0, 60.0, 90.0]
    assert await store.latest_snapshot("other") is not None


async def test_the_snapshots_of_a_deregistered_instance_are_gone(store: SqlStore, build: Any) -> None:
    await store.create_instance(build.instance())
    await store.add_snapshot(snapshot(1.0))
    await store.delete_instance("i")
    assert await store.latest_snapshot("i") is None


async def test_analyses_and_plans(store: SqlStore, clock: Any) -> None:
    analysis = await store.add_analysis(Analysis("i", Engine.VLLM, fleet_id="f"))
    plan = await store.add_plan(Plan(Engine.VLLM, instance_id="i", analysis_id=analysis.analysis_id))
    assert analysis.created_at == clock.now
    assert await store.get_analysis(analysis.analysis_id) == analysis
    assert await store.get_plan(plan.plan_id) == plan
    assert (await store.list_analyses(fleet_id="f")).items == (analysis,)
    assert (await store.list_plans(instance_id="other")).items == ()


# Workflows and events


async def test_state_and_events_change_together(store: SqlStore, started: Workflow, build: Any) -> None:
    saved = await store.save_workflow(
        replace(started, status=WorkflowStatus.COLLECTING), build.events("w", 3, 2), expect_version=started.version, fence=None
    )
    assert (saved.version, saved.last_sequence) == (2, 4)
    assert await store.get_workflow("w") == saved
    assert [e.sequence for e in await store.events_after("w", 1)] == [2, 3, 4]
    assert [e.sequence for e in await store.events_after("w", 0, limit=2)] == [1, 2]
    assert await store.events_after("w", 4) == []


@pytest.mark.parametrize("cursor", [-1, 3])
async def test_a_cursor_beyond_the_last_event_is_refused(store: SqlStore, started: Workflow, cursor: int) -> None:
    with pytest.raises(InvalidArgumentError) as info:
        await store.events_after("w", cursor)
    assert reason(info) is ErrorReason.CURSOR_OUT_OF_RANGE


@pytest.mark.parametrize("first", [2, 4])
async def test_a_gap_or_a_repetition_changes_nothing(store: SqlStore, started: Workflow, build: Any, first: int) -> None:
    with pytest.raises(ValueError, match="gaps"):
        await store.save_workflow(replace(started, message="x"), build.events("w", first), expect_version=1, fence=None)
    assert await store.get_workflow("w") == started
    assert len(await store.events_after("w", 0)) == 2


async def test_a_stale_version_is_refused(store: SqlStore, started: Workflow, build: Any) -> None:
    await store.save_workflow(started, [], expect_version=1, fence=None)
    with pytest.raises(ConflictError) as info:
        await store.save_workflow(started, build.events("w", 3), expect_version=1, fence=None)
    assert reason(info) is ErrorReason.ETAG_MISMATCH
    assert len(await store.events_after("w", 0)) == 2


async def test_a_workflow_that_has_ended_never_changes(store: SqlStore, started: Workflow, end: End) -> None:
    over = await store.save_workflow(*end(started), expect_version=1, fence=None)
    with pytest.raises(WrongStateError) as info:
        await store.save_workflow(replace(over, message="again"), [], expect_version=over.version, fence=None)
    assert reason(info) is ErrorReason.WORKFLOW_WRONG_STATE


async def test_one_active_workflow_a_fleet(store: SqlStore, started: Workflow, build: Any, end: End) -> None:
    with pytest.raises(WrongStateError) as info:
        await store.create_workflow(build.workflow("second"), build.events("second", 1))
    assert reason(info) is ErrorReason.WORKFLOW_ACTIVE_ON_FLEET
    assert info.value.metadata["workflow_id"] == "w"
    await store.create_workflow(build.workflow("elsewhere", "g"), build.events("elsewhere", 1))
    await store.save_workflow(*end(started), expect_version=1, fence=None)
    await store.create_workflow(build.workflow("second"), build.events("second", 1))


async def test_a_rollback_that_is_incomplete_keeps_its_claim(store: SqlStore, started: Workflow, build: Any) -> None:
    await store.save_workflow(replace(started, status=WorkflowStatus.ROLLBACK_INCOMPLETE), [], expect_version=1, fence=None)
    with pytest.raises(WrongStateError):
        await store.create_workflow(build.workflow("second"), build.events("second", 1))


async def test_the_same_request_starts_one_workflow(store: SqlStore, build: Any) -> None:
    first = await store.create_workflow(build.workflow("w1", request_id="r"), build.events("w1", 1))
    assert await store.create_workflow(build.workflow("w2", request_id="r"), build.events("w2", 1)) == first
    other = build.workflow("w3", "g", request_id="r")
    with pytest.raises(ConflictError) as info:
        await store.create_workflow(replace(other, request=replace(other.request, dry_run=True)), build.events("w3", 1))
    assert reason(info) is ErrorReason.REQUEST_ID_REUSED


async def test_workflows_are_listed_by_fleet_and_status(store: SqlStore, started: Workflow, build: Any, end: End) -> None:
    await store.create_workflow(build.workflow("other", "g"), build.events("other", 1))
    over = await store.save_workflow(*end(started), expect_version=1, fence=None)
    assert (await store.list_workflows(fleet_id="f")).items == (over,)
    assert (await store.list_workflows(statuses=[WorkflowStatus.COMPLETED, WorkflowStatus.FAILED])).items == (over,)
    assert len((await store.list_workflows()).items) == 2


# Leases


async def test_a_lease_is_exclusive_until_it_expires(store: SqlStore, started: Workflow, clock: Any) -> None:
    mine = await store.acquire_lease("a", 15.0)
    assert mine is not None
    assert await store.acquire_lease("b", 15.0) is None
    assert await store.acquire_lease("b", 15.0, workflow_id="w") is None
    clock.now += 14
    mine = await store.renew_lease(mine, 15.0)
    clock.now += 14
    assert await store.acquire_lease("b", 15.0) is None
    clock.now += 1
    theirs = await store.acquire_lease("b", 15.0)
    assert theirs is not None
    assert theirs.fence == mine.fence + 1
    with pytest.raises(ConflictError) as info:
        await store.renew_lease(mine, 15.0)
    assert reason(info) is ErrorReason.LEASE_LOST


async def test_a_write_under_an_old_fence_is_refused(store: SqlStore, started: Workflow, clock: Any, build: Any) -> None:
    mine = await store.acquire_lease("a", 15.0)
    assert mine is not None
    clock.now += 15
    theirs = await store.acquire_lease("b", 15.0)
    assert theirs is not None
    with pytest.raises(ConflictError) as info:
        await store.save_workflow(started, build.events("w", 3), expect_version=1, fence=mine.fence)
    assert reason(info) is ErrorReason.LEASE_LOST
    saved = await store.save_workflow(started, build.events("w", 3), expect_version=1, fence=theirs.fence)
    assert saved.fence == theirs.fence


async def test_the_holder_keeps_its_fence_and_a_released_lease_is_free(store: SqlStore, started: Workflow) -> None:
    mine = await store.acquire_lease("a", 15.0)
    assert mine is not None
    again = await store.acquire_lease("a", 15.0, workflow_id="w")
    assert again is not None
    assert again.fence == mine.fence
    await store.release_lease(mine)
    theirs = await store.acquire_lease("b", 15.0)
    assert theirs is not None
    assert theirs.fence > mine.fence
    await store.release_lease(mine)  # late, and without effect
    assert await store.acquire_lease("c", 15.0) is None


async def test_the_fence_grows_from_one_workflow_of_a_fleet_to_the_next(store: SqlStore, started: Workflow, build: Any, end: End) -> None:
    first = await store.acquire_lease("a", 15.0)
    assert first is not None
    await store.save_workflow(*end(started), expect_version=1, fence=first.fence)
    assert await store.acquire_lease("b", 15.0, workflow_id="w") is None, "there is nothing to do on a workflow that has ended"
    await store.create_workflow(build.workflow("next"), build.events("next", 1))
    second = await store.acquire_lease("a", 15.0)
    assert second is not None
    assert second.fence > first.fence


async def test_a_new_store_does_not_start_its_fences_below_an_old_one(store: SqlStore, started: Workflow, clock: Any) -> None:
    lease = await store.acquire_lease("a", 15.0)
    assert lease is not None
    assert lease.fence >= int(clock.now)


# Watching


async def test_a_watcher_is_woken_by_the_event(store: SqlStore, started: Workflow, build: Any) -> None:
    assert await store.wait_for_events("w", 1, 0.0)
    assert not await store.wait_for_events("w", 2, 0.01)
    waiting = asyncio.create_task(store.wait_for_events("w", 2, 30.0))
    await asyncio.sleep(0)
    begun = time.monotonic()
    await store.save_workflow(started, build.events("w", 3), expect_version=1, fence=None)
    assert await waiting
    assert time.monotonic() - begun < 5


# Requests, ledger, audit


async def test_a_request_is_remembered_with_its_body(store: SqlStore) -> None:
    assert await store.recall("CreateFleet", "r", "h") is None
    await store.remember("CreateFleet", "r", "h", b"\x00answer", at=5.0)
    await store.remember("CreateFleet", "r", "h", b"later", at=6.0)
    assert await store.recall("CreateFleet", "r", "h") == b"\x00answer"
    assert await store.recall("DeleteFleet", "r", "h") is None
    for call in (store.recall("CreateFleet", "r", "other"), store.remember("CreateFleet", "r", "other", b"", at=7.0)):
        with pytest.raises(ConflictError) as info:
            await call
        assert reason(info) is ErrorReason.REQUEST_ID_REUSED
    assert await store.prune_requests(before=5.5) == 1
    assert await store.recall("CreateFleet", "r", "h") is None


async def test_simultaneous_answers_to_one_request_keep_one(store: SqlStore) -> None:
    await asyncio.gather(*(store.remember("M", "r", "h", bytes([n]), at=1.0) for n in range(8)))
    assert await store.recall("M", "r", "h") is not None


async def test_the_ledger_by_engine_and_cause(store: SqlStore) -> None:
    entries = [
        LedgerEntry(f"w{n}", "p", engine, "0.11", (cause,), ("max_num_seqs",), (), False, float(n))
        for n, (engine, cause) in enumerate([("vllm", "batch_limit"), ("tgi", "overload"), ("vllm", "overload")])
    ]
    for entry in (*entries, replace(entries[0], harmful=True)):
        await store.add_ledger_entry(entry)
    assert [e.workflow_id for e in await store.ledger()] == ["w2", "w1", "w0"]
    assert [e.harmful for e in await store.ledger(engine="vllm", cause="batch_limit")] == [True]
    assert len(await store.ledger(limit=1)) == 1


async def test_the_audit_trail_newest_first(store: SqlStore) -> None:
    for number in range(3):
        await store.add_audit(AuditEntry(float(number), "alice", "M", f"r{number}", "", "OK"))
    first = await store.list_audit(page_size=2)
    rest = await store.list_audit(page_size=2, page_token=first.next_page_token)
    assert [e.resource for e in (*first.items, *rest.items)] == ["r2", "r1", "r0"]


async def test_a_closed_store_says_so(store: SqlStore) -> None:
    await store.close()
    await store.close()
    with pytest.raises(PerfServiceError, match="closed"):
        await store.list_fleets()
