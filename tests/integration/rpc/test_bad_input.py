"""What is wrong is refused with its reason, says what to do, and leaves nothing half done."""

from __future__ import annotations

import asyncio
import gzip
import sqlite3
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from perf_service.app import App, build_app
from perf_service.models.errors import ErrorReason, InvalidArgumentError, StoreError
from perf_service.models.fleet import Fleet
from perf_service.models.metrics import Engine
from perf_service.models.slo import Comparison, SLOTarget
from perf_service.settings import load_settings
from perf_service.v1 import (
    analyze_service_pb2,
    collect_service_pb2,
    config_pb2,
    engine_pb2,
    fleet_pb2,
    fleet_service_pb2,
    instance_pb2,
    optimize_service_pb2,
    slo_pb2,
    system_service_pb2,
    workflow_pb2,
    workflow_service_pb2,
)
from perf_service.v1._vendor.externalscaler import externalscaler_pb2, externalscaler_pb2_grpc
from tests.support.remote import Remote, Start, refusal

NOT_FOUND = grpc.StatusCode.NOT_FOUND
INVALID = grpc.StatusCode.INVALID_ARGUMENT
STATE = grpc.StatusCode.FAILED_PRECONDITION


async def test_unknown_ids_are_not_found_by_name(remote: Remote) -> None:
    calls: list[tuple[Any, str]] = [
        (remote.fleets.GetFleet(fleet_service_pb2.GetFleetRequest(fleet_id="nobody")), "FLEET_NOT_FOUND"),
        (remote.fleets.DeleteFleet(fleet_service_pb2.DeleteFleetRequest(fleet_id="nobody")), "FLEET_NOT_FOUND"),
        (remote.fleets.GetInstance(fleet_service_pb2.GetInstanceRequest(instance_id="nobody")), "INSTANCE_NOT_FOUND"),
        (remote.collect.CollectMetrics(collect_service_pb2.CollectMetricsRequest(instance_id="nobody")), "INSTANCE_NOT_FOUND"),
        (remote.analyze.Analyze(analyze_service_pb2.AnalyzeRequest(instance_id="nobody")), "INSTANCE_NOT_FOUND"),
        (remote.analyze.Analyze(analyze_service_pb2.AnalyzeRequest(fleet_id="nobody")), "FLEET_NOT_FOUND"),
        (remote.analyze.GetAnalysis(analyze_service_pb2.GetAnalysisRequest(analysis_id="nobody")), "ANALYSIS_NOT_FOUND"),
        (remote.optimize.GetPlan(optimize_service_pb2.GetPlanRequest(plan_id="nobody")), "PLAN_NOT_FOUND"),
        (remote.workflows.GetWorkflow(workflow_service_pb2.GetWorkflowRequest(workflow_id="nobody")), "WORKFLOW_NOT_FOUND"),
        (remote.workflows.AbortWorkflow(workflow_service_pb2.AbortWorkflowRequest(workflow_id="nobody")), "WORKFLOW_NOT_FOUND"),
        (remote.workflows.WatchWorkflow(workflow_service_pb2.WatchWorkflowRequest(workflow_id="nobody")).read(), "WORKFLOW_NOT_FOUND"),
        (remote.analyze.WatchHealth(analyze_service_pb2.WatchHealthRequest(fleet_id="nobody")).read(), "FLEET_NOT_FOUND"),
    ]
    for call, reason in calls:
        told = await refusal(call)
        assert (told.code, told.reason) == (NOT_FOUND, reason)
        assert "nobody" in told.text
        assert "nobody" in told.metadata.values()


async def test_malformed_requests_name_their_fields(remote: Remote) -> None:
    told = await refusal(remote.analyze.Analyze(analyze_service_pb2.AnalyzeRequest()))
    assert (told.code, told.fields) == (INVALID, ("subject",))
    request = workflow_service_pb2.StartWorkflowRequest(
        workflow=workflow_pb2.WorkflowSpec(
            fleet_id="f", policy=workflow_pb2.RolloutPolicy(stages=[workflow_pb2.StagePolicy(percent=p) for p in (-1, 200)])
        )
    )
    told = await refusal(remote.workflows.StartWorkflow(request))
    assert told.fields == ("workflow.policy.stages[0].percent", "workflow.policy.stages[1].percent")
    many = [slo_pb2.SLOTarget(metric_name=f"{i}", target_value=-1) for i in range(60)]
    told = await refusal(remote.analyze.Analyze(analyze_service_pb2.AnalyzeRequest(instance_id="i", slo_targets=many)))
    assert len(told.fields) == 20
    told = await refusal(remote.analyze.Analyze(analyze_service_pb2.AnalyzeRequest(instance_id="i", slo_targets=many[:1] * 65)))
    assert told.code is INVALID
    channel: Any = remote.channel
    told = await refusal(channel.unary_unary("/perf_service.v1.FleetService/GetFleet")(b"\xff\xff\xff"))
    assert (told.code, told.reason) == (INVALID, "INVALID_ARGUMENT")
    assert "DecodeError" not in told.text


async def test_an_oversized_request_is_refused(start: Start) -> None:
    app = await start(max_message_bytes=2048)
    async with grpc.aio.insecure_channel(app.address) as channel:
        remote = Remote(channel)
        told = await refusal(remote.collect.ImportMetrics(collect_service_pb2.ImportMetricsRequest(instance_id="i", page=b"x" * 3000)))
        assert (told.code, told.reason, told.metadata["limit_bytes"]) == (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "MESSAGE_TOO_LARGE",
            "2048",
        )
        told = await refusal(remote.collect.ImportMetrics(collect_service_pb2.ImportMetricsRequest(instance_id="i", page=b"x" * 100_000)))
        assert told.code is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_bad_pages_are_refused_and_nothing_is_stored(remote: Remote) -> None:
    name = (await remote.fleet(replicas=1))[0]
    pages = {
        b"   \n": "BODY_EMPTY",
        b"<!doctype html><html><body>404</body></html>": "BODY_NOT_METRICS",
        b"\x00\x01\x02\xff\xfe" * 50: "BODY_NOT_METRICS",
        gzip.compress(b"vllm:num_requests_running 3\n" * 50)[:40]: "BODY_NOT_METRICS",
        b'sglang:num_running_reqs{model_name="m"} 3\nsglang:num_queue_reqs{model_name="m"} 0\n': "ENGINE_MISMATCH",
    }
    for page, reason in pages.items():
        told = await refusal(remote.collect.ImportMetrics(collect_service_pb2.ImportMetricsRequest(instance_id=name, page=page)))
        assert (told.code, told.reason) == (STATE, reason), page
    listed = await remote.collect.ListSnapshots(collect_service_pb2.ListSnapshotsRequest(instance_id=name))
    assert not listed.snapshots


async def test_a_page_is_imported_packed_as_well_as_plain(remote: Remote) -> None:
    name = (await remote.fleet(replicas=1))[0]
    page = b'vllm:num_requests_running{model_name="m"} 3\nvllm:num_requests_waiting{model_name="m"} 0\n'
    plain, packed = [
        (await remote.collect.ImportMetrics(collect_service_pb2.ImportMetricsRequest(instance_id=name, page=body))).snapshot
        for body in (page, gzip.compress(page))
    ]
    assert packed.gauges == plain.gauges
    assert len(packed.gauges) == 2


async def test_an_engine_that_does_not_answer_says_so(remote: Remote) -> None:
    name = (await remote.fleet(replicas=1))[0]
    told = await refusal(remote.collect.CollectMetrics(collect_service_pb2.CollectMetricsRequest(instance_id=name)))
    assert (told.code, told.reason) == (grpc.StatusCode.UNAVAILABLE, "ENDPOINT_UNREACHABLE")
    assert told.retry_seconds
    told = await refusal(
        remote.optimize.Predict(
            optimize_service_pb2.PredictRequest(
                instance_id=name,
                changes=[optimize_service_pb2.KnobAssignment(parameter="max_num_seqs", value=config_pb2.KnobValue(int_value=9))],
            )
        )
    )
    assert told.reason == "ENDPOINT_UNREACHABLE"


async def test_endpoints_and_targets_are_checked_at_once(remote: Remote) -> None:
    def register(endpoint: str, fleet_id: str = "", engine: Any = engine_pb2.ENGINE_VLLM) -> Any:
        instance = instance_pb2.Instance(instance_id="x", endpoint=endpoint, engine=engine, fleet_id=fleet_id)
        return remote.fleets.RegisterInstance(fleet_service_pb2.RegisterInstanceRequest(instance=instance))

    for endpoint in ("ftp://host", "http://user:secret@host", "http://"):
        told = await refusal(register(endpoint))
        assert (told.code, told.reason) == (INVALID, "ENDPOINT_INVALID")
        assert "secret" not in told.text
    assert (await refusal(register("h:1", "nobody"))).reason == "FLEET_NOT_FOUND"
    await remote.fleet(replicas=0)
    assert (await refusal(register("h:1", "f", engine_pb2.ENGINE_TGI))).reason == "ENGINE_MISMATCH"
    for kind, reason in ((fleet_pb2.TARGET_KIND_KUBERNETES, "TARGET_KIND_UNKNOWN"), (fleet_pb2.TARGET_KIND_LOCAL, "INVALID_ARGUMENT")):
        fleet = fleet_pb2.Fleet(fleet_id="g", engine=engine_pb2.ENGINE_VLLM, target=fleet_pb2.TargetSpec(kind=kind))
        told = await refusal(remote.fleets.CreateFleet(fleet_service_pb2.CreateFleetRequest(fleet=fleet)))
        assert told.reason == reason
    assert [f.fleet_id for f in (await remote.fleets.ListFleets(fleet_service_pb2.ListFleetsRequest())).fleets] == ["f"]


async def test_an_objective_of_an_earlier_version_does_not_keep_a_fleet_as_it_is(app: App, remote: Remote) -> None:
    """It would be refused now; who changes something else need not know of it."""
    old = SLOTarget("no_such_metric", 1.0, Comparison.LESS_THAN)
    await app.store.create_fleet(Fleet("f", Engine.VLLM, slo_targets=(old,)))

    def update(*paths: str, **fields: Any) -> Any:
        fleet = fleet_pb2.Fleet(fleet_id="f", engine=engine_pb2.ENGINE_VLLM, **fields)
        return remote.fleets.UpdateFleet(fleet_service_pb2.UpdateFleetRequest(fleet=fleet, update_mask=FieldMask(paths=paths)))

    changed = (await update("display_name", display_name="new")).fleet
    assert (changed.display_name, changed.slo_targets[0].metric_name) == ("new", "no_such_metric")
    assert (await refusal(update("slo_targets", slo_targets=changed.slo_targets))).fields == ("fleet.slo_targets[0].metric_name",)
    another = slo_pb2.SLOTarget(metric_name="nor_this", target_value=1.0, comparison=slo_pb2.COMPARISON_LESS_THAN)
    assert (await refusal(update(slo_targets=[another]))).code is INVALID


async def test_who_registers_what_is_there_is_told_whether_its_prometheus_is_the_same(remote: Remote) -> None:
    """Its URL is shown masked, so that callers cannot see that."""

    def register(tenant: str) -> Any:
        source = instance_pb2.PrometheusSource(url=f"http://p?tenant={tenant}", match='a="b"')
        instance = instance_pb2.Instance(instance_id="i", engine=engine_pb2.ENGINE_VLLM, prometheus=source)
        return remote.fleets.RegisterInstance(fleet_service_pb2.RegisterInstanceRequest(instance=instance))

    await register("hush")
    for tenant, found in (("hush", "same"), ("other", "other")):
        told = await refusal(register(tenant))
        assert (told.reason, told.metadata["prometheus"]) == ("INSTANCE_ALREADY_EXISTS", found)
        assert "hush" not in told.text


async def test_what_is_there_or_has_changed_is_a_conflict(remote: Remote) -> None:
    await remote.fleet()
    fleet = fleet_pb2.Fleet(fleet_id="f", engine=engine_pb2.ENGINE_VLLM)
    told = await refusal(remote.fleets.CreateFleet(fleet_service_pb2.CreateFleetRequest(fleet=fleet)))
    assert (told.code, told.reason) == (grpc.StatusCode.ALREADY_EXISTS, "FLEET_ALREADY_EXISTS")
    told = await refusal(remote.fleets.DeleteFleet(fleet_service_pb2.DeleteFleetRequest(fleet_id="f")))
    assert (told.code, told.reason) == (STATE, "FLEET_NOT_EMPTY")
    stale = fleet_service_pb2.UpdateFleetRequest(
        fleet=fleet_pb2.Fleet(fleet_id="f", display_name="x", etag="stale"), update_mask=FieldMask(paths=["display_name"])
    )
    told = await refusal(remote.fleets.UpdateFleet(stale))
    assert (told.code, told.reason) == (grpc.StatusCode.ABORTED, "ETAG_MISMATCH")
    told = await refusal(remote.fleets.DeregisterInstance(fleet_service_pb2.DeregisterInstanceRequest(instance_id="f-0", etag="stale")))
    assert told.reason == "ETAG_MISMATCH"
    assert (await remote.fleets.GetFleet(fleet_service_pb2.GetFleetRequest(fleet_id="f"))).fleet.display_name == ""


async def test_a_request_id_stands_for_one_request(remote: Remote) -> None:
    def create(fleet_id: str) -> Any:
        fleet = fleet_pb2.Fleet(fleet_id=fleet_id, engine=engine_pb2.ENGINE_VLLM)
        return remote.fleets.CreateFleet(fleet_service_pb2.CreateFleetRequest(fleet=fleet, request_id="r-1"))

    answers = await asyncio.gather(*(create("f") for _ in range(5)))
    assert len({answer.SerializeToString(deterministic=True) for answer in answers}) == 1
    told = await refusal(create("g"))
    assert (told.code, told.reason, told.metadata["request_id"]) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED", "r-1")
    assert (await refusal(remote.fleets.GetFleet(fleet_service_pb2.GetFleetRequest(fleet_id="g")))).code is NOT_FOUND


async def test_knobs_are_checked_before_anything_is_predicted(remote: Remote) -> None:
    name = (await remote.fleet(replicas=1))[0]

    def predict(parameter: str, value: int) -> Any:
        item = optimize_service_pb2.KnobAssignment(parameter=parameter, value=config_pb2.KnobValue(int_value=value))
        return remote.optimize.Predict(optimize_service_pb2.PredictRequest(instance_id=name, changes=[item]))

    told = await refusal(predict("max_num_seq", 8))
    assert (told.code, told.reason) == (INVALID, "KNOB_UNKNOWN")
    told = await refusal(predict("max_num_seqs", -1))
    assert (told.code, told.reason) == (INVALID, "KNOB_VALUE_INVALID")


async def test_page_tokens_of_another_listing_are_refused(remote: Remote) -> None:
    for call in (
        remote.fleets.ListFleets(fleet_service_pb2.ListFleetsRequest(page_token="nonsense")),
        remote.optimize.ListKnobs(optimize_service_pb2.ListKnobsRequest(engine=engine_pb2.ENGINE_TGI, page_token="nonsense")),
        remote.workflows.ListWorkflows(workflow_service_pb2.ListWorkflowsRequest(page_token="nonsense")),
    ):
        told = await refusal(call)
        assert (told.code, told.reason) == (INVALID, "PAGE_TOKEN_INVALID")


async def test_keda_must_name_a_fleet_and_our_metric(remote: Remote) -> None:
    scaler: Any = externalscaler_pb2_grpc.ExternalScalerStub(remote.channel)
    told = await refusal(scaler.GetMetricSpec(externalscaler_pb2.ScaledObjectRef(name="x")))
    assert (told.code, told.fields) == (INVALID, ("scalerMetadata.fleetId",))
    ref = externalscaler_pb2.ScaledObjectRef(scalerMetadata={"fleetId": "nobody"})
    assert (await refusal(scaler.IsActive(ref))).reason == "FLEET_NOT_FOUND"
    told = await refusal(scaler.GetMetrics(externalscaler_pb2.GetMetricsRequest(scaledObjectRef=ref, metricName="queue")))
    assert told.fields == ("metricName",)


async def test_a_defect_shows_nothing_of_its_inside(app: App, remote: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*args: Any, **kwargs: Any) -> None:
        raise ValueError("secret internals")

    monkeypatch.setattr(app.store, "get_fleet", broken)
    told = await refusal(remote.fleets.GetFleet(fleet_service_pb2.GetFleetRequest(fleet_id="f")))
    assert (told.code, told.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    assert told.metadata["correlation_id"] in told.text
    assert "secret" not in told.text
    assert "ValueError" not in told.text


async def test_a_token_is_asked_for_except_by_probes(start: Start) -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    app = await start(token="s3cret")
    async with grpc.aio.insecure_channel(app.address) as channel:
        remote, request = Remote(channel), system_service_pb2.GetVersionRequest()
        told = await refusal(remote.system.GetVersion(request))
        assert (told.code, told.reason) == (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED")
        told = await refusal(remote.system.GetVersion(request, metadata=(("authorization", "Bearer wrong"),)))
        assert told.reason == "UNAUTHENTICATED"
        assert (await remote.system.GetVersion(request, metadata=(("authorization", "Bearer s3cret"),))).version
        health: Any = health_pb2_grpc.HealthStub(channel)
        assert (await health.Check(health_pb2.HealthCheckRequest())).status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3"])
def test_the_network_is_not_served_without_authentication(host: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="refusing to listen") as caught:
        build_app(load_settings(host=host, port=0, database_url=f"sqlite:///{tmp_path}/store.db"))
    assert caught.value.reason is ErrorReason.SETTINGS_INVALID
    assert not (tmp_path / "store.db").exists()


async def test_a_port_that_is_taken_is_told(start: Start) -> None:
    app = await start()
    with pytest.raises(InvalidArgumentError, match=str(app.port)):
        await start(port=app.port, database_url="sqlite://")


async def test_too_many_streams_are_refused_and_calls_still_served(start: Start) -> None:
    app = await start(max_concurrent_streams=1)
    async with grpc.aio.insecure_channel(app.address) as channel:
        remote = Remote(channel)
        await remote.fleet()
        first = remote.collect.WatchMetrics(collect_service_pb2.WatchMetricsRequest(fleet_id="f"))
        await first.read()
        told = await refusal(remote.collect.WatchMetrics(collect_service_pb2.WatchMetricsRequest(fleet_id="f")).read())
        assert (told.code, told.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED")
        assert told.retry_seconds
        assert (await remote.fleets.GetFleet(fleet_service_pb2.GetFleetRequest(fleet_id="f"))).fleet
        first.cancel()


async def test_a_locked_store_asks_for_a_retry_and_recovers(start: Start, tmp_path: Path) -> None:
    app = await start(lock_timeout_seconds=0.1)
    async with grpc.aio.insecure_channel(app.address) as channel:
        remote = Remote(channel)
        create = fleet_service_pb2.CreateFleetRequest(
            fleet=fleet_pb2.Fleet(fleet_id="f", engine=engine_pb2.ENGINE_VLLM), request_id="again"
        )
        holder = sqlite3.connect(tmp_path / "store.db", isolation_level=None)
        holder.execute("BEGIN EXCLUSIVE")
        told = await refusal(remote.fleets.CreateFleet(create))
        assert (told.code, told.reason) == (grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE")
        assert told.retry_seconds
        holder.execute("ROLLBACK")
        holder.close()
        assert (await remote.fleets.CreateFleet(create)).fleet.fleet_id == "f"


async def test_a_store_of_a_newer_version_is_left_alone(start: Start, tmp_path: Path) -> None:
    await (await start()).stop(0)
    with sqlite3.connect(tmp_path / "store.db") as db:
        db.execute("UPDATE alembic_version SET version_num = '9999'")
    db.close()
    with pytest.raises(StoreError) as caught:
        await start()
    assert caught.value.reason is ErrorReason.STORE_SCHEMA_NEWER


async def test_a_range_that_ends_before_it_starts_is_refused(remote: Remote) -> None:
    name = (await remote.fleet(replicas=1))[0]
    request = analyze_service_pb2.AnalyzeRequest(instance_id=name)
    request.range.start.FromSeconds(int(time.time()))
    request.range.end.FromSeconds(int(time.time()) - 60)
    assert (await refusal(remote.analyze.Analyze(request))).code is INVALID


@pytest.mark.parametrize(("overrides", "allowed"), [({}, True), ({"local_targets": False}, False)])
async def test_a_local_target_needs_the_operators_leave(start: Start, overrides: dict[str, Any], allowed: bool) -> None:
    app = await start(**overrides)
    target = fleet_pb2.TargetSpec(kind=fleet_pb2.TARGET_KIND_LOCAL, options={"command": "engine --port {port} {flags}"})
    fleet = fleet_pb2.Fleet(fleet_id="f", engine=engine_pb2.ENGINE_VLLM, target=target)
    async with grpc.aio.insecure_channel(app.address) as channel:
        request = fleet_service_pb2.CreateFleetRequest(fleet=fleet)
        if allowed:
            assert (await Remote(channel).fleets.CreateFleet(request)).fleet.fleet_id == "f"
        else:
            told = await refusal(Remote(channel).fleets.CreateFleet(request))
            assert (told.code, told.reason) == (grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED")
            assert told.metadata["setting"] == "local_targets"
