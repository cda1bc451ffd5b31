"""The request log, the ledger of predicted against realised effects, and the audit trail."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sqlalchemy import Connection, delete, insert, select, update

from perf_service.models.errors import ConflictError, ErrorReason
from perf_service.storage.codec import from_json, to_json
from perf_service.storage.database import Database
from perf_service.storage.pages import fetch_page, scope_of
from perf_service.storage.ports import AuditEntry, LedgerEntry, Page
from perf_service.storage.tables import audit, ledger, requests


class RecordRepository:
    """See `ports.RequestLog` and `ports.LedgerStore`."""

    _db: Database
    _clock: Callable[[], float]

    async def remember(self, method: str, request_id: str, body_hash: str, response: bytes, *, at: float) -> None:
        """Keep a response; the first one of an id stays. Raises REQUEST_ID_REUSED where the id came with another body."""

        def work(connection: Connection) -> None:
            if self._recall(connection, method, request_id, body_hash) is None:
                connection.execute(
                    insert(requests).values(method=method, request_id=request_id, body_hash=body_hash, response=response, at=at)
                )

        await self._db.write(work)

    async def recall(self, method: str, request_id: str, body_hash: str) -> bytes | None:
        """The earlier response, None for a new id. Raises REQUEST_ID_REUSED where the id came with another body."""
        return await self._db.read(lambda connection: self._recall(connection, method, request_id, body_hash))

    async def prune_requests(self, *, before: float) -> int:
        """Forget responses older than `before`; the number of them."""
        return await self._db.write(lambda connection: connection.execute(delete(requests).where(requests.c.at < before)).rowcount)

    @staticmethod
    def _recall(connection: Connection, method: str, request_id: str, body_hash: str) -> bytes | None:
        row = connection.execute(select(requests).where(requests.c.method == method, requests.c.request_id == request_id)).first()
        if row is None:
            return None
        if row.body_hash != body_hash:
            raise ConflictError(
                ErrorReason.REQUEST_ID_REUSED,
                f"request_id {request_id!r} was used for another {method} request: take a new id for a new request",
                {"request_id": request_id, "method": method},
            )
        return bytes(row.response)

    async def add_ledger_entry(self, entry: LedgerEntry) -> None:
        """One entry per workflow: a repeated one replaces the first, so that the step before a crash may be run again."""
        values = {"engine": entry.engine, "finished_at": entry.finished_at, "document": to_json(entry)}

        def work(connection: Connection) -> None:
            if not connection.execute(update(ledger).where(ledger.c.workflow_id == entry.workflow_id).values(values)).rowcount:
                connection.execute(insert(ledger).values(workflow_id=entry.workflow_id, **values))

        await self._db.write(work)

    async def ledger(self, *, engine: str | None = None, cause: str | None = None, limit: int = 1000) -> Sequence[LedgerEntry]:
        """Newest first."""
        query = select(ledger.c.document).order_by(ledger.c.finished_at.desc(), ledger.c.workflow_id.desc())
        if engine is not None:
            query = query.where(ledger.c.engine == engine)

        def work(connection: Connection) -> list[LedgerEntry]:
            found: list[LedgerEntry] = []
            for document in connection.scalars(query):
                entry = from_json(LedgerEntry, document)
                if cause is None or cause in entry.causes:
                    found.append(entry)
                if len(found) >= limit:
                    break
            return found

        return await self._db.read(work)

    async def add_audit(self, entry: AuditEntry) -> None:
        """Append; entries are never changed."""
        await self._db.write(lambda connection: connection.execute(insert(audit).values(at=entry.at, document=to_json(entry))))

    async def list_audit(self, *, page_size: int = 50, page_token: str = "") -> Page[AuditEntry]:
        """Newest first. Raises PAGE_TOKEN_INVALID."""
        return await self._db.read(
            lambda connection: fetch_page(
                connection,
                audit,
                audit.c.at,
                audit.c.entry_id,
                lambda document: from_json(AuditEntry, document),
                scope=scope_of("audit"),
                page_size=page_size,
                page_token=page_token,
            )
        )
