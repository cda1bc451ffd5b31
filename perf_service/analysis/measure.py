"""From a window to `Facts`: busy time, phase times, occupancies by Little's law, limits."""

from __future__ import annotations

from collections.abc import Sequence

from perf_service.analysis import thresholds as t
from perf_service.analysis.facts import Facts
from perf_service.analysis.knob_names import SEQUENCE_LIMIT, TOKEN_BUDGET
from perf_service.analysis.pinning import pinning_of_pages, pinning_of_stats, queued_share
from perf_service.models.config import EngineConfig
from perf_service.models.metrics import Counter, Engine, Gauge, Hist, Snapshot
from perf_service.models.window import GaugeStats, Window


def facts_of(window: Window, config: EngineConfig, series: Sequence[Window] = (), pages: Sequence[Snapshot] = ()) -> Facts:
    """Read the facts off a window; `series` (consecutive windows inside it) and `pages` sharpen busy time and pinning."""
    busy = _busy_seconds(window, series)
    finished = next((n for hist in t.REQUEST_HISTOGRAMS if (n := window.count(hist)) > 0), 0.0)
    finished = max(finished, window.counters.get(Counter.REQUESTS_SUCCEEDED, 0.0))
    queue, prefill, decode, inference = _phases(window)
    prompt, computed, output, hit_ratio = _tokens(window, finished)
    running, waiting = window.gauge(Gauge.RUNNING_REQUESTS), window.gauge(Gauge.WAITING_REQUESTS)
    if window.engine is Engine.SGLANG and running and running.max > 0 and busy and finished and inference and prefill and queue is not None:
        # What TTFT leaves beside the queue is only prefill as far as so many were seen running; a retracted request waits again.
        surplus = min(prefill, max(0.0, inference - running.max * busy / finished))
        queue, prefill, inference = queue + surplus, prefill - surplus, inference - surplus
    ttft_count = window.count(Hist.TTFT_SECONDS)
    # Only vLLM times the prefill of a request; the others' is what TTFT leaves, or the time of a batch.
    times_prefill = window.engine is Engine.VLLM
    prefill_occupancy = _occupancy(window, Hist.PREFILL_SECONDS, busy, ttft_count) if times_prefill else None
    running_occupancy = _occupancy(window, Hist.INFERENCE_SECONDS, busy)
    if running_occupancy is None and inference is not None and busy and finished:
        running_occupancy = inference * finished / busy
    if window.lifetime and running_occupancy is None and (by_steps := _running_by_steps(window, prefill, inference)) is not None:
        running_occupancy = by_steps
        prefill_occupancy = by_steps * min(1.0, (prefill or 0.0) / (inference or 1.0))
    if times_prefill and prefill_occupancy is None and prefill and inference and running and running.nonzero_share > 0:
        # Without times: the running gauge split by the phases' shares.
        prefill_occupancy = running.mean / running.nonzero_share * min(1.0, prefill / inference)
    pinning = pinning_of_pages(pages, output) if len(pages) > 2 else pinning_of_stats(running, waiting)
    ttft = window.mean(Hist.TTFT_SECONDS)
    in_prefill = min(1.0, prefill / inference) if times_prefill and prefill and inference else None
    budget_estimate = None
    if in_prefill is not None and prefill_occupancy is not None:
        # The gauges at scrapes with a queue know nothing of idle edges; their split by phase is the histograms'.
        queued_running = None
        if pinning is not None:
            prefill_occupancy = max(prefill_occupancy, pinning.mean * in_prefill)
        else:
            queued_running = _running_while_queued(running, waiting)
        full_share = queued_share(running, waiting, _occupancy(window, Hist.QUEUE_SECONDS, busy, ttft_count))
        if queued_running is not None and queued_running * in_prefill > prefill_occupancy:
            prefill_occupancy, full_share = queued_running * in_prefill, 1.0
        # Without times the few gauges must do, and they tell the number in prefill only where all that run are in it.
        if computed and window.replicas == 1 and (busy is not None or in_prefill > 0.9):
            budget_estimate = max(1.0, (prefill_occupancy / full_share - 1.0) * computed)
    if in_prefill is not None and queue is not None and ttft and queue >= t.QUEUE_SHARE_MIN.value * ttft:
        prefill_occupancy = max(prefill_occupancy or 0.0, in_prefill)  # whoever waits, waits for one that runs at least
    preemptions = window.delta(Counter.PREEMPTIONS)
    gauge = window.gauge(Gauge.RETRACTED_REQUESTS)
    if preemptions is None and gauge is not None:
        preemptions = gauge.mean * gauge.samples
    limit = _limit(config, "max_num_active_seqs", SEQUENCE_LIMIT[window.engine])
    holders = max(1, window.replicas) * (config.number("data_parallel_size") or 1.0)
    return Facts(
        window=window,
        config=config,
        busy_seconds=busy,
        finished=finished,
        started=ttft_count,
        ttft=ttft,
        itl=_first(window.mean(Hist.ITL_SECONDS), window.mean(Hist.TPOT_SECONDS)),
        e2e=window.mean(Hist.E2E_SECONDS),
        queue=queue,
        prefill=prefill,
        decode=decode,
        inference=inference,
        prompt_tokens=prompt,
        computed_tokens=computed,
        output_tokens=output,
        requests_per_second=finished / busy if busy and finished else None,
        waiting_occupancy=_occupancy(window, Hist.QUEUE_SECONDS, busy, ttft_count),
        prefill_occupancy=prefill_occupancy,
        prefill_step_share=_occupancy(window, Hist.PREFILL_SECONDS, busy) if window.engine is Engine.TGI else None,
        running_occupancy=running_occupancy,
        waiting=waiting,
        running=running,
        kv=window.gauge(Gauge.KV_CACHE_USAGE_RATIO),
        kv_need_ratio=_kv_need(window, config, running_occupancy, prompt, output),
        pinning=pinning,
        preemptions=preemptions,
        preemptions_per_request=preemptions / finished if preemptions is not None and finished > 0 else None,
        sequence_limit=limit * holders if limit is not None else None,
        limit_holders=holders,
        token_budget=_limit(config, TOKEN_BUDGET[window.engine]),
        budget_estimate=budget_estimate,
        prefix_caching=_prefix_caching(window, config, finished, hit_ratio),
        hit_ratio=hit_ratio,
        deferred_share=_deferred_share(window, waiting),
        cpu_cores=window.rate(Counter.PROCESS_CPU_SECONDS),
        series=tuple(series),
    )


_RUNNING_MOST = 4096.0


def _running_by_steps(window: Window, prefill: float | None, inference: float | None) -> float | None:
    """Mean running while there was work, where no time is known: vLLM's iteration histogram counts the steps that gave tokens, and
    the pauses between tokens those tokens.

    With n running, each of them a share f of its time in prefill, a step gives n(1 - f) tokens on average, and none with
    probability f^n; so the tokens of a step that gives any are n(1 - f) / (1 - f^n). Solved for n. Nothing is told where many steps
    give none: they are not counted, and how long they took nobody knows.
    """
    steps, pauses = window.count(Hist.ITERATION_TOKENS), window.count(Hist.ITL_SECONDS)
    if window.replicas > 1 or len(window.ranks) > 1 or min(steps, pauses) < t.STEPS_TELLING.value or prefill is None or not inference:
        return None
    share, seen = min(1.0, prefill / inference), pauses / steps
    if seen <= 1.0 or share >= 1.0:
        return None
    low, high = 1.0, _RUNNING_MOST
    for _ in range(40):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if middle * (1.0 - share) / (1.0 - share**middle) < seen else (low, middle)
    return low if share**low <= t.STEPS_UNSEEN_MAX.value else None


def _running_while_queued(running: GaugeStats | None, waiting: GaugeStats | None) -> float | None:
    """Mean running over the scrapes with any, where just as many of them saw a queue."""
    if running is None or waiting is None or not running.nonzero_share == waiting.nonzero_share > 0:
        return None
    return running.mean / running.nonzero_share


def _first(*values: float | None) -> float | None:
    return next((value for value in values if value is not None), None)


def _busy_seconds(window: Window, series: Sequence[Window]) -> float | None:
    """Seconds in which the engine had work, as far as the scrapes tell them from the idle ones."""
    if not window.duration_seconds or window.lifetime:
        return None
    busy = 0.0
    for part in series:
        running, waiting = part.gauge(Gauge.RUNNING_REQUESTS), part.gauge(Gauge.WAITING_REQUESTS)
        moved = any(part.counters.get(c, 0.0) > 0 for c in (Counter.GENERATION_TOKENS, Counter.PROMPT_TOKENS, Counter.REQUESTS_SUCCEEDED))
        if moved or (running and running.max > 0) or (waiting and waiting.max > 0):
            busy += part.duration_seconds or 0.0
    return busy or window.duration_seconds


def _occupancy(window: Window, hist: Hist, busy: float | None, begun: float = 0.0) -> float | None:
    """Mean number of requests in a phase. vLLM books phases when a request ends: with `begun` those still decoding count too."""
    histogram = window.histograms.get(hist)
    if histogram is None or not busy or histogram.count <= 0:
        return None
    return histogram.sum / histogram.count * max(histogram.count, begun) / busy


def _phases(window: Window) -> tuple[float | None, float | None, float | None, float | None]:
    queue, prefill = window.mean(Hist.QUEUE_SECONDS), window.mean(Hist.PREFILL_SECONDS)
    decode, inference = window.mean(Hist.DECODE_SECONDS), window.mean(Hist.INFERENCE_SECONDS)
    ttft, e2e = window.mean(Hist.TTFT_SECONDS), window.mean(Hist.E2E_SECONDS)
    if decode is None and ttft is not None and e2e is not None:
        decode = max(0.0, e2e - ttft)
    if prefill is None and ttft is not None and queue is not None:
        # SGLang has no per-request prefill time: what of TTFT was not queueing.
        prefill = max(0.0, ttft - queue)
    if ttft is not None and queue is not None and window.count(Hist.TTFT_SECONDS) > 1.15 * window.count(Hist.QUEUE_SECONDS) > 0:
        # Phases are booked at the end, TTFT at the first token: in a growing queue those who waited longest are not booked yet.
        queue = max(queue, ttft - (prefill or 0.0))
    if inference is None and prefill is not None and decode is not None:
        inference = prefill + decode
    return queue, prefill, decode, inference


def _tokens(window: Window, finished: float) -> tuple[float | None, float | None, float | None, float | None]:
    prompt_sum, output_sum = window.delta(Counter.PROMPT_TOKENS), window.delta(Counter.GENERATION_TOKENS)
    prompt = _first(window.mean(Hist.PROMPT_TOKENS), prompt_sum / finished if prompt_sum is not None and finished else None)
    output = _first(window.mean(Hist.GENERATION_TOKENS), output_sum / finished if output_sum is not None and finished else None)
    hits, queries = window.delta(Counter.PREFIX_CACHE_HITS_TOKENS), window.delta(Counter.PREFIX_CACHE_QUERIES_TOKENS)
    cached = window.delta(Counter.PROMPT_CACHED_TOKENS)
    hit_ratio: float | None = None
    if hits is not None and queries:
        hit_ratio = min(1.0, hits / queries)
    elif cached is not None and prompt_sum:
        hit_ratio = min(1.0, cached / prompt_sum)
    elif (gauge := window.gauge(Gauge.PREFIX_CACHE_HIT_RATIO)) is not None:
        hit_ratio = gauge.mean
    computed = window.mean(Hist.PREFILL_COMPUTED_TOKENS)
    if computed is None and prompt is not None:
        computed = prompt * (1.0 - (hit_ratio or 0.0))
    return prompt, computed, output, hit_ratio


def _kv_need(window: Window, config: EngineConfig, running: float | None, prompt: float | None, output: float | None) -> float | None:
    """Occupied share of the KV cache by Little's law: running x (prompt + half the output, rounded up to blocks) / capacity."""
    capacity_gauge = window.gauge(Gauge.KV_CAPACITY_TOKENS)
    capacity = capacity_gauge.mean if capacity_gauge else _first(config.number("kv_cache_size_tokens"))
    if not capacity or running is None or prompt is None or output is None:
        return None
    block = _first(config.number("block_size"), config.number("page_size")) or 16.0
    return running * (prompt + output / 2.0 + block / 2.0) / capacity


def _limit(config: EngineConfig, *knobs: str) -> float | None:
    """The told limit of one replica and rank: the narrowest, where it has several."""
    values = [value for knob in knobs if (value := config.number(knob)) is not None and value > 0]
    return min(values, default=None)


def _prefix_caching(window: Window, config: EngineConfig, finished: float, hit_ratio: float | None) -> bool | None:
    told = config.get("enable_prefix_caching")
    if isinstance(told, bool):
        return told
    disabled = config.get("disable_radix_cache") if window.engine is Engine.SGLANG else None
    if isinstance(disabled, bool):
        return not disabled
    kept = window.gauge(Gauge.KV_EVICTABLE_TOKENS)
    if kept is not None and finished >= t.REQUESTS_MIN.value:
        return kept.max > 0 or bool(hit_ratio)  # SGLang: a radix cache keeps what finished requests leave
    return None


def _deferred_share(window: Window, waiting: GaugeStats | None) -> float | None:
    if waiting is None or waiting.mean <= 0:
        return None
    deferred, grammar = window.gauge(Gauge.WAITING_DEFERRED_REQUESTS), window.gauge(Gauge.GRAMMAR_QUEUE_REQUESTS)
    if deferred is None and grammar is None:
        return None
    # SGLang counts its grammar queue apart from the waiting one.
    grammar_mean = grammar.mean if grammar else 0.0
    return min(1.0, ((deferred.mean if deferred else 0.0) + grammar_mean) / (waiting.mean + grammar_mean))
