"""Leases: which process may act on a workflow. Times are on the store's clock, so servers whose clocks differ still agree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from sqlalchemy import Connection, func, or_, select, update

from perf_service.models.errors import ConflictError, ErrorReason
from perf_service.storage.database import Database
from perf_service.storage.ports import Lease
from perf_service.storage.tables import workflows


class LeaseRepository:
    """See `ports.WorkflowStore`. `_lease_clock` None: PostgreSQL's own clock."""

    _db: Database
    _lease_clock: Callable[[], float] | None

    async def acquire_lease(self, owner: str, ttl_seconds: float, *, workflow_id: str | None = None) -> Lease | None:
        """Claim an active workflow whose lease is free or expired; the one that has waited longest, or the given one.

        The holder itself, asking for the given one in time, keeps its fence. Every other claim gets a higher fence than any that acted
        on the fleet before, and never one below the unix time: a target that remembers fences must not refuse a store made anew.
        """

        def work(connection: Connection) -> Lease | None:
            now = self._now(connection)
            query = select(workflows.c.workflow_id, workflows.c.fleet_key, workflows.c.lease_fence, workflows.c.lease_owner)
            query = query.where(workflows.c.active)
            takeable = or_(workflows.c.lease_owner.is_(None), workflows.c.lease_expires_at <= now)
            if workflow_id is None:
                query = query.where(takeable)
            else:
                query = query.where(workflows.c.workflow_id == workflow_id, or_(takeable, workflows.c.lease_owner == owner))
            # SKIP LOCKED: two servers that claim at once take different workflows instead of queueing for the same one.
            query = query.order_by(workflows.c.lease_expires_at, workflows.c.created_at).limit(1).with_for_update(skip_locked=True)
            row = connection.execute(query).first()
            if row is None:
                return None
            held = connection.scalar(select(workflows.c.workflow_id).where(workflows.c.workflow_id == row.workflow_id, ~takeable))
            fence = row.lease_fence if held else self._next_fence(connection, row.fleet_key, row.lease_fence, now)
            lease = Lease(row.workflow_id, owner, fence, now + ttl_seconds)
            connection.execute(
                update(workflows)
                .where(workflows.c.workflow_id == lease.workflow_id)
                .values(lease_owner=owner, lease_fence=fence, lease_expires_at=lease.expires_at)
            )
            return lease

        return await self._db.write(work)

    async def renew_lease(self, lease: Lease, ttl_seconds: float) -> Lease:
        """Extend; an expired lease that nobody took is extended too. Raises ConflictError LEASE_LOST where another owner has it."""

        def work(connection: Connection) -> Lease:
            renewed = replace(lease, expires_at=self._now(connection) + ttl_seconds)
            changed = connection.execute(
                update(workflows)
                .where(
                    workflows.c.workflow_id == lease.workflow_id,
                    workflows.c.lease_owner == lease.owner,
                    workflows.c.lease_fence == lease.fence,
                )
                .values(lease_expires_at=renewed.expires_at)
            ).rowcount
            if not changed:
                raise ConflictError(
                    ErrorReason.LEASE_LOST,
                    f"workflow {lease.workflow_id!r} is no longer leased to this process (fence {lease.fence}): it stops acting on it",
                    {"workflow_id": lease.workflow_id, "expected_fence": str(lease.fence)},
                )
            return renewed

        return await self._db.write(work)

    async def release_lease(self, lease: Lease) -> None:
        """Give the workflow free at once; nothing happens where the lease is lost already."""
        await self._db.write(
            lambda connection: connection.execute(
                update(workflows)
                .where(
                    workflows.c.workflow_id == lease.workflow_id,
                    workflows.c.lease_owner == lease.owner,
                    workflows.c.lease_fence == lease.fence,
                )
                .values(lease_owner=None, lease_expires_at=0.0)
            )
        )

    def _now(self, connection: Connection) -> float:
        if self._lease_clock is not None:
            return self._lease_clock()
        return float(connection.scalar(select(func.extract("epoch", func.clock_timestamp()))) or 0.0)

    @staticmethod
    def _next_fence(connection: Connection, fleet_key: str, present: int, now: float) -> int:
        if present:
            return present + 1
        earlier = connection.scalar(select(func.max(workflows.c.lease_fence)).where(workflows.c.fleet_key == fleet_key)) or 0
        return max(earlier + 1, int(now))
