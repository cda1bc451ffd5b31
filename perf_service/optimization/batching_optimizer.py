"""Batching and scheduling: how many sequences, how many tokens a step, and who is admitted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from perf_service.models.analysis import Bottleneck, BottleneckType, Cause
from perf_service.models.config import ConfigChange
from perf_service.models.metrics import Engine, Gauge
from perf_service.models.plan import Optimization, OptimizerKind
from perf_service.optimization.capacity_advice import CAPACITY_ADVICE, capacity_advice
from perf_service.optimization.configs import BatchingConfig, ConfigLike
from perf_service.optimization.situation import (
    Rule,
    Situation,
    merged_values,
    optimization,
    power_of_two_at_least,
    power_of_two_at_most,
    proposals,
    tunable,
)
from perf_service.optimization.step_budget import TOKEN_BUDGET_HIGH, budget_down, budget_for, budget_up, head_of_line

DEFAULT_MAX_BATCH_SIZE = 256  # sequences
# Room above the demand that was seen: a limit at the very demand binds again with the next burst.
DEMAND_HEADROOM = 1.25
# SGLang's hyperparameter tuning guide: about 0.3 where the queue is not empty at a token usage below 0.9, 1.3 against retraction.
CONSERVATIVENESS_LOW, CONSERVATIVENESS_HIGH = 0.3, 1.3
SPECULATION = {Engine.VLLM: "speculative_config", Engine.SGLANG: "speculative_algorithm", Engine.TGI: "speculate"}
ADAPTERS_GROWTH = 4  # each LoRA slot takes memory: not all at once

_BATCHING_TYPES = frozenset({BottleneckType.QUEUE_BUILDUP, BottleneckType.LOW_THROUGHPUT, BottleneckType.BATCH_SIZE_SUBOPTIMAL})


class BatchingOptimizer:
    """Proposes batch limits and token budgets. `max_batch_size` caps every proposed number of sequences."""

    def __init__(self, max_batch_size: int = DEFAULT_MAX_BATCH_SIZE) -> None:
        if max_batch_size < 1:
            raise ValueError(f"max_batch_size must be at least 1, not {max_batch_size}")
        self.max_batch_size = max_batch_size

    def generate_optimizations(
        self,
        bottlenecks: Sequence[Bottleneck],
        instance_type: Engine | str,
        current_config: ConfigLike = None,
        *,
        situation: Situation | None = None,
    ) -> tuple[list[Optimization], BatchingConfig | None]:
        """Proposals for the findings that batching can cure, and the config with all of them; `([], None)` where there is none.

        `situation` carries what else is known (version, hardware, window); without it engine and config are all there is.
        Raises InvalidArgumentError for an unknown engine.
        """
        at = situation or Situation.of(instance_type, current_config)
        found = proposals(bottlenecks, at, self._rule)
        return (found, self._config(at, found)) if found else ([], None)

    def _rule(self, bottleneck: Bottleneck) -> Rule | None:
        if bottleneck.cause in CAPACITY_ADVICE:
            return capacity_advice
        if not tunable(bottleneck):
            return None
        if bottleneck.cause is Cause.UNKNOWN:
            return self._bare if bottleneck.type in _BATCHING_TYPES else None
        rules: dict[Cause, Rule] = {
            Cause.BATCH_LIMIT: self._batch_limit,
            Cause.TOKEN_BUDGET_TOO_SMALL: budget_up,
            Cause.TOKEN_BUDGET_TOO_LARGE: budget_down,
            Cause.HEAD_OF_LINE_BLOCKING: head_of_line,
            Cause.WAITING_NOT_CAPACITY: _more_adapters,
            Cause.UNDER_ADMISSION: _admit_more,
            Cause.KV_EXHAUSTED: _admit_less,
            Cause.SPECULATION_NOT_PAYING: _draft_no_more,
        }
        return rules.get(bottleneck.cause)

    def _config(self, at: Situation, found: Sequence[Optimization]) -> BatchingConfig:
        after = merged_values(at.config, found)
        size, budget = after.number(at.knobs.sequences), after.number(at.knobs.token_budget)
        chunked = after.get("enable_chunked_prefill")
        return BatchingConfig(
            max_batch_size=min(self.max_batch_size, int(size)) if size is not None else self.max_batch_size,
            max_num_batched_tokens=int(budget) if budget is not None else None,
            enable_chunked_prefill=chunked if isinstance(chunked, bool) else None,
            schedule_conservativeness=after.number("schedule_conservativeness"),
        )

    # ---- Sequences ----

    def _ceiling(self, at: Situation) -> int:
        """The most sequences that may be proposed: the cap, and what the KV cache holds at the mean request length."""
        capacity, per_request = at.kv_capacity_tokens, at.tokens_per_request
        if capacity and per_request:
            return max(1, min(self.max_batch_size, power_of_two_at_most(capacity / per_request)))
        return self.max_batch_size

    def _batch_limit(self, bottleneck: Bottleneck, at: Situation) -> list[Optimization]:
        knob = at.knobs.sequences
        active = at.number("max_num_active_seqs")
        if at.engine is Engine.VLLM and active and active < (at.number(knob) or float("inf")):
            knob = "max_num_active_seqs"  # the narrower of the two limits is the one that binds
        told, pinned = at.config.number(knob), at.running_max
        # A limit that is not told shows itself: running stays at it while others wait.
        present = told if told is not None else pinned
        if not present:
            return self._bare(bottleneck, at)  # no scrape saw one run: nothing shows the limit
        demand = max(at.demand or 0.0, bottleneck.current_value if bottleneck.metric_name == "demand" else 0.0)
        wanted = power_of_two_at_least(demand * DEMAND_HEADROOM) if demand > present else int(2 * present)
        target = min(wanted, self._ceiling(at))
        if knob != at.knobs.sequences:  # within max_num_seqs, which was launched with more
            target = min(target, int(at.number(at.knobs.sequences) or target))
        if target <= present:
            return [self._at_ceiling(bottleneck, at, present)]
        reason = f"{demand:.0f} requests were there at once, {present:.0f} may run" if demand else f"the limit of {present:.0f} binds"
        reason += f"; {self._why_not_more(at, wanted, target, demand > present)}"
        change = at.propose(knob, target, reason, inferred=int(present) if told is None else None)
        if change is None:
            return [self._at_ceiling(bottleneck, at, present)]
        return [_raise_limit(bottleneck, at, change, budget_for(at, target), present)]

    def _why_not_more(self, at: Situation, wanted: int, target: int, by_demand: bool) -> str:
        """Why the limit is raised to this value and no further, in words."""
        if target == wanted:
            return (
                f"{target} is enough for them, with a quarter to spare" if by_demand else "one doubling at a time: no more demand was seen"
            )
        if target == at.number(at.knobs.sequences):
            return f"limited to {target} by {at.knobs.sequences}"
        capacity, per_request = at.kv_capacity_tokens, at.tokens_per_request
        if capacity and per_request and target < self.max_batch_size:
            return f"limited to {target} by the KV cache: {capacity / per_request:.0f} requests of this length fit"
        return f"limited to {target}, the most that is proposed"

    def _bare(self, bottleneck: Bottleneck, at: Situation) -> list[Optimization]:
        """A finding without a cause: one doubling of a known limit; of an unknown one, the cap where that raises it."""
        knob = at.knobs.sequences
        present = at.number(knob)
        if present is not None:
            target = min(int(2 * present), self._ceiling(at))
            change = at.propose(knob, target, "the engine queues at its batch limit") if target > present else None
            if change is None:
                return [self._at_ceiling(bottleneck, at, present)]
            return [_raise_limit(bottleneck, at, change, budget_for(at, target), present)]
        if at.engine is Engine.TGI:
            # Its batch is bound by tokens; max_batch_size is unset but on hardware that cannot do without padding.
            change = at.propose(at.knobs.token_budget, TOKEN_BUDGET_HIGH, "more prompt tokens a step empty the queue faster")
            return [
                optimization(
                    OptimizerKind.BATCHING, bottleneck, "Raise the prefill budget",
                    f"Take up to {TOKEN_BUDGET_HIGH} prompt tokens per step into the running batch.", change,
                    risks=("longer stalls of decoding requests while a prompt is processed",),
                    prerequisites=(f"the present value is below {TOKEN_BUDGET_HIGH}: it is not known here",),
                    losers=("itl_seconds",), confidence=0.3,
                )
            ]  # fmt: skip
        if at.engine is Engine.SGLANG:
            # Its default limit is in the thousands: what keeps requests waiting is the reservation at admission.
            return [
                replace(o, confidence_ratio=0.3, prerequisites=("the KV pool's use is below 0.9: it is not known here",))
                for o in _admit_more(bottleneck, at)
            ] or [self._at_ceiling(bottleneck, at, self.max_batch_size)]
        change = at.propose(knob, self.max_batch_size, "the engine queues; its batch limit is not known")
        return [
            optimization(
                OptimizerKind.BATCHING, bottleneck, "Raise the batch limit",
                f"Let up to {self.max_batch_size} sequences run at once.", change,
                risks=("a longer step: inter-token latency rises with the batch",),
                prerequisites=(f"the present {knob} is below {self.max_batch_size}: it is not known here",),
                losers=("itl_seconds",), confidence=0.3,
            )
        ]  # fmt: skip

    def _at_ceiling(self, bottleneck: Bottleneck, at: Situation, present: float) -> Optimization:
        ceiling = self._ceiling(at)
        why = "the KV cache holds no more at this request length" if ceiling < self.max_batch_size else "a larger one is not proposed"
        return optimization(
            OptimizerKind.BATCHING, bottleneck, "Add a replica: the batch limit is at its ceiling",
            f"{at.knobs.sequences} is {present:.0f}; the ceiling here is {ceiling} ({why}). More demand needs another replica, "
            f"or more accelerators per replica ({at.knobs.tensor_parallel}).",
        )  # fmt: skip


def _raise_limit(bottleneck: Bottleneck, at: Situation, change: ConfigChange, budget: ConfigChange | None, present: float) -> Optimization:
    target = change.recommended_value
    capacity, per_request = at.kv_capacity_tokens, at.tokens_per_request
    room = f" The KV cache holds about {capacity / per_request:.0f} requests of the mean length." if capacity and per_request else ""
    return optimization(
        OptimizerKind.BATCHING, bottleneck, f"Raise {change.parameter} to {target}",
        f"The batch limit ({present:.0f}) keeps requests waiting; let more of them run at once.{room}",
        change, budget,
        risks=("a longer step: inter-token latency rises with the batch", "batches above the captured graph sizes run slower per step"),
        prerequisites=() if room else ("the KV cache has room: check its use after the first stage",),
        losers=("itl_seconds", "tpot_seconds"),
    )  # fmt: skip


# ---- Admission ----


def _more_adapters(bottleneck: Bottleneck, at: Situation) -> list[Optimization]:
    seen, slots = at.window.gauge(Gauge.LORA_ADAPTERS_SEEN) if at.window else None, at.number("max_loras")
    if seen is None or slots is None or seen.last <= slots:
        return []
    # Adapters of the whole life, of which some may be asked for no more: two doublings at most at a time.
    target = int(min(seen.last, ADAPTERS_GROWTH * slots))
    kept = at.number("max_cpu_loras")
    if kept is not None and kept < target:
        return []  # the engine refuses fewer in the host's memory than in a step
    change = at.propose("max_loras", target, f"requests for {seen.last:.0f} adapters take turns at {slots:.0f} in a step")
    return [
        optimization(
            OptimizerKind.BATCHING, bottleneck, f"Raise max_loras to {target}",
            "Requests for different adapters run in one step instead of taking turns.", change,
            risks=("each slot takes accelerator memory that the KV cache loses", "more adapters in a step make it a little longer"),
        )
    ] if change else []  # fmt: skip


def _draft_no_more(bottleneck: Bottleneck, at: Situation) -> list[Optimization]:
    knob = SPECULATION[at.engine]
    change = at.propose(knob, None, "drafts cost more than the tokens that are accepted of them")
    entry = at.catalogue.get(at.engine, knob)
    flag = entry.knob.flag if entry else f"--{knob.replace('_', '-')}"
    return [
        optimization(
            OptimizerKind.BATCHING, bottleneck, "Switch speculative decoding off",
            "Each draft takes time in the step and is rarely accepted for this traffic"
            + ("." if change else f": start without {flag}, or with fewer drafted tokens."),
            change, risks=("latency at small batches rises where drafts of other traffic were accepted",),
        )
    ]  # fmt: skip


def _admit_more(bottleneck: Bottleneck, at: Situation) -> list[Optimization]:
    present = at.number("schedule_conservativeness")
    if present is not None and present <= CONSERVATIVENESS_LOW:
        return []
    change = at.propose("schedule_conservativeness", CONSERVATIVENESS_LOW, "requests wait although the KV pool has room")
    return [
        optimization(
            OptimizerKind.BATCHING, bottleneck, f"Lower schedule_conservativeness to {CONSERVATIVENESS_LOW}",
            "Admission reserves for outputs that end long before their limit; reserve less.", change,
            risks=("retractions where outputs do grow to their limit",), losers=("itl_seconds",),
        )
    ] if change else []  # fmt: skip


def _admit_less(bottleneck: Bottleneck, at: Situation) -> list[Optimization]:
    """Against preemption, where the KV optimizer finds no more memory: admit no more than fits."""
    if at.config.get(at.knobs.pool_cap) is not None:
        return []  # a planted cap on the pool is the cause: removing it is the cure
    if at.engine is Engine.SGLANG:
        present = at.number("schedule_conservativeness")
        change = None
        if present is None or present < CONSERVATIVENESS_HIGH:
            change = at.propose("schedule_conservativeness", CONSERVATIVENESS_HIGH, "requests are retracted: reserve more at admission")
        return [
            optimization(
                OptimizerKind.BATCHING, bottleneck, f"Raise schedule_conservativeness to {CONSERVATIVENESS_HIGH}",
                "Admit fewer requests at once so that those which run are not thrown out again.", change,
                losers=("queue_seconds",),
            )
        ] if change else []  # fmt: skip
    capacity, per_request, running = at.kv_capacity_tokens, at.tokens_per_request, at.running_max
    if at.engine is not Engine.VLLM or not (capacity and per_request and running):
        return []
    fits = max(1, int(capacity / per_request))
    present = at.number(at.knobs.sequences)
    if fits >= running or (present is not None and fits >= present):
        return []
    change = at.propose(at.knobs.sequences, fits, f"the KV cache holds about {fits} requests of the mean length to their end")
    return [
        optimization(
            OptimizerKind.BATCHING, bottleneck, f"Lower {at.knobs.sequences} to {fits}",
            f"Up to {running:.0f} requests ran where {fits} fit: the rest is preempted and computed again.", change,
            risks=("requests wait longer before they start",), losers=("queue_seconds", "ttft_seconds"),
        )
    ] if change else []  # fmt: skip
