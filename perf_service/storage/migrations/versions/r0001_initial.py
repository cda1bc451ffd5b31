"""Fleets, instances, snapshots, analyses, plans, workflows with events and leases, requests, ledger, audit."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_ID = sa.String(255)


def upgrade() -> None:
    """Create every table."""
    op.create_table(
        "fleets",
        sa.Column("fleet_id", _ID, nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("etag", sa.String(64), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("fleet_id", name="pk_fleets"),
    )
    op.create_index("ix_fleets_created_at_fleet_id", "fleets", ["created_at", "fleet_id"])
    op.create_table(
        "instances",
        sa.Column("instance_id", _ID, nullable=False),
        sa.Column("fleet_id", _ID, nullable=True),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("etag", sa.String(64), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["fleet_id"], ["fleets.fleet_id"], name="fk_instances_fleet_id"),
        sa.PrimaryKeyConstraint("instance_id", name="pk_instances"),
    )
    op.create_index("ix_instances_created_at_instance_id", "instances", ["created_at", "instance_id"])
    op.create_index("ix_instances_fleet_id", "instances", ["fleet_id", "created_at", "instance_id"])
    op.create_table(
        "snapshots",
        sa.Column("snapshot_id", _ID, nullable=False),
        sa.Column("instance_id", _ID, nullable=False),
        sa.Column("taken_at", sa.Double(), nullable=False),
        sa.Column("document", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("snapshot_id", name="pk_snapshots"),
    )
    op.create_index("ix_snapshots_instance_id", "snapshots", ["instance_id", "taken_at", "snapshot_id"])
    op.create_index("ix_snapshots_taken_at", "snapshots", ["taken_at"])
    for name, key in (("analyses", "analysis_id"), ("plans", "plan_id")):
        op.create_table(
            name,
            sa.Column(key, _ID, nullable=False),
            sa.Column("instance_id", _ID, nullable=False),
            sa.Column("fleet_id", _ID, nullable=False),
            sa.Column("created_at", sa.Double(), nullable=False),
            sa.Column("document", sa.LargeBinary(), nullable=False),
            sa.PrimaryKeyConstraint(key, name=f"pk_{name}"),
        )
        op.create_index(f"ix_{name}_created_at", name, ["created_at", key])
        op.create_index(f"ix_{name}_instance_id", name, ["instance_id", "created_at", key])
        op.create_index(f"ix_{name}_fleet_id", name, ["fleet_id", "created_at", key])
    op.create_table(
        "workflows",
        sa.Column("workflow_id", _ID, nullable=False),
        sa.Column("fleet_key", _ID, nullable=False),
        sa.Column("fleet_id", _ID, nullable=False),
        sa.Column("request_id", _ID, nullable=True),
        sa.Column("status", sa.String(32), nullable=False),
        sa.Column("active", sa.Boolean(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("last_sequence", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("lease_owner", _ID, nullable=True),
        sa.Column("lease_fence", sa.BigInteger(), nullable=False),
        sa.Column("lease_expires_at", sa.Double(), nullable=False),
        sa.Column("document", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("workflow_id", name="pk_workflows"),
    )
    active = sa.text("active")
    op.create_index("uq_workflows_active_fleet_key", "workflows", ["fleet_key"], unique=True, sqlite_where=active, postgresql_where=active)
    op.create_index("uq_workflows_request_id", "workflows", ["request_id"], unique=True)
    op.create_index("ix_workflows_created_at", "workflows", ["created_at", "workflow_id"])
    op.create_index("ix_workflows_fleet_id", "workflows", ["fleet_id", "created_at", "workflow_id"])
    op.create_index("ix_workflows_claim", "workflows", ["lease_expires_at"], sqlite_where=active, postgresql_where=active)
    op.create_table(
        "workflow_events",
        sa.Column("workflow_id", _ID, nullable=False),
        sa.Column("sequence", sa.Integer(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["workflow_id"], ["workflows.workflow_id"], name="fk_workflow_events_workflow_id"),
        sa.PrimaryKeyConstraint("workflow_id", "sequence", name="pk_workflow_events"),
    )
    op.create_table(
        "requests",
        sa.Column("method", _ID, nullable=False),
        sa.Column("request_id", _ID, nullable=False),
        sa.Column("body_hash", sa.String(128), nullable=False),
        sa.Column("response", sa.LargeBinary(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("method", "request_id", name="pk_requests"),
    )
    op.create_index("ix_requests_at", "requests", ["at"])
    op.create_table(
        "ledger",
        sa.Column("workflow_id", _ID, nullable=False),
        sa.Column("engine", sa.String(32), nullable=False),
        sa.Column("finished_at", sa.Double(), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("workflow_id", name="pk_ledger"),
    )
    op.create_index("ix_ledger_engine", "ledger", ["engine", "finished_at"])
    op.create_table(
        "audit",
        sa.Column("entry_id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("entry_id", name="pk_audit"),
    )


def downgrade() -> None:
    """There is nothing before the first revision."""
    raise NotImplementedError("the first revision cannot be undone: remove the store instead")
