"""FleetService."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from perf_service.collectors.fetch import metrics_url
from perf_service.collectors.prometheus.client import check_source
from perf_service.models.errors import ConflictError, ErrorReason, PerfServiceError
from perf_service.models.fleet import Fleet, Instance, TargetKind
from perf_service.models.scraping import scrape_status
from perf_service.rpc.context import Services
from perf_service.rpc.convert.fleet import FLEET, INSTANCE, shown_instance, shown_scrape, with_secrets
from perf_service.rpc.convert.slo import targets_of
from perf_service.rpc.masks import merged
from perf_service.targets.registry import check_spec
from perf_service.v1 import fleet_service_pb2 as pb
from perf_service.v1 import fleet_service_pb2_grpc as pb_grpc
from perf_service.v1 import instance_pb2

_FLEET_OUTPUT: Final = frozenset({"fleet_id", "created_at", "updated_at", "etag"})
_INSTANCE_OUTPUT: Final = frozenset({"instance_id", "created_at", "updated_at", "etag"})


class FleetServicer(pb_grpc.FleetServiceServicer):
    """Fleets and instances."""

    def __init__(self, services: Services) -> None:
        self._s = services

    async def CreateFleet(self, request: pb.CreateFleetRequest, context: Any) -> pb.CreateFleetResponse:
        targets_of(request.fleet.slo_targets, "fleet.slo_targets")
        fleet = _checked(FLEET.from_proto(request.fleet), local_targets=self._s.local_targets)
        now = self._s.clock()
        fleet = replace(fleet, fleet_id=fleet.fleet_id or self._s.new_id("fleet"), created_at=now, updated_at=now, etag="")
        return pb.CreateFleetResponse(fleet=FLEET.to_proto(await self._s.store.create_fleet(fleet)))

    async def GetFleet(self, request: pb.GetFleetRequest, context: Any) -> pb.GetFleetResponse:
        return pb.GetFleetResponse(fleet=FLEET.to_proto(await self._s.store.get_fleet(request.fleet_id)))

    async def ListFleets(self, request: pb.ListFleetsRequest, context: Any) -> pb.ListFleetsResponse:
        page = await self._s.store.list_fleets(page_size=request.page_size or 50, page_token=request.page_token)
        return pb.ListFleetsResponse(fleets=map(FLEET.to_proto, page.items), next_page_token=page.next_page_token)

    async def UpdateFleet(self, request: pb.UpdateFleetRequest, context: Any) -> pb.UpdateFleetResponse:
        stored = await self._s.store.get_fleet(request.fleet.fleet_id)
        message = merged(FLEET.to_proto(stored), request.fleet, request.update_mask, output_only=_FLEET_OUTPUT)
        # Objectives that are not being changed stay as they are: an earlier version has stored some that would be refused now.
        if "slo_targets" in request.update_mask.paths or message.slo_targets != FLEET.to_proto(stored).slo_targets:
            targets_of(message.slo_targets, "fleet.slo_targets")
        fleet = replace(_checked(FLEET.from_proto(message), local_targets=self._s.local_targets), updated_at=self._s.clock())
        updated = await self._s.store.update_fleet(fleet, expect_etag=request.fleet.etag or stored.etag)
        return pb.UpdateFleetResponse(fleet=FLEET.to_proto(updated))

    async def DeleteFleet(self, request: pb.DeleteFleetRequest, context: Any) -> pb.DeleteFleetResponse:
        _check_etag((await self._s.store.get_fleet(request.fleet_id)).etag, request.etag)
        await self._s.store.delete_fleet(request.fleet_id)
        return pb.DeleteFleetResponse()

    async def RegisterInstance(self, request: pb.RegisterInstanceRequest, context: Any) -> pb.RegisterInstanceResponse:
        instance = await self._joined(with_secrets(INSTANCE.from_proto(request.instance), None))
        now = self._s.clock()
        named = instance.instance_id or self._s.new_id("inst")
        try:
            stored = await self._s.store.create_instance(replace(instance, instance_id=named, created_at=now, updated_at=now, etag=""))
        except ConflictError as error:
            if error.reason is not ErrorReason.INSTANCE_ALREADY_EXISTS or instance.prometheus is None:
                raise
            # Callers are shown the stored URL with its secrets masked, and cannot compare it themselves.
            there = (await self._s.store.get_instance(named)).prometheus
            is_same = there is not None and there.url.rstrip("/") == instance.prometheus.url.rstrip("/")
            raise ConflictError(error.reason, error.message, {**error.metadata, "prometheus": "same" if is_same else "other"}) from error
        self._s.registered(stored)
        return pb.RegisterInstanceResponse(instance=shown_instance(stored))

    async def GetInstance(self, request: pb.GetInstanceRequest, context: Any) -> pb.GetInstanceResponse:
        instance = await self._s.store.get_instance(request.instance_id)
        return pb.GetInstanceResponse(instance=shown_instance(instance), scrape=(await self._scrapes([instance]))[instance.instance_id])

    async def ListInstances(self, request: pb.ListInstancesRequest, context: Any) -> pb.ListInstancesResponse:
        page = await self._s.store.list_instances(
            fleet_id=request.fleet_id or None, page_size=request.page_size or 50, page_token=request.page_token
        )
        scrapes = await self._scrapes(page.items)
        return pb.ListInstancesResponse(instances=map(shown_instance, page.items), next_page_token=page.next_page_token, scrapes=scrapes)

    async def UpdateInstance(self, request: pb.UpdateInstanceRequest, context: Any) -> pb.UpdateInstanceResponse:
        stored = await self._s.store.get_instance(request.instance.instance_id)
        # Merged with secrets masked: a mask that names the URL alone must not carry the stored ones to another address.
        message = merged(shown_instance(stored), request.instance, request.update_mask, output_only=_INSTANCE_OUTPUT)
        told = with_secrets(INSTANCE.from_proto(message), stored)
        instance = replace(await self._joined(told), updated_at=self._s.clock())
        updated = await self._s.store.update_instance(instance, expect_etag=request.instance.etag or stored.etag)
        self._s.registered(updated)
        return pb.UpdateInstanceResponse(instance=shown_instance(updated))

    async def DeregisterInstance(self, request: pb.DeregisterInstanceRequest, context: Any) -> pb.DeregisterInstanceResponse:
        _check_etag((await self._s.store.get_instance(request.instance_id)).etag, request.etag)
        await self._s.store.delete_instance(request.instance_id)
        self._s.deregistered(request.instance_id)
        return pb.DeregisterInstanceResponse()

    async def _scrapes(self, instances: Sequence[Instance]) -> dict[str, instance_pb2.ScrapeStatus]:
        """Whether each of them can be scraped; one query for all."""
        newest, now = await self._s.store.latest_times([instance.instance_id for instance in instances]), self._s.clock()
        return {
            i.instance_id: shown_scrape(scrape_status(i, newest.get(i.instance_id), self._s.outage(i.instance_id), now)) for i in instances
        }

    async def _joined(self, instance: Instance) -> Instance:
        """Checks what a registration refers to. Raises ENDPOINT_INVALID, INVALID_ARGUMENT, FLEET_NOT_FOUND, ENGINE_MISMATCH."""
        if instance.prometheus is not None:
            check_source(instance.prometheus)
        if instance.endpoint or instance.prometheus is None:
            metrics_url(instance.endpoint)
        if instance.fleet_id:
            fleet = await self._s.store.get_fleet(instance.fleet_id)
            if fleet.engine is not instance.engine:
                raise ConflictError(
                    ErrorReason.ENGINE_MISMATCH,
                    f"fleet {fleet.fleet_id!r} serves with {fleet.engine.value}, so an instance of {instance.engine.value} cannot join it",
                    {"fleet_id": fleet.fleet_id, "expected": fleet.engine.value, "found": instance.engine.value},
                )
        return instance


def _checked(fleet: Fleet, *, local_targets: bool) -> Fleet:
    """Raises TARGET_KIND_UNKNOWN, INVALID_ARGUMENT for a target option, PERMISSION_DENIED for a local target."""
    if fleet.target.kind is TargetKind.LOCAL and not local_targets:
        raise PerfServiceError(
            ErrorReason.PERMISSION_DENIED,
            "a local target runs commands that the caller gives, as the server's user; this server does not listen on loopback alone, so "
            "its operator must allow that with PERF_SERVICE_LOCAL_TARGETS=true",
            {"setting": "local_targets"},
        )
    check_spec(fleet.target)
    return fleet


def _check_etag(stored: str, told: str) -> None:
    if told and told != stored:
        raise ConflictError(
            ErrorReason.ETAG_MISMATCH, "it was changed since it was read; read it again", {"etag": stored, "expected_etag": told}
        )
