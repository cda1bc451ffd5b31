"""Service-level objectives and how they are met."""

from __future__ import annotations

from collections.abc import Iterable

from perf_service.models.analysis import BurnRate, ErrorBudget, PhaseShares, SLOStatus
from perf_service.models.errors import InvalidArgumentError
from perf_service.models.slo import SLO_METRICS, SLO_RATES, SLOTarget, why_not_meant
from perf_service.rpc.convert.mirror import Mirror
from perf_service.v1 import slo_pb2

SLO_TARGET = Mirror(SLOTarget, slo_pb2.SLOTarget)
PHASE_SHARES = Mirror(PhaseShares, slo_pb2.PhaseShares)
BURN_RATE = Mirror(BurnRate, slo_pb2.BurnRate)
ERROR_BUDGET = Mirror(ErrorBudget, slo_pb2.ErrorBudget)
SLO_STATUS = Mirror(SLOStatus, slo_pb2.SLOStatus, derived={"compliant": "compliant"})


def targets_of(messages: Iterable[slo_pb2.SLOTarget], field: str = "slo_targets") -> tuple[SLOTarget, ...]:
    """A caller's objectives. Raises InvalidArgumentError for a metric that no objective can name, and a value that cannot be meant."""
    targets = []
    for index, message in enumerate(messages):
        target = SLO_TARGET.from_proto(message)
        if target.histogram is None and target.base_metric not in SLO_RATES:
            known = ", ".join((*SLO_METRICS, *SLO_RATES))
            raise InvalidArgumentError(
                f"{target.metric_name!r} is not a metric that an objective can name; known: {known}", field=f"{field}[{index}].metric_name"
            )
        if why := why_not_meant(target):
            raise InvalidArgumentError(f"{target} is not an objective: {why}", field=f"{field}[{index}].target_value")
        targets.append(target)
    return tuple(targets)
