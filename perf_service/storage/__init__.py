"""What the service keeps: SQLAlchemy tables, Alembic migrations, repositories; SQLite and PostgreSQL. Depends on models only."""

from perf_service.storage.ports import AuditEntry, Lease, LedgerEntry, Page, Store
from perf_service.storage.store import SqlStore

__all__ = ["AuditEntry", "Lease", "LedgerEntry", "Page", "SqlStore", "Store"]
