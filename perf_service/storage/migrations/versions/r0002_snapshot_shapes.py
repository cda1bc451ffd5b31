"""What the scrapes of one server have in common is stored once; marks by which a history is thinned without being read."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the table of shapes and the marks. Snapshots that are there keep their documents; their marks are made when they are thinned."""
    op.create_table(
        "snapshot_shapes",
        sa.Column("shape_id", sa.String(64), nullable=False),
        sa.Column("used_until", sa.Double(), nullable=False),
        sa.Column("document", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("shape_id", name="pk_snapshot_shapes"),
    )
    op.add_column("snapshots", sa.Column("started_at", sa.Double(), nullable=True))
    op.add_column("snapshots", sa.Column("progress", sa.Double(), nullable=True))


def downgrade() -> None:
    """Documents that need their shapes could not be read any more."""
    raise NotImplementedError("snapshots are stored in a new way: restore a backup made before the upgrade")
