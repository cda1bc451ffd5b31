"""Health as it is streamed, error budgets as they are answered, over a real server and store."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from perf_service.app import App
from perf_service.models.metrics import Counter, Engine, Gauge, Hist, Histogram, Snapshot
from perf_service.v1 import analysis_pb2, analyze_service_pb2, slo_pb2
from tests.support.remote import Remote, Start

DAY = 86_400.0
TTFT_P99 = slo_pb2.SLOTarget(metric_name="ttft_p99", target_value=0.5, comparison=slo_pb2.COMPARISON_LESS_THAN)


def page(instance_id: str, at: float, good: float, bad: float, *, begun: float = 1.0) -> Snapshot:
    """Cumulative: `good` requests within 0.1 s, `bad` ones between 0.5 and 1 s, and so many tokens."""
    done = good + bad
    return Snapshot(
        instance_id,
        Engine.VLLM,
        at,
        gauges={Gauge.RUNNING_REQUESTS: float(done > 0), Gauge.WAITING_REQUESTS: 0.0},
        counters={Counter.GENERATION_TOKENS: 10 * done, Counter.REQUESTS_SUCCEEDED: done},
        histograms={
            Hist.TTFT_SECONDS: Histogram(done, 0.05 * good + 0.8 * bad, (0.1, 0.5, 1.0), (good, good, done)),
            Hist.E2E_SECONDS: Histogram(done, 1.0 * done, (1.0, 10.0), (done, done)),
        },
        process_start_time=begun,
    )


async def read(stream: Any, kind: str = "report") -> Any:
    async with asyncio.timeout(5):
        while (update := await stream.read()).WhichOneof("update") != kind:
            pass
        return getattr(update, kind)


async def test_a_budget_is_told_over_thinned_pages_and_a_restart(app: App, remote: Remote) -> None:
    """Nine days are known, with a restart three days ago; the last hour burns fast. All from eight pages."""
    [name] = await remote.fleet(replicas=1)
    now = time.time()
    restarted = now - 3 * DAY
    for at, good, bad, begun in (
        (now - 9 * DAY, 5000, 1, 1.0),
        (restarted - 60, 65_000, 101, 1.0),
        (restarted + 600, 70, 0, restarted),
        (now - 21_600, 30_000, 50, restarted),
        (now - 3600, 32_000, 60, restarted),
        (now - 1800, 32_200, 360, restarted),
        (now - 300, 32_300, 560, restarted),
        (now - 1, 32_400, 660, restarted),
    ):
        await app.store.add_snapshot(page(name, at, good, bad, begun=begun))
    request = analyze_service_pb2.AnalyzeRequest(instance_id=name, slo_targets=[TTFT_P99])
    analysis = (await remote.analyze.Analyze(request)).analysis
    [status] = analysis.slo_statuses
    budget = status.budget
    assert (budget.requests, budget.bad_low, budget.bad_high) == (60_100 + 33_060, 760, 760)
    assert 8.9 * DAY < budget.covered_seconds < 9 * DAY
    assert budget.left_low == pytest.approx(1 - 760 / 931.6)
    assert budget.state == slo_pb2.BUDGET_STATE_FAST_BURN
    fast, slow = budget.burns
    assert (fast.alerting, slow.alerting) == (True, True)
    assert fast.long_rate == pytest.approx(60.0)  # 600 of 1000 requests in the last hour, where one in a hundred is allowed
    assert 0 < budget.exhausted_in_seconds < 3600
    assert "over the 9 days that are known of 30 days" in budget.message
    stored = await remote.analyze.GetAnalysis(analyze_service_pb2.GetAnalysisRequest(analysis_id=analysis.analysis_id))
    assert stored.analysis == analysis


async def test_a_fleet_has_one_budget_from_the_sums_of_its_replicas(app: App, remote: Remote) -> None:
    names, now = await remote.fleet(replicas=2), time.time()
    for name, bad in zip(names, (0, 90), strict=True):
        await app.store.add_snapshot(page(name, now - 2 * DAY, 0, 0))
        await app.store.add_snapshot(page(name, now - 60, 9000, bad))
        await app.store.add_snapshot(page(name, now - 1, 9010, bad))
    request = analyze_service_pb2.AnalyzeRequest(fleet_id="f", slo_targets=[TTFT_P99])
    budget = (await remote.analyze.Analyze(request)).analysis.slo_statuses[0].budget
    assert (budget.requests, budget.bad_low) == (18_110, 90)
    assert budget.state == slo_pb2.BUDGET_STATE_OK


async def test_a_long_range_is_judged_as_a_whole(app: App, remote: Remote) -> None:
    """30 days of a page an hour: all of them count, not only the newest thousand scrapes' worth of time."""
    [name] = await remote.fleet(replicas=1)
    now = time.time()
    await app.store.add_snapshots([page(name, now - 3600.0 * age, 100.0 * (720 - age), 2.0 * (720 - age)) for age in range(720, -1, -1)])
    request = analyze_service_pb2.AnalyzeRequest(instance_id=name, slo_targets=[TTFT_P99])
    request.range.start.FromNanoseconds(int((now - 30 * DAY) * 1e9))
    request.range.end.FromNanoseconds(int(now * 1e9))
    analysis = (await remote.analyze.Analyze(request)).analysis
    assert analysis.window.duration_seconds == pytest.approx(30 * DAY, rel=0.01)
    assert analysis.slo_statuses[0].samples == pytest.approx(720 * 102, rel=0.01)
    assert analysis.slo_statuses[0].state == slo_pb2.SLO_STATE_MISSED


async def test_health_is_streamed_with_its_parts_its_budgets_and_a_status_that_lasts(app: App, remote: Remote) -> None:
    [name] = await remote.fleet(replicas=1)
    request = analyze_service_pb2.WatchHealthRequest(
        instance_id=name, interval_seconds=0.03, slo_targets=[TTFT_P99], confirmations=2, min_change=5
    )
    stream = remote.analyze.WatchHealth(request)
    first = await read(stream)
    assert (first.status, first.HasField("health_score")) == (analysis_pb2.HEALTH_STATUS_UNKNOWN, False)
    now = time.time()
    for age in (100, 50):
        await app.store.add_snapshot(page(name, now - age, 0, 0))
    idle = await read(stream)
    assert (idle.status, idle.HasField("health_score")) == (analysis_pb2.HEALTH_STATUS_NO_LOAD, False)
    assert idle.summary.startswith("No load yet")
    await app.store.add_snapshot(page(name, now - 40, 1000, 0))
    well = await read(stream)
    assert (well.status, well.health_score) == (analysis_pb2.HEALTH_STATUS_HEALTHY, 100.0)
    assert well.slo_statuses[0].HasField("budget")
    await app.store.add_snapshot(page(name, now - 1, 1000, 1000))
    bad = await read(stream)
    assert bad.status in (analysis_pb2.HEALTH_STATUS_HEALTHY, analysis_pb2.HEALTH_STATUS_DEGRADED)
    assert bad.health_score < 100
    assert sum(part.penalty for part in bad.parts) == pytest.approx(100 - bad.health_score)
    assert await read(stream, "heartbeat")
    stream.cancel()


async def test_streams_end_at_once_when_the_server_stops_and_nobody_who_only_listens_holds_it_up(start: Start) -> None:
    app = await start(heartbeat_seconds=30, drain_seconds=20)
    async with grpc.aio.insecure_channel(app.address) as channel:
        remote = Remote(channel)
        names = await remote.fleet(replicas=1)
        watch = remote.analyze.WatchHealth(analyze_service_pb2.WatchHealthRequest(instance_id=names[0], interval_seconds=3600))
        assert (await watch.read()).HasField("report")
        health: Any = health_pb2_grpc.HealthStub(channel)
        states = health.Watch(health_pb2.HealthCheckRequest())
        assert (await states.read()).status == health_pb2.HealthCheckResponse.SERVING
        unknown = health.Watch(health_pb2.HealthCheckRequest(service="nobody"))
        assert (await unknown.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        reflection: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        tool = reflection.ServerReflectionInfo()
        await tool.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        assert await tool.read() is not None
        began = time.monotonic()
        await app.stop()
        assert time.monotonic() - began < 5, "the grace of 20 s is for calls that work, not for those who listen"
        assert (await watch.read()).HasField("draining")
        assert await watch.read() is grpc.aio.EOF
        assert (await states.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert await states.read() is grpc.aio.EOF
        assert [await call.code() for call in (watch, states, unknown)] == [grpc.StatusCode.OK] * 3


async def test_a_call_that_works_when_the_server_stops_is_waited_for(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    app = await start()
    began, go_on = asyncio.Event(), asyncio.Event()
    real = app.store.list_analyses

    async def slowly(**arguments: Any) -> Any:
        began.set()
        await go_on.wait()
        return await real(**arguments)

    monkeypatch.setattr(app.store, "list_analyses", slowly)
    async with grpc.aio.insecure_channel(app.address) as channel:
        call = asyncio.ensure_future(Remote(channel).analyze.ListAnalyses(analyze_service_pb2.ListAnalysesRequest()))
        await began.wait()
        stopping = asyncio.create_task(app.stop(10))
        await asyncio.sleep(0)
        go_on.set()
        assert list((await call).analyses) == []
        await stopping


async def test_a_slow_reader_of_health_costs_nothing_meanwhile(app: App, remote: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stream is pulled: as long as nobody takes a message no further look is taken."""
    from perf_service.rpc.services.analyze import AnalyzeServicer

    [name] = await remote.fleet(replicas=1)
    looks = 0
    servicer = AnalyzeServicer(app._services())
    real = servicer._look

    async def counted(request: Any) -> Any:
        nonlocal looks
        looks += 1
        look, report = await real(request)
        status = analysis_pb2.HEALTH_STATUS_UNKNOWN
        return type(look)(float(50 * (looks % 2)), look.status, look.verdict), type(report)(status=status)

    monkeypatch.setattr(servicer, "_look", counted)
    request = analyze_service_pb2.WatchHealthRequest(instance_id=name, interval_seconds=0.001, confirmations=1)
    stream = servicer.WatchHealth(request, None)
    for n in range(1, 4):
        await anext(stream)
        await asyncio.sleep(0.02)
        assert looks == n
    await stream.aclose()  # type: ignore[attr-defined]


async def test_watches_of_one_fleet_share_a_bounded_look(app: App, remote: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten watches cost what one does, each with its own status; a replica scraped often is read in part."""
    names = await remote.fleet(replicas=2)
    now = time.time()
    for name in names:
        await app.store.add_snapshots([page(name, now - 200 + 10 * n, 100.0 * n, 0) for n in range(20)])
    looks: list[int] = []
    real = app.pipeline.pages.series

    async def counted(*args: Any, **more: Any) -> Any:
        found = await real(*args, **more)
        looks.append(max(map(len, found.values())))
        return found

    monkeypatch.setattr("perf_service.workflows.stored_pages.LOOK_PAGES", 14)
    monkeypatch.setattr(app.pipeline.pages, "series", counted)
    fleet_id = (await app.store.get_instance(names[0])).fleet_id
    watches = [
        remote.analyze.WatchHealth(analyze_service_pb2.WatchHealthRequest(fleet_id=fleet_id, interval_seconds=3600)) for _ in range(10)
    ]
    reports = await asyncio.gather(*(read(watch) for watch in watches))
    assert looks == [12]
    assert {report.fleet_id for report in reports} == {fleet_id}
    assert len({report.SerializeToString(deterministic=True) for report in reports}) == 1
    for watch in watches:
        watch.cancel()
