"""CollectService."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from perf_service.models.metrics import Engine
from perf_service.rpc.context import Services
from perf_service.rpc.convert.metrics import DATA_QUALITY, SNAPSHOT
from perf_service.rpc.convert.mirror import ABSENT, enum_item, seconds, timestamp
from perf_service.rpc.services.streams import Metronome, draining, heartbeat, instance_ids
from perf_service.v1 import collect_service_pb2 as pb
from perf_service.v1 import collect_service_pb2_grpc as pb_grpc
from perf_service.v1 import engine_pb2
from perf_service.workflows.collecting import ImportOutcome

_ENGINE = enum_item(Engine, engine_pb2.Engine.DESCRIPTOR)
_OUTCOME = enum_item(ImportOutcome, pb.ImportOutcome.DESCRIPTOR)
_BACKFILL_SECONDS = 600.0
_BATCH = 100
"""Snapshots of one instance that a slow reader may lag behind before it is taken to the newest."""


class CollectServicer(pb_grpc.CollectServiceServicer):
    """Measurements."""

    def __init__(self, services: Services) -> None:
        self._s = services

    async def CollectMetrics(self, request: pb.CollectMetricsRequest, context: Any) -> pb.CollectMetricsResponse:
        return pb.CollectMetricsResponse(snapshot=SNAPSHOT.to_proto(await self._s.collecting.collect(request.instance_id)))

    async def ImportMetrics(self, request: pb.ImportMetricsRequest, context: Any) -> pb.ImportMetricsResponse:
        engine = _ENGINE.decode(request.engine)
        done = await self._s.collecting.import_page(
            request.instance_id,
            request.page,
            engine=None if engine is ABSENT else engine,
            collected_at=seconds(request.collected_at) if request.HasField("collected_at") else None,
        )
        return pb.ImportMetricsResponse(snapshot=SNAPSHOT.to_proto(done.snapshot), outcome=_OUTCOME.encode(done.outcome))

    async def BackfillMetrics(self, request: pb.BackfillMetricsRequest, context: Any) -> pb.BackfillMetricsResponse:
        end = seconds(request.range.end) if request.range.HasField("end") else self._s.clock()
        start = seconds(request.range.start) if request.range.HasField("start") else end - _BACKFILL_SECONDS
        done = await self._s.backfilling.backfill(request.instance_id, start, end)
        response = pb.BackfillMetricsResponse(imported=done.imported, already_stored=done.already_stored)
        response.first_collected_at.CopyFrom(timestamp(done.first.collected_at or start))
        response.last_collected_at.CopyFrom(timestamp(done.last.collected_at or end))
        response.quality.CopyFrom(DATA_QUALITY.to_proto(done.last.quality))
        return response

    async def ListSnapshots(self, request: pb.ListSnapshotsRequest, context: Any) -> pb.ListSnapshotsResponse:
        page = await self._s.store.list_snapshots(
            request.instance_id,
            start=seconds(request.range.start) if request.range.HasField("start") else None,
            end=seconds(request.range.end) if request.range.HasField("end") else None,
            page_size=request.page_size or 50,
            page_token=request.page_token,
        )
        return pb.ListSnapshotsResponse(snapshots=map(SNAPSHOT.to_proto, page.items), next_page_token=page.next_page_token)

    async def WatchMetrics(self, request: pb.WatchMetricsRequest, context: Any) -> AsyncIterator[pb.WatchMetricsResponse]:
        names = await instance_ids(self._s, request)
        after = seconds(request.start_after) if request.HasField("start_after") else self._s.clock()
        cursors = dict.fromkeys(names, after)
        beat = Metronome(self._s.heartbeat_seconds)
        while not self._s.lifecycle.draining:
            async for response in self._news(cursors):
                yield response
                beat.reset()
            if beat.due():
                yield pb.WatchMetricsResponse(heartbeat=heartbeat(self._s))
            await self._s.lifecycle.pause(self._s.watch_poll_seconds)
        yield pb.WatchMetricsResponse(draining=draining())

    async def _news(self, cursors: dict[str, float]) -> AsyncIterator[pb.WatchMetricsResponse]:
        """What was stored since the cursors, which move along.

        One look at the times of all instances, and the documents of those alone that have something new: a thousand quiet instances cost
        one query. Nothing is kept for a reader that is slow; it finds what is newest when it comes back.
        """
        newest = await self._s.store.latest_times(tuple(cursors))
        for name, after in cursors.items():
            latest = newest.get(name)
            if latest is None or latest <= after:
                continue
            stored = await self._s.store.snapshots_between(name, after, latest, limit=_BATCH + 2)
            fresh = [s for s in stored if s.collected_at is not None and s.collected_at > after]
            skipped = 0
            if len(fresh) > _BATCH:
                fresh = fresh[-1:]
                skipped = await self._s.store.count_snapshots(name, after=after, until=latest) - 1
            for snapshot in fresh:
                cursors[name] = snapshot.collected_at or after
                yield pb.WatchMetricsResponse(snapshot=SNAPSHOT.to_proto(snapshot), skipped=skipped)
