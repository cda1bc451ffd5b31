"""Engine-neutral metrics: one scrape (`Snapshot`), typed, with absent never written as zero."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from perf_service.models.config import EngineConfig


class Engine(StrEnum):
    """A supported inference engine."""

    VLLM = "vllm"
    SGLANG = "sglang"
    TGI = "tgi"


class Gauge(StrEnum):
    """Engine-neutral gauges. The unit is in the name; counts have none."""

    RUNNING_REQUESTS = "running_requests"
    WAITING_REQUESTS = "waiting_requests"
    WAITING_CAPACITY_REQUESTS = "waiting_capacity_requests"
    WAITING_DEFERRED_REQUESTS = "waiting_deferred_requests"
    GRAMMAR_QUEUE_REQUESTS = "grammar_queue_requests"
    KV_CACHE_USAGE_RATIO = "kv_cache_usage_ratio"
    KV_CAPACITY_TOKENS = "kv_capacity_tokens"
    KV_USED_TOKENS = "kv_used_tokens"
    KV_EVICTABLE_TOKENS = "kv_evictable_tokens"  # kept for reuse by later prompts; free for others when needed
    PREFIX_CACHE_HIT_RATIO = "prefix_cache_hit_ratio"
    GENERATION_TOKENS_PER_SECOND = "generation_tokens_per_second"
    RETRACTED_REQUESTS = "retracted_requests"
    NEW_TOKEN_RATIO = "new_token_ratio"
    FORWARD_OCCUPANCY_RATIO = "forward_occupancy_ratio"
    CUDA_GRAPH_ENABLED = "cuda_graph_enabled"
    SPEC_ACCEPT_LENGTH_TOKENS = "spec_accept_length_tokens"
    LORA_SLOTS_USED = "lora_slots_used"
    LORA_SLOTS_TOTAL = "lora_slots_total"
    RANK_GENERATION_TOKENS = "rank_generation_tokens"  # total since the start, by data-parallel rank only
    LORA_ADAPTERS_SEEN = "lora_adapters_seen"  # different adapters that requests named since the start
    ENGINE_AWAKE = "engine_awake"
    STARTUP_AVAILABLE_GPU_MEMORY_BYTES = "startup_available_gpu_memory_bytes"
    RESIDENT_MEMORY_BYTES = "resident_memory_bytes"
    OPEN_FILE_DESCRIPTORS = "open_file_descriptors"  # of the API process: grows while clients wait on a hung engine


class Counter(StrEnum):
    """Engine-neutral counters (monotone until a restart)."""

    PROMPT_TOKENS = "prompt_tokens"
    PROMPT_CACHED_TOKENS = "prompt_cached_tokens"
    GENERATION_TOKENS = "generation_tokens"
    REQUESTS_SUCCEEDED = "requests_succeeded"
    REQUESTS_ABORTED = "requests_aborted"
    REQUESTS_FAILED = "requests_failed"
    REQUESTS_RECEIVED = "requests_received"
    REQUESTS_REJECTED = "requests_rejected"
    PREEMPTIONS = "preemptions"
    PREFIX_CACHE_QUERIES_TOKENS = "prefix_cache_queries_tokens"
    PREFIX_CACHE_HITS_TOKENS = "prefix_cache_hits_tokens"
    EVICTED_TOKENS = "evicted_tokens"
    SPEC_DRAFTS = "spec_drafts"
    SPEC_DRAFT_TOKENS = "spec_draft_tokens"
    SPEC_ACCEPTED_TOKENS = "spec_accepted_tokens"
    PROCESS_CPU_SECONDS = "process_cpu_seconds"
    HTTP_2XX_RESPONSES = "http_2xx_responses"
    HTTP_4XX_RESPONSES = "http_4xx_responses"
    HTTP_5XX_RESPONSES = "http_5xx_responses"


class Hist(StrEnum):
    """Engine-neutral histograms."""

    TTFT_SECONDS = "ttft_seconds"
    ITL_SECONDS = "itl_seconds"
    TPOT_SECONDS = "tpot_seconds"
    E2E_SECONDS = "e2e_seconds"
    QUEUE_SECONDS = "queue_seconds"
    PREFILL_SECONDS = "prefill_seconds"
    DECODE_SECONDS = "decode_seconds"
    INFERENCE_SECONDS = "inference_seconds"
    VALIDATION_SECONDS = "validation_seconds"
    PROMPT_TOKENS = "prompt_tokens_per_request"
    GENERATION_TOKENS = "generation_tokens_per_request"
    MAX_TOKENS = "max_tokens_per_request"
    PREFILL_COMPUTED_TOKENS = "prefill_computed_tokens_per_request"
    ITERATION_TOKENS = "iteration_tokens"
    PREEMPTIONS = "preemptions_per_request"
    HTTP_SECONDS = "http_seconds"


class IssueCode(StrEnum):
    """What can be wrong with a scrape or a window, as data (see `DataIssue`)."""

    NO_KNOWN_METRICS = "no_known_metrics"
    MALFORMED_LINES = "malformed_lines"
    TRUNCATED = "truncated"
    DUPLICATE_SERIES = "duplicate_series"
    NOT_FINITE = "not_finite"
    NEGATIVE_COUNTER = "negative_counter"
    WRONG_TYPE = "wrong_type"
    UNKNOWN_METRICS = "unknown_metrics"
    MISSING_METRIC = "missing_metric"
    ENGINE_MISMATCH = "engine_mismatch"
    RESET = "reset"
    OUT_OF_ORDER = "out_of_order"
    GAP = "gap"
    STALE = "stale"
    TIME_UNKNOWN = "time_unknown"
    BUCKETS_CHANGED = "buckets_changed"
    UNDERCOUNT = "undercount"
    CONSERVATION = "conservation"
    LIFETIME_ONLY = "lifetime_only"
    FEW_REQUESTS = "few_requests"
    IDLE = "idle"
    DERIVED = "derived"


class IssueLevel(StrEnum):
    """How far a data issue reaches."""

    INFO = "info"
    WARNING = "warning"  # conclusions that need the named metric are weaker
    BLOCKING = "blocking"  # what depends on the named metric (or everything) is not concluded


@dataclass(frozen=True, slots=True)
class DataIssue:
    """One fact about the trustworthiness of data; `metric` is empty where it concerns the whole page."""

    code: IssueCode
    level: IssueLevel
    message: str
    metric: str = ""


@dataclass(frozen=True, slots=True)
class DataQuality:
    """What is known to be wrong with a scrape, a window or the base of an analysis."""

    issues: tuple[DataIssue, ...] = ()
    known_metrics: int = 0  # engine-neutral metrics that were found

    def has(self, code: IssueCode) -> bool:
        """Whether an issue of this code was noted."""
        return any(issue.code is code for issue in self.issues)

    @property
    def blocking(self) -> tuple[DataIssue, ...]:
        """Issues that forbid conclusions."""
        return tuple(i for i in self.issues if i.level is IssueLevel.BLOCKING)

    @property
    def usable(self) -> bool:
        """Whether anything at all may be concluded (no page-wide blocking issue)."""
        return not any(i.level is IssueLevel.BLOCKING and not i.metric for i in self.issues)

    def plus(self, *issues: DataIssue) -> DataQuality:
        """A copy with more issues (exact duplicates dropped)."""
        merged = dict.fromkeys((*self.issues, *issues))
        return DataQuality(tuple(merged), self.known_metrics)


@dataclass(frozen=True, slots=True)
class Histogram:
    """A cumulative Prometheus histogram, or the difference of two.

    `bounds` are the finite upper bounds in ascending order; `cumulative[i]` is the number of observations <= `bounds[i]`;
    `count` includes the +Inf bucket. A histogram known only by `_sum` and `_count` has no bounds.
    """

    count: float
    sum: float
    bounds: tuple[float, ...] = ()
    cumulative: tuple[float, ...] = ()

    @property
    def mean(self) -> float | None:
        """Arithmetic mean in the metric's unit, or None without observations."""
        return self.sum / self.count if self.count > 0 else None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One scrape of one engine server, in engine-neutral names.

    A name that the page did not carry is absent from its mapping: never 0. `collected_at` is unix seconds, None where a saved
    page's time is unknown. `ranks` keeps the values of each data-parallel rank (label value -> gauges) where a page has several.
    """

    instance_id: str
    engine: Engine
    collected_at: float | None
    gauges: Mapping[Gauge, float] = field(default_factory=dict)
    counters: Mapping[Counter, float] = field(default_factory=dict)
    histograms: Mapping[Hist, Histogram] = field(default_factory=dict)
    ranks: Mapping[str, Mapping[Gauge, float]] = field(default_factory=dict)
    config: EngineConfig = field(default_factory=EngineConfig)
    engine_version: str = ""
    model_name: str = ""
    process_start_time: float | None = None  # unix seconds
    endpoint: str = ""
    snapshot_id: str = ""
    derived: tuple[str, ...] = ()  # engine-neutral names computed from others (TGI has no TTFT of its own)
    quality: DataQuality = field(default_factory=DataQuality)
