"""Fleets and the engine servers (instances, replicas) in them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from perf_service.models.config import EngineConfig
from perf_service.models.metrics import Engine
from perf_service.models.slo import SLOTarget

# The ports that the engines listen on when told nothing: `vllm serve`, SGLang `launch_server`, TGI launcher.
DEFAULT_PORTS: Mapping[Engine, int] = {Engine.VLLM: 8000, Engine.SGLANG: 30000, Engine.TGI: 3000}


class TargetKind(StrEnum):
    """Through what a fleet's configuration can be changed."""

    DRY_RUN = "dry_run"
    LOCAL = "local"
    KUBERNETES = "kubernetes"  # reserved: refused at run time until that target exists
    WEBHOOK = "webhook"  # reserved likewise


@dataclass(frozen=True, slots=True)
class TargetSpec:
    """Which target changes a fleet, with its options (validated by the target itself)."""

    kind: TargetKind = TargetKind.DRY_RUN
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Hardware:
    """What the engine runs on, as far as it is known. `memory_bytes` is per accelerator."""

    accelerator: str = ""  # e.g. "H100-SXM"; empty: unknown
    accelerators: int = 0
    memory_bytes: int = 0
    compute_capability: str = ""  # e.g. "9.0"; empty: unknown


@dataclass(frozen=True, slots=True)
class PrometheusSource:
    """A server with the Prometheus HTTP API that already scrapes an engine, and which of its series are the engine's.

    `url` is the base under which `/api/v1/query` is found; `match` PromQL label matchers that select one engine server. The token and the
    values of the headers are secrets: they are in no representation of this object.
    """

    url: str
    match: str = ""  # e.g. 'job="vllm",instance="10.0.0.1:8000"'
    bearer_token: str = field(default="", repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)  # e.g. X-Scope-OrgID


@dataclass(frozen=True, slots=True)
class Instance:
    """One engine server."""

    instance_id: str
    engine: Engine
    endpoint: str  # base URL or /metrics URL; may be empty where `prometheus` is told
    fleet_id: str = ""
    engine_version: str = ""  # empty: unknown, discovered where the engine tells it
    model_name: str = ""
    config: EngineConfig = field(default_factory=EngineConfig)  # launch args as told
    hardware: Hardware = field(default_factory=Hardware)
    labels: Mapping[str, str] = field(default_factory=dict)
    scrape_interval_seconds: float = 15.0
    created_at: float = 0.0
    updated_at: float = 0.0
    etag: str = ""
    prometheus: PrometheusSource | None = None  # told: its metrics are read from there, not from the endpoint


@dataclass(frozen=True, slots=True)
class Fleet:
    """Replicas that serve one model with one configuration, the target through which they change, and their objectives."""

    fleet_id: str
    engine: Engine
    display_name: str = ""
    model_name: str = ""
    target: TargetSpec = field(default_factory=TargetSpec)
    slo_targets: tuple[SLOTarget, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    created_at: float = 0.0
    updated_at: float = 0.0
    etag: str = ""
