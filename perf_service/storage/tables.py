"""The tables, as SQLAlchemy Core: what is searched is a column, the rest of a noun is its document (see codec.py).

`REVISIONS` lists every Alembic revision of this version, oldest first; a store at any other revision is from a newer version.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    text,
)

REVISIONS: Final[tuple[str, ...]] = ("0001", "0002")

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

Id = String(255)

fleets = Table(
    "fleets",
    metadata,
    Column("fleet_id", Id, primary_key=True),
    Column("version", Integer, nullable=False),
    Column("etag", String(64), nullable=False),
    Column("created_at", Double, nullable=False),
    Column("document", Text, nullable=False),
    Index("ix_fleets_created_at_fleet_id", "created_at", "fleet_id"),
)

instances = Table(
    "instances",
    metadata,
    Column("instance_id", Id, primary_key=True),
    Column("fleet_id", Id, ForeignKey("fleets.fleet_id", name="fk_instances_fleet_id"), nullable=True),
    Column("version", Integer, nullable=False),
    Column("etag", String(64), nullable=False),
    Column("created_at", Double, nullable=False),
    Column("document", Text, nullable=False),
    Index("ix_instances_created_at_instance_id", "created_at", "instance_id"),
    Index("ix_instances_fleet_id", "fleet_id", "created_at", "instance_id"),
)

# No foreign key to instances: a page may be imported for a server that is not registered.
snapshots = Table(
    "snapshots",
    metadata,
    Column("snapshot_id", Id, primary_key=True),
    Column("instance_id", Id, nullable=False),
    Column("taken_at", Double, nullable=False),  # collected_at, or the time of storing where that is unknown
    Column("document", LargeBinary, nullable=False),
    Column("started_at", Double, nullable=True),  # of the engine's process, where its page tells
    Column("progress", Double, nullable=True),  # see snapshot_codec.progress_of; NULL: by a version that did not know it; -1: unreadable
    Index("ix_snapshots_instance_id", "instance_id", "taken_at", "snapshot_id"),
    Index("ix_snapshots_taken_at", "taken_at"),
)

# What the scrapes of one server have in common (see snapshot_codec.py). No snapshot taken later than `used_until` needs the shape.
snapshot_shapes = Table(
    "snapshot_shapes",
    metadata,
    Column("shape_id", String(64), primary_key=True),
    Column("used_until", Double, nullable=False),
    Column("document", LargeBinary, nullable=False),
)


def _immutable(name: str, key: str) -> Table:
    """Analyses and plans: found by instance, fleet and time, never changed."""
    return Table(
        name,
        metadata,
        Column(key, Id, primary_key=True),
        Column("instance_id", Id, nullable=False),
        Column("fleet_id", Id, nullable=False),
        Column("created_at", Double, nullable=False),
        Column("document", LargeBinary, nullable=False),
        Index(f"ix_{name}_created_at", "created_at", key),
        Index(f"ix_{name}_instance_id", "instance_id", "created_at", key),
        Index(f"ix_{name}_fleet_id", "fleet_id", "created_at", key),
    )


analyses = _immutable("analyses", "analysis_id")
plans = _immutable("plans", "plan_id")

workflows = Table(
    "workflows",
    metadata,
    Column("workflow_id", Id, primary_key=True),
    Column("fleet_key", Id, nullable=False),  # the fleet, or the lone instance, that the workflow claims
    Column("fleet_id", Id, nullable=False),
    Column("request_id", Id, nullable=True),
    Column("status", String(32), nullable=False),
    Column("active", Boolean, nullable=False),
    Column("version", Integer, nullable=False),
    Column("last_sequence", Integer, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("lease_owner", Id, nullable=True),
    Column("lease_fence", BigInteger, nullable=False),
    Column("lease_expires_at", Double, nullable=False),  # on the lease clock
    Column("document", LargeBinary, nullable=False),
    Index("uq_workflows_active_fleet_key", "fleet_key", unique=True, sqlite_where=text("active"), postgresql_where=text("active")),
    Index("uq_workflows_request_id", "request_id", unique=True),
    Index("ix_workflows_created_at", "created_at", "workflow_id"),
    Index("ix_workflows_fleet_id", "fleet_id", "created_at", "workflow_id"),
    Index("ix_workflows_claim", "lease_expires_at", sqlite_where=text("active"), postgresql_where=text("active")),
)

workflow_events = Table(
    "workflow_events",
    metadata,
    Column("workflow_id", Id, ForeignKey("workflows.workflow_id", name="fk_workflow_events_workflow_id"), primary_key=True),
    Column("sequence", Integer, primary_key=True),
    Column("at", Double, nullable=False),
    Column("kind", String(32), nullable=False),
    Column("document", Text, nullable=False),
)

requests = Table(
    "requests",
    metadata,
    Column("method", Id, primary_key=True),
    Column("request_id", Id, primary_key=True),
    Column("body_hash", String(128), nullable=False),
    Column("response", LargeBinary, nullable=False),
    Column("at", Double, nullable=False),
    Index("ix_requests_at", "at"),
)

ledger = Table(
    "ledger",
    metadata,
    Column("workflow_id", Id, primary_key=True),
    Column("engine", String(32), nullable=False),
    Column("finished_at", Double, nullable=False),
    Column("document", Text, nullable=False),
    Index("ix_ledger_engine", "engine", "finished_at"),
)

audit = Table(
    "audit",
    metadata,
    Column("entry_id", Integer, primary_key=True, autoincrement=True),
    Column("at", Double, nullable=False),
    Column("document", Text, nullable=False),
)

# Alembic's own table, here so that a new in-memory store is stamped without running the migrations.
alembic_version = Table("alembic_version", MetaData(), Column("version_num", String(32), primary_key=True))
