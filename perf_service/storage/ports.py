"""What the floors above need of a store, as small Protocols. The same tests run against every implementation.

All methods are coroutines; every mutation is one transaction. Times are unix seconds and passed in, except leases, which use the
store's own clock so that servers with different clocks agree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from perf_service.models.analysis import Analysis
from perf_service.models.fleet import Fleet, Instance
from perf_service.models.metrics import Snapshot
from perf_service.models.plan import Plan
from perf_service.models.workflow import Event, RealisedEffect, Workflow, WorkflowStatus

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """One page of a listing, newest first unless said otherwise. `next_page_token` is empty on the last page."""

    items: tuple[T, ...]
    next_page_token: str = ""


@dataclass(frozen=True, slots=True)
class Lease:
    """The right of one process (`owner`, unique per process start) to act on one workflow. `fence` grows at every takeover."""

    workflow_id: str
    owner: str
    fence: int
    expires_at: float  # on the store's clock


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """Predicted against realised effect of one finished rollout."""

    workflow_id: str
    plan_id: str
    engine: str
    engine_version: str
    causes: tuple[str, ...]
    parameters: tuple[str, ...]
    effects: tuple[RealisedEffect, ...]
    harmful: bool
    finished_at: float


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """Who did what, when, with which result."""

    at: float
    principal: str
    method: str
    resource: str
    request_id: str
    result: str  # "OK" or an ErrorReason
    detail: str = ""


class FleetStore(Protocol):
    """Fleets and instances. An `expect_etag` that no longer holds raises ETAG_MISMATCH; creating an existing id *_ALREADY_EXISTS."""

    async def create_fleet(self, fleet: Fleet) -> Fleet: ...
    async def get_fleet(self, fleet_id: str) -> Fleet: ...
    async def update_fleet(self, fleet: Fleet, *, expect_etag: str = "") -> Fleet: ...
    async def delete_fleet(self, fleet_id: str) -> None: ...
    async def list_fleets(self, *, page_size: int = 50, page_token: str = "") -> Page[Fleet]: ...
    async def create_instance(self, instance: Instance) -> Instance: ...
    async def get_instance(self, instance_id: str) -> Instance: ...
    async def update_instance(self, instance: Instance, *, expect_etag: str = "") -> Instance: ...
    async def delete_instance(self, instance_id: str) -> None: ...
    async def list_instances(self, *, fleet_id: str | None = None, page_size: int = 50, page_token: str = "") -> Page[Instance]: ...


class SnapshotStore(Protocol):
    """Scrapes by time. A moment of an instance is stored once: who adds it again gets what is there."""

    async def add_snapshot(self, snapshot: Snapshot) -> Snapshot: ...
    async def add_snapshots(self, group: Sequence[Snapshot]) -> int: ...  # one transaction; how many were new
    async def latest_snapshot(self, instance_id: str) -> Snapshot | None: ...
    async def latest_times(self, instance_ids: Sequence[str]) -> Mapping[str, float]: ...  # of those that were ever scraped
    async def snapshot_at(self, instance_id: str, at: float) -> Snapshot | None:
        """The newest taken at `at` or before, else the oldest there is: two of them make the window of any length, thinned or not."""
        ...

    async def snapshots_between(
        self, instance_id: str, start: float, end: float, *, limit: int = 1000
    ) -> Sequence[Snapshot]: ...  # oldest first
    async def snapshots_spread(
        self, instance_ids: Sequence[str], start: float, end: float, *, most: int
    ) -> Mapping[str, Sequence[Snapshot]]: ...  # of each oldest first, of more than `most` so many, evenly spaced
    async def count_snapshots(self, instance_id: str, *, after: float, until: float) -> int: ...
    async def list_snapshots(
        self, instance_id: str, *, start: float | None = None, end: float | None = None, page_size: int = 50, page_token: str = ""
    ) -> Page[Snapshot]: ...
    async def prune_snapshots(self, *, before: float) -> int: ...  # number deleted
    async def thin_snapshots(
        self, *, before: float, keep_every_seconds: float, after: float | None = None
    ) -> int: ...  # downsampling; number deleted


class AnalysisStore(Protocol):
    """Analyses and plans (immutable once added)."""

    async def add_analysis(self, analysis: Analysis) -> Analysis: ...
    async def get_analysis(self, analysis_id: str) -> Analysis: ...
    async def list_analyses(
        self, *, instance_id: str | None = None, fleet_id: str | None = None, page_size: int = 50, page_token: str = ""
    ) -> Page[Analysis]: ...
    async def add_plan(self, plan: Plan) -> Plan: ...
    async def get_plan(self, plan_id: str) -> Plan: ...
    async def list_plans(
        self, *, instance_id: str | None = None, fleet_id: str | None = None, page_size: int = 50, page_token: str = ""
    ) -> Page[Plan]: ...


class WorkflowStore(Protocol):
    """Workflows, their events, commands and leases: what makes a rollout durable."""

    async def create_workflow(self, workflow: Workflow, events: Sequence[Event]) -> Workflow:
        """Insert with its first events. WORKFLOW_ACTIVE_ON_FLEET (metadata `workflow_id`) if the fleet has one that is not terminal.

        Idempotent by `request.request_id`, where it has one: the same request again returns the workflow as it is now (maybe under
        another id than the given one); REQUEST_ID_REUSED for another request.
        """
        ...

    async def get_workflow(self, workflow_id: str) -> Workflow: ...
    async def list_workflows(
        self,
        *,
        fleet_id: str | None = None,
        statuses: Sequence[WorkflowStatus] = (),
        page_size: int = 50,
        page_token: str = "",
    ) -> Page[Workflow]: ...

    async def save_workflow(self, workflow: Workflow, events: Sequence[Event], *, expect_version: int, fence: int | None) -> Workflow:
        """State and its events in one transaction: `WHERE version = expect_version` and, with a fence, the lease still being ours.

        Returns the workflow with version + 1. ConflictError ETAG_MISMATCH on another version; LEASE_LOST on another fence.
        Event sequences must continue `last_sequence` without a gap, else ValueError. A terminal workflow never changes again:
        WORKFLOW_WRONG_STATE.
        """
        ...

    async def events_after(self, workflow_id: str, after_sequence: int, *, limit: int = 500) -> Sequence[Event]:
        """Events in order with sequence > after_sequence. CURSOR_OUT_OF_RANGE if it lies beyond the last one."""
        ...

    async def wait_for_events(self, workflow_id: str, after_sequence: int, timeout_seconds: float) -> bool:
        """True once there are events with sequence > after_sequence (at once if there are already), False when the time is over."""
        ...

    async def acquire_lease(self, owner: str, ttl_seconds: float, *, workflow_id: str | None = None) -> Lease | None:
        """Claim one active workflow whose lease is free or expired (fence + 1), or a given one. None where there is nothing to claim."""
        ...

    async def renew_lease(self, lease: Lease, ttl_seconds: float) -> Lease:
        """LEASE_LOST where another owner has it."""
        ...

    async def release_lease(self, lease: Lease) -> None: ...


class RequestLog(Protocol):
    """Idempotency of mutations."""

    async def remember(self, method: str, request_id: str, body_hash: str, response: bytes, *, at: float) -> None: ...
    async def recall(self, method: str, request_id: str, body_hash: str) -> bytes | None:
        """The earlier response; None for a new id; REQUEST_ID_REUSED if the id came with another body."""
        ...

    async def prune_requests(self, *, before: float) -> int: ...  # number deleted


class LedgerStore(Protocol):
    """Predicted against realised, and the audit trail."""

    async def add_ledger_entry(self, entry: LedgerEntry) -> None: ...
    async def ledger(self, *, engine: str | None = None, cause: str | None = None, limit: int = 1000) -> Sequence[LedgerEntry]: ...
    async def add_audit(self, entry: AuditEntry) -> None: ...
    async def list_audit(self, *, page_size: int = 50, page_token: str = "") -> Page[AuditEntry]: ...


class Store(FleetStore, SnapshotStore, AnalysisStore, WorkflowStore, RequestLog, LedgerStore, Protocol):
    """Everything, as app.py wires it."""

    async def close(self) -> None: ...
