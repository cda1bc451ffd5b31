"""Alembic migrations of the store. A revision, once released, never changes."""
