"""Fleets and instances."""

from __future__ import annotations

from dataclasses import replace

from perf_service.models.errors import InvalidArgumentError
from perf_service.models.fleet import Fleet, Instance, PrometheusSource, TargetSpec
from perf_service.models.redaction import MASK, redacted_url
from perf_service.models.scraping import ScrapeState, ScrapeStatus
from perf_service.rpc.convert import config as _config
from perf_service.rpc.convert import slo as _slo
from perf_service.rpc.convert.mirror import Mirror, enum_item, timestamp
from perf_service.v1 import fleet_pb2, instance_pb2

_ = (_config, _slo)  # the mirrors below stand on theirs
TARGET_SPEC = Mirror(TargetSpec, fleet_pb2.TargetSpec)
FLEET = Mirror(Fleet, fleet_pb2.Fleet)
PROMETHEUS_SOURCE = Mirror(PrometheusSource, instance_pb2.PrometheusSource)
INSTANCE = Mirror(Instance, instance_pb2.Instance)
_SCRAPE_STATE = enum_item(ScrapeState, instance_pb2.ScrapeState.DESCRIPTOR)


def shown_instance(instance: Instance) -> instance_pb2.Instance:
    """The message of an instance for callers: secrets masked."""
    message = INSTANCE.to_proto(instance)
    message.endpoint = redacted_url(instance.endpoint)
    if instance.prometheus is not None:
        message.prometheus.url = redacted_url(instance.prometheus.url)
        if message.prometheus.bearer_token:
            message.prometheus.bearer_token = MASK
        for name in message.prometheus.headers:
            message.prometheus.headers[name] = MASK
    return message


def shown_scrape(status: ScrapeStatus) -> instance_pb2.ScrapeStatus:
    """The message of an instance's scrapes."""
    message = instance_pb2.ScrapeStatus(state=_SCRAPE_STATE.encode(status.state))
    if status.last_page_at is not None:
        message.last_page_at.CopyFrom(timestamp(status.last_page_at))
    if status.outage is not None:
        message.down_since.CopyFrom(timestamp(status.outage.since))
        message.reason, message.message = status.outage.reason, status.outage.message
    return message


def with_secrets(instance: Instance, stored: Instance | None) -> Instance:
    """An instance that a caller sent, its masked secrets as they are stored.

    Raises InvalidArgumentError where nothing is stored for a mask, or the URL is another one: a secret is never sent to an address that
    its owner did not tell it for.
    """
    told = replace(instance, endpoint=_unmasked(instance.endpoint, stored.endpoint if stored else "", "instance.endpoint"))
    if told.prometheus is None:
        return told
    kept = stored.prometheus if stored else None
    source = replace(told.prometheus, url=_unmasked(told.prometheus.url, kept.url if kept else "", "instance.prometheus.url"))
    if source.bearer_token == MASK or MASK in source.headers.values():
        known = kept.headers if kept else {}
        if kept is None or kept.url != source.url or any(value == MASK and name not in known for name, value in source.headers.items()):
            raise InvalidArgumentError(
                f"{MASK!r} stands for a secret that is stored for this instance and this Prometheus URL; there is none: send the token and "
                "the headers themselves",
                field="instance.prometheus",
            )
        token = kept.bearer_token if source.bearer_token == MASK else source.bearer_token
        headers = {name: known[name] if value == MASK else value for name, value in source.headers.items()}
        source = replace(source, bearer_token=token, headers=headers)
    return replace(told, prometheus=source)


def _unmasked(url: str, stored: str, field: str) -> str:
    """The URL that was meant: one that was shown masked is the stored one. Raises InvalidArgumentError for any other with a mask in it."""
    if MASK not in url:
        return url
    if stored and url == redacted_url(stored):
        return stored
    raise InvalidArgumentError(
        f"{MASK!r} in a URL stands for what is stored there, and {url} is not the stored URL: send it in full", field=field
    )
