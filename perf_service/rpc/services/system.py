"""SystemService."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

from perf_service import __version__
from perf_service.models.fleet import DEFAULT_PORTS, TargetKind
from perf_service.models.metrics import Counter, Engine, Gauge, Hist
from perf_service.models.slo import SLO_METRICS, SLO_RATES
from perf_service.rpc.context import Services
from perf_service.rpc.convert.mirror import enum_item, timestamp
from perf_service.rpc.convert.track_record import ENGINE
from perf_service.targets.base import Capabilities
from perf_service.v1 import fleet_pb2
from perf_service.v1 import system_service_pb2 as pb
from perf_service.v1 import system_service_pb2_grpc as pb_grpc

_TARGET_KIND = enum_item(TargetKind, fleet_pb2.TargetKind.DESCRIPTOR)
# Releases whose metric names and flags the dialects and the catalogue were written from: (oldest, newest).
_KNOWN_VERSIONS: Final = {Engine.VLLM: ("0.6.6", "0.33"), Engine.SGLANG: ("0.4.3", "0.5.23"), Engine.TGI: ("2.0", "3.3")}
_TARGETS: Final = {TargetKind.DRY_RUN: Capabilities(changes_anything=False), TargetKind.LOCAL: Capabilities()}
_TARGET_OPTIONS: Final = {
    TargetKind.LOCAL: {
        "command": "the engine's command line; {port} and {flags} must be in it, {host}, {instance_id}, {model} and {python} may be",
        "ports": "8101,8102 or 8101-8104, in the order of the instance ids; default: those of the endpoints",
        "host": "the address that the engines listen on; default 127.0.0.1",
        "state_dir": "where state and log files lie; default: the service's",
        "startup_timeout_seconds": "from the start to the first completion; default 900",
        "stop_timeout_seconds": "from SIGTERM to SIGKILL; default 30",
        "probe_path": "path of the completion that proves readiness; default: the engine's own",
        "probe_body": "JSON body of that completion",
        "health_path": "asked at every look; default /health",
        "env.NAME": "an environment variable of the engines",
    }
}
_LIBRARIES: Final = ("grpcio", "protobuf", "protovalidate", "sqlalchemy")
_UNITS: Final = (("_tokens_per_second", "tokens/s"), ("_seconds", "s"), ("_ratio", "ratio"), ("_bytes", "bytes"), ("_tokens", "tokens"))


class SystemServicer(pb_grpc.SystemServiceServicer):
    """The server itself."""

    def __init__(self, services: Services) -> None:
        self._s = services

    async def GetConfig(self, request: pb.GetConfigRequest, context: Any) -> pb.GetConfigResponse:
        entries = [
            pb.ConfigEntry(
                name=s.name, variable=s.variable, value=s.value, is_default=s.is_default, secret=s.secret, description=s.description
            )
            for s in self._s.settings
        ]
        return pb.GetConfigResponse(entries=entries)

    async def GetCapabilities(self, request: pb.GetCapabilitiesRequest, context: Any) -> pb.GetCapabilitiesResponse:
        return pb.GetCapabilitiesResponse(
            engines=[self._engine(engine) for engine in Engine],
            targets=[_target(kind) for kind in TargetKind],
            metrics=_metrics(),
            slo_metrics=[*SLO_METRICS, *SLO_RATES],
            limits=pb.Limits(
                max_message_bytes=self._s.limits.max_message_bytes,
                max_page_bytes=self._s.limits.max_page_bytes,
                max_concurrent_calls=self._s.limits.max_concurrent_calls,
                max_page_size=self._s.limits.max_page_size,
            ),
            features=self._s.features,
        )

    async def GetVersion(self, request: pb.GetVersionRequest, context: Any) -> pb.GetVersionResponse:
        return pb.GetVersionResponse(
            version=__version__,
            api_versions=["perf_service.v1"],
            runtime={"python": platform.python_version(), **{name: _version(name) for name in _LIBRARIES}},
            started_at=timestamp(self._s.started_at),
            server_id=self._s.server_id,
            schema_version=self._s.schema_version,
        )

    def _engine(self, engine: Engine) -> pb.EngineCapability:
        return pb.EngineCapability(
            engine=ENGINE.encode(engine),
            known_versions=_KNOWN_VERSIONS[engine],
            knobs=len(self._s.catalogue.knobs(engine)),
            default_port=DEFAULT_PORTS[engine],
        )


def _target(kind: TargetKind) -> pb.TargetCapability:
    can = _TARGETS.get(kind)
    if can is None:
        return pb.TargetCapability(kind=_TARGET_KIND.encode(kind), available=False)
    return pb.TargetCapability(
        kind=_TARGET_KIND.encode(kind),
        available=True,
        changes_anything=can.changes_anything,
        per_replica_config=can.per_replica_config,
        weighted_traffic=can.weighted_traffic,
        surge=can.surge,
        drain=can.drain,
        options=_TARGET_OPTIONS.get(kind, {}),
    )


def _metrics() -> list[pb.MetricDescriptor]:
    kinds = ((Gauge, pb.METRIC_KIND_GAUGE), (Counter, pb.METRIC_KIND_COUNTER), (Hist, pb.METRIC_KIND_HISTOGRAM))
    return [pb.MetricDescriptor(name=name.value, kind=kind, unit=_unit(name.value)) for names, kind in kinds for name in names]


def _unit(name: str) -> str:
    name = name.removesuffix("_per_request")
    return next((unit for suffix, unit in _UNITS if name.endswith(suffix)), "")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
