"""The app as a whole: background scraping, its own metrics, TLS, and nothing left behind."""

from __future__ import annotations

import asyncio
import errno
import io
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import structlog

from perf_service.app import build_app
from perf_service.models.errors import ErrorReason, InvalidArgumentError
from perf_service.settings import load_settings
from perf_service.v1 import collect_service_pb2, fleet_service_pb2, instance_pb2, system_service_pb2
from tests.support.remote import Remote, Start, engine, refusal


async def scrapes(remote: Remote, instance_id: str, count: int) -> None:
    """Wait until so many snapshots are stored."""
    request = collect_service_pb2.WatchMetricsRequest(instance_id=instance_id)
    request.start_after.FromSeconds(0)
    stream = remote.collect.WatchMetrics(request)
    async with asyncio.timeout(10):
        while count:
            count -= (await stream.read()).HasField("snapshot")
    stream.cancel()


async def test_a_registered_engine_is_scraped_also_after_a_restart(start: Start) -> None:
    async with engine("a_healthy") as url:
        app = await start(scrape=True)
        async with grpc.aio.insecure_channel(app.address) as channel:
            remote = Remote(channel)
            (name,) = await remote.fleet(replicas=1, endpoint=url)
            update = fleet_service_pb2.UpdateInstanceRequest(instance=instance_pb2.Instance(instance_id=name, scrape_interval_seconds=1))
            update.update_mask.paths.append("scrape_interval_seconds")
            assert (await remote.fleets.UpdateInstance(update)).instance.endpoint == url
            await scrapes(remote, name, 1)
        await app.stop(1)
        app = await start(scrape=True)
        async with grpc.aio.insecure_channel(app.address) as channel:
            await scrapes(Remote(channel), name, 2)
            await Remote(channel).fleets.DeregisterInstance(fleet_service_pb2.DeregisterInstanceRequest(instance_id=name))
        assert app.scheduler.counts.failed == 0


async def test_an_instance_tells_whether_it_can_be_scraped(start: Start, unused_tcp_port: int) -> None:
    app = await start(scrape=True)
    async with grpc.aio.insecure_channel(app.address) as channel:
        remote = Remote(channel)

        async def seen(name: str, state: int) -> instance_pb2.ScrapeStatus:
            async with asyncio.timeout(10):
                while True:
                    listed = await remote.fleets.ListInstances(fleet_service_pb2.ListInstancesRequest())
                    got = await remote.fleets.GetInstance(fleet_service_pb2.GetInstanceRequest(instance_id=name))
                    if listed.scrapes[name].state == got.scrape.state == state:
                        scrape: instance_pb2.ScrapeStatus = got.scrape
                        return scrape
                    await asyncio.sleep(0.05)

        async def moved(name: str, url: str) -> None:
            told = instance_pb2.Instance(instance_id=name, endpoint=url, scrape_interval_seconds=1)
            request = fleet_service_pb2.UpdateInstanceRequest(instance=told)
            request.update_mask.paths.extend(["endpoint", "scrape_interval_seconds"])
            await remote.fleets.UpdateInstance(request)

        (name,) = await remote.fleet(replicas=1, endpoint=f"http://127.0.0.1:{unused_tcp_port}")
        await seen(name, instance_pb2.SCRAPE_STATE_NEVER)
        await moved(name, f"http://127.0.0.1:{unused_tcp_port}")
        down = await seen(name, instance_pb2.SCRAPE_STATE_DOWN)
        assert (down.reason, down.HasField("down_since"), down.HasField("last_page_at")) == ("ENDPOINT_UNREACHABLE", True, False)
        async with engine("a_healthy") as url:
            await moved(name, url)
            up = await seen(name, instance_pb2.SCRAPE_STATE_UP)
            assert (up.reason, up.HasField("down_since"), up.HasField("last_page_at")) == ("", False, True)


async def test_a_log_that_cannot_be_written_fails_no_call(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", Full())
        app = await start(log_level="info")
    async with grpc.aio.insecure_channel(app.address) as channel:
        assert await Remote(channel).fleet(replicas=1)


async def test_a_token_in_an_address_is_seen_nowhere(start: Start, monkeypatch: pytest.MonkeyPatch, unused_tcp_port: int) -> None:
    """Not in the log, in an answer, or in an error."""
    log = io.StringIO()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", log)
        app = await start(log_level="debug")
        async with grpc.aio.insecure_channel(app.address) as channel:
            remote = Remote(channel)
            (name,) = await remote.fleet(replicas=1, endpoint=f"http://127.0.0.1:{unused_tcp_port}/metrics?token=hush")
            told = await refusal(remote.collect.CollectMetrics(collect_service_pb2.CollectMetricsRequest(instance_id=name)))
            shown = (await remote.fleets.GetInstance(fleet_service_pb2.GetInstanceRequest(instance_id=name))).instance
        structlog.get_logger("perf_service").error("failed", exc_info=OSError("http://u:hush@h"))
        await app.stop(0)
    assert (told.reason, shown.endpoint) == ("ENDPOINT_UNREACHABLE", f"http://127.0.0.1:{unused_tcp_port}/metrics?token=***")
    assert log.getvalue().count("http://***@h") == 1
    assert "hush" not in log.getvalue() + told.text


async def test_metadata_addresses_are_never_scraped(start: Start) -> None:
    app = await start()
    async with grpc.aio.insecure_channel(app.address) as channel:
        remote = Remote(channel)
        (name,) = await remote.fleet(replicas=1, endpoint="http://169.254.169.254/latest")
        told = await refusal(remote.collect.CollectMetrics(collect_service_pb2.CollectMetricsRequest(instance_id=name)))
        assert (told.code, told.reason) == (grpc.StatusCode.PERMISSION_DENIED, "ENDPOINT_FORBIDDEN")


async def test_its_own_metrics_are_served(start: Start, unused_tcp_port: int) -> None:
    app = await start(metrics_port=unused_tcp_port)
    async with grpc.aio.insecure_channel(app.address) as channel:
        await Remote(channel).system.GetVersion(system_service_pb2.GetVersionRequest())
    async with httpx.AsyncClient() as client:
        page = (await client.get(f"http://127.0.0.1:{unused_tcp_port}/metrics")).text
    assert 'perf_service_rpc_handled_total{code="OK",method="GetVersion",service="perf_service.v1.SystemService"} 1.0' in page
    before = threading.active_count()
    await app.stop(0)
    assert threading.active_count() < before or before == 1


def test_a_wrong_network_is_told(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="PERF_SERVICE_ALLOWED_NETWORKS") as caught:
        build_app(load_settings(database_url=f"sqlite:///{tmp_path}/x.db", allowed_networks=("ten",)))
    assert caught.value.reason is ErrorReason.SETTINGS_INVALID


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    """An authority that signs itself, and certificates of it for a server and a client."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs the openssl command")

    def run(*arguments: str) -> None:
        subprocess.run([openssl, *arguments], check=True, cwd=tmp_path, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    run("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=test authority", "-days", "1")
    (tmp_path / "san").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1")
    for name, subject in (("server", "/CN=localhost"), ("client", "/CN=alice")):
        run("req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", subject)
        signing = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "1", "-extfile", "san")
        run("x509", "-req", "-in", f"{name}.csr", *signing, "-out", f"{name}.pem")
    return tmp_path


async def test_a_client_certificate_is_asked_for_and_names_the_principal(start: Start, certificates: Path) -> None:
    files = {name: certificates / f"{name}.pem" for name in ("ca", "server", "client")}
    app = await start(
        host="0.0.0.0", tls_cert_file=files["server"], tls_key_file=certificates / "server.key", tls_client_ca_file=files["ca"]
    )
    address = f"localhost:{app.port}"
    pair: Any = ((certificates / "client.key").read_bytes(), files["client"].read_bytes())
    authority = files["ca"].read_bytes()
    async with grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(authority, *pair)) as channel:
        await Remote(channel).fleet(replicas=0)
    async with grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(authority)) as channel:
        told = await refusal(Remote(channel).system.GetVersion(system_service_pb2.GetVersionRequest(), timeout=5))
        assert told.code is grpc.StatusCode.UNAVAILABLE
    audit = (await app.store.list_audit()).items
    assert [(entry.principal, entry.method.rpartition("/")[2], entry.resource) for entry in audit] == [("alice", "CreateFleet", "f")]
