"""Requests that were answered, the ledger and the audit trail, alike in every store."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from perf_service.models.errors import ConflictError, ErrorReason
from perf_service.storage import AuditEntry, LedgerEntry, SqlStore


async def test_a_request_is_remembered_with_its_body(store: SqlStore) -> None:
    assert await store.recall("CreateFleet", "r", "h") is None
    await store.remember("CreateFleet", "r", "h", b"\x00answer", at=5.0)
    await store.remember("CreateFleet", "r", "h", b"later", at=6.0)
    assert await store.recall("CreateFleet", "r", "h") == b"\x00answer"
    assert await store.recall("DeleteFleet", "r", "h") is None
    for call in (store.recall("CreateFleet", "r", "other"), store.remember("CreateFleet", "r", "other", b"", at=7.0)):
        with pytest.raises(ConflictError) as info:
            await call
        assert info.value.reason is ErrorReason.REQUEST_ID_REUSED
    assert await store.prune_requests(before=5.5) == 1
    assert await store.recall("CreateFleet", "r", "h") is None


async def test_simultaneous_answers_to_one_request_keep_one(store: SqlStore) -> None:
    await asyncio.gather(*(store.remember("M", "r", "h", bytes([n]), at=1.0) for n in range(8)))
    assert await store.recall("M", "r", "h") is not None


async def test_the_ledger_by_engine_and_cause(store: SqlStore) -> None:
    entries = [
        LedgerEntry(f"w{n}", "p", engine, "0.11", (cause,), ("max_num_seqs",), (), False, float(n))
        for n, (engine, cause) in enumerate([("vllm", "batch_limit"), ("tgi", "overload"), ("vllm", "overload")])
    ]
    for entry in (*entries, replace(entries[0], harmful=True)):
        await store.add_ledger_entry(entry)
    assert [e.workflow_id for e in await store.ledger()] == ["w2", "w1", "w0"]
    assert [e.harmful for e in await store.ledger(engine="vllm", cause="batch_limit")] == [True]
    assert len(await store.ledger(limit=1)) == 1


async def test_the_audit_trail_newest_first(store: SqlStore) -> None:
    for number in range(3):
        await store.add_audit(AuditEntry(float(number), "alice", "M", f"r{number}", "", "OK"))
    first = await store.list_audit(page_size=2)
    rest = await store.list_audit(page_size=2, page_token=first.next_page_token)
    assert [e.resource for e in (*first.items, *rest.items)] == ["r2", "r1", "r0"]
