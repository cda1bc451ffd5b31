"""The servicers: convert, call the use case, convert. No decisions here."""

from __future__ import annotations

from typing import Any

from perf_service.rpc.context import Services
from perf_service.rpc.services.analyze import AnalyzeServicer
from perf_service.rpc.services.collect import CollectServicer
from perf_service.rpc.services.fleet import FleetServicer
from perf_service.rpc.services.optimize import OptimizeServicer
from perf_service.rpc.services.scaler import ScalerServicer
from perf_service.rpc.services.system import SystemServicer
from perf_service.rpc.services.workflow import WorkflowServicer
from perf_service.v1 import (
    analyze_service_pb2_grpc,
    collect_service_pb2_grpc,
    fleet_service_pb2_grpc,
    optimize_service_pb2_grpc,
    system_service_pb2_grpc,
    workflow_service_pb2_grpc,
)
from perf_service.v1._vendor.externalscaler import externalscaler_pb2_grpc


def add_services(services: Services, server: Any) -> None:
    """Put every service of the contract on a server."""
    fleet_service_pb2_grpc.add_FleetServiceServicer_to_server(FleetServicer(services), server)
    collect_service_pb2_grpc.add_CollectServiceServicer_to_server(CollectServicer(services), server)
    analyze_service_pb2_grpc.add_AnalyzeServiceServicer_to_server(AnalyzeServicer(services), server)
    optimize_service_pb2_grpc.add_OptimizeServiceServicer_to_server(OptimizeServicer(services), server)
    workflow_service_pb2_grpc.add_WorkflowServiceServicer_to_server(WorkflowServicer(services), server)
    system_service_pb2_grpc.add_SystemServiceServicer_to_server(SystemServicer(services), server)
    externalscaler_pb2_grpc.add_ExternalScalerServicer_to_server(ScalerServicer(services), server)
