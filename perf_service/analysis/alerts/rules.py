"""What an alert pack is made of: recording rules, alerts, groups, and what the operator may choose."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from enum import StrEnum

from perf_service.analysis.thresholds import BUILTIN_OBJECTIVES
from perf_service.collectors.prometheus.matchers import parse_matchers
from perf_service.models.analysis import Cause, Verdict
from perf_service.models.errors import InvalidArgumentError
from perf_service.models.metrics import Engine
from perf_service.models.slo import Comparison, SLOTarget, parse_slo

TARGET_LABELS = ("cluster", "namespace", "job", "pod", "instance")
"""Labels that tell one replica; those that a setup does not have do no harm."""
SERVICE_LABELS = ("cluster", "namespace", "job", "model_name")
"""Labels that tell one service: all replicas of one model."""

_LABEL = re.compile(r"[a-zA-Z_]\w*")
_PREFIX = re.compile(r"[a-zA-Z_:][\w:]*")
_NAME = re.compile(r"[\w.-]+")


class Urgency(StrEnum):
    """The `severity` label: who must act when."""

    CRITICAL = "critical"  # users suffer now: wake somebody
    WARNING = "warning"  # look today
    INFO = "info"  # an opportunity, or a limit of the alerting itself


@dataclass(frozen=True, slots=True)
class Record:
    """One recording rule."""

    name: str
    expr: str


@dataclass(frozen=True, slots=True)
class Alert:
    """One alerting rule and what its table row says. `summary` is a Prometheus template."""

    name: str
    expr: str
    hold: str
    urgency: Urgency
    cause: Cause | str
    verdict: Verdict
    summary: str
    meaning: str
    evidence: str
    action: str
    symptom: bool = False
    """Whether it says what users feel rather than why: causes that fire beside it explain it."""


@dataclass(frozen=True, slots=True)
class Group:
    """Rules that Prometheus evaluates one after the other."""

    name: str
    records: tuple[Record, ...]
    alerts: tuple[Alert, ...]


def builtin_bound(base: str) -> float:
    """What the analyzer holds a metric against without an objective (see `thresholds.BUILTIN_OBJECTIVES`), in seconds."""
    return next(o.target_value for o in BUILTIN_OBJECTIVES if o.base_metric == base)


def default_objectives() -> tuple[SLOTarget, ...]:
    """What the committed packs hold latency against: bounds of the engines' own histograms."""
    return tuple(replace(parse_slo(text), builtin=True) for text in ("ttft_p95<2.5", "itl_p95<0.2", "e2e_p95<60"))


@dataclass(frozen=True, slots=True)
class PackOptions:
    """The operator's choices. Raises InvalidArgumentError for what can never be a rule.

    `selector` restricts every series read: label matchers as PromQL has them, e.g. `namespace="x",job=~"llm-.*"`.
    `name` is the value of the label `pack`: two packs with different objectives in one Prometheus need different names.
    `metric_prefix` is what stands for `vllm:` where a relay has renamed the series, e.g. `vllm_`.
    """

    engine: Engine
    objectives: tuple[SLOTarget, ...] = field(default_factory=default_objectives)
    selector: str = ""
    name: str = ""
    target_labels: tuple[str, ...] = TARGET_LABELS
    service_labels: tuple[str, ...] = SERVICE_LABELS
    version_label: str = "version"
    metric_prefix: str = ""
    runbook: str = ""

    def __post_init__(self) -> None:
        for label in (*self.target_labels, *self.service_labels, self.version_label):
            if not _LABEL.fullmatch(label):
                raise InvalidArgumentError(f"{label!r} is not the name of a Prometheus label", field="labels")
        if self.metric_prefix and not _PREFIX.fullmatch(self.metric_prefix):
            raise InvalidArgumentError(f"{self.metric_prefix!r} cannot begin the name of a metric", field="metric_prefix")
        if self.name and not _NAME.fullmatch(self.name):
            raise InvalidArgumentError(f"the pack's name may have letters, digits, '.', '_' and '-', not {self.name!r}", field="pack")
        # What a person wrote can never become another query: it is read, and written anew.
        object.__setattr__(self, "selector", ",".join(map(str, parse_matchers(self.selector, field="selector"))))
        for objective in self.objectives:
            _check_objective(objective)

    @property
    def pack(self) -> str:
        """Value of the label `pack`."""
        return self.name or self.engine.value

    def bound(self, base: str) -> float:
        """The tightest bound on a metric, the operator's, the pack's default or the analyzer's built-in one, in seconds."""
        known = [o.target_value for o in self.objectives if o.base_metric == base]
        return min(known, default=builtin_bound(base))

    def wish(self, base: str) -> float | None:
        """The tightest bound that the operator himself put on a metric ("ttft", "itl", ...), None where there is only a default."""
        return min((o.target_value for o in self.objectives if o.base_metric == base and not o.builtin), default=None)


def _check_objective(objective: SLOTarget) -> None:
    name = objective.base_metric
    if name not in ("ttft", "itl", "tpot", "e2e") or objective.comparison is not Comparison.LESS_THAN:
        raise InvalidArgumentError(f"an alert can be made of an upper bound on ttft, itl, tpot or e2e, not of '{objective}'", field="slo")
    if not 0.5 <= objective_share(objective) < 1.0:
        raise InvalidArgumentError(
            f"'{objective}' leaves no error budget that could burn: name a percentile from p50 to p99.9, e.g. '{name}_p95<0.5'", field="slo"
        )
    if objective.target_value <= 0:
        raise InvalidArgumentError(f"the bound of '{objective}' must be above 0 seconds", field="slo")


def objective_share(objective: SLOTarget) -> float:
    """Share of requests that must meet the bound: 0.95 for `_p95`; 0 for an objective on the mean."""
    return objective.objective_ratio or objective.quantile or 0.0
