"""A server that reads its instances from a real Prometheus."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from perf_service.app import build_app
from perf_service.cli.main import run
from perf_service.settings import load_settings
from perf_service.v1 import (
    analysis_pb2,
    analyze_service_pb2,
    collect_service_pb2,
    engine_pb2,
    fleet_service_pb2,
    instance_pb2,
    snapshot_pb2,
)
from tests.support.prometheus_rig import HOLDS, Rig
from tests.support.remote import Remote, refusal


@pytest.fixture
async def address(tmp_path: Path) -> AsyncIterator[str]:
    """A server that scrapes in the background."""
    settings = load_settings(
        port=0, database_url=f"sqlite:///{tmp_path}/store.db", state_dir=tmp_path, drain_seconds=1.0, log_level="error"
    )
    app = build_app(settings)
    await app.start()
    try:
        yield app.address
    finally:
        await app.stop(0)


@pytest.fixture
async def remote(address: str) -> AsyncIterator[Remote]:
    """A client of it."""
    async with grpc.aio.insecure_channel(address) as channel:
        yield Remote(channel)


def source(scraped: Rig, match: str, **more: Any) -> instance_pb2.PrometheusSource:
    return instance_pb2.PrometheusSource(url=scraped.prometheus.url, match=match, **more)


async def register(remote: Remote, name: str, prometheus: instance_pb2.PrometheusSource, interval: float = 3600.0) -> Any:
    instance = instance_pb2.Instance(
        instance_id=name, engine=engine_pb2.ENGINE_VLLM, prometheus=prometheus, scrape_interval_seconds=interval
    )
    response = await remote.fleets.RegisterInstance(fleet_service_pb2.RegisterInstanceRequest(instance=instance))
    return response.instance


async def listed(remote: Remote, name: str) -> list[Any]:
    request = collect_service_pb2.ListSnapshotsRequest(instance_id=name, page_size=1000)
    return list((await remote.collect.ListSnapshots(request)).snapshots)


async def test_the_past_is_read_once_and_diagnosed(scraped: Rig, remote: Remote) -> None:
    await register(remote, "r0", source(scraped, HOLDS["vllm"]))
    request = collect_service_pb2.BackfillMetricsRequest(instance_id="r0")
    request.range.start.FromNanoseconds(int(scraped.began * 1e9))
    request.range.end.FromNanoseconds(int(scraped.ended * 1e9))
    first = await remote.collect.BackfillMetrics(request)
    again = await remote.collect.BackfillMetrics(request)
    assert first.imported >= 6
    assert (again.imported, again.already_stored) == (0, first.imported + first.already_stored)
    assert len(await listed(remote, "r0")) >= first.imported
    question = analyze_service_pb2.AnalyzeRequest(instance_id="r0", range=request.range)
    analysis = (await remote.analyze.Analyze(question)).analysis
    assert analysis.bottlenecks[0].cause == analysis_pb2.CAUSE_BATCH_LIMIT


async def test_the_present_is_collected_in_the_background_and_on_demand(scraped: Rig, remote: Remote) -> None:
    await register(remote, "r0", source(scraped, HOLDS["vllm"]), interval=1.0)
    await register(remote, "r1", source(scraped, HOLDS["honor"]), interval=1.0)
    deadline = time.monotonic() + 60
    while min([len(await listed(remote, name)) for name in ("r0", "r1")]) < 3:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)
    # The past is read back beside the live scrapes, some of which still wait to be stored.
    past = collect_service_pb2.BackfillMetricsRequest(instance_id="r0")
    first, again = [await remote.collect.BackfillMetrics(past) for _ in range(2)]
    assert again.already_stored >= first.imported + first.already_stored
    for name in ("r0", "r1"):
        times = [snapshot.collected_at.ToNanoseconds() for snapshot in await listed(remote, name)]
        assert len(set(times)) == len(times)
    now = await remote.collect.CollectMetrics(collect_service_pb2.CollectMetricsRequest(instance_id="r0"))
    assert time.time() - now.snapshot.collected_at.ToNanoseconds() / 1e9 < 10
    assert snapshot_pb2.ISSUE_CODE_GAP not in [issue.code for issue in now.snapshot.quality.issues]


async def test_secrets_are_masked_and_stay_with_their_url(scraped: Rig, remote: Remote) -> None:
    secret = source(scraped, HOLDS["vllm"], bearer_token="hush", headers={"X-Scope-OrgID": "hush too"})
    shown = await register(remote, "r0", secret)
    read = (await remote.fleets.GetInstance(fleet_service_pb2.GetInstanceRequest(instance_id="r0"))).instance
    for instance in (shown, read):
        assert (instance.prometheus.bearer_token, dict(instance.prometheus.headers)) == ("***", {"X-Scope-OrgID": "***"})
    mask = FieldMask(paths=["prometheus"])
    read.prometheus.match = HOLDS["honor"]
    await remote.fleets.UpdateInstance(fleet_service_pb2.UpdateInstanceRequest(instance=read, update_mask=mask))
    await remote.collect.CollectMetrics(collect_service_pb2.CollectMetricsRequest(instance_id="r0"))
    read.prometheus.url = "http://127.0.0.1:9"
    read.ClearField("etag")
    # A mask that leaves the secrets alone would send them to the new address just as well.
    for paths in (["prometheus"], ["prometheus.url"], ["prometheus.url", "prometheus.bearer_token"]):
        moved = fleet_service_pb2.UpdateInstanceRequest(instance=read, update_mask=FieldMask(paths=paths))
        told = await refusal(remote.fleets.UpdateInstance(moved))
        assert (told.code, told.metadata["field"]) == (grpc.StatusCode.INVALID_ARGUMENT, "instance.prometheus")
        assert "hush" not in told.text


async def test_a_stored_secret_is_cleared_by_its_own_path(scraped: Rig, remote: Remote) -> None:
    """Without the URL in the mask nothing moves; the other secret stays."""
    await register(remote, "r0", source(scraped, HOLDS["vllm"], bearer_token="hush", headers={"X-Scope-OrgID": "hush too"}))
    update = fleet_service_pb2.UpdateInstanceRequest(update_mask=FieldMask(paths=["prometheus.bearer_token"]))
    update.instance.CopyFrom((await remote.fleets.GetInstance(fleet_service_pb2.GetInstanceRequest(instance_id="r0"))).instance)
    update.instance.prometheus.ClearField("bearer_token")
    shown = (await remote.fleets.UpdateInstance(update)).instance.prometheus
    assert (shown.bearer_token, dict(shown.headers)) == ("", {"X-Scope-OrgID": "***"})
    await remote.collect.CollectMetrics(collect_service_pb2.CollectMetricsRequest(instance_id="r0"))


@pytest.mark.parametrize(
    ("match", "code", "reason"),
    [
        ('job="vllm', grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT"),
        ('__name__="up"', grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT"),
        ("", grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT"),
    ],
)
async def test_what_cannot_be_registered(scraped: Rig, remote: Remote, match: str, code: grpc.StatusCode, reason: str) -> None:
    told = await refusal(register(remote, "r0", source(scraped, match)))
    assert (told.code, told.reason) == (code, reason)


@pytest.mark.parametrize(
    ("match", "code", "reason"),
    [
        ('job=~"("', grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT"),
        ('job="nope"', grpc.StatusCode.FAILED_PRECONDITION, "SERIES_NOT_FOUND"),
        ('job=~"vllm|honor"', grpc.StatusCode.FAILED_PRECONDITION, "SERIES_AMBIGUOUS"),
        ('job="dead"', grpc.StatusCode.UNAVAILABLE, "ENDPOINT_UNREACHABLE"),
    ],
)
async def test_what_cannot_be_collected(scraped: Rig, remote: Remote, match: str, code: grpc.StatusCode, reason: str) -> None:
    await register(remote, "r0", source(scraped, match))
    told = await refusal(remote.collect.CollectMetrics(collect_service_pb2.CollectMetricsRequest(instance_id="r0")))
    assert (told.code, told.reason) == (code, reason)


async def test_without_a_prometheus_there_is_no_past(remote: Remote) -> None:
    instance = instance_pb2.Instance(instance_id="r0", engine=engine_pb2.ENGINE_VLLM, endpoint="http://127.0.0.1:9")
    await remote.fleets.RegisterInstance(fleet_service_pb2.RegisterInstanceRequest(instance=instance))
    told = await refusal(remote.collect.BackfillMetrics(collect_service_pb2.BackfillMetricsRequest(instance_id="r0")))
    assert told.reason == "SERIES_NOT_FOUND"
    assert "not registered with a Prometheus" in told.text


async def test_the_engines_of_a_prometheus_are_found_and_registered(
    scraped: Rig, remote: Remote, address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["instances", "discover", "--prometheus", scraped.prometheus.url, "--output", "json"]
    assert await asyncio.to_thread(run, words) == 0
    seen = {row["engine"] for row in json.loads(capsys.readouterr().out)["engines"]}
    assert seen == {"vllm", "sglang", "tgi"}
    chosen = [*words, "--match", 'job=~"vllm|honor"', "--register", "--server", address]
    for status in ("registered", "already registered"):
        assert await asyncio.to_thread(run, chosen) == 0
        rows = json.loads(capsys.readouterr().out)["engines"]
        assert [(row["instance_id"], row["status"]) for row in rows] == [("pod-a", status), ("pod-b", status)]
    for name in ("pod-a", "pod-b"):
        found = await remote.collect.CollectMetrics(collect_service_pb2.CollectMetricsRequest(instance_id=name))
        assert found.snapshot.instance_id == name
    assert await asyncio.to_thread(run, [*words, "--match", 'job="nope"']) == 1
