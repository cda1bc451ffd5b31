"""Alembic's entry: runs inside the transaction of the connection that schema.py hands over.

For developers: `alembic -x` style stand-alone runs are not supported on purpose; the service migrates at open.
"""

from __future__ import annotations

from alembic import context

from perf_service.storage.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    # The caller's transaction holds everything: a failed migration leaves the store as it was, on SQLite too.
    transactional_ddl=True,
    render_as_batch=True,
)
context.run_migrations()
