"""What the servicers stand on: the use cases, and what the server must know to serve them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from perf_service.models.fleet import Instance
from perf_service.models.scraping import Outage
from perf_service.optimization.catalogue import KnobCatalogue
from perf_service.rpc.interceptors.access import principal
from perf_service.rpc.lifecycle import Lifecycle
from perf_service.storage.ports import Store
from perf_service.workflows.backfilling import Backfilling
from perf_service.workflows.collecting import Collecting
from perf_service.workflows.manager import WorkflowManager
from perf_service.workflows.pipeline import Pipeline


@dataclass(frozen=True, slots=True)
class SettingView:
    """One setting in force, as GetConfig shows it: a secret's value is masked before it comes here."""

    name: str
    variable: str
    value: str
    is_default: bool
    secret: bool
    description: str


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """What is refused beyond."""

    max_message_bytes: int = 16 * 1024 * 1024
    max_page_bytes: int = 16 * 1024 * 1024
    max_concurrent_calls: int = 256
    max_concurrent_streams: int = 2048
    max_page_size: int = 1000


@dataclass(frozen=True, slots=True)
class Services:
    """Everything that a servicer may use. `registered` and `deregistered` tell the background scraper."""

    store: Store
    collecting: Collecting
    backfilling: Backfilling
    pipeline: Pipeline
    manager: WorkflowManager
    clock: Callable[[], float]
    new_id: Callable[[str], str]
    registered: Callable[[Instance], None] = lambda instance: None
    deregistered: Callable[[str], None] = lambda instance_id: None
    outage: Callable[[str], Outage | None] = lambda instance_id: None  # of the background scraper
    lifecycle: Lifecycle = field(default_factory=Lifecycle)
    limits: ServerLimits = field(default_factory=ServerLimits)
    catalogue: KnobCatalogue = field(default_factory=KnobCatalogue.load)
    local_targets: bool = True  # whether callers may have engines started on this host
    heartbeat_seconds: float = 15.0
    watch_poll_seconds: float = 1.0
    settings: Sequence[SettingView] = ()
    features: Sequence[str] = ()
    started_at: float = 0.0
    server_id: str = ""
    schema_version: str = ""  # revision of the store


def caller(told: str) -> str:
    """Who decides: the authenticated principal, or where there is no authentication who the caller says."""
    return principal() or told or "anonymous"
