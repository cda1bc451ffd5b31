"""Snapshots by time, and the immutable results made from them: analyses and plans."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from sqlalchemy import Connection, Table, delete, insert, select

from perf_service.models.analysis import Analysis
from perf_service.models.errors import ErrorReason, NotFoundError
from perf_service.models.metrics import Snapshot
from perf_service.models.plan import Plan
from perf_service.storage.codec import pack, unpack
from perf_service.storage.database import Database
from perf_service.storage.pages import fetch_page, scope_of
from perf_service.storage.ports import Page
from perf_service.storage.tables import analyses, plans, snapshots

N = TypeVar("N", Analysis, Plan)


class DocumentRepository:
    """See `ports.SnapshotStore` and `ports.AnalysisStore`. What comes without an id or a time gets one from the store."""

    _db: Database
    _clock: Callable[[], float]
    _new_id: Callable[[str], str]

    async def add_snapshot(self, snapshot: Snapshot) -> Snapshot:
        """Store a scrape; adding the same one again changes nothing. ValueError where its id belongs to another one."""
        stored = snapshot if snapshot.snapshot_id else replace(snapshot, snapshot_id=self._new_id("snap"))
        taken_at = self._clock() if stored.collected_at is None else stored.collected_at
        if not math.isfinite(taken_at):
            raise ValueError(f"collected_at must be finite or None, not {taken_at}")
        row = {"instance_id": stored.instance_id, "taken_at": taken_at}
        return await self._db.write(lambda connection: _add(connection, snapshots, "snapshot_id", stored.snapshot_id, stored, row))

    async def latest_snapshot(self, instance_id: str) -> Snapshot | None:
        """The newest one by time, None where there is none."""
        query = (
            select(snapshots.c.document)
            .where(snapshots.c.instance_id == instance_id)
            .order_by(snapshots.c.taken_at.desc(), snapshots.c.snapshot_id.desc())
            .limit(1)
        )
        document = await self._db.read(lambda connection: connection.scalar(query))
        return None if document is None else unpack(Snapshot, document)

    async def snapshot_at(self, instance_id: str, at: float) -> Snapshot | None:
        """The newest one taken at `at` or before; where there is none the oldest of all; None where there is none at all."""
        mine = select(snapshots.c.document).where(snapshots.c.instance_id == instance_id)
        before = mine.where(snapshots.c.taken_at <= at).order_by(snapshots.c.taken_at.desc(), snapshots.c.snapshot_id.desc()).limit(1)
        oldest = mine.order_by(snapshots.c.taken_at, snapshots.c.snapshot_id).limit(1)
        document = await self._db.read(lambda connection: connection.scalar(before) or connection.scalar(oldest))
        return None if document is None else unpack(Snapshot, document)

    async def snapshots_between(self, instance_id: str, start: float, end: float, *, limit: int = 1000) -> Sequence[Snapshot]:
        """Oldest first, both ends included; where there are more than `limit`, the newest of them."""
        query = (
            select(snapshots.c.document)
            .where(snapshots.c.instance_id == instance_id, snapshots.c.taken_at >= start, snapshots.c.taken_at <= end)
            .order_by(snapshots.c.taken_at.desc(), snapshots.c.snapshot_id.desc())
            .limit(limit)
        )
        return await self._db.read(lambda connection: [unpack(Snapshot, d) for d in reversed(connection.scalars(query).all())])

    async def list_snapshots(
        self, instance_id: str, *, start: float | None = None, end: float | None = None, page_size: int = 50, page_token: str = ""
    ) -> Page[Snapshot]:
        """Newest first. Raises PAGE_TOKEN_INVALID."""
        where = [snapshots.c.instance_id == instance_id]
        if start is not None:
            where.append(snapshots.c.taken_at >= start)
        if end is not None:
            where.append(snapshots.c.taken_at <= end)
        return await self._db.read(
            lambda connection: fetch_page(
                connection,
                snapshots,
                snapshots.c.taken_at,
                snapshots.c.snapshot_id,
                lambda document: unpack(Snapshot, document),
                scope=scope_of("snapshots", instance_id=instance_id, start=start, end=end),
                page_size=page_size,
                page_token=page_token,
                where=where,
            )
        )

    async def prune_snapshots(self, *, before: float) -> int:
        """Delete every snapshot older than `before`; the number of them."""
        return await self._db.write(lambda connection: connection.execute(delete(snapshots).where(snapshots.c.taken_at < before)).rowcount)

    async def thin_snapshots(self, *, before: float, keep_every_seconds: float) -> int:
        """Of the snapshots older than `before` keep the first of each instance per interval of this length; the number deleted.

        Cumulative counters lose nothing by it but resolution: the difference over a longer interval is still exact.
        """
        if keep_every_seconds <= 0:
            raise ValueError(f"keep_every_seconds must be positive, not {keep_every_seconds}")
        query = (
            select(snapshots.c.snapshot_id, snapshots.c.instance_id, snapshots.c.taken_at)
            .where(snapshots.c.taken_at < before)
            .order_by(snapshots.c.instance_id, snapshots.c.taken_at, snapshots.c.snapshot_id)
        )

        def work(connection: Connection) -> int:
            kept: tuple[str, float] | None = None
            surplus = []
            for snapshot_id, instance_id, taken_at in connection.execute(query):
                slot = (instance_id, taken_at // keep_every_seconds)
                if slot == kept:
                    surplus.append(snapshot_id)
                kept = slot
            for index in range(0, len(surplus), 500):
                connection.execute(delete(snapshots).where(snapshots.c.snapshot_id.in_(surplus[index : index + 500])))
            return len(surplus)

        return await self._db.write(work)

    async def add_analysis(self, analysis: Analysis) -> Analysis:
        """Store an analysis for good."""
        stored = replace(
            analysis, analysis_id=analysis.analysis_id or self._new_id("analysis"), created_at=analysis.created_at or self._clock()
        )
        row = {"instance_id": stored.instance_id, "fleet_id": stored.fleet_id, "created_at": stored.created_at}
        return await self._db.write(lambda connection: _add(connection, analyses, "analysis_id", stored.analysis_id, stored, row))

    async def get_analysis(self, analysis_id: str) -> Analysis:
        """Raises NotFoundError ANALYSIS_NOT_FOUND."""
        query = select(analyses.c.document).where(analyses.c.analysis_id == analysis_id)
        document = await self._db.read(lambda connection: connection.scalar(query))
        if document is None:
            raise NotFoundError(
                ErrorReason.ANALYSIS_NOT_FOUND,
                f"there is no analysis {analysis_id!r}; list the analyses, or run a new one",
                {"analysis_id": analysis_id},
            )
        return unpack(Analysis, document)

    async def list_analyses(
        self, *, instance_id: str | None = None, fleet_id: str | None = None, page_size: int = 50, page_token: str = ""
    ) -> Page[Analysis]:
        """Newest first. Raises PAGE_TOKEN_INVALID."""
        return await self._list(analyses, "analysis_id", Analysis, instance_id, fleet_id, page_size, page_token)

    async def add_plan(self, plan: Plan) -> Plan:
        """Store a plan for good."""
        stored = replace(plan, plan_id=plan.plan_id or self._new_id("plan"), created_at=plan.created_at or self._clock())
        row = {"instance_id": stored.instance_id, "fleet_id": stored.fleet_id, "created_at": stored.created_at}
        return await self._db.write(lambda connection: _add(connection, plans, "plan_id", stored.plan_id, stored, row))

    async def get_plan(self, plan_id: str) -> Plan:
        """Raises NotFoundError PLAN_NOT_FOUND."""
        document = await self._db.read(lambda connection: connection.scalar(select(plans.c.document).where(plans.c.plan_id == plan_id)))
        if document is None:
            raise NotFoundError(
                ErrorReason.PLAN_NOT_FOUND, f"there is no plan {plan_id!r}; list the plans, or create a new one", {"plan_id": plan_id}
            )
        return unpack(Plan, document)

    async def list_plans(
        self, *, instance_id: str | None = None, fleet_id: str | None = None, page_size: int = 50, page_token: str = ""
    ) -> Page[Plan]:
        """Newest first. Raises PAGE_TOKEN_INVALID."""
        return await self._list(plans, "plan_id", Plan, instance_id, fleet_id, page_size, page_token)

    async def _list(
        self, table: Table, key: str, cls: type[N], instance_id: str | None, fleet_id: str | None, page_size: int, page_token: str
    ) -> Page[N]:
        where = []
        if instance_id is not None:
            where.append(table.c.instance_id == instance_id)
        if fleet_id is not None:
            where.append(table.c.fleet_id == fleet_id)
        return await self._db.read(
            lambda connection: fetch_page(
                connection,
                table,
                table.c.created_at,
                table.c[key],
                lambda document: unpack(cls, document),
                scope=scope_of(table.name, instance_id=instance_id, fleet_id=fleet_id),
                page_size=page_size,
                page_token=page_token,
                where=where,
            )
        )


D = TypeVar("D", Snapshot, Analysis, Plan)


def _add(connection: Connection, table: Table, key: str, name: str, noun: D, row: dict[str, Any]) -> D:
    """Insert unless it is there already; an id that names something else is a bug of the caller."""
    document = pack(noun)
    found = connection.scalar(select(table.c.document).where(table.c[key] == name))
    if found is None:
        connection.execute(insert(table).values({key: name, "document": document, **row}))
    elif found != document:
        raise ValueError(f"{key} {name!r} is taken by another document, and stored documents never change")
    return noun
