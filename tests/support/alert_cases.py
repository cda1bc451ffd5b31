"""Seventeen minutes of many replicas, healthy and not, as one Prometheus has stored them. Each case is a job of its own."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cache
from pathlib import Path

from perf_service.models.metrics import Engine
from perf_service.simulator.flags import EngineFlags, StepTimes
from perf_service.simulator.virtual import simulate
from perf_service.simulator.workload import Lengths, Workload
from tests.support.replay import FIXTURES, SavedPage, Track, Values, joined, read_capture, read_page, samples

MINUTES = 17
DURATION = 60.0 * MINUTES
DEPLOYED = Path(__file__).parents[2] / "deploy" / "alerts"

# What is expected of each saved run: the alert that names its cause, or None. Why: its truth.txt.
CAPTURES: dict[str, str | None] = {
    "a_healthy": None,
    "b_queue_bad_r2": "LLMBatchLimit",
    "b_queue_fixed_r2": None,
    "c_kv_bad_r2": "LLMKVCacheExhausted",
    "c_kv_fixed_r2": None,
    "d_prefill_bad_r2": "LLMTokenBudgetTooSmall",
    "d_prefill_bad_r3": "LLMTokenBudgetTooSmall",
    "d_prefill_fixed_r2": None,
    "d_prefill_fixed_r3": None,
    "e_decode_bad": "LLMDecodeBound",
    "e_decode_seqs8": "LLMBatchLimit",
    "f_prefix_off": "LLMPrefixCacheOff",
    "f_prefix_on": None,
    "g_idle": None,
    "sglang_kv_pressure_synthetic": "LLMKVCacheExhausted",
}
HELD_OUT: dict[str, str | None] = {
    "client_aborts": "LLMClientAborts",
    "dp2_busy": None,  # decoding is what there is, within the built-in objective
    "dp2_light": None,
    "healthy_busy": None,
    "kv_blocks24": "LLMKVCacheExhausted",
    "kv_full_no_preemption": None,
    "one_client": None,
    "prefill_budget64": "LLMTokenBudgetTooSmall",
    "prefill_budget64_open": None,  # mild: 0.6 s to the first token, less than one request waits
    "queue_seqs4": "LLMBatchLimit",
    "unshared_prompts": None,
}

# Scraped once a minute. Runs whose length divides a minute are left out: each scrape would read the same moment of them.
SPARSE: dict[str, str | None] = {
    name: (CAPTURES | HELD_OUT)[name]
    for name in ("a_healthy", "b_queue_bad_r2", "c_kv_bad_r2", "d_prefill_bad_r2", "f_prefix_off", "f_prefix_on", "client_aborts")
}

_U = Lengths.uniform
_STEPS = StepTimes(base=0.03, per_seq=0.001, per_prefill_token=0.0003)
_SHORT, _TALK = _U(50, 200), _U(40, 80)


def _flags(engine: Engine, **changes: object) -> EngineFlags:
    return EngineFlags(engine=engine.value).changed(changes)


def simulations(engine: Engine) -> dict[str, tuple[EngineFlags, Workload, str | None]]:
    """Simulated engines by what is wrong with them; TGI's and SGLang's only real pages are these."""
    light = Workload(prompt=_SHORT, output=_U(30, 60), rate=2.0)
    many = Workload(prompt=_SHORT, output=_TALK, concurrency=24)
    long = Workload(prompt=_U(200, 400), output=_U(200, 400), concurrency=24)
    found: dict[str, tuple[EngineFlags, Workload, str | None]] = {
        "sim_healthy": (_flags(engine), light, None),
        "sim_batch_limit": (_flags(engine, max_num_seqs=4), many, "LLMBatchLimit"),
    }
    if engine is Engine.VLLM:
        found["sim_kv"] = (_flags(engine, num_gpu_blocks_override=200, max_model_len=1024), long, "LLMKVCacheExhausted")
        prompts = Workload(prompt=_U(2000, 3000), output=_U(5, 10), concurrency=16)
        found["sim_prefill"] = (_flags(engine, max_num_batched_tokens=8192), prompts, "LLMPrefillComputeBound")
        found["sim_rejections"] = (
            _flags(engine, max_num_seqs=4, max_num_queued_reqs=4),
            Workload(prompt=_SHORT, output=_TALK, rate=6.0),
            "LLMRequestsRejected",
        )
    elif engine is Engine.SGLANG:
        small = _flags(engine, max_total_tokens=4000, max_model_len=1024, schedule_conservativeness=0.3)
        found["sim_kv"] = (small, long, "LLMKVCacheExhausted")
    else:
        reserved = _flags(engine, max_batch_total_tokens=4000, max_model_len=1024)
        found["sim_reservation"] = (reserved, Workload(prompt=_U(100, 200), output=_U(100, 200), concurrency=24), "LLMReservationLimit")
        found["sim_rejections"] = (
            _flags(engine, max_num_seqs=4, max_concurrent_requests=8),
            Workload(prompt=_SHORT, output=_TALK, rate=6.0),
            "LLMRequestsRejected",
        )
    return found


@cache
def simulated(engine: Engine, name: str) -> tuple[SavedPage, ...]:
    """Four minutes of a simulated engine, the first one left out."""
    flags, workload, _ = simulations(engine)[name]
    pages = simulate(flags, _STEPS, workload, 240.0, seed=1, scrape_every_s=15.0).pages
    return tuple(read_page(seconds - pages[0][0], text) for seconds, text in pages[4:])


@cache
def capture(name: str) -> tuple[SavedPage, ...]:
    """A saved run by its name."""
    folder = next(path for path in (FIXTURES / "captures" / name, FIXTURES / "held_out" / name) if path.is_dir())
    return tuple(read_capture(folder))


def labels(job: str, instance: str = "r0:8000") -> str:
    """The target's labels in every case."""
    return f'job="{job}",instance="{instance}"'


def looped(pages: Sequence[SavedPage], job: str, wanted: Collection[str], step: float, duration: float = DURATION) -> Values:
    """A run again and again."""
    return samples(Track(pages), duration, step, wanted, labels(job))


def hang(wanted: Collection[str], step: float) -> Values:
    """The saved hang: eight minutes of work, then frozen series while connections pile up as they did (2.3 a second)."""
    pages, job = capture("engine_hang"), "engine_hang"
    work = samples(Track(pages[:4]), 480.0, step, wanted, labels(job))
    frozen = Track(pages[4:], loop=False)
    still = samples(frozen, DURATION, step, wanted, labels(job), start=480.0)
    for series, values in still.items():
        if series.startswith("process_open_fds"):
            first = values[0] or 0.0
            still[series] = [first + 2.3 * step * index for index in range(len(values))]
    return joined(continued(work, still), still)


def hang_in_flight(wanted: Collection[str], step: float) -> Values:
    """The same between two tokens: eight healthy minutes with 16 running requests, then the page of their middle for ever."""
    pages, job = capture("c_kv_fixed_r2"), "hang_in_flight"
    work = samples(Track(pages), 480.0, step, wanted, labels(job))
    still = samples(Track((pages[3], pages[3]), loop=False), DURATION, step, wanted, labels(job), start=480.0)
    return joined(continued(work, still), still)


def restart(wanted: Collection[str], step: float) -> Values:
    """The saved restart in the middle of a healthy run: the target is gone for 85 s and comes back with counters at 0."""
    pages, job = capture("h_restart"), "h_restart"
    after = next(index for index, page in enumerate(pages) if index and page.seconds - pages[index - 1].seconds > 60.0)
    before = samples(Track(pages[:after]), 480.0, step, wanted, labels(job))
    gap: Values = {f"up{{{labels(job)}}}": [0.0] * round(90.0 / step)}
    return joined(before, gap, samples(Track(pages[after:]), DURATION, step, wanted, labels(job), start=570.0))


def continued(before: Values, after: Values) -> Values:
    """The first part with its growing series moved below the second's start, so that no counter seems to begin anew."""
    moved: Values = {}
    for series, values in before.items():
        begin, end = after.get(series, [None])[0], values[-1]
        grows = any(mark in series.partition("{")[0] for mark in ("_total", "_count", "_sum", "_bucket"))
        shift = begin - end if grows and begin is not None and end is not None else 0.0
        moved[series] = [None if value is None else value + shift for value in values]
    return moved
