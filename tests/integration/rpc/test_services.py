"""Every service over the wire, on recorded pages of a real engine."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc
from google.protobuf.field_mask_pb2 import FieldMask
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from perf_service.app import App
from perf_service.models.metrics import Engine, Snapshot
from perf_service.rpc.methods import methods, service_names
from perf_service.storage.tables import REVISIONS
from perf_service.v1 import (
    analysis_pb2,
    analyze_service_pb2,
    collect_service_pb2,
    config_pb2,
    engine_pb2,
    fleet_pb2,
    fleet_service_pb2,
    optimize_service_pb2,
    slo_pb2,
    system_service_pb2,
    workflow_service_pb2,
)
from perf_service.v1._vendor.externalscaler import externalscaler_pb2, externalscaler_pb2_grpc
from tests.support.remote import Remote, Start, pages_of


async def test_fleets_and_instances_live_their_life(remote: Remote) -> None:
    names = await remote.fleet(replicas=3)
    fleet = (await remote.fleets.GetFleet(fleet_service_pb2.GetFleetRequest(fleet_id="f"))).fleet
    assert (fleet.engine, fleet.target.kind) == (engine_pb2.ENGINE_VLLM, fleet_pb2.TARGET_KIND_DRY_RUN)
    target = slo_pb2.SLOTarget(metric_name="ttft_p95", target_value=0.5, comparison=slo_pb2.COMPARISON_LESS_THAN)
    request = fleet_service_pb2.UpdateFleetRequest(
        fleet=fleet_pb2.Fleet(fleet_id="f", slo_targets=[target], etag=fleet.etag), update_mask=FieldMask(paths=["slo_targets"])
    )
    updated = (await remote.fleets.UpdateFleet(request)).fleet
    assert updated.slo_targets[0].metric_name == "ttft_p95"
    assert updated.etag != fleet.etag
    assert updated.engine == fleet.engine

    first = await remote.fleets.ListInstances(fleet_service_pb2.ListInstancesRequest(fleet_id="f", page_size=2))
    second = await remote.fleets.ListInstances(
        fleet_service_pb2.ListInstancesRequest(fleet_id="f", page_size=2, page_token=first.next_page_token)
    )
    assert sorted(i.instance_id for page in (first, second) for i in page.instances) == names
    assert not second.next_page_token
    for name in names:
        await remote.fleets.DeregisterInstance(fleet_service_pb2.DeregisterInstanceRequest(instance_id=name))
    await remote.fleets.DeleteFleet(fleet_service_pb2.DeleteFleetRequest(fleet_id="f"))
    assert not (await remote.fleets.ListFleets(fleet_service_pb2.ListFleetsRequest())).fleets


async def test_replicas_that_fell_silent_are_told_beside_the_cause_of_before(remote: Remote) -> None:
    names = await remote.fleet(replicas=3)
    now = time.time()
    await remote.import_capture(names[0], "b_queue_bad_r2", end=now - 1)
    await remote.import_capture(names[1], "b_queue_bad_r2", end=now - 120)
    analysis = (await remote.analyze.Analyze(analyze_service_pb2.AnalyzeRequest(fleet_id="f"))).analysis
    said = [issue.message for issue in analysis.quality.issues if "may be down" in issue.message]
    assert [message.split(":")[0] for message in said] == names[1:]
    assert "newest page is 12" in said[0]
    assert "left out" in said[1]

    past = analyze_service_pb2.AnalyzeRequest(fleet_id="f")
    past.range.start.FromSeconds(int(now) - 400)
    past.range.end.FromSeconds(int(now) - 60)
    assert not [i for i in (await remote.analyze.Analyze(past)).analysis.quality.issues if "may be down" in i.message]


async def test_pages_become_a_diagnosis_a_plan_and_a_prediction(remote: Remote) -> None:
    names = await remote.fleet(replicas=1)
    now = time.time()
    count = await remote.import_capture(names[0], "b_queue_bad_r2", end=now - 1)
    listed = await remote.collect.ListSnapshots(collect_service_pb2.ListSnapshotsRequest(instance_id=names[0], page_size=100))
    assert len(listed.snapshots) == count
    assert listed.snapshots[0].histograms["ttft_seconds"].count > 0

    analysis = (await remote.analyze.Analyze(analyze_service_pb2.AnalyzeRequest(instance_id=names[0]))).analysis
    assert analysis.bottlenecks[0].cause == analysis_pb2.CAUSE_BATCH_LIMIT
    assert analysis.bottlenecks[0].evidence
    assert analysis.window.rates_per_second["generation_tokens"] > 0
    stored = await remote.analyze.GetAnalysis(analyze_service_pb2.GetAnalysisRequest(analysis_id=analysis.analysis_id))
    assert stored.analysis == analysis
    listing = await remote.analyze.ListAnalyses(analyze_service_pb2.ListAnalysesRequest(instance_id=names[0]))
    assert [a.analysis_id for a in listing.analyses] == [analysis.analysis_id]

    plan = (await remote.optimize.CreatePlan(optimize_service_pb2.CreatePlanRequest(analysis_id=analysis.analysis_id))).plan
    assert [change.parameter for change in plan.changes] == ["max_num_seqs"]
    assert plan.plan_hash
    assert (await remote.optimize.GetPlan(optimize_service_pb2.GetPlanRequest(plan_id=plan.plan_id))).plan == plan

    change = optimize_service_pb2.KnobAssignment(parameter="max_num_seqs", value=config_pb2.KnobValue(int_value=32))
    answer = await remote.optimize.Predict(optimize_service_pb2.PredictRequest(instance_id=names[0], changes=[change]))
    assert answer.prediction.config.settings["max_num_seqs"].value.int_value == 32
    assert answer.prediction.calibration


async def test_a_page_is_kept_once_and_not_beyond_the_retention(remote: Remote, app: App) -> None:
    page = pages_of("a_healthy")[0]

    async def imported(age_seconds: float) -> tuple[int, str]:
        request = collect_service_pb2.ImportMetricsRequest(instance_id="pushed", page=page)
        request.collected_at.FromNanoseconds(int((now - age_seconds) * 1e9))
        response = await remote.collect.ImportMetrics(request)
        assert response.snapshot.counters
        return response.outcome, response.snapshot.snapshot_id

    now = time.time()
    kept = app.settings.retention_hours * 3600
    outcome, name = await imported(kept - 60)
    assert outcome == collect_service_pb2.IMPORT_OUTCOME_STORED
    assert await imported(kept - 60) == (collect_service_pb2.IMPORT_OUTCOME_ALREADY_STORED, name)
    assert await imported(kept + 1) == (collect_service_pb2.IMPORT_OUTCOME_TOO_OLD, "")
    listed = await remote.collect.ListSnapshots(collect_service_pb2.ListSnapshotsRequest(instance_id="pushed"))
    assert [snapshot.snapshot_id for snapshot in listed.snapshots] == [name]


async def test_knobs_and_track_record_have_pages(remote: Remote) -> None:
    request = optimize_service_pb2.ListKnobsRequest(engine=engine_pb2.ENGINE_VLLM, page_size=5)
    first = await remote.optimize.ListKnobs(request)
    assert len(first.knobs) == 5
    request.page_token = first.next_page_token
    second = await remote.optimize.ListKnobs(request)
    assert not {k.name for k in first.knobs} & {k.name for k in second.knobs}
    record = await remote.optimize.GetTrackRecord(optimize_service_pb2.GetTrackRecordRequest())
    assert (record.track_record.rollouts, len(record.entries)) == (0, 0)


async def test_metrics_are_streamed_as_they_are_stored(remote: Remote) -> None:
    names = await remote.fleet()
    now = time.time()
    await remote.import_capture(names[0], "a_healthy", end=now - 60, limit=2)
    request = collect_service_pb2.WatchMetricsRequest(fleet_id="f")
    request.start_after.FromSeconds(int(now - 3600))
    stream = remote.collect.WatchMetrics(request)
    seen = [await stream.read() for _ in range(3)]
    assert [update.WhichOneof("update") for update in seen] == ["snapshot", "snapshot", "heartbeat"]
    await remote.import_capture(names[1], "a_healthy", end=now - 50, limit=1)
    update = await _next(stream, "snapshot")
    assert update.snapshot.instance_id == names[1]
    stream.cancel()


async def test_a_reader_that_is_slow_is_taken_to_the_newest_and_told_what_it_missed(remote: Remote, app: App) -> None:
    (name,) = await remote.fleet(replicas=1)
    now = time.time()
    request = collect_service_pb2.WatchMetricsRequest(instance_id=name)
    request.start_after.FromSeconds(int(now - 3600))
    # All at once, as they stand in the store when a reader comes back for more.
    await app.store.add_snapshots([Snapshot(name, Engine.VLLM, now - 300 + n) for n in range(250)])
    stream = remote.collect.WatchMetrics(request)
    update = await _next(stream, "snapshot")
    assert (update.skipped, round(update.snapshot.collected_at.ToNanoseconds() / 1e9 - now, 3)) == (249, -51)
    await app.store.add_snapshots([Snapshot(name, Engine.VLLM, now - 50 + n) for n in range(20)])
    assert [(await _next(stream, "snapshot")).skipped for _ in range(20)] == [0] * 20
    stream.cancel()


async def test_health_is_streamed_when_it_changes_and_too_little_data_is_an_answer(remote: Remote) -> None:
    names = await remote.fleet(replicas=1)
    stream = remote.analyze.WatchHealth(analyze_service_pb2.WatchHealthRequest(instance_id=names[0], interval_seconds=0.05))
    first = (await stream.read()).report
    assert first.verdict == analysis_pb2.VERDICT_NOT_ENOUGH_EVIDENCE
    assert not first.HasField("health_score")
    await remote.import_capture(names[0], "b_queue_bad_r2", end=time.time() - 1)
    while True:
        report = (await _next(stream, "report")).report
        if report.cause == analysis_pb2.CAUSE_BATCH_LIMIT:
            break
    assert 0 <= report.health_score < 100
    stream.cancel()


async def _next(stream: Any, kind: str) -> Any:
    async with asyncio.timeout(5):
        while True:
            update = await stream.read()
            if update.WhichOneof("update") == kind:
                return update


async def test_the_server_tells_about_itself(start: Start) -> None:
    app = await start(token="s3cret", max_concurrent_calls=77)
    async with grpc.aio.insecure_channel(app.address) as channel:
        remote, metadata = Remote(channel), (("authorization", "Bearer s3cret"),)
        config = await remote.system.GetConfig(system_service_pb2.GetConfigRequest(), metadata=metadata)
        entries = {entry.name: entry for entry in config.entries}
        assert (entries["token"].value, entries["token"].secret) == ("***", True)
        assert (entries["max_concurrent_calls"].value, entries["max_concurrent_calls"].is_default) == ("77", False)
        can = await remote.system.GetCapabilities(system_service_pb2.GetCapabilitiesRequest(), metadata=metadata)
        assert [engine.knobs > 5 for engine in can.engines] == [True] * 3
        assert {target.kind for target in can.targets if target.available} == {
            fleet_pb2.TARGET_KIND_DRY_RUN,
            fleet_pb2.TARGET_KIND_LOCAL,
        }
        assert {"ttft_seconds", "running_requests"} <= {metric.name for metric in can.metrics}
        assert "token" in can.features
        version = await remote.system.GetVersion(system_service_pb2.GetVersionRequest(), metadata=metadata)
        assert version.version
        assert version.runtime["grpcio"]


async def test_keda_is_told_the_replicas_that_the_diagnosis_asks_for(remote: Remote) -> None:
    names = await remote.fleet(replicas=1)
    scaler: Any = externalscaler_pb2_grpc.ExternalScalerStub(remote.channel)
    ref = externalscaler_pb2.ScaledObjectRef(name="vllm", namespace="prod", scalerMetadata={"fleetId": "f"})
    assert (await scaler.IsActive(ref)).result
    assert (await scaler.StreamIsActive(ref).read()).result
    metric = (await scaler.GetMetricSpec(ref)).metricSpecs[0]
    assert (metric.metricName, metric.targetSizeFloat) == ("needed_replicas", 1.0)
    await remote.import_capture(names[0], "b_queue_bad_r2", end=time.time() - 1)
    request = externalscaler_pb2.GetMetricsRequest(scaledObjectRef=ref, metricName=metric.metricName)
    assert (await scaler.GetMetrics(request)).metricValues[0].metricValueFloat == 1.0, "a flag is the cure, not a replica"


async def test_health_reflection_and_channelz_answer(start: Start, unused_tcp_port: int) -> None:
    app = await start(admin_port=unused_tcp_port)
    async with grpc.aio.insecure_channel(app.address) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        for name in ("", *service_names()):
            answer = await health.Check(health_pb2.HealthCheckRequest(service=name))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        reflection: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        call = reflection.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
        listed = (await call.read()).list_services_response.service
        assert set(service_names()) < {service.name for service in listed}
        assert "grpc.channelz.v1.Channelz" not in {service.name for service in listed}
    async with grpc.aio.insecure_channel(f"127.0.0.1:{unused_tcp_port}") as admin:
        channelz: Any = channelz_pb2_grpc.ChannelzStub(admin)
        assert (await channelz.GetServers(channelz_pb2.GetServersRequest())).server


async def test_no_method_is_unimplemented(app: App, remote: Remote) -> None:
    channel: Any = remote.channel
    for method in methods().values():
        service = method.path.split("/")[1]
        assert service in service_names()
        if method.name.startswith(("Watch", "StreamIs")):
            stream = channel.unary_stream(method.path)(b"")
            code = await stream.code() if await _fails(stream) else grpc.StatusCode.OK
            stream.cancel()
        else:
            call = channel.unary_unary(method.path)(b"")
            code = await call.code()
        assert code in (grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT), (method.path, code)


async def _fails(stream: Any) -> bool:
    try:
        await stream.read()
    except grpc.aio.AioRpcError:
        return True
    return False


async def test_calls_are_counted_by_method_and_status(app: App, remote: Remote) -> None:
    await remote.system.GetVersion(system_service_pb2.GetVersionRequest())
    bad = remote.workflows.GetWorkflow(workflow_service_pb2.GetWorkflowRequest(workflow_id="none"))
    assert await bad.code() is grpc.StatusCode.NOT_FOUND
    count = app.registry.get_sample_value
    labels = {"service": "perf_service.v1.WorkflowService", "method": "GetWorkflow"}
    assert count("perf_service_rpc_handled_total", {**labels, "code": "NOT_FOUND"}) == 1
    assert count("perf_service_rpc_running", labels) == 0
    assert count("perf_service_rpc_seconds_count", {"service": "perf_service.v1.SystemService", "method": "GetVersion"}) == 1


async def test_the_version_names_the_stores_schema(remote: Remote) -> None:
    about = await remote.system.GetVersion(system_service_pb2.GetVersionRequest())
    assert about.version
    assert about.schema_version == REVISIONS[-1]
