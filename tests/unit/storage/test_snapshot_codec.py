"""Snapshots in little space come back exactly."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from perf_service.models.config import EngineConfig
from perf_service.models.errors import StoreError
from perf_service.models.metrics import Counter, DataIssue, DataQuality, Engine, Gauge, Hist, Histogram, IssueCode, IssueLevel, Snapshot
from perf_service.storage.codec import pack
from perf_service.storage.snapshot_codec import SnapshotCodec, progress_of, shape_of

FULL = Snapshot(
    "i",
    Engine.SGLANG,
    1795351916.591234,
    gauges={Gauge.RUNNING_REQUESTS: 0.1 + 0.2, Gauge.WAITING_REQUESTS: -0.0},
    counters={Counter.PROMPT_TOKENS: 2.0**60, Counter.PREEMPTIONS: 3.0},
    histograms={
        Hist.TTFT_SECONDS: Histogram(3.0, 1.5, (0.1, 1.0), (1.0, 2.0)),
        Hist.E2E_SECONDS: Histogram(4.0, math.inf),
    },
    ranks={"0": {Gauge.RUNNING_REQUESTS: 1.0}, "1": {Gauge.RUNNING_REQUESTS: 2.0}},
    config=EngineConfig.of({"max_num_seqs": 2, "ratio": 1.0, "flag": True}),
    engine_version="0.5",
    model_name="m",
    process_start_time=17.25,
    endpoint="http://h:1",
    snapshot_id="snap-1",
    derived=("x",),
    quality=DataQuality((DataIssue(IssueCode.NOT_FINITE, IssueLevel.INFO, "é is nan", "running_requests"),), 7),
)


def again(snapshot: Snapshot, codec: SnapshotCodec | None = None) -> Snapshot:
    document, shape = (codec or SnapshotCodec()).packed(snapshot)
    assert shape_of(document) == (shape.key if shape else None)
    return SnapshotCodec().unpacked(document, snapshot.snapshot_id, {shape.key: shape.document}.get if shape else lambda _: None)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"collected_at": None, "process_start_time": None},
        {"quality": DataQuality()},
        {"gauges": {}, "counters": {}, "histograms": {}, "ranks": {}},
        {"gauges": {Gauge.RUNNING_REQUESTS: math.inf}},
        {"histograms": {Hist.TTFT_SECONDS: Histogram(3.0, 1.5, (0.1, 1.0), (1.0,))}},
    ],
    ids=["full", "no times", "no issues", "empty", "infinite", "odd histogram"],
)
def test_it_comes_back_as_it_was(changes: dict[str, Any]) -> None:
    snapshot = replace(FULL, **changes)
    found = again(snapshot)
    assert found == snapshot
    assert [type(found.config.get(name)) for name in found.config] == [int, float, bool]
    assert math.copysign(1.0, found.gauges.get(Gauge.WAITING_REQUESTS, -0.0)) == -1.0


def test_what_is_common_is_one_shape() -> None:
    codec = SnapshotCodec()
    first, shape = codec.packed(FULL)
    later = replace(FULL, snapshot_id="snap-2", collected_at=2.0, counters={Counter.PROMPT_TOKENS: 9.0, Counter.PREEMPTIONS: 4.0})
    document, same = codec.packed(replace(later, process_start_time=99.0, quality=DataQuality((), 7)))
    assert same is shape
    assert len(document) < len(first) < len(pack(FULL)) / 2
    others: list[dict[str, Any]] = [
        {"engine_version": "0.6"},
        {"config": EngineConfig.of({"max_num_seqs": 2.0, "ratio": 1.0, "flag": True})},
        {"gauges": {}},
    ]
    for other in others:
        assert codec.packed(replace(FULL, **other))[1] != shape


def test_documents_of_earlier_versions_are_read() -> None:
    assert SnapshotCodec().unpacked(pack(FULL), "snap-1", lambda _: None) == FULL


def test_damage_is_told() -> None:
    document, shape = SnapshotCodec().packed(FULL)
    assert shape is not None
    other, _ = SnapshotCodec().packed(replace(FULL, gauges={}))
    with pytest.raises(StoreError, match="shape is gone"):
        SnapshotCodec().unpacked(document, "s", lambda _: None)
    for damaged in (document[:30], document[:17] + other[17:]):
        with pytest.raises(StoreError, match="damaged"):
            SnapshotCodec().unpacked(damaged, "s", lambda _: shape.document)


def test_progress_falls_at_a_restart_only() -> None:
    more = replace(FULL, counters={Counter.PROMPT_TOKENS: 2.0**60, Counter.PREEMPTIONS: 300.0}, gauges={})
    assert progress_of(FULL) <= progress_of(more)
    assert progress_of(replace(FULL, counters={})) < progress_of(FULL)
    assert progress_of(replace(FULL, counters={Counter.PREEMPTIONS: math.nan})) == 0.0
