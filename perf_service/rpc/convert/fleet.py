"""Fleets and instances."""

from __future__ import annotations

from perf_service.models.fleet import Fleet, Instance, TargetSpec
from perf_service.rpc.convert import config as _config
from perf_service.rpc.convert import slo as _slo
from perf_service.rpc.convert.mirror import Mirror
from perf_service.v1 import fleet_pb2, instance_pb2

_ = (_config, _slo)  # the mirrors below stand on theirs
TARGET_SPEC = Mirror(TargetSpec, fleet_pb2.TargetSpec)
FLEET = Mirror(Fleet, fleet_pb2.Fleet)
INSTANCE = Mirror(Instance, instance_pb2.Instance)
