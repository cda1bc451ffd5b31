"""A small simulated engine without a clock of its own, run to its end, and the law of its blocks."""

from __future__ import annotations

from perf_service.simulator.core import EngineCore
from perf_service.simulator.flags import EngineFlags, StepTimes, resolve

TIMES = StepTimes(base=0.01, per_seq=0.001, per_prefill_token=0.0001)


def core_of(**flags: object) -> EngineCore:
    base: dict[str, object] = {"block_size": 16, "num_gpu_blocks_override": 200, "max_model_len": 512}
    return EngineCore(resolve(EngineFlags(**{**base, **flags}), TIMES))  # type: ignore[arg-type]


def run(core: EngineCore, now: float = 0.0, limit: int = 20_000) -> float:
    for _ in range(limit):
        result = core.step(now)
        if result is None:
            assert not core.has_work, "work is left but nothing is scheduled"
            return now
        now = result.time
    raise AssertionError("the engine does not come to an end")


def check_blocks(core: EngineCore) -> None:
    pool = core.pool
    held = [s.held for s in core.by_id.values()]
    shared = {key for h in held for key in h.keys}
    assert pool.used == len(shared) + sum(h.anonymous for h in held)
    assert 0 <= pool.used <= pool.total
    assert pool.unused + len(pool._free) + pool.used == pool.total
    assert not shared & set(pool._free)
