"""The immutable results made from snapshots: analyses and plans."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from sqlalchemy import Connection, Table, insert, select

from perf_service.models.analysis import Analysis
from perf_service.models.errors import ErrorReason, NotFoundError
from perf_service.models.plan import Plan
from perf_service.storage.codec import pack, unpack
from perf_service.storage.database import Database
from perf_service.storage.pages import fetch_page, scope_of
from perf_service.storage.ports import Page
from perf_service.storage.tables import analyses, plans

N = TypeVar("N", Analysis, Plan)


class DocumentRepository:
    """See `ports.AnalysisStore`. What comes without an id or a time gets one from the store."""

    _db: Database
    _clock: Callable[[], float]
    _new_id: Callable[[str], str]

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


D = TypeVar("D", Analysis, Plan)


def _add(connection: Connection, table: Table, key: str, name: str, noun: D, row: dict[str, Any]) -> D:
    """Insert unless it is there already; an id that names something else is a bug of the caller."""
    document = pack(noun)
    found = connection.scalar(select(table.c.document).where(table.c[key] == name))
    if found is None:
        connection.execute(insert(table).values({key: name, "document": document, **row}))
    elif found != document:
        raise ValueError(f"{key} {name!r} is taken by another document, and stored documents never change")
    return noun
