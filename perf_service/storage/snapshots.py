"""Snapshots by time: kept in groups, read by range, thinned and forgotten with age."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final

from sqlalchemy import Connection, Double, Select, bindparam, case, delete, exists, func, select, update
from sqlalchemy.dialects import postgresql, sqlite

from perf_service.models.errors import ErrorReason, StoreError
from perf_service.models.metrics import Snapshot
from perf_service.storage.database import Database
from perf_service.storage.pages import fetch_rows, scope_of
from perf_service.storage.ports import Page
from perf_service.storage.snapshot_codec import Shape, SnapshotCodec, progress_of
from perf_service.storage.snapshot_ids import snapshot_id_of
from perf_service.storage.tables import instances, snapshot_shapes, snapshots
from perf_service.storage.thinning import Mark, surplus

_SHAPE_SLACK_SECONDS: Final = 86_400.0
"""A shape's `used_until` lies ahead of its last use by up to this, so that it is written once a day and not with each scrape."""
_DELETED_AT_ONCE: Final = 500
"""Rows of one transaction while tidying up: scrapes are waiting for their turn meanwhile."""
_NAMES_AT_ONCE: Final = 1000
_INSTANCES_AT_ONCE: Final = 100
_SLICE_INTERVALS: Final = 12
"""Intervals looked at in one go when thinning: bounds memory and the time a read transaction stays open."""

_UNREADABLE: Final = -1.0
"""Progress of a snapshot whose document is damaged. Thinning passes it over, and it goes with age as any other."""
_log = logging.getLogger(__name__)

_COLUMNS: Final = (snapshots.c.taken_at, snapshots.c.snapshot_id, snapshots.c.document)


def _insert(dialect: Any) -> Any:
    """A row, unless its id is there, or its instance at its `moment` (NULL: unknown): an earlier version gave the same moment random ids.

    Row by row within the insert, which a step in the index answers each; a query for a whole group would be a thousand pairs long.
    """
    columns = [column.name for column in snapshots.c]
    there = snapshots.alias().c
    is_there = exists().where(there.instance_id == bindparam("instance_id"), there.taken_at == bindparam("moment", type_=Double))
    row = select(*(bindparam(name, type_=snapshots.c[name].type) for name in columns)).where(~is_there)
    return dialect.insert(snapshots).from_select(columns, row).on_conflict_do_nothing(index_elements=["snapshot_id"])


_INSERTS: Final = {"sqlite": _insert(sqlite), "postgresql": _insert(postgresql)}


class SnapshotRepository:
    """See `ports.SnapshotStore`. What comes without an id gets one of its instance and time; without a time a random one."""

    _db: Database
    _clock: Callable[[], float]
    _new_id: Callable[[str], str]
    _codec: SnapshotCodec
    _stored_shapes: dict[str, float]  # key -> used_until, as far as this process knows

    async def add_snapshot(self, snapshot: Snapshot) -> Snapshot:
        """Store a scrape, or give what is stored of that instance and moment already. ValueError where a told id belongs to another one."""
        named = self._named(snapshot)

        def work(connection: Connection) -> tuple[dict[str, float], Snapshot]:
            shapes, added = self._add(connection, [named])
            if added:
                return shapes, named
            columns = snapshots.c
            found = self._first(connection, select(*_COLUMNS).where(columns.snapshot_id == named.snapshot_id))
            if found is None:
                moment = (columns.instance_id == named.instance_id, columns.taken_at == named.collected_at)
                return shapes, self._first(connection, select(*_COLUMNS).where(*moment)) or named
            if snapshot.snapshot_id and found != named:
                raise ValueError(f"snapshot_id {named.snapshot_id!r} is taken by another document, and stored documents never change")
            return shapes, found

        shapes, stored = await self._db.write(work)
        self._stored_shapes.update(shapes)
        return stored

    async def add_snapshots(self, group: Sequence[Snapshot]) -> int:
        """Store scrapes in one transaction, all or none; how many were new. One whose id or moment is there already is passed over."""
        named = [self._named(snapshot) for snapshot in group]
        if not named:
            return 0
        shapes, added = await self._db.write(lambda connection: self._add(connection, named))
        self._stored_shapes.update(shapes)
        return added

    async def latest_snapshot(self, instance_id: str) -> Snapshot | None:
        """The newest one by time, None where there is none."""
        query = _newest_first(select(*_COLUMNS).where(snapshots.c.instance_id == instance_id)).limit(1)
        return await self._db.read(lambda connection: self._first(connection, query))

    async def latest_times(self, instance_ids: Sequence[str]) -> Mapping[str, float]:
        """When each of these instances was last scraped, of those that are registered and ever were."""
        name = instances.c.instance_id
        # One step in the index for each, however much of its history there is.
        newest = select(func.max(snapshots.c.taken_at)).where(snapshots.c.instance_id == name).scalar_subquery()

        def work(connection: Connection) -> dict[str, float]:
            found: dict[str, float] = {}
            for index in range(0, len(instance_ids), _NAMES_AT_ONCE):
                rows = connection.execute(select(name, newest).where(name.in_(instance_ids[index : index + _NAMES_AT_ONCE])))
                found.update((row[0], row[1]) for row in rows if row[1] is not None)
            return found

        return await self._db.read(work)

    async def snapshot_at(self, instance_id: str, at: float) -> Snapshot | None:
        """The newest one taken at `at` or before; where there is none the oldest of all; None where there is none at all."""
        mine = select(*_COLUMNS).where(snapshots.c.instance_id == instance_id)
        before = _newest_first(mine.where(snapshots.c.taken_at <= at)).limit(1)
        oldest = mine.order_by(snapshots.c.taken_at, snapshots.c.snapshot_id).limit(1)
        return await self._db.read(lambda connection: self._first(connection, before) or self._first(connection, oldest))

    async def snapshots_between(self, instance_id: str, start: float, end: float, *, limit: int = 1000) -> Sequence[Snapshot]:
        """Oldest first, both ends included; where there are more than `limit`, the newest of them."""
        query = select(*_COLUMNS).where(snapshots.c.instance_id == instance_id, snapshots.c.taken_at >= start, snapshots.c.taken_at <= end)

        def work(connection: Connection) -> list[Snapshot]:
            rows = connection.execute(_newest_first(query).limit(limit)).all()
            return [self._read(connection, row) for row in reversed(rows)]

        return await self._db.read(work)

    async def snapshots_spread(
        self, instance_ids: Sequence[str], start: float, end: float, *, most: int
    ) -> Mapping[str, Sequence[Snapshot]]:
        """As `snapshots_between` of each, but of more than `most` (2 or more) so many: the first, the last, some evenly between.

        Only those are read and unpacked, of many instances in one transaction: a thousand small ones cost more than what they read.
        """
        found: dict[str, Sequence[Snapshot]] = {}
        for index in range(0, len(instance_ids), _INSTANCES_AT_ONCE):
            names = instance_ids[index : index + _INSTANCES_AT_ONCE]
            found |= await self._db.read(partial(self._spread, names=names, start=start, end=end, most=most))
        return found

    def _spread(self, connection: Connection, names: Sequence[str], start: float, end: float, most: int) -> dict[str, Sequence[Snapshot]]:
        columns = snapshots.c
        marks = (
            select(columns.instance_id, columns.snapshot_id)
            .where(columns.instance_id.in_(names), columns.taken_at >= start, columns.taken_at <= end)
            .order_by(columns.instance_id, columns.taken_at, columns.snapshot_id)
        )
        there: dict[str, list[str]] = {name: [] for name in names}
        for name, snapshot_id in connection.execute(marks):
            there[name].append(snapshot_id)
        chosen = {name: _evenly(ids, most) for name, ids in there.items()}
        wanted = [snapshot_id for ids in chosen.values() for snapshot_id in ids]
        read: dict[str, Snapshot] = {}
        for index in range(0, len(wanted), _NAMES_AT_ONCE):
            rows = select(*_COLUMNS).where(columns.snapshot_id.in_(wanted[index : index + _NAMES_AT_ONCE]))
            read.update((row.snapshot_id, self._read(connection, row)) for row in connection.execute(rows).all())
        return {name: [read[snapshot_id] for snapshot_id in ids if snapshot_id in read] for name, ids in chosen.items()}

    async def count_snapshots(self, instance_id: str, *, after: float, until: float) -> int:
        """How many were taken after one time and not after the other."""
        query = select(func.count()).where(
            snapshots.c.instance_id == instance_id, snapshots.c.taken_at > after, snapshots.c.taken_at <= until
        )
        return int(await self._db.read(partial(_scalar, query=query)) or 0)

    async def list_snapshots(
        self, instance_id: str, *, start: float | None = None, end: float | None = None, page_size: int = 50, page_token: str = ""
    ) -> Page[Snapshot]:
        """Newest first. Raises PAGE_TOKEN_INVALID."""
        where = [snapshots.c.instance_id == instance_id]
        if start is not None:
            where.append(snapshots.c.taken_at >= start)
        if end is not None:
            where.append(snapshots.c.taken_at <= end)

        def work(connection: Connection) -> Page[Snapshot]:
            rows, token = fetch_rows(
                connection,
                snapshots,
                snapshots.c.taken_at,
                snapshots.c.snapshot_id,
                scope=scope_of("snapshots", instance_id=instance_id, start=start, end=end),
                page_size=page_size,
                page_token=page_token,
                where=where,
            )
            return Page(tuple(self._read(connection, row) for row in rows), token)

        return await self._db.read(work)

    async def prune_snapshots(self, *, before: float) -> int:
        """Delete every snapshot older than `before`; the number of them."""
        old = select(snapshots.c.snapshot_id).where(snapshots.c.taken_at < before).limit(_DELETED_AT_ONCE)
        deleted = 0
        while names := await self._db.read(lambda connection: connection.scalars(old).all()):
            deleted += await self._delete(names)
        unused = delete(snapshot_shapes).where(snapshot_shapes.c.used_until < before)
        if await self._db.write(lambda connection: connection.execute(unused).rowcount):
            self._codec.forget()
            self._stored_shapes.clear()
        return deleted

    async def thin_snapshots(self, *, before: float, keep_every_seconds: float, after: float | None = None) -> int:
        """Of the snapshots between `after` and `before` delete what `thinning.surplus` names; the number deleted.

        Cumulative counters lose nothing by it but resolution: the difference over a longer interval is still exact, and so it is
        over restarts. In many small transactions; what one of them did stays done.
        """
        if not keep_every_seconds > 0:
            raise ValueError(f"keep_every_seconds must be positive, not {keep_every_seconds}")
        if after is None:
            after = await self._db.read(partial(_scalar, query=select(func.min(snapshots.c.taken_at))))
        deleted = 0
        while after is not None and after < before:
            end = min(before, after + _SLICE_INTERVALS * keep_every_seconds)
            await self._mark(after - keep_every_seconds, end + keep_every_seconds)
            spare = await self._db.read(partial(_surplus, after=after, before=end, keep_every_seconds=keep_every_seconds))
            for index in range(0, len(spare), _DELETED_AT_ONCE):
                deleted += await self._delete(spare[index : index + _DELETED_AT_ONCE])
            # On to the next slice that has anything in it.
            following = select(func.min(snapshots.c.taken_at)).where(snapshots.c.taken_at >= end)
            after = await self._db.read(partial(_scalar, query=following))
        return deleted

    async def _delete(self, names: Sequence[str]) -> int:
        return await self._db.write(
            lambda connection: connection.execute(delete(snapshots).where(snapshots.c.snapshot_id.in_(names))).rowcount
        )

    async def _mark(self, start: float, end: float) -> None:
        """Make the marks of snapshots that an earlier version has stored. One that cannot be read is marked as such, and told once."""
        unmarked = (
            select(*_COLUMNS)
            .where(snapshots.c.taken_at >= start, snapshots.c.taken_at < end, snapshots.c.progress.is_(None))
            .limit(_DELETED_AT_ONCE)
        )

        def work(connection: Connection) -> tuple[int, list[StoreError]]:
            rows, damaged = connection.execute(unmarked).all(), []
            for row in rows:
                marks: dict[str, float | None]
                try:
                    snapshot = self._read(connection, row)
                    marks = {"started_at": snapshot.process_start_time, "progress": progress_of(snapshot)}
                except StoreError as error:
                    if error.reason is not ErrorReason.INTERNAL:
                        raise
                    marks = {"progress": _UNREADABLE}
                    damaged.append(error)
                connection.execute(update(snapshots).where(snapshots.c.snapshot_id == row.snapshot_id).values(marks))
            return len(rows), damaged

        found, unreadable = -1, 0
        why = ""
        while found:
            found, damaged = await self._db.write(work)
            unreadable += len(damaged)
            why = why or (damaged[0].message if damaged else "")
        if unreadable:
            _log.warning("%d old snapshots cannot be read and are passed over when the history is thinned: %s", unreadable, why)

    def _named(self, snapshot: Snapshot) -> Snapshot:
        taken = snapshot.collected_at
        if taken is not None and not math.isfinite(taken):
            raise ValueError(f"collected_at must be finite or None, not {taken}")
        if snapshot.snapshot_id:
            return snapshot
        return replace(snapshot, snapshot_id=self._new_id("snap") if taken is None else snapshot_id_of(snapshot.instance_id, taken))

    def _add(self, connection: Connection, group: Iterable[Snapshot]) -> tuple[dict[str, float], int]:
        """Insert; returns the shapes that are stored once the transaction is, and the number of rows that were new."""
        rows, shapes, now = [], dict[str, tuple[Shape, float]](), self._clock()
        for snapshot in group:
            document, shape = self._codec.packed(snapshot)
            taken_at = now if snapshot.collected_at is None else snapshot.collected_at
            rows.append(
                {
                    "snapshot_id": snapshot.snapshot_id,
                    "instance_id": snapshot.instance_id,
                    "taken_at": taken_at,
                    "moment": snapshot.collected_at,
                    "document": document,
                    "started_at": snapshot.process_start_time,
                    "progress": progress_of(snapshot),
                }
            )
            # One that may have run out can have been deleted by another process meanwhile.
            if shape is not None and self._stored_shapes.get(shape.key, -math.inf) < max(taken_at, now):
                _, until = shapes.get(shape.key, (shape, -math.inf))
                shapes[shape.key] = (shape, max(until, taken_at + _SHAPE_SLACK_SECONDS, now + _SHAPE_SLACK_SECONDS))
        if shapes:
            _upsert_shapes(connection, shapes)
        added = connection.execute(_INSERTS[connection.dialect.name], rows, execution_options={"preserve_rowcount": True}).rowcount
        return {key: until for key, (_, until) in shapes.items()}, added

    def _first(self, connection: Connection, query: Select[Any]) -> Snapshot | None:
        row = connection.execute(query).first()
        return None if row is None else self._read(connection, row)

    def _read(self, connection: Connection, row: Any) -> Snapshot:
        _, snapshot_id, document = row

        def shape_document(key: str) -> bytes | None:
            return connection.scalar(select(snapshot_shapes.c.document).where(snapshot_shapes.c.shape_id == key))

        return self._codec.unpacked(document, snapshot_id, shape_document)


def _evenly(ids: Sequence[str], most: int) -> Sequence[str]:
    last = len(ids) - 1
    return ids if last < most else [ids[n * last // (most - 1)] for n in range(most)]


def _newest_first(query: Select[Any]) -> Select[Any]:
    return query.order_by(snapshots.c.taken_at.desc(), snapshots.c.snapshot_id.desc())


def _upsert_shapes(connection: Connection, shapes: Mapping[str, tuple[Shape, float]]) -> None:
    # In one order, so that two processes that store the same ones wait for each other instead of locking each other out.
    dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
    for key in sorted(shapes):
        shape, until = shapes[key]
        row = {"shape_id": key, "used_until": until, "document": shape.document}
        statement = dialect.insert(snapshot_shapes).values(row)
        known = snapshot_shapes.c.used_until
        later = case((known > statement.excluded.used_until, known), else_=statement.excluded.used_until)
        connection.execute(statement.on_conflict_do_update(index_elements=["shape_id"], set_={"used_until": later}))


def _scalar(connection: Connection, query: Select[Any]) -> float | None:
    found: float | None = connection.scalar(query)
    return found


def _surplus(connection: Connection, after: float, before: float, keep_every_seconds: float) -> list[str]:
    """Looks one interval beyond both ends: what stays of a row depends on its neighbours."""
    query = (
        select(*(snapshots.c[name] for name in Mark._fields))
        .where(snapshots.c.taken_at >= after - keep_every_seconds, snapshots.c.taken_at < before + keep_every_seconds)
        .where(snapshots.c.progress > _UNREADABLE)
        .order_by(snapshots.c.instance_id, snapshots.c.taken_at, snapshots.c.snapshot_id)
    )
    rows = connection.execution_options(yield_per=2000).execute(query)
    return list(surplus((Mark(*row) for row in rows), keep_every_seconds, before=before))
