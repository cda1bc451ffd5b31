"""What sets the three engines apart."""

from __future__ import annotations

import pytest

from perf_service.simulator.core import EngineCore, RejectedError, Request
from perf_service.simulator.flags import EngineFlags, resolve
from perf_service.simulator.schedulers import SglangScheduler
from tests.support.cores import TIMES


def core_of(engine: str, **flags: object) -> EngineCore:
    base: dict[str, object] = {"engine": engine, "num_gpu_blocks_override": 200, "max_model_len": 512}
    return EngineCore(resolve(EngineFlags(**{**base, **flags}), TIMES))  # type: ignore[arg-type]


def plan_of(core: EngineCore, now: float = 0.0) -> tuple[int, int]:
    """(decodes, prompt tokens) of the next step, which is then run."""
    assert core.begin_step(now) is not None
    plan = core._plan
    assert plan is not None
    shape = (len(plan.decodes), sum(s.chunk for s in plan.prefills))
    core.finish_step()
    return shape


def test_vllm_mixes_decodes_and_prompt_chunks_in_one_budget() -> None:
    core = core_of("vllm", max_num_batched_tokens=64, max_num_seqs=8)
    core.submit(Request(0.0, 30, 9), 0.0)
    assert plan_of(core) == (0, 30)
    core.submit(Request(0.0, 200, 9), 0.0)
    assert plan_of(core) == (1, 63)


def test_vllm_caps_a_long_prompt_when_told() -> None:
    core = core_of("vllm", max_num_batched_tokens=256, long_prefill_token_threshold=32)
    core.submit(Request(0.0, 200, 9), 0.0)
    core.submit(Request(0.0, 40, 9), 0.0)
    assert plan_of(core) == (0, 64)


def test_vllm_admits_only_what_fits_whole_unless_told_otherwise() -> None:
    # 39 blocks: 32 are held; of the next prompt (13 blocks) only a part would fit
    for reserve, expected in ((True, 1), (False, 2)):
        core = core_of("vllm", num_gpu_blocks_override=40, max_num_batched_tokens=500, scheduler_reserve_full_isl=reserve)
        core.submit(Request(0.0, 440, 5), 0.0)
        core.step(0.0)
        core.submit(Request(0.0, 208, 5), 0.0)
        core.flags = core.flags.changed({"max_num_batched_tokens": 65})
        core.step(1.0)
        assert len(core.running) == expected


def test_vllm_watermark_keeps_blocks_free_at_admission() -> None:
    running = {}
    for watermark in (0.0, 0.5):
        core = core_of("vllm", num_gpu_blocks_override=41, watermark=watermark)
        for _ in range(4):
            core.submit(Request(0.0, 150, 5), 0.0)
        core.step(0.0)
        running[watermark] = len(core.running)
    assert running == {0.0: 4, 0.5: 2}


def test_vllm_active_limit_binds_below_max_num_seqs() -> None:
    core = core_of("vllm", max_num_active_seqs=2)
    for _ in range(5):
        core.submit(Request(0.0, 20, 5), 0.0)
    core.step(0.0)
    assert (core.gauges.running, core.gauges.waiting) == (2, 3)


def test_vllm_queue_limit_answers_503_and_counts_it() -> None:
    core = core_of("vllm", max_num_queued_reqs=1)
    core.submit(Request(0.0, 20, 5), 0.0)
    with pytest.raises(RejectedError) as refused:
        core.submit(Request(0.0, 20, 5), 0.0)
    assert refused.value.status == 503
    assert core.stats.get("rejected_max_num_queued_reqs") == 1


def test_vllm_preempts_the_latest_arrival_and_resumes_it_first() -> None:
    core = core_of("vllm", num_gpu_blocks_override=33, enable_prefix_caching=False)
    first = core.submit(Request(0.0, 240, 100), 0.0)
    second = core.submit(Request(0.0, 240, 100), 0.0)
    third = core.submit(Request(0.0, 240, 100), 0.0)
    now = 0.0
    while not core.stats.get("preemptions"):
        result = core.step(now)
        assert result is not None
        now = result.time
    assert [s.id for s in core.running] == [first]
    assert [s.id for s in core.waiting] == [second, third]
    assert core.by_id[second].computed == 0
    assert core.by_id[second].out > 0  # what it has said is kept, only its KV is lost


def test_sglang_prefill_blocks_decoding_unless_chunks_are_mixed() -> None:
    for mixed, expected in ((False, (0, 40)), (True, (1, 40))):
        core = core_of("sglang", enable_mixed_chunk=mixed)
        core.submit(Request(0.0, 40, 9), 0.0)
        plan_of(core)
        core.submit(Request(0.0, 40, 9), 0.0)
        assert plan_of(core) == expected


def test_sglang_conservativeness_decides_how_many_are_admitted() -> None:
    admitted = {}
    for conservativeness in (0.1, 1.5):
        core = core_of("sglang", num_gpu_blocks_override=60, schedule_conservativeness=conservativeness)
        now = 0.0
        for _ in range(6):
            core.submit(Request(now, 60, 150, max_tokens=150), now)
            result = core.step(now)
            assert result is not None
            now = result.time
        admitted[conservativeness] = len(core.running)
    assert admitted[0.1] > admitted[1.5]


def test_sglang_retracts_the_one_with_the_least_output_to_the_end_of_the_queue() -> None:
    core = core_of("sglang", num_gpu_blocks_override=40, schedule_conservativeness=0.05, enable_prefix_caching=False)
    now = 0.0
    for _ in range(5):
        core.submit(Request(now, 100, 120), now)
        result = core.step(now)
        assert result is not None
        now = result.time
    while not core.stats.get("preemptions"):
        result = core.step(now)
        assert result is not None
        now = result.time
    assert core.stats.get("retracted_input_tokens") == 100 * core.stats.get("preemptions")
    assert core.stats.get("retracted_output_tokens") > 0
    scheduler = core.scheduler
    assert isinstance(scheduler, SglangScheduler)
    assert scheduler.ratio > scheduler.ratio_floor  # a retraction makes admission careful again


def test_sglang_gauges_are_stale_between_log_lines() -> None:
    core = core_of("sglang", decode_log_interval=10)
    core.submit(Request(0.0, 20, 60), 0.0)
    now, seen = 0.0, []
    for _ in range(25):
        result = core.step(now)
        assert result is not None
        now = result.time
        seen.append(core.gauges.extra["context_tokens"])
    assert len(set(seen)) == 3  # after the prefill, and at the 10th and 20th decode step


def test_sglang_full_queue_answers_503() -> None:
    core = core_of("sglang", max_num_queued_reqs=1)
    core.submit(Request(0.0, 20, 5), 0.0)
    with pytest.raises(RejectedError) as refused:
        core.submit(Request(0.0, 20, 5), 0.0)
    assert refused.value.status == 503


def test_tgi_reserves_the_worst_case_and_never_preempts() -> None:
    core = core_of("tgi", num_gpu_blocks_override=40)
    for _ in range(4):
        core.submit(Request(0.0, 100, 5, max_tokens=200), 0.0)
    core.step(0.0)
    assert (core.gauges.running, core.gauges.waiting, core.gauges.reserved_tokens) == (2, 2, 600)
    now = 1.0
    while (result := core.step(now)) is not None:
        now = result.time
    assert core.stats.get("preemptions") == 0
    assert core.stats.get("finished_length") == 4


def test_tgi_overload_answers_429_and_counts_it() -> None:
    core = core_of("tgi", max_concurrent_requests=1)
    core.submit(Request(0.0, 20, 5), 0.0)
    with pytest.raises(RejectedError) as refused:
        core.submit(Request(0.0, 20, 5), 0.0)
    assert refused.value.status == 429
    assert core.stats.get("failed_overloaded") == 1
    assert core.stats.get("requests") == 2
