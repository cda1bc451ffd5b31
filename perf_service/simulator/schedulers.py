"""How each engine fills a step: the only place where the three simulated engines differ in behaviour."""

from __future__ import annotations

from collections import deque
from typing import Protocol

from perf_service.simulator.core import EngineCore, Plan, RejectedError, Request, SeqState

_CLIP_NEW_TOKENS = 4096  # SGLang CLIP_MAX_NEW_TOKENS: what one request is expected to generate at most
_RATIO_START, _RATIO_FLOOR, _RATIO_STEPS = 0.7, 0.14, 600  # SGLang new-token ratio and its linear decay
_RETRACT_DECODE_STEPS = 20  # SGLang: head-room in the ratio after a retraction


class Scheduler(Protocol):
    """Policy of one engine."""

    def admit(self, request: Request) -> None:
        """Raises RejectedError when the engine refuses the request at once."""

    def plan(self, now: float) -> Plan:
        """Picks the work of the next step; allocates its KV."""

    def after_step(self, plan: Plan, end: float, duration: float) -> None:
        """Updates policy state and publishes gauges."""


def scheduler_for(core: EngineCore) -> Scheduler:
    """The scheduler of ``core.flags.engine``."""
    kinds: dict[str, type[VllmScheduler | SglangScheduler | TgiScheduler]] = {
        "vllm": VllmScheduler,
        "sglang": SglangScheduler,
        "tgi": TgiScheduler,
    }
    return kinds[core.flags.engine](core)


class VllmScheduler:
    """vLLM V1 (0.32 vllm/v1/core/sched/scheduler.py): running requests first, then FCFS admission.

    One token budget for both; when blocks run out the latest arrival is preempted and recomputed.
    """

    def __init__(self, core: EngineCore) -> None:
        self.core = core

    def admit(self, request: Request) -> None:
        limit = self.core.flags.max_num_queued_reqs
        if limit is not None and len(self.core.by_id) >= limit:
            self.core.stats.add("rejected_max_num_queued_reqs")
            raise RejectedError(503, f"the server has {len(self.core.by_id)} unfinished requests (limit {limit})")

    def plan(self, now: float) -> Plan:
        core, flags, pool = self.core, self.core.flags, self.core.pool
        plan = Plan()
        budget = flags.max_num_batched_tokens
        size = flags.kv_block_tokens
        preempted = False
        index = 0
        running = core.running
        while index < len(running) and budget > 0:
            seq = running[index]
            tokens = min(seq.prompt + seq.out - seq.computed, budget)
            if tokens > 1:
                tokens = self._chunk(tokens)
            blocks = -(-(seq.computed + tokens) // size)
            dropped = False
            while not pool.grow(seq.held, blocks):
                victim = running[-1]
                core.preempt(victim, to_front=True)
                preempted = True
                if victim is seq:
                    dropped = True
                    break
            if dropped:
                break
            seq.chunk = tokens
            budget -= tokens
            # A resumed or partly prefilled request whose last token is computed now is a decode.
            (plan.decodes if tokens == 1 and seq.out and seq.computed == seq.total - 1 else plan.prefills).append(seq)
            index += 1
        if not preempted:
            self._admit_waiting(plan, budget, now)
        return plan

    def _chunk(self, tokens: int) -> int:
        limit = self.core.flags.long_prefill_token_threshold
        return min(tokens, limit) if limit else tokens

    def _admit_waiting(self, plan: Plan, budget: int, now: float) -> None:
        core, flags, pool = self.core, self.core.flags, self.core.pool
        limit = flags.max_num_seqs
        if flags.max_num_active_seqs is not None:
            limit = min(limit, flags.max_num_active_seqs)
        reserve = int(flags.watermark * pool.total)
        while core.waiting and budget > 0 and len(core.running) < limit:
            seq = core.waiting[0]
            hits = core.cache_hits(seq)
            cached = hits * flags.kv_block_tokens
            tokens = self._chunk(seq.total - cached)
            if tokens > budget:
                if not flags.enable_chunked_prefill:
                    break
                tokens = budget
            upto = seq.total if flags.scheduler_reserve_full_isl else cached + tokens
            free = pool.free_after_match(seq.keys, hits)
            if core.blocks_for(upto) - hits > free - (reserve if core.running else 0):
                break
            core.start(seq, hits, now)
            pool.acquire(seq.held, seq.keys[:hits])
            pool.grow(seq.held, core.blocks_for(cached + tokens))
            seq.chunk = tokens
            budget -= tokens
            plan.prefills.append(seq)

    def after_step(self, plan: Plan, end: float, duration: float) -> None:
        self.core.publish()


class SglangScheduler:
    """SGLang 0.5 (srt/managers/schedule_policy.py, schedule_batch.py).

    A prefill batch goes before decoding and blocks it (unless mixed chunks are on); admission expects
    running requests to need ``new_token_ratio`` of what they may still generate; when the pool is
    short in decode, requests with the fewest output tokens are retracted to the end of the queue.
    """

    def __init__(self, core: EngineCore) -> None:
        self.core = core
        self.ratio_init = min(_RATIO_START * core.flags.schedule_conservativeness, 1.0)
        self.ratio_floor = self.ratio_init * _RATIO_FLOOR
        self.ratio = self.ratio_init
        self.chunked: SeqState | None = None  # the one request whose prompt is half done
        self.retracted = 0
        self._decode_steps = 0
        self._log_time = 0.0
        self._log_tokens = 0.0
        self._rate = 0.0
        self._hit_ratio = 0.0

    def admit(self, request: Request) -> None:
        limit = self.core.flags.max_num_queued_reqs
        if limit is not None and len(self.core.waiting) + len(self.core.arriving) >= limit:
            self.core.stats.add("aborted")
            raise RejectedError(503, "The request queue is full.")

    def plan(self, now: float) -> Plan:
        plan = self._prefill_batch(now)
        if plan.prefills and not self.core.flags.enable_mixed_chunk:
            return plan
        self._decode_batch(plan)
        return plan

    def _expected(self, seq: SeqState) -> float:
        return min(seq.request.limit_tokens - seq.out, _CLIP_NEW_TOKENS) * self.ratio

    def _prefill_batch(self, now: float) -> Plan:
        core, flags, pool = self.core, self.core.flags, self.core.pool
        plan = Plan()
        chunk_budget = flags.max_num_batched_tokens
        input_budget = max(flags.max_prefill_tokens, flags.max_model_len)
        if flags.enable_mixed_chunk:
            chunk_budget = max(chunk_budget - len(core.running), 1)
        half = self.chunked
        if half is not None and half.id in core.by_id and half in core.running:
            half.chunk = min(half.total - half.computed, chunk_budget)
            if not pool.grow(half.held, core.blocks_for(half.computed + half.chunk)):
                return plan
            plan.prefills.append(half)
            chunk_budget -= half.chunk
            input_budget -= half.chunk
        self.chunked = half if half and plan.prefills and half.computed + half.chunk < half.total else None
        if self.chunked is not None or not core.waiting:
            return plan
        size = flags.kv_block_tokens
        room = pool.free * size - sum(self._expected(s) for s in core.running)
        hit = asked = 0
        while core.waiting and chunk_budget > 0 and input_budget > 0 and len(core.running) < flags.max_num_seqs:
            seq = core.waiting[0]
            hits = core.cache_hits(seq)
            cached = hits * size
            extend = seq.total - cached
            room_here = room - (pool.free - pool.free_after_match(seq.keys, hits)) * size
            needs = extend + min(seq.request.limit_tokens - seq.out, _CLIP_NEW_TOKENS)
            if needs >= room_here and core.running:
                break
            if core.blocks_for(cached + min(extend, chunk_budget)) - hits > pool.free_after_match(seq.keys, hits):
                break
            if not flags.enable_chunked_prefill and extend > input_budget and plan.prefills:
                break
            core.start(seq, hits, now)
            pool.acquire(seq.held, seq.keys[:hits])
            seq.chunk = min(extend, chunk_budget) if flags.enable_chunked_prefill else extend
            pool.grow(seq.held, core.blocks_for(cached + seq.chunk))
            plan.prefills.append(seq)
            hit, asked = hit + cached, asked + seq.total
            chunk_budget -= seq.chunk
            input_budget -= seq.chunk
            room = room_here - needs
            if seq.chunk < extend:
                self.chunked = seq
                break
        if asked:
            self._hit_ratio = hit / asked
        return plan

    def _decode_batch(self, plan: Plan) -> None:
        core, pool = self.core, self.core.pool
        taken = {s.id for s in plan.prefills}
        batch = [s for s in core.running if s.id not in taken and s is not self.chunked and s.out]
        size = core.flags.kv_block_tokens
        need = [s for s in batch if core.blocks_for(s.computed + 1) > s.held.blocks]
        if len(need) > pool.free and self.chunked is not None and self.chunked in core.running:
            core.preempt(self.chunked, to_front=True)  # a half-done prompt must not starve decoding
            self.chunked = None
        if len(need) > pool.free:
            # Fewest output tokens first, longest prompt first among equals: least work is thrown away.
            order = deque(sorted(batch, key=lambda s: (s.out, -s.prompt)))
            while len(order) > 1 and sum(core.blocks_for(s.computed + 1) > s.held.blocks for s in order) > pool.free:
                victim = order.popleft()
                self.core.stats.add("retracted_input_tokens", victim.prompt)
                self.core.stats.add("retracted_output_tokens", victim.out)
                core.preempt(victim, to_front=False)
                self.retracted += 1
            batch = [s for s in core.running if s in order]
            done = sum(s.out for s in batch) + _RETRACT_DECODE_STEPS * len(batch)
            self.ratio = min(1.0, done / max(sum(s.request.limit_tokens for s in batch), 1))
        else:
            self.ratio = max(self.ratio - (self.ratio_init - self.ratio_floor) / _RATIO_STEPS, self.ratio_floor)
        for seq in batch:
            if pool.grow(seq.held, -(-(seq.computed + 1) // size)):
                seq.chunk = 1
                plan.decodes.append(seq)

    def after_step(self, plan: Plan, end: float, duration: float) -> None:
        """Gauges move on prefill batches and every ``decode_log_interval`` decode steps, as in SGLang."""
        core, stats = self.core, self.core.stats
        if plan.prefills:
            stats.add("prefill_compute_tokens", sum(s.chunk for s in plan.prefills))
        stats.add("decode_tokens", len(plan.decodes))
        self._decode_steps += bool(plan.decodes)
        logged = self._decode_steps >= core.flags.decode_log_interval
        if logged:
            tokens = stats.get("generation_tokens")
            if end > self._log_time:
                self._rate = (tokens - self._log_tokens) / (end - self._log_time)
            self._log_time, self._log_tokens, self._decode_steps = end, tokens, 0
        if logged or plan.prefills or not core.has_work:
            context = sum(s.computed for s in core.running)
            core.publish(
                new_token_ratio=self.ratio, gen_throughput=self._rate, cache_hit_rate=self._hit_ratio,
                retracted=self.retracted, context_tokens=context,
            )  # fmt: skip
            self.retracted = 0


class TgiScheduler:
    """TGI 3 (backends/v3/src/{queue,backend}.rs): prompt plus max_new_tokens is reserved at admission.

    Nothing is ever preempted; what does not fit waits. Prompts are chunked by the prefill budget and
    share their steps with all decodes.
    """

    def __init__(self, core: EngineCore) -> None:
        self.core = core
        self.budget_tokens = core.engine.kv_capacity_tokens

    def admit(self, request: Request) -> None:
        core = self.core
        core.stats.add("requests")
        if len(core.by_id) >= core.flags.max_concurrent_requests:
            core.stats.add("failed_overloaded")
            raise RejectedError(429, "Model is overloaded")

    def plan(self, now: float) -> Plan:
        core, pool = self.core, self.core.pool
        plan = Plan()
        budget = core.flags.max_num_batched_tokens
        for seq in core.running:
            left = seq.total - seq.computed
            if seq.out and left == 1:
                seq.chunk = 1
                plan.decodes.append(seq)
            elif budget > 0:
                seq.chunk = min(left, budget)
                budget -= seq.chunk
                plan.prefills.append(seq)
        joined = 0
        while core.waiting and budget > 0 and len(core.running) < core.flags.max_num_seqs:
            seq = core.waiting[0]
            worst = seq.prompt + seq.request.limit_tokens
            hits = core.cache_hits(seq)
            if core.reserved_tokens + worst > self.budget_tokens:
                break
            if core.blocks_for(worst) - hits > pool.free_after_match(seq.keys, hits):
                break
            core.start(seq, hits, now)
            pool.acquire(seq.held, seq.keys[:hits])
            pool.grow(seq.held, core.blocks_for(worst))
            seq.reserved = worst
            core.reserved_tokens += worst
            seq.chunk = min(seq.total - seq.computed, budget)
            budget -= seq.chunk
            plan.prefills.append(seq)
            joined += 1
        if joined:
            core.stats.hist("batch_next_size").observe(joined)
            if len(core.running) > joined:
                core.stats.add("concat_chunking")
        return plan

    def after_step(self, plan: Plan, end: float, duration: float) -> None:
        core = self.core
        method = "prefill" if plan.prefills else "decode"
        core.stats.hist(f"step_{method}").observe(duration)
        core.stats.add(f"batch_{method}")
        core.publish()
