"""Iteration-level model of continuous batching on a virtual clock: no I/O, no clock of its own.

One step is what the real engines do between two model executions: the scheduler gives decodes and
prompt chunks to the step, the step takes ``StepTimes.step`` seconds, its tokens appear at its end.
Queueing, preemption, prefix hits and interference then follow from the flags instead of being assumed.

Left out, on purpose: speculative decoding, LoRA, disaggregated prefill, several ranks, the CPU cost of the API
process, and SGLang's pages of one token (its pool is tracked in blocks of 16).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from perf_service.simulator.flags import ResolvedEngine
from perf_service.simulator.kv import BlockPool, Holding
from perf_service.simulator.stats import EngineStats, Gauges

if TYPE_CHECKING:
    from perf_service.simulator.schedulers import Scheduler


@dataclass(frozen=True, slots=True)
class Request:
    """One request as the engine sees it. ``arrival`` is in seconds on the caller's clock.

    ``output_tokens`` is what will be generated; ``max_tokens`` what the client asked for at most
    (engines that reserve for the worst case plan with it). The first ``shared_prefix_tokens`` of the
    prompt are the same for all requests of one ``prefix_id``; ``block_hashes`` (one per full block of
    the prompt) replaces that description where the real token ids are known.
    """

    arrival: float
    prompt_tokens: int
    output_tokens: int
    max_tokens: int | None = None
    prefix_id: int = 0
    shared_prefix_tokens: int = 0
    block_hashes: tuple[int, ...] | None = None
    finish_reason: str = "length"

    @property
    def limit_tokens(self) -> int:
        return max(self.output_tokens, self.max_tokens or 0)


class RejectedError(Exception):
    """The engine refuses a request at once; ``status`` is the HTTP status it answers with."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class SeqState:
    """Scheduling state of one request."""

    __slots__ = (
        "arrival", "cached", "chunk", "computed", "first_scheduled", "first_token", "held", "id", "keys",
        "last_token", "out", "preemptions", "prompt", "queued", "request", "reserved", "target",
    )  # fmt: skip

    def __init__(self, seq_id: int, request: Request, now: float) -> None:
        self.id = seq_id
        self.request = request
        self.arrival = now
        self.queued = now  # when the scheduler saw it
        self.prompt = request.prompt_tokens
        self.out = 0
        self.target = request.output_tokens
        self.computed = 0  # tokens whose KV exists
        self.cached = -1  # prompt tokens found in the prefix cache at first admission; -1: not admitted
        self.chunk = 0  # tokens given to the step in flight
        self.held = Holding()
        self.keys: Sequence[Hashable] = ()
        self.reserved = 0
        self.preemptions = 0
        self.first_scheduled: float | None = None
        self.first_token: float | None = None
        self.last_token = 0.0

    @property
    def total(self) -> int:
        return self.prompt + self.out


@dataclass(slots=True)
class Plan:
    """What the scheduler put into one step."""

    decodes: list[SeqState] = field(default_factory=list)
    prefills: list[SeqState] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.decodes or self.prefills)


@dataclass(frozen=True, slots=True)
class StepResult:
    """Outcome of one step, at ``time`` (its end): who got a token, and who is done with it."""

    time: float
    duration: float
    tokens: tuple[int, ...]
    finished: tuple[int, ...]


class EngineCore:
    """One engine process. Drive it with submit / begin_step / finish_step (or step) / abort.

    Times are seconds on the caller's clock and must not go backwards.
    """

    def __init__(self, engine: ResolvedEngine, scheduler: Scheduler | None = None) -> None:
        from perf_service.simulator.schedulers import scheduler_for

        self.engine = engine
        self.flags = engine.flags
        # vLLM keeps one block as a null block: usage is reported over total - 1.
        usable = engine.num_blocks - 1 if self.flags.engine == "vllm" else engine.num_blocks
        self.pool = BlockPool(usable, caching=self.flags.enable_prefix_caching)
        self.stats = EngineStats(self.flags)
        self.scheduler = scheduler or scheduler_for(self)
        self.arriving: deque[SeqState] = deque()  # sent while a step runs: the scheduler does not know them yet
        self.waiting: deque[SeqState] = deque()
        self.running: list[SeqState] = []
        self.by_id: dict[int, SeqState] = {}
        self.gauges = Gauges(kv_total_blocks=usable)
        self.reserved_tokens = 0
        self.steps = 0
        self.busy_seconds = 0.0
        self._plan: Plan | None = None
        self._begun = 0.0
        self._duration = 0.0
        self._next_id = 0

    # -- requests ---------------------------------------------------------------------------------

    def submit(self, request: Request, now: float) -> int:
        """Queues a request and returns its id. Raises RejectedError when the engine refuses it."""
        if request.prompt_tokens < 1 or request.output_tokens < 1:
            raise RejectedError(400, "a request needs at least one prompt token and one output token")
        if request.prompt_tokens + request.limit_tokens > self.flags.max_model_len:
            raise RejectedError(
                422 if self.flags.engine == "tgi" else 400,
                f"this model's maximum context length is {self.flags.max_model_len} tokens; the request needs "
                f"{request.prompt_tokens} + {request.limit_tokens}",
            )
        self.scheduler.admit(request)
        self._next_id += 1
        seq = SeqState(self._next_id, request, now)
        if self.pool.caching:
            seq.keys = _block_keys(seq.id, request, self.flags.kv_block_tokens)
        self.by_id[seq.id] = seq
        # vLLM's and SGLang's scheduler loop reads new requests between two steps only; TGI's queue is a task of its own.
        (self.arriving if self.in_step and self.flags.engine != "tgi" else self.waiting).append(seq)
        return seq.id

    def abort(self, request_id: int) -> bool:
        """Drops a request (client gone). False if it had finished already."""
        seq = self.by_id.pop(request_id, None)
        if seq is None:
            return False
        if seq in self.running:
            self.running.remove(seq)
        else:
            (self.arriving if seq in self.arriving else self.waiting).remove(seq)
        self._let_go(seq)
        self.stats.add("aborted")
        if not self.by_id:
            self.publish()
        return True

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running or self.arriving)

    @property
    def in_step(self) -> bool:
        return self._plan is not None

    # -- steps ------------------------------------------------------------------------------------

    def begin_step(self, now: float) -> float | None:
        """Schedules a step; its duration in seconds, or None when there is nothing to run."""
        if self._plan is not None:
            raise RuntimeError("a step is in flight; finish it first")
        while self.arriving:
            seq = self.arriving.popleft()
            seq.queued = now
            self.waiting.append(seq)
        plan = self.scheduler.plan(now)
        if not plan:
            return None
        prompt_tokens = context = 0
        for seq in plan.prefills:
            prompt_tokens += seq.chunk
            context += seq.computed
        if self.engine.step_times.per_context_token:
            context += sum(seq.computed for seq in plan.decodes)
        self._plan, self._begun = plan, now
        self._duration = self.engine.step_times.step(len(plan.decodes), prompt_tokens, context)
        return self._duration

    def finish_step(self) -> StepResult:
        """Applies the step begun last: tokens, finished requests, counters and gauges."""
        plan = self._plan
        if plan is None:
            raise RuntimeError("no step is in flight")
        self._plan = None
        end = self._begun + self._duration
        self.steps += 1
        self.busy_seconds += self._duration
        alive = self.by_id
        emitted: list[int] = []
        finished: list[SeqState] = []
        computed_prompt = 0
        register = self.pool.caching
        size = self.flags.kv_block_tokens
        for seq in plan.prefills:
            if seq.id not in alive:
                continue
            seq.computed += seq.chunk
            if register:
                self.pool.register(seq.held, seq.keys, min(seq.computed, seq.prompt) // size)
            if seq.computed < seq.total:
                continue
            if seq.first_token is None:
                computed_prompt += self._first_token(seq, end)
            else:  # a preempted request is back: its stall shows as one long gap
                self.stats.hist("itl").observe(end - seq.last_token)
            self._emit(seq, end, emitted, finished)
        gaps: dict[float, int] = {}
        for seq in plan.decodes:
            if seq.id not in alive:
                continue
            seq.computed += 1
            gaps[seq.last_token] = gaps.get(seq.last_token, 0) + 1
            self._emit(seq, end, emitted, finished)
        itl = self.stats.hist("itl")
        for last, n in gaps.items():
            itl.observe(end - last, n)
        if emitted:
            self.stats.add("generation_tokens", len(emitted))
            self.stats.hist("iteration_tokens").observe(computed_prompt + len(emitted))
        for seq in finished:
            self._finish(seq, end)
        self.scheduler.after_step(plan, end, self._duration)
        return StepResult(end, self._duration, tuple(emitted), tuple(seq.id for seq in finished))

    def step(self, now: float) -> StepResult | None:
        """begin_step and finish_step in one; None when there is nothing to run."""
        return None if self.begin_step(now) is None else self.finish_step()

    def publish(self, **extra: float) -> None:
        """Sets the gauges to the present state, as an engine does at the end of a step."""
        self.gauges = Gauges(
            running=len(self.running),
            waiting=len(self.waiting),
            kv_used_blocks=self.pool.used,
            kv_total_blocks=self.pool.total,
            reserved_tokens=self.reserved_tokens,
            extra=extra,
        )

    # -- parts of a step --------------------------------------------------------------------------

    def _first_token(self, seq: SeqState, end: float) -> int:
        stats = self.stats
        cached = max(seq.cached, 0)
        stats.add("prompt_tokens", seq.prompt)
        stats.add("prompt_tokens_cached", cached)
        stats.hist("ttft").observe(end - seq.arrival)
        seq.first_token = end
        return seq.prompt - cached

    def _emit(self, seq: SeqState, end: float, emitted: list[int], finished: list[SeqState]) -> None:
        seq.out += 1
        seq.last_token = end
        emitted.append(seq.id)
        if seq.out >= seq.target:
            finished.append(seq)

    def _finish(self, seq: SeqState, end: float) -> None:
        stats, first, scheduled = self.stats, seq.first_token, seq.first_scheduled
        if first is None or scheduled is None:
            raise RuntimeError("a request finished without having been scheduled")
        decode = end - first
        stats.add(f"finished_{seq.request.finish_reason}")
        for name, value in (
            ("e2e", end - seq.arrival),
            ("queue", scheduled - seq.queued),
            ("prefill", first - scheduled),
            ("decode", decode),
            ("inference", end - scheduled),
            ("tpot", decode / (seq.out - 1) if seq.out > 1 else 0.0),
            ("mean_time_per_token", (end - scheduled) / seq.out),
            ("prompt_tokens", seq.prompt),
            ("generation_tokens", seq.out),
            ("max_tokens", seq.request.limit_tokens),
            ("params_n", 1),
            ("preemptions", seq.preemptions),
            ("prefill_kv_computed", seq.prompt - max(seq.cached, 0)),
        ):
            stats.hist(name).observe(value)
        del self.by_id[seq.id]
        self.running.remove(seq)
        self._let_go(seq)

    def _let_go(self, seq: SeqState) -> None:
        self.pool.release(seq.held)
        self.reserved_tokens -= seq.reserved
        seq.reserved = 0

    # -- what schedulers use ----------------------------------------------------------------------

    def blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.flags.kv_block_tokens)

    def cache_hits(self, seq: SeqState) -> int:
        """Leading blocks found in the prefix cache; the last token is always computed."""
        if not self.pool.caching:
            return 0
        return self.pool.match(seq.keys[: (seq.total - 1) // self.flags.kv_block_tokens])

    def start(self, seq: SeqState, hits: int, now: float) -> None:
        """Moves the head of the waiting queue into the running set, with its cached blocks."""
        self.waiting.remove(seq)
        self.running.append(seq)
        seq.computed = hits * self.flags.kv_block_tokens
        if seq.cached < 0:
            # Counted once: a resumed request is not in the real engine's cache counters either.
            seq.cached = min(seq.computed, seq.prompt)
            if self.pool.caching:
                self.stats.add("prefix_queries", seq.prompt)
                self.stats.add("prefix_hits", seq.cached)
        if seq.first_scheduled is None:
            seq.first_scheduled = now

    def preempt(self, seq: SeqState, *, to_front: bool) -> None:
        """Takes a running request off: all its KV is freed and will be computed again."""
        self.running.remove(seq)
        self.pool.release(seq.held)
        self.reserved_tokens -= seq.reserved
        seq.reserved = seq.computed = seq.chunk = 0
        seq.preemptions += 1
        self.stats.add("preemptions")
        if to_front:
            self.waiting.appendleft(seq)
        else:
            self.waiting.append(seq)


def _block_keys(seq_id: int, request: Request, size: int) -> tuple[Hashable, ...]:
    full = request.prompt_tokens // size
    if request.block_hashes is not None:
        return request.block_hashes[:full]
    shared = min(request.shared_prefix_tokens // size, full)
    head = [(request.prefix_id, i) for i in range(shared)]
    return (*head, *((-seq_id, i) for i in range(shared, full)))
