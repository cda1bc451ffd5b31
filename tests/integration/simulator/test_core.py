"""Laws that every simulated engine obeys whatever its flags and load."""

from __future__ import annotations

import random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from perf_service.simulator.core import Request
from tests.support.cores import check_blocks, core_of
from tests.support.examples import examples

engines = st.sampled_from(["vllm", "sglang", "tgi"])


requests = st.lists(
    st.tuples(st.integers(1, 300), st.integers(1, 80), st.integers(0, 256), st.integers(0, 60)),
    min_size=1,
    max_size=12,
)


@settings(max_examples=examples(40), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    engine=engines,
    load=requests,
    seqs=st.integers(1, 16),
    budget=st.integers(16, 400),
    blocks=st.integers(33, 50),
    caching=st.booleans(),
    conservativeness=st.floats(0.05, 2.0),
    mixed=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_every_request_ends_and_limits_hold(
    engine: str, load: list[tuple[int, int, int, int]], seqs: int, budget: int, blocks: int, caching: bool,
    conservativeness: float, mixed: bool, seed: int,
) -> None:  # fmt: skip
    core = core_of(
        engine=engine,
        block_size=1 if engine == "sglang" else 16,
        max_num_seqs=seqs,
        max_num_batched_tokens=budget,
        num_gpu_blocks_override=blocks,
        enable_prefix_caching=caching,
        schedule_conservativeness=conservativeness,
        enable_mixed_chunk=mixed,
    )
    rng = random.Random(seed)
    now, alive, ended, aborted = 0.0, set(), set(), set()
    waiting = [Request(0.0, p, o, max_tokens=o + extra, shared_prefix_tokens=min(pre, p)) for p, o, pre, extra in load]
    last_counters: dict[str, float] = {}
    for _ in range(50_000):
        while waiting and (rng.random() < 0.5 or not core.has_work):
            alive.add(core.submit(waiting.pop(), now))
        if core.begin_step(now) is None:
            assert not core.has_work
            if not waiting:
                break
            continue
        plan = core._plan
        assert plan is not None
        spent = sum(s.chunk for s in plan.prefills)
        assert len(core.running) <= seqs
        if engine == "vllm":
            assert spent + len(plan.decodes) <= budget
        else:
            assert spent <= budget
        if alive and rng.random() < 0.05:
            victim = rng.choice(sorted(alive))
            assert core.abort(victim)
            alive.discard(victim)
            aborted.add(victim)
        result = core.finish_step()
        check_blocks(core)
        assert result.time > now
        now = result.time
        assert set(result.finished) <= alive
        alive -= set(result.finished)
        ended |= set(result.finished)
        assert all(core.stats.counters[k] >= v for k, v in last_counters.items())
        last_counters = dict(core.stats.counters)
    assert not alive
    assert not waiting
    assert len(ended) + len(aborted) == len(load)
    assert core.pool.used == 0
    assert core.reserved_tokens == 0
    assert (core.gauges.running, core.gauges.waiting) == (0, 0)
    assert core.stats.get("finished_length") == len(ended) == core.stats.hist("e2e").count
    for name in ("ttft", "queue", "prefill", "decode"):
        assert core.stats.hist(name).sum >= 0
