"""What a window says in the quantities that the rules reason with: phase times, occupancies by Little's law, loads.

Every field is None where the page does not tell it. Occupancy of a phase = its summed seconds / busy seconds: the mean number
of requests in it (Little's law), known even from two pages whose gauges were read while nothing ran.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from perf_service.analysis import thresholds as t
from perf_service.analysis.pinning import Pinning
from perf_service.models.config import EngineConfig
from perf_service.models.metrics import Counter, Engine, Gauge, Hist
from perf_service.models.window import GaugeStats, Window


@dataclass(frozen=True, slots=True)
class Facts:
    """The quantities of one window. Times in seconds, means per request unless said otherwise."""

    window: Window
    config: EngineConfig
    busy_seconds: float | None = None
    finished: float = 0.0
    started: float = 0.0  # requests with a first token
    ttft: float | None = None
    itl: float | None = None  # per token (ITL, else TPOT)
    e2e: float | None = None
    queue: float | None = None
    prefill: float | None = None
    decode: float | None = None
    inference: float | None = None
    prompt_tokens: float | None = None
    computed_tokens: float | None = None  # prompt tokens without cached ones
    output_tokens: float | None = None
    requests_per_second: float | None = None
    waiting_occupancy: float | None = None
    prefill_occupancy: float | None = None
    prefill_step_share: float | None = None  # TGI: share of the time in steps with prompts
    running_occupancy: float | None = None
    waiting: GaugeStats | None = None
    running: GaugeStats | None = None
    kv: GaugeStats | None = None
    kv_need_ratio: float | None = None
    pinning: Pinning | None = None
    preemptions: float | None = None
    preemptions_per_request: float | None = None
    sequence_limit: float | None = None  # of all replicas and ranks together
    limit_holders: float = 1.0  # replicas times ranks
    token_budget: float | None = None
    budget_estimate: float | None = None  # tokens per step that the prefill occupancy implies
    prefix_caching: bool | None = None
    hit_ratio: float | None = None
    deferred_share: float | None = None
    cpu_cores: float | None = None
    series: tuple[Window, ...] = field(default=())

    @property
    def engine(self) -> Engine:
        """The engine of the window."""
        return self.window.engine

    @property
    def waiting_mean(self) -> float:
        """Mean number of waiting requests: the larger of what the gauge and what the queue times say; 0 where neither is known."""
        return max(self.waiting.mean if self.waiting else 0.0, self.waiting_occupancy or 0.0)

    @property
    def running_mean(self) -> float | None:
        """Mean number of running requests, while there were any."""
        if self.running_occupancy is not None:
            return self.running_occupancy
        if self.running is None or self.running.nonzero_share <= 0:
            return None
        return self.running.mean / self.running.nonzero_share

    @property
    def running_top(self) -> float:
        """Most requests seen running, or their mean by Little's law where that is more: the gauge is written after a step, when
        those that finished in it have left."""
        seen = self.running.max if self.running is not None else 0.0
        return max(seen, self.running_mean or 0.0) if seen <= 0 or self.finished >= t.REQUESTS_CERTAIN.value else seen

    @property
    def queue_share(self) -> float | None:
        """Share of TTFT (else of E2E) that was waiting in the engine's queue."""
        whole = self.ttft if self.ttft else self.e2e
        if self.queue is None or not whole:
            return None
        return min(1.0, self.queue / whole)

    @property
    def preschedule(self) -> float | None:
        """Seconds of TTFT before the scheduler saw the request: HTTP, tokenizing, and the rest of a long running step."""
        if self.window.engine is Engine.TGI:
            return self.window.mean(Hist.VALIDATION_SECONDS)
        if self.ttft is None or self.queue is None or self.prefill is None or self.window.engine is not Engine.VLLM:
            return None
        return max(0.0, self.ttft - self.queue - self.prefill)

    @property
    def prompt_share(self) -> float | None:
        """Share of computed prompt tokens in all tokens the engine processed."""
        if self.computed_tokens is None or self.output_tokens is None or self.computed_tokens + self.output_tokens <= 0:
            return None
        return self.computed_tokens / (self.computed_tokens + self.output_tokens)

    @property
    def kv_peak(self) -> float | None:
        """Highest KV cache use at a scrape."""
        return self.kv.max if self.kv else None

    @property
    def adapters_short(self) -> tuple[int, int] | None:
        """(different LoRA adapters asked for, how many of them a step holds), where the first is more and nothing says that requests
        wait for something else."""
        seen, slots = self.window.gauge(Gauge.LORA_ADAPTERS_SEEN), self.config.number("max_loras")
        if seen is None or slots is None or seen.last <= slots:
            return None
        if self.deferred_share is not None and self.deferred_share < t.DEFERRED_MIN.value:
            return None
        return int(seen.last), int(slots)

    @property
    def idle(self) -> bool:
        """Nothing was asked of the engine: no request began, ran, waited, finished or failed, no token came."""
        moved = any(
            self.window.counters.get(counter, 0.0) > 0
            for counter in (
                Counter.GENERATION_TOKENS,
                Counter.PROMPT_TOKENS,
                Counter.REQUESTS_FAILED,
                Counter.REQUESTS_ABORTED,
                Counter.REQUESTS_REJECTED,
                Counter.REQUESTS_SUCCEEDED,
                Counter.HTTP_5XX_RESPONSES,
                Counter.HTTP_4XX_RESPONSES,
            )
        )
        present = (self.running is not None and self.running.max > 0) or (self.waiting is not None and self.waiting.max > 0)
        return not moved and not present and self.finished <= 0 and self.started <= 0
