"""What the server must know of each method before it is called: read off the contract, not kept a second time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from google.protobuf import message_factory
from google.protobuf.descriptor_pb2 import MethodOptions

from perf_service.v1 import (
    analyze_service_pb2,
    collect_service_pb2,
    fleet_service_pb2,
    optimize_service_pb2,
    system_service_pb2,
    workflow_service_pb2,
)
from perf_service.v1._vendor.externalscaler import externalscaler_pb2

FILES = (
    fleet_service_pb2,
    collect_service_pb2,
    analyze_service_pb2,
    optimize_service_pb2,
    workflow_service_pb2,
    system_service_pb2,
    externalscaler_pb2,
)


@dataclass(frozen=True, slots=True)
class Method:
    """One method of the contract."""

    path: str  # as on the wire: /package.Service/Method
    service: str
    name: str
    mutating: bool
    response: Any  # generated class


def service_names() -> tuple[str, ...]:
    """Full names of the services that this server has."""
    return tuple(service.full_name for file in FILES for service in file.DESCRIPTOR.services_by_name.values())


@cache
def methods() -> Mapping[str, Method]:
    """Every method by its path."""
    found = {}
    for file in FILES:
        for service in file.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                path = f"/{service.full_name}/{method.name}"
                found[path] = Method(
                    path=path,
                    service=service.full_name,
                    name=method.name,
                    # KEDA's interface says nothing of it and only reads.
                    mutating=file is not externalscaler_pb2 and method.GetOptions().idempotency_level != MethodOptions.NO_SIDE_EFFECTS,
                    response=message_factory.GetMessageClass(method.output_type),
                )
    return found
