"""The ledger of predicted against realised effects."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from perf_service.models.analysis import Cause
from perf_service.models.metrics import Engine
from perf_service.models.plan import Estimate
from perf_service.rpc.convert.analysis import CAUSE
from perf_service.rpc.convert.mirror import enum_item, timestamp
from perf_service.rpc.convert.workflow import REALISED_EFFECT
from perf_service.storage.ports import LedgerEntry
from perf_service.v1 import engine_pb2, track_record_pb2

ENGINE = enum_item(Engine, engine_pb2.Engine.DESCRIPTOR)
PROMISED = Estimate(0, 0, 0).coverage_ratio


def entry_to_proto(entry: LedgerEntry) -> track_record_pb2.TrackRecordEntry:
    """One finished rollout. Causes and engines of another version are left out rather than guessed."""
    return track_record_pb2.TrackRecordEntry(
        workflow_id=entry.workflow_id,
        plan_id=entry.plan_id,
        engine=ENGINE.encode(entry.engine) if entry.engine in set(Engine) else engine_pb2.ENGINE_UNSPECIFIED,
        engine_version=entry.engine_version,
        causes=[CAUSE.encode(cause) for cause in entry.causes if cause in set(Cause)],
        parameters=entry.parameters,
        effects=[REALISED_EFFECT.to_proto(effect) for effect in entry.effects],
        harmful=entry.harmful,
        finished_at=timestamp(entry.finished_at),
    )


def summary(entries: Sequence[LedgerEntry]) -> track_record_pb2.TrackRecord:
    """How good the advice has been over these rollouts."""
    checked = [e for entry in entries for e in entry.effects if e.within_prediction is not None]
    errors = [abs(e.ratio / e.predicted_ratio - 1) for e in checked if e.predicted_ratio]
    record = track_record_pb2.TrackRecord(
        rollouts=len(entries),
        harmful=sum(entry.harmful for entry in entries),
        predictions=len(checked),
        within_interval=sum(bool(e.within_prediction) for e in checked),
        promised_coverage_ratio=PROMISED,
    )
    if checked:
        record.realised_coverage_ratio = record.within_interval / record.predictions
    if errors:
        record.median_error_ratio = statistics.median(errors)
    return record
