"""The only wiring: store, scraper, use cases, rollouts and server, from settings to something that runs.

app = build_app(load_settings(port=0))
await app.start()
... app.port ...
await app.stop()
"""

from __future__ import annotations

import random
import time
from typing import Any

import structlog
from prometheus_client import CollectorRegistry, start_http_server

from perf_service.background import Background, Housekeeping
from perf_service.collectors.discovering import DiscoveringScrape
from perf_service.collectors.lean import LeanFetcher
from perf_service.collectors.prometheus.client import PrometheusClient
from perf_service.collectors.prometheus.source import EitherSource, PrometheusScrape
from perf_service.collectors.scheduler import ScrapeScheduler, WallClock
from perf_service.collectors.source import DirectScrape, SharedScrape
from perf_service.collectors.transport import NetworkPolicy
from perf_service.logs import configure_logging
from perf_service.models.errors import CollectError, ErrorReason, InvalidArgumentError, StoreError
from perf_service.models.fleet import Fleet, Instance, TargetKind
from perf_service.models.metrics import Snapshot
from perf_service.models.scraping import Outages
from perf_service.rpc.context import ServerLimits, Services, SettingView
from perf_service.rpc.lifecycle import Lifecycle
from perf_service.rpc.server import RpcServer, ServerOptions, check_bind, is_loopback
from perf_service.settings import Settings, describe, engine_environment
from perf_service.storage.buffer import SnapshotBuffer
from perf_service.storage.history import History, HistoryPolicy
from perf_service.storage.listing import all_fleets, all_instances
from perf_service.storage.ports import Store
from perf_service.storage.store import SqlStore, random_id
from perf_service.storage.tables import REVISIONS
from perf_service.targets.registry import TargetPool
from perf_service.targets.supervision import LocalSupervision
from perf_service.workflows.backfilling import Backfilling
from perf_service.workflows.collecting import Collecting
from perf_service.workflows.manager import WorkflowManager
from perf_service.workflows.pipeline import Pipeline

_log = structlog.get_logger("perf_service.app")


def build_app(settings: Settings) -> App:
    """Everything that does not need a running event loop: a wrong setting fails here, before anything is started.

    Raises InvalidArgumentError SETTINGS_INVALID, StoreError.
    """
    configure_logging(settings)
    check_bind(server_options(settings))
    try:
        policy = NetworkPolicy.of(settings.denied_networks, settings.allowed_networks)
    except ValueError as error:
        raise InvalidArgumentError(
            f"PERF_SERVICE_ALLOWED_NETWORKS and PERF_SERVICE_DENIED_NETWORKS take networks such as 10.0.0.0/8: {error}",
            field="allowed_networks",
            reason=ErrorReason.SETTINGS_INVALID,
        ) from error
    return App(settings, SqlStore.open(settings.database_url, lock_timeout_seconds=settings.lock_timeout_seconds), policy)


class App:
    """A service that can be started and stopped once. One owner of every background task."""

    def __init__(self, settings: Settings, store: Store, policy: NetworkPolicy) -> None:
        self.settings = settings
        self.store = store
        self.registry = CollectorRegistry()
        self.lifecycle = Lifecycle()
        self._policy = policy
        self._background = Background()
        self._newest: dict[str, float] = {}
        self._outages = Outages()
        self._server: RpcServer | None = None
        self._stopped = False

    @property
    def port(self) -> int:
        """The port that is listened on. Raises RuntimeError before `start`."""
        if self._server is None:
            raise RuntimeError("the app has not been started")
        return self._server.port

    @property
    def address(self) -> str:
        """HOST:PORT for a client on this machine."""
        host = self.settings.host
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    async def start(self) -> None:
        """Scrape, drive rollouts (those that a restart interrupted first) and serve. Nothing is left behind where a step fails."""
        settings = self.settings
        self._fetcher = LeanFetcher(
            settings.scrape_timeout_seconds,
            max_body_bytes=settings.max_page_bytes,
            policy=self._policy,
            compressed=settings.scrape_compressed,
        )
        scrape = DirectScrape(self._fetcher, max_body_bytes=settings.max_page_bytes)
        self._prometheus = PrometheusClient(settings.scrape_timeout_seconds, policy=self._policy)
        scraped = PrometheusScrape(self._prometheus, max_body_bytes=settings.max_page_bytes)
        source = SharedScrape(
            EitherSource(DiscoveringScrape(scrape, self._fetcher), scraped, discovering=DiscoveringScrape(scraped, self._fetcher))
        )
        self._targets = TargetPool(state_dir=settings.state_dir, clock=time.time, environment=engine_environment())
        self._supervision = LocalSupervision(
            self._local_fleets,
            state_dir=settings.state_dir,
            clock=time.time,
            environment=engine_environment(),
            failed=lambda fleet_id, error: _log.warning(
                "local fleet is not watched over", fleet_id=fleet_id, reason=error.reason.value, error=error.message
            ),
        )
        policy = history_policy(settings)
        self._history = History(self.store, policy)
        told = self._history.look_back
        kept = policy.retention_seconds
        self.collecting = Collecting(self.store, source, clock=time.time, retention_seconds=kept, imported=told)
        self.backfilling = Backfilling(self.store, scraped, clock=time.time, retention_seconds=kept, imported=told)
        self.pipeline = Pipeline(self.store, self.collecting, clock=time.time, new_id=random_id)
        self._buffer = SnapshotBuffer(self.store, trouble=self._not_kept)
        self.scheduler = ScrapeScheduler(
            source,
            self._keep,
            self._failed,
            clock=WallClock(),
            rng=random.Random(),  # noqa: S311 (jitter)
            concurrency=settings.scrape_concurrency,
        )
        self.manager = WorkflowManager(
            self.store,
            pipeline=self.pipeline,
            targets=self._targets,
            clock=time.time,
            lease_ttl_seconds=settings.lease_seconds,
            instance_changed=self.scheduler.renew,
        )
        try:
            self._server = RpcServer(self._services(), server_options(settings), registry=self.registry)
            if settings.scrape:
                await self._adopt_instances()
                self._background.spawn("snapshots", self._buffer.run)
                self._background.spawn("scrape", self.scheduler.run)
            self._background.spawn("rollouts", self.manager.run)
            self._background.spawn("local fleets", self._supervision.run)
            self._background.spawn("housekeeping", Housekeeping(self._history, self.store).run)
            if settings.metrics_port is not None:
                self._metrics_server, _ = start_http_server(settings.metrics_port, addr=settings.host, registry=self.registry)
            await self._server.start()
        except BaseException:
            await self.stop(0)
            raise
        _log.info("serving", host=settings.host, port=self.port)

    async def stop(self, grace: float | None = None) -> None:
        """Go down in order: take nothing new on, end streams, finish calls, give the rollouts' leases back, close the store.

        Engines keep running, and what was begun at a target goes on there. May be called twice.
        """
        if self._stopped:
            return
        self._stopped = True
        if self._server is not None:
            await self._server.stop(self.settings.drain_seconds if grace is None else grace)
        await self.manager.stop()
        await self._background.stop()
        metrics_server: Any = getattr(self, "_metrics_server", None)
        if metrics_server is not None:
            metrics_server.shutdown()
            metrics_server.server_close()
        await self._supervision.close()
        await self._targets.close()
        await self._fetcher.aclose()
        await self._prometheus.aclose()
        await self.store.close()
        _log.info("stopped")

    async def wait(self) -> None:
        """Until the server has been stopped."""
        if self._server is not None:
            await self._server.wait()

    def _services(self) -> Services:
        settings = self.settings
        return Services(
            store=self.store,
            collecting=self.collecting,
            backfilling=self.backfilling,
            pipeline=self.pipeline,
            manager=self.manager,
            clock=time.time,
            new_id=random_id,
            registered=self._registered,
            deregistered=self._deregistered,
            outage=self._outages.get,
            lifecycle=self.lifecycle,
            local_targets=is_loopback(settings.host) if settings.local_targets is None else settings.local_targets,
            limits=ServerLimits(
                max_message_bytes=settings.max_message_bytes,
                max_page_bytes=settings.max_page_bytes,
                max_concurrent_calls=settings.max_concurrent_calls,
                max_concurrent_streams=settings.max_concurrent_streams,
            ),
            heartbeat_seconds=settings.heartbeat_seconds,
            watch_poll_seconds=settings.watch_poll_seconds,
            settings=[SettingView(**row) for row in describe(settings)],
            features=_features(settings),
            started_at=time.time(),
            server_id=random_id("server"),
            schema_version=REVISIONS[-1],  # opening the store brought it there
        )

    async def _adopt_instances(self) -> None:
        for instance in await all_instances(self.store):
            self.scheduler.add(instance)

    async def _local_fleets(self) -> list[tuple[Fleet, list[Instance]]]:
        local = [fleet for fleet in await all_fleets(self.store) if fleet.target.kind is TargetKind.LOCAL]
        return [(fleet, await all_instances(self.store, fleet.fleet_id)) for fleet in local]

    def _registered(self, instance: Instance) -> None:
        # What was known may be of another address.
        self._outages.ended(instance.instance_id)
        self.scheduler.add(instance)

    def _deregistered(self, instance_id: str) -> None:
        self.scheduler.remove(instance_id)
        self._outages.ended(instance_id)
        self._newest.pop(instance_id, None)

    async def _keep(self, instance: Instance, snapshot: Snapshot) -> None:
        self._outages.ended(instance.instance_id)
        if instance.prometheus is not None and snapshot.collected_at is not None:
            # Asked for more often than Prometheus scrapes, it has nothing new.
            if self._newest.get(instance.instance_id, 0.0) >= snapshot.collected_at:
                return
            self._newest[instance.instance_id] = snapshot.collected_at
        self._buffer.put(snapshot)

    def _not_kept(self, lost: int, error: StoreError) -> None:
        # The store's trouble, not the engines': their scrapes go on.
        _log.warning("snapshots not kept yet", waiting=len(self._buffer), lost=lost, reason=error.reason.value, error=error.message)

    async def _failed(self, instance: Instance, error: CollectError) -> None:
        self._outages.failed(instance.instance_id, time.time(), error.reason.value, error.message)
        _log.warning("scrape failed", instance_id=instance.instance_id, reason=error.reason.value, error=error.message)


def history_policy(settings: Settings) -> HistoryPolicy:
    """How long snapshots are kept, and how densely."""
    return HistoryPolicy(
        raw_seconds=settings.raw_hours * 3600,
        thinned_interval_seconds=settings.thinned_interval_seconds,
        thinned_seconds=settings.thinned_hours * 3600,
        coarse_interval_seconds=settings.coarse_interval_seconds,
        retention_seconds=settings.retention_hours * 3600,
    )


def server_options(settings: Settings) -> ServerOptions:
    """How the server is reached."""
    return ServerOptions(
        host=settings.host,
        port=settings.port,
        token=settings.token,
        tls_cert_file=settings.tls_cert_file,
        tls_key_file=settings.tls_key_file,
        tls_client_ca_file=settings.tls_client_ca_file,
        allow_insecure_bind=settings.allow_insecure_bind,
        reflection=settings.reflection,
        admin_port=settings.admin_port,
    )


def _features(settings: Settings) -> list[str]:
    switched = {
        "tls": settings.tls_cert_file is not None,
        "client_certificates": settings.tls_client_ca_file is not None,
        "token": bool(settings.token),
        "reflection": settings.reflection,
        "background_scrape": settings.scrape,
        "metrics": settings.metrics_port is not None,
        "channelz": settings.admin_port is not None,
    }
    return [name for name, is_on in switched.items() if is_on]
