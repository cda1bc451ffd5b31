"""Fleets and instances."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from perf_service.models.errors import InvalidArgumentError
from perf_service.models.fleet import Fleet, Instance, PrometheusSource, TargetSpec
from perf_service.rpc.convert import config as _config
from perf_service.rpc.convert import slo as _slo
from perf_service.rpc.convert.mirror import Mirror
from perf_service.v1 import fleet_pb2, instance_pb2

_ = (_config, _slo)  # the mirrors below stand on theirs
TARGET_SPEC = Mirror(TargetSpec, fleet_pb2.TargetSpec)
FLEET = Mirror(Fleet, fleet_pb2.Fleet)
PROMETHEUS_SOURCE = Mirror(PrometheusSource, instance_pb2.PrometheusSource)
INSTANCE = Mirror(Instance, instance_pb2.Instance)

MASK: Final = "***"
"""Stands for a secret that is set."""


def shown_instance(instance: Instance) -> instance_pb2.Instance:
    """The message of an instance for callers: secrets masked."""
    message = INSTANCE.to_proto(instance)
    if instance.prometheus is not None:
        if message.prometheus.bearer_token:
            message.prometheus.bearer_token = MASK
        for name in message.prometheus.headers:
            message.prometheus.headers[name] = MASK
    return message


def with_secrets(instance: Instance, stored: Instance | None) -> Instance:
    """An instance that a caller sent, its masked secrets as they are stored.

    Raises InvalidArgumentError where nothing is stored for a mask, or the URL is another one: a secret is never sent to an address that
    its owner did not tell it for.
    """
    told = instance.prometheus
    if told is None or (told.bearer_token != MASK and MASK not in told.headers.values()):
        return instance
    kept = stored.prometheus if stored is not None else None
    known = kept.headers if kept is not None else {}
    if kept is None or kept.url != told.url or any(value == MASK and name not in known for name, value in told.headers.items()):
        raise InvalidArgumentError(
            f"{MASK!r} stands for a secret that is stored for this instance and this Prometheus URL; there is none: send the token and the "
            "headers themselves",
            field="instance.prometheus",
        )
    token = kept.bearer_token if told.bearer_token == MASK else told.bearer_token
    headers = {name: known[name] if value == MASK else value for name, value in told.headers.items()}
    return replace(instance, prometheus=replace(told, bearer_token=token, headers=headers))
