"""Fleets, instances and their listings, alike in every store."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from perf_service.models.errors import ConflictError, ErrorReason, InvalidArgumentError, NotFoundError, PerfServiceError, WrongStateError
from perf_service.models.workflow import Event, Workflow
from perf_service.storage import SqlStore

End = Callable[[Workflow], tuple[Workflow, list[Event]]]


async def test_a_fleet_comes_back_as_it_was(store: SqlStore, build: Any) -> None:
    created = await store.create_fleet(build.fleet(labels={"team": "a"}, model_name="m"))
    assert created.created_at == 1000.0
    assert created.etag
    assert await store.get_fleet("f") == created


async def test_creating_an_existing_id_is_refused(store: SqlStore, build: Any) -> None:
    await store.create_fleet(build.fleet())
    with pytest.raises(ConflictError) as fleet:
        await store.create_fleet(build.fleet())
    assert fleet.value.reason is ErrorReason.FLEET_ALREADY_EXISTS
    await store.create_instance(build.instance())
    with pytest.raises(ConflictError) as instance:
        await store.create_instance(build.instance())
    assert instance.value.reason is ErrorReason.INSTANCE_ALREADY_EXISTS


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
        assert info.value.reason is expected


async def test_an_update_needs_the_present_etag(store: SqlStore, build: Any, clock: Any) -> None:
    first = await store.create_instance(build.instance())
    clock.now += 5
    second = await store.update_instance(replace(first, model_name="m"), expect_etag=first.etag)
    assert second.etag != first.etag
    assert (second.created_at, second.updated_at) == (1000.0, 1005.0)
    with pytest.raises(ConflictError) as info:
        await store.update_instance(replace(first, model_name="n"), expect_etag=first.etag)
    assert info.value.reason is ErrorReason.ETAG_MISMATCH
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
    assert info.value.reason is ErrorReason.WORKFLOW_ACTIVE_ON_FLEET
    assert info.value.metadata["workflow_id"] == "w"
    await store.save_workflow(*end(workflow), expect_version=1, fence=None)
    await store.delete_fleet("f")


async def test_instances_are_listed_by_fleet(store: SqlStore, build: Any) -> None:
    await store.create_fleet(build.fleet())
    await store.create_instance(build.instance("a", fleet_id="f"))
    await store.create_instance(build.instance("b"))
    ids = [[i.instance_id for i in (await store.list_instances(fleet_id=which)).items] for which in (None, "f", "")]
    assert ids == [["b", "a"], ["a"], ["b"]]


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
        assert info.value.reason is ErrorReason.PAGE_TOKEN_INVALID
    with pytest.raises(InvalidArgumentError, match="page_size"):
        await store.list_fleets(page_size=0)


async def test_a_closed_store_says_so(store: SqlStore) -> None:
    await store.close()
    await store.close()
    with pytest.raises(PerfServiceError, match="closed"):
        await store.list_fleets()
