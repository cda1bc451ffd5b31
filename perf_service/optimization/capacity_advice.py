"""What to say where capacity, not a flag, is the answer."""

from __future__ import annotations

from perf_service.models.analysis import Bottleneck, Cause
from perf_service.models.plan import Optimization, OptimizerKind
from perf_service.optimization.situation import Situation, optimization

CAPACITY_ADVICE = {
    Cause.DECODE_BOUND: "The decode steps themselves are the limit: every request that runs makes each step longer.",
    Cause.OVERLOAD: "More arrives than this replica can serve, whatever its flags.",
    Cause.PREFILL_COMPUTE: "Processing the prompts takes the time: compute is the limit, not a queue.",
}


def capacity_advice(bottleneck: Bottleneck, at: Situation) -> list[Optimization]:
    """Another replica, with the reason why no flag stands in for it."""
    why = CAPACITY_ADVICE.get(bottleneck.cause, "No flag of this engine version cures it.")
    return [
        optimization(
            OptimizerKind.BATCHING, bottleneck, "Add a replica",
            f"{why} Add a replica, or more accelerators per replica ({at.knobs.tensor_parallel}); no flag gives this for free.",
        )
    ]  # fmt: skip
