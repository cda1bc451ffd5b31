"""Fleets and instances."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from sqlalchemy import Connection, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from perf_service.models.errors import ConflictError, ErrorReason, NotFoundError, WrongStateError
from perf_service.models.fleet import Fleet, Instance
from perf_service.storage.codec import from_json, to_json
from perf_service.storage.database import Database
from perf_service.storage.pages import fetch_page, scope_of
from perf_service.storage.ports import Page
from perf_service.storage.tables import fleets, instances, snapshots, workflows

N = TypeVar("N", Fleet, Instance)


def _stamped(noun: N, version: int, *, created_at: float, updated_at: float) -> N:
    """The noun as stored; its etag covers content and version, so that A -> B -> A is seen as two changes."""
    bare = replace(noun, etag="", created_at=created_at, updated_at=updated_at)
    return replace(bare, etag=hashlib.sha256(f"{version}\n{to_json(bare)}".encode()).hexdigest()[:32])


def fleet_not_found(fleet_id: str) -> NotFoundError:
    """For a person who mistyped an id."""
    return NotFoundError(
        ErrorReason.FLEET_NOT_FOUND, f"there is no fleet {fleet_id!r}; list the fleets for the ids there are", {"fleet_id": fleet_id}
    )


def instance_not_found(instance_id: str) -> NotFoundError:
    """For a person who mistyped an id."""
    return NotFoundError(
        ErrorReason.INSTANCE_NOT_FOUND,
        f"there is no instance {instance_id!r}; list the instances for the ids there are, or register it",
        {"instance_id": instance_id},
    )


def _etag_mismatch(kind: str, name: str, expected: str, found: str) -> ConflictError:
    return ConflictError(
        ErrorReason.ETAG_MISMATCH,
        f"{kind} {name!r} was changed by another request (etag {found}, not {expected}): read it again and repeat the change on that",
        {f"{kind}_id": name, "expected_etag": expected, "etag": found},
    )


def _refuse_if_claimed(connection: Connection, key: str, what: str) -> None:
    row = connection.execute(select(workflows.c.workflow_id).where(workflows.c.fleet_key == key, workflows.c.active)).first()
    if row is not None:
        raise WrongStateError(
            ErrorReason.WORKFLOW_ACTIVE_ON_FLEET,
            f"{what} {key!r} has the active workflow {row[0]!r}: wait for its end or abort it first",
            {"workflow_id": row[0]},
        )


class FleetRepository:
    """See `ports.FleetStore`. A creation without `created_at` takes the store's clock."""

    _db: Database
    _clock: Callable[[], float]

    async def create_fleet(self, fleet: Fleet) -> Fleet:
        """Raises ConflictError FLEET_ALREADY_EXISTS."""
        created = fleet.created_at or self._clock()
        stored = _stamped(fleet, 1, created_at=created, updated_at=fleet.updated_at or created)

        def work(connection: Connection) -> Fleet:
            connection.execute(
                insert(fleets).values(fleet_id=stored.fleet_id, version=1, etag=stored.etag, created_at=created, document=to_json(stored))
            )
            return stored

        try:
            return await self._db.write(work)
        except IntegrityError as error:
            raise ConflictError(
                ErrorReason.FLEET_ALREADY_EXISTS,
                f"there is already a fleet {fleet.fleet_id!r}: update that one, or take another id",
                {"fleet_id": fleet.fleet_id},
            ) from error

    async def get_fleet(self, fleet_id: str) -> Fleet:
        """Raises NotFoundError FLEET_NOT_FOUND."""
        return await self._db.read(lambda connection: from_json(Fleet, self._fleet_row(connection, fleet_id).document))

    async def update_fleet(self, fleet: Fleet, *, expect_etag: str = "") -> Fleet:
        """Replace a fleet. Raises FLEET_NOT_FOUND, ETAG_MISMATCH."""

        def work(connection: Connection) -> Fleet:
            row = self._fleet_row(connection, fleet.fleet_id, lock=True)
            if expect_etag and row.etag != expect_etag:
                raise _etag_mismatch("fleet", fleet.fleet_id, expect_etag, row.etag)
            stored = self._next(fleet, from_json(Fleet, row.document), row.version)
            connection.execute(
                update(fleets)
                .where(fleets.c.fleet_id == fleet.fleet_id)
                .values(version=row.version + 1, etag=stored.etag, document=to_json(stored))
            )
            return stored

        return await self._db.write(work)

    async def delete_fleet(self, fleet_id: str) -> None:
        """Raises FLEET_NOT_FOUND, FLEET_NOT_EMPTY, WORKFLOW_ACTIVE_ON_FLEET. History (analyses, plans, workflows) stays."""

        def work(connection: Connection) -> None:
            self._fleet_row(connection, fleet_id, lock=True)
            _refuse_if_claimed(connection, fleet_id, "fleet")
            members = connection.scalars(
                select(instances.c.instance_id).where(instances.c.fleet_id == fleet_id).order_by(instances.c.instance_id).limit(4)
            ).all()
            if members:
                names = ", ".join(members[:3]) + (", ..." if len(members) > 3 else "")
                raise WrongStateError(
                    ErrorReason.FLEET_NOT_EMPTY,
                    f"fleet {fleet_id!r} still has instances ({names}): deregister or move them first",
                    {"fleet_id": fleet_id, "instance_ids": names},
                )
            connection.execute(delete(fleets).where(fleets.c.fleet_id == fleet_id))

        await self._db.write(work)

    async def list_fleets(self, *, page_size: int = 50, page_token: str = "") -> Page[Fleet]:
        """Newest first. Raises PAGE_TOKEN_INVALID."""
        return await self._db.read(
            lambda connection: fetch_page(
                connection,
                fleets,
                fleets.c.created_at,
                fleets.c.fleet_id,
                lambda document: from_json(Fleet, document),
                scope=scope_of("fleets"),
                page_size=page_size,
                page_token=page_token,
            )
        )

    async def create_instance(self, instance: Instance) -> Instance:
        """Raises INSTANCE_ALREADY_EXISTS, and FLEET_NOT_FOUND where it names a fleet that is not there."""
        created = instance.created_at or self._clock()
        stored = _stamped(instance, 1, created_at=created, updated_at=instance.updated_at or created)

        def work(connection: Connection) -> Instance:
            if instance.fleet_id:
                self._fleet_row(connection, instance.fleet_id, lock=True)
            connection.execute(
                insert(instances).values(
                    instance_id=stored.instance_id,
                    fleet_id=stored.fleet_id or None,
                    version=1,
                    etag=stored.etag,
                    created_at=created,
                    document=to_json(stored),
                )
            )
            return stored

        try:
            return await self._db.write(work)
        except IntegrityError as error:
            raise ConflictError(
                ErrorReason.INSTANCE_ALREADY_EXISTS,
                f"there is already an instance {instance.instance_id!r}: update that one, or take another id",
                {"instance_id": instance.instance_id},
            ) from error

    async def get_instance(self, instance_id: str) -> Instance:
        """Raises NotFoundError INSTANCE_NOT_FOUND."""
        return await self._db.read(lambda connection: from_json(Instance, self._instance_row(connection, instance_id).document))

    async def update_instance(self, instance: Instance, *, expect_etag: str = "") -> Instance:
        """Replace an instance. Raises INSTANCE_NOT_FOUND, FLEET_NOT_FOUND, ETAG_MISMATCH."""

        def work(connection: Connection) -> Instance:
            row = self._instance_row(connection, instance.instance_id, lock=True)
            if expect_etag and row.etag != expect_etag:
                raise _etag_mismatch("instance", instance.instance_id, expect_etag, row.etag)
            if instance.fleet_id:
                self._fleet_row(connection, instance.fleet_id, lock=True)
            stored = self._next(instance, from_json(Instance, row.document), row.version)
            connection.execute(
                update(instances)
                .where(instances.c.instance_id == instance.instance_id)
                .values(fleet_id=stored.fleet_id or None, version=row.version + 1, etag=stored.etag, document=to_json(stored))
            )
            return stored

        return await self._db.write(work)

    async def delete_instance(self, instance_id: str) -> None:
        """Delete an instance with its snapshots: a later server of that id has nothing to do with them. Raises INSTANCE_NOT_FOUND."""

        def work(connection: Connection) -> None:
            self._instance_row(connection, instance_id, lock=True)
            _refuse_if_claimed(connection, instance_id, "instance")
            connection.execute(delete(snapshots).where(snapshots.c.instance_id == instance_id))
            connection.execute(delete(instances).where(instances.c.instance_id == instance_id))

        await self._db.write(work)

    async def list_instances(self, *, fleet_id: str | None = None, page_size: int = 50, page_token: str = "") -> Page[Instance]:
        """Newest first; `fleet_id` "" lists the instances without a fleet. Raises PAGE_TOKEN_INVALID."""
        where = [] if fleet_id is None else [instances.c.fleet_id == fleet_id if fleet_id else instances.c.fleet_id.is_(None)]
        return await self._db.read(
            lambda connection: fetch_page(
                connection,
                instances,
                instances.c.created_at,
                instances.c.instance_id,
                lambda document: from_json(Instance, document),
                scope=scope_of("instances", fleet_id=fleet_id),
                page_size=page_size,
                page_token=page_token,
                where=where,
            )
        )

    def _next(self, noun: N, previous: N, version: int) -> N:
        updated = noun.updated_at if noun.updated_at > previous.updated_at else max(self._clock(), previous.updated_at)
        return _stamped(noun, version + 1, created_at=previous.created_at, updated_at=updated)

    @staticmethod
    def _fleet_row(connection: Connection, fleet_id: str, *, lock: bool = False) -> Any:
        query = select(fleets).where(fleets.c.fleet_id == fleet_id)
        row = connection.execute(query.with_for_update() if lock else query).first()
        if row is None:
            raise fleet_not_found(fleet_id)
        return row

    @staticmethod
    def _instance_row(connection: Connection, instance_id: str, *, lock: bool = False) -> Any:
        query = select(instances).where(instances.c.instance_id == instance_id)
        row = connection.execute(query.with_for_update() if lock else query).first()
        if row is None:
            raise instance_not_found(instance_id)
        return row
