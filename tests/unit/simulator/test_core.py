"""Laws that every simulated engine obeys whatever its flags and load."""

from __future__ import annotations

import pytest

from perf_service.simulator.core import RejectedError, Request
from tests.support.cores import TIMES, core_of, run


def test_token_accounting_is_exact_without_aborts() -> None:
    core = core_of(max_num_seqs=4)
    for i in range(10):
        core.submit(Request(0.0, 50 + i, 20), 0.0)
    run(core)
    assert core.stats.get("generation_tokens") == 200
    assert core.stats.get("prompt_tokens") == sum(50 + i for i in range(10))
    assert core.stats.hist("itl").count == 190
    assert core.stats.hist("iteration_tokens").sum == 200 + core.stats.get("prompt_tokens")


def test_phases_add_up_to_end_to_end() -> None:
    core = core_of(max_num_seqs=2)
    for _ in range(6):
        core.submit(Request(0.0, 100, 10), 0.0)
    run(core)
    h = core.stats.hist
    assert h("queue").sum + h("prefill").sum + h("decode").sum == pytest.approx(h("e2e").sum)
    assert h("queue").sum + h("prefill").sum == pytest.approx(h("ttft").sum)


def test_one_request_takes_the_time_its_steps_take() -> None:
    core = core_of(max_num_batched_tokens=64, max_num_seqs=4)
    core.submit(Request(0.0, 100, 3), 0.0)
    end = run(core)
    # chunks of 64 and 36 prompt tokens, then two decode steps
    assert end == pytest.approx((0.01 + 0.0064) + (0.01 + 0.0036) + 2 * 0.011)
    assert core.steps == 4
    # the whole prompt is booked with its first token: chunking does not show in the histogram
    assert core.stats.hist("iteration_tokens").count == 3


def test_preemption_recomputes_and_is_invisible_in_tokens() -> None:
    core = core_of(num_gpu_blocks_override=33, max_num_seqs=8)
    for _ in range(8):
        core.submit(Request(0.0, 60, 150), 0.0)
    run(core)
    assert core.stats.get("preemptions") > 0
    assert core.stats.hist("preemptions").sum == core.stats.get("preemptions")
    assert core.stats.get("prompt_tokens") == core.stats.get("prefix_queries") == 480
    assert core.stats.get("generation_tokens") == 1200


def test_kv_usage_is_reported_over_total_minus_one() -> None:
    core = core_of(num_gpu_blocks_override=33)
    core.submit(Request(0.0, 160, 5), 0.0)
    core.step(0.0)
    assert core.gauges.kv_usage == 10 / 32


def test_shared_prefix_is_hit_in_whole_blocks() -> None:
    core = core_of()
    now = 0.0
    for i in range(4):
        core.submit(Request(now, 110, 2, shared_prefix_tokens=100), now)
        now = run(core, now)
        assert core.stats.get("prefix_hits") == 96 * i  # 6 blocks of 16
    assert core.stats.get("prefix_queries") == 440


def test_own_prompt_again_still_computes_its_last_token() -> None:
    core = core_of()
    hashes = tuple(range(4))
    core.submit(Request(0.0, 64, 1, block_hashes=hashes), 0.0)
    now = run(core)
    core.submit(Request(now, 64, 1, block_hashes=hashes), now)
    run(core, now)
    assert core.stats.get("prefix_hits") == 48


def test_prefix_cache_off_counts_no_queries() -> None:
    core = core_of(enable_prefix_caching=False)
    core.submit(Request(0.0, 110, 2, shared_prefix_tokens=100), 0.0)
    run(core)
    assert core.stats.get("prefix_queries") == 0


def test_abort_of_the_only_request_clears_the_gauges_and_frees_its_blocks() -> None:
    core = core_of()
    request_id = core.submit(Request(0.0, 100, 50), 0.0)
    core.step(0.0)
    assert core.gauges.running == 1
    assert core.abort(request_id)
    assert not core.abort(request_id)
    assert (core.gauges.running, core.pool.used) == (0, 0)
    assert core.begin_step(1.0) is None
    assert core.stats.hist("ttft").count - core.stats.hist("e2e").count == 1


def test_gauges_move_only_at_the_end_of_a_step() -> None:
    core = core_of()
    core.submit(Request(0.0, 100, 5), 0.0)
    core.begin_step(0.0)
    assert core.gauges.running == 0
    core.finish_step()
    assert core.gauges.running == 1


@pytest.mark.parametrize(("request_", "status"), [(Request(0.0, 0, 5), 400), (Request(0.0, 5, 0), 400), (Request(0.0, 500, 100), 400)])
def test_impossible_requests_are_refused(request_: Request, status: int) -> None:
    with pytest.raises(RejectedError) as refused:
        core_of().submit(request_, 0.0)
    assert refused.value.status == status


def test_a_step_cannot_be_begun_twice_nor_finished_unbegun() -> None:
    core = core_of()
    with pytest.raises(RuntimeError, match="no step"):
        core.finish_step()
    core.submit(Request(0.0, 10, 5), 0.0)
    core.begin_step(0.0)
    with pytest.raises(RuntimeError, match="in flight"):
        core.begin_step(0.0)


@pytest.mark.parametrize(("engine", "queued_seconds"), [("vllm", 0.0), ("sglang", 0.0), ("tgi", 0.03)])
def test_the_rest_of_a_running_step_is_no_queue_time_where_the_scheduler_looks_between_steps(engine: str, queued_seconds: float) -> None:
    core = core_of(engine=engine)
    core.submit(Request(0.0, 300, 1), 0.0)
    end = core.begin_step(0.0)
    assert end is not None
    core.submit(Request(end - 0.03, 10, 1), end - 0.03)
    run(core, core.finish_step().time)
    assert core.stats.hist("queue").sum == pytest.approx(queued_seconds)
    assert core.stats.hist("e2e").sum == pytest.approx(end + 0.03 + TIMES.step(0, 10))
