"""Workflows with their events: state and history change in one transaction, so a reader never sees one without the other."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, insert, select, update

from perf_service.models.errors import ConflictError, ErrorReason, InvalidArgumentError, NotFoundError, WrongStateError
from perf_service.models.workflow import Event, Workflow, WorkflowStatus
from perf_service.storage.codec import from_json, pack, to_json, unpack
from perf_service.storage.database import Database
from perf_service.storage.listener import Listener, ring
from perf_service.storage.notifier import EventNotifier
from perf_service.storage.pages import fetch_page, scope_of
from perf_service.storage.ports import Page
from perf_service.storage.tables import workflow_events, workflows


class WorkflowRepository:
    """See `ports.WorkflowStore`; the leases are in leases.py."""

    _db: Database
    _clock: Callable[[], float]
    _notifier: EventNotifier
    _listener: Listener | None  # None where this process has the store to itself, or all processes poll

    async def create_workflow(self, workflow: Workflow, events: Sequence[Event]) -> Workflow:
        """Insert with its first events.

        The same request (by `request_id`) again returns the workflow that it created. Raises REQUEST_ID_REUSED where the id came with
        another request, WORKFLOW_ACTIVE_ON_FLEET (metadata `workflow_id`), ValueError for events that do not count 1, 2, 3, ...
        """
        last = check_gap_free(workflow.workflow_id, 0, events)
        key = workflow.fleet_id or workflow.instance_id or workflow.workflow_id
        stored = replace(workflow, version=1, last_sequence=last, created_at=workflow.created_at or self._clock())

        def work(connection: Connection) -> Workflow:
            # In this order: where the active workflow is seen, so is the request that started it.
            active = connection.scalar(select(workflows.c.workflow_id).where(workflows.c.fleet_key == key, workflows.c.active))
            earlier = self._by_request(connection, workflow)
            if earlier is not None:
                return earlier
            if active is not None:
                raise WrongStateError(
                    ErrorReason.WORKFLOW_ACTIVE_ON_FLEET,
                    f"{key!r} already has the active workflow {active!r}: wait for its end or abort it first",
                    {"workflow_id": active, "fleet_id": key},
                )
            connection.execute(
                insert(workflows).values(
                    workflow_id=stored.workflow_id,
                    fleet_key=key,
                    fleet_id=stored.fleet_id,
                    request_id=stored.request.request_id or None,
                    status=stored.status.value,
                    active=not stored.status.terminal,
                    version=1,
                    last_sequence=last,
                    created_at=stored.created_at,
                    lease_owner=None,
                    lease_fence=0,
                    lease_expires_at=0.0,
                    document=pack(stored),
                )
            )
            _insert_events(connection, events)
            if self._listener is not None:
                ring(connection, stored.workflow_id, last)
            return stored

        created = await self._db.write(work)
        self._notifier.publish(created.workflow_id, created.last_sequence)
        return created

    async def get_workflow(self, workflow_id: str) -> Workflow:
        """Raises NotFoundError WORKFLOW_NOT_FOUND."""
        return await self._db.read(lambda connection: unpack(Workflow, self._row(connection, workflow_id).document))

    async def list_workflows(
        self, *, fleet_id: str | None = None, statuses: Sequence[WorkflowStatus] = (), page_size: int = 50, page_token: str = ""
    ) -> Page[Workflow]:
        """Newest first. Raises PAGE_TOKEN_INVALID."""
        names = sorted({s.value for s in statuses})
        where = []
        if fleet_id is not None:
            where.append(workflows.c.fleet_id == fleet_id)
        if names:
            where.append(workflows.c.status.in_(names))
        return await self._db.read(
            lambda connection: fetch_page(
                connection,
                workflows,
                workflows.c.created_at,
                workflows.c.workflow_id,
                lambda document: unpack(Workflow, document),
                scope=scope_of("workflows", fleet_id=fleet_id, statuses=names),
                page_size=page_size,
                page_token=page_token,
                where=where,
            )
        )

    async def save_workflow(self, workflow: Workflow, events: Sequence[Event], *, expect_version: int, fence: int | None) -> Workflow:
        """State and its events in one transaction; returns the workflow with version + 1.

        Raises ETAG_MISMATCH on another version, LEASE_LOST where the lease has another fence, WORKFLOW_WRONG_STATE where the stored
        workflow is terminal (it never changes again), ValueError for events that do not continue the history without a gap.
        """

        def work(connection: Connection) -> Workflow:
            row = self._row(connection, workflow.workflow_id, lock=True)
            if fence is not None and row.lease_fence != fence:
                raise ConflictError(
                    ErrorReason.LEASE_LOST,
                    f"workflow {workflow.workflow_id!r} was taken over by another process (fence {row.lease_fence}, ours was {fence}): "
                    "this process stops acting on it",
                    {"workflow_id": workflow.workflow_id, "fence": str(row.lease_fence), "expected_fence": str(fence)},
                )
            if row.version != expect_version:
                raise ConflictError(
                    ErrorReason.ETAG_MISMATCH,
                    f"workflow {workflow.workflow_id!r} has changed meanwhile (version {row.version}, not {expect_version}): "
                    "read it again and decide on that",
                    {"workflow_id": workflow.workflow_id, "version": str(row.version), "expected_version": str(expect_version)},
                )
            if not row.active:
                raise WrongStateError(
                    ErrorReason.WORKFLOW_WRONG_STATE,
                    f"workflow {workflow.workflow_id!r} has ended ({row.status}) and never changes again",
                    {"workflow_id": workflow.workflow_id, "status": row.status},
                )
            last = check_gap_free(workflow.workflow_id, row.last_sequence, events)
            stored = replace(workflow, version=expect_version + 1, last_sequence=last, fence=workflow.fence if fence is None else fence)
            connection.execute(
                update(workflows)
                .where(workflows.c.workflow_id == workflow.workflow_id)
                .values(
                    status=stored.status.value,
                    active=not stored.status.terminal,
                    version=stored.version,
                    last_sequence=last,
                    document=pack(stored),
                )
            )
            _insert_events(connection, events)
            if self._listener is not None:
                ring(connection, stored.workflow_id, last)
            return stored

        saved = await self._db.write(work)
        self._notifier.publish(saved.workflow_id, saved.last_sequence)
        return saved

    async def events_after(self, workflow_id: str, after_sequence: int, *, limit: int = 500) -> Sequence[Event]:
        """Events in order with sequence > after_sequence. Raises WORKFLOW_NOT_FOUND, CURSOR_OUT_OF_RANGE."""
        query = (
            select(workflow_events.c.document)
            .where(workflow_events.c.workflow_id == workflow_id, workflow_events.c.sequence > after_sequence)
            .order_by(workflow_events.c.sequence)
            .limit(limit)
        )

        def work(connection: Connection) -> list[Event]:
            # Events first: they only grow, so the bound read afterwards is never below what was found.
            found = [from_json(Event, document) for document in connection.scalars(query)]
            if not found:
                last = self._row(connection, workflow_id).last_sequence
                if not 0 <= after_sequence <= last:
                    raise InvalidArgumentError(
                        f"workflow {workflow_id!r} has events 1 to {last}, so there is nothing after {after_sequence}: "
                        "read from 0, or from the last sequence you were sent",
                        field="after_sequence",
                        reason=ErrorReason.CURSOR_OUT_OF_RANGE,
                        metadata={"workflow_id": workflow_id, "after_sequence": str(after_sequence), "last_sequence": str(last)},
                    )
            return found

        if after_sequence < 0:
            raise InvalidArgumentError(
                f"after_sequence must not be negative, but is {after_sequence}",
                field="after_sequence",
                reason=ErrorReason.CURSOR_OUT_OF_RANGE,
            )
        return await self._db.read(work)

    async def wait_for_events(self, workflow_id: str, after_sequence: int, timeout_seconds: float) -> bool:
        """True once there are events with sequence > after_sequence, False when the time is over."""
        if self._listener is not None:
            self._listener.start()
        return await self._notifier.wait(workflow_id, after_sequence, timeout_seconds)

    async def _last_sequences(self, workflow_ids: Collection[str]) -> Mapping[str, int]:
        query = select(workflows.c.workflow_id, workflows.c.last_sequence).where(workflows.c.workflow_id.in_(workflow_ids))
        return await self._db.read(lambda connection: {row[0]: row[1] for row in connection.execute(query)})

    @staticmethod
    def _row(connection: Connection, workflow_id: str, *, lock: bool = False) -> Any:
        query = select(workflows).where(workflows.c.workflow_id == workflow_id)
        row = connection.execute(query.with_for_update() if lock else query).first()
        if row is None:
            raise NotFoundError(
                ErrorReason.WORKFLOW_NOT_FOUND,
                f"there is no workflow {workflow_id!r}; list the workflows for the ids there are",
                {"workflow_id": workflow_id},
            )
        return row

    @staticmethod
    def _by_request(connection: Connection, workflow: Workflow) -> Workflow | None:
        request_id = workflow.request.request_id
        document = connection.scalar(select(workflows.c.document).where(workflows.c.request_id == request_id)) if request_id else None
        if document is None:
            return None
        earlier = unpack(Workflow, document)
        if to_json(earlier.request) != to_json(workflow.request):
            raise ConflictError(
                ErrorReason.REQUEST_ID_REUSED,
                f"request_id {request_id!r} already started workflow {earlier.workflow_id!r} with another request: "
                "take a new id for a new request",
                {"request_id": request_id, "workflow_id": earlier.workflow_id},
            )
        return earlier


def check_gap_free(workflow_id: str, last_sequence: int, events: Sequence[Event]) -> int:
    """The sequence after these events. Raises ValueError where they do not continue `last_sequence` one by one."""
    for expected, event in enumerate(events, start=last_sequence + 1):
        if event.sequence != expected or event.workflow_id != workflow_id:
            raise ValueError(
                f"event {event.workflow_id}/{event.sequence} cannot follow {workflow_id}/{expected - 1}: sequences have no gaps"
            )
    return last_sequence + len(events)


def _insert_events(connection: Connection, events: Sequence[Event]) -> None:
    if events:
        connection.execute(
            insert(workflow_events),
            [
                {"workflow_id": e.workflow_id, "sequence": e.sequence, "at": e.at, "kind": e.kind.value, "document": to_json(e)}
                for e in events
            ],
        )
