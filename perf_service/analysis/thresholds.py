"""Every threshold of the analyzer in one place, each with its unit and where it comes from.

Causes are told apart by physics (occupancies, shares, exclusion of the other reasons); what is left to thresholds is what
counts as "much". None was fitted to a saved page.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from perf_service.models.metrics import Hist
from perf_service.models.slo import SLOTarget


class Threshold(NamedTuple):
    """A limit with its unit and source."""

    value: float
    unit: str
    source: str


BUILTIN_OBJECTIVES: Final[tuple[SLOTarget, ...]] = (
    # A reader perceives 100 ms as immediate (Nielsen, Usability Engineering, 1993).
    SLOTarget("ttft", 0.1, "less_than", builtin=True),
    # 20 tokens/s is about four times reading speed, and a common interactive objective (50 ms in Dynamo's SLA default).
    SLOTarget("itl", 0.05, "less_than", builtin=True),
)
"""What latency is held against where the operator has no policy. A finding made from these alone is at most MEDIUM."""

FINE_OBJECTIVE_RATIO: Final = Threshold(1.0, "ratio", "an objective is missed when value / target exceeds 1")
DEFERRED_MIN: Final = Threshold(0.3, "ratio", "share of the waiting requests that wait for something else than a place")
WAITING_MIN: Final = Threshold(0.5, "requests", "mean number waiting; less is one request now and then")
WAITING_GAUGE_MIN: Final = Threshold(1.0, "requests", "mean of the waiting gauge over a window without queue-time data")
WAITING_GAUGE_SINGLE_MIN: Final = Threshold(5.0, "requests", "one page only; llm-d's saturation rule (queue >= 5)")
QUEUE_SHARE_MIN: Final = Threshold(0.25, "ratio", "share of TTFT spent queued from which the queue is worth curing")
QUEUE_SUFFERING_SECONDS: Final = Threshold(1.0, "s", "a person notices the break in flow at 1 s (Nielsen 1993)")
QUEUE_SUFFERING_SHARE: Final = Threshold(0.5, "ratio", "more time waiting than being served before the first token")
SCRAPES_TELLING: Final = Threshold(5.0, "scrapes", "a queue that empties half the time is seen full at so many once in 32 times")

KV_FREE_MAX: Final = Threshold(0.8, "ratio", "below it KV cache is not why requests wait (llm-d saturation threshold 0.80)")
KV_FULL: Final = Threshold(0.95, "ratio", "within one request of a full pool on small pools; SGLang docs expect > 0.9 in use")
ROOM_FOR_TWO: Final = Threshold(2.0, "requests", "two more fit: a pool with room for less is full whenever one of them is longer")
KV_NEED_FULL: Final = Threshold(0.85, "ratio", "Little's law estimate of occupied blocks; the mean leaves room for the peaks")
PREEMPTIONS_PER_REQUEST: Final = Threshold(0.02, "ratio", "vLLM docs: frequent preemption; below 2 % the tail hides it")
PREEMPTIONS_PATHOLOGICAL: Final = Threshold(0.1, "ratio", "one request in ten is computed twice")
RETRACTIONS_PER_SECOND: Final = Threshold(1 / 60, "1/s", "SGLang hyperparameter guide: about one a minute is fine")
SGLANG_CLIP_NEW_TOKENS: Final = Threshold(
    4096.0, "tokens", "most that SGLang reserves for the answer of one request (schedule_policy.py, CLIP_MAX_NEW_TOKENS)"
)
SGLANG_BOLDEST: Final = Threshold(0.3, "ratio", "SGLang hyperparameter guide: schedule_conservativeness down to 0.3")
SGLANG_LEAST_RATIO: Final = Threshold(
    0.098, "ratio", "SGLang: reserved new-token ratio starts at 0.7 x schedule_conservativeness and decays to 0.14 of that"
)
SGLANG_USAGE_LOW: Final = Threshold(0.9, "ratio", "SGLang hyperparameter guide: token usage < 0.9 with a queue is timid admission")

PREFILL_SATURATED: Final = Threshold(
    0.95, "requests", "a step budget that binds always has a prompt in prefill: occupancy >= 1, less noise"
)
BUDGET_SMALL: Final = Threshold(128.0, "tokens", "below it the fixed cost of a step outweighs its tokens on any engine")
BUDGET_LEAST: Final = Threshold(32.0, "tokens", "nobody sets less, and vLLM refuses a budget below max_num_seqs")
BUDGET_LARGE_ENOUGH: Final = Threshold(2048.0, "tokens", "smallest default of any vLLM or SGLang version and GPU")
QUEUE_MATERIAL: Final = Threshold(0.1, "ratio", "queue time over prefill time from which new requests do find the engine busy")
FIXED_SHARE_MIN: Final = Threshold(0.25, "ratio", "share of prefill that is its steps' fixed cost: what a larger budget saves")
CUT_MIN: Final = Threshold(1.5, "steps", "steps per prompt at least: a prompt does not fit a step")
WHOLE_PROMPTS: Final = Threshold(1.3, "prompts", "prompts that end in one step; a budget that cuts each prompt ends one at a time")
CHUNKS_MANY: Final = Threshold(4.0, "steps", "steps for one prompt from which the fixed cost per step matters")
PREFILL_SHARE_MIN: Final = Threshold(0.4, "ratio", "share of TTFT that makes prefill the phase to look at")
OWN_SHARE_MIN: Final = Threshold(0.25, "ratio", "a prompt's share of its steps; with less the batch that decodes sets their length")
SECOND_SAVING_MIN: Final = Threshold(0.08, "ratio", "share of a request's service that a second cure saves, to be worth naming")
PREFILL_SERVICE_SHARE: Final = Threshold(
    0.2, "ratio", "share of the time in the engine that prefill takes, to name it beside another cause"
)
PREFIX_PREFILL_SHARE_MIN: Final = Threshold(0.1, "ratio", "prefill share of E2E from which saving it is felt")
PREFIX_HIT_HIGH: Final = Threshold(0.6, "ratio", "share of prompt tokens found in the cache: prefixes do survive")
CACHE_TURNOVERS: Final = Threshold(2.0, "times", "the whole cache was written anew this often inside the window")
PREFIX_MIN_BLOCKS: Final = Threshold(2.0, "blocks", "only whole blocks are shared; a prompt below two has nothing to share")
PROMPT_LONG: Final = Threshold(1000.0, "tokens", "prompts whose prefill others notice: several ordinary steps on any accelerator")
PROMPT_SHORT_RATIO: Final = Threshold(0.125, "ratio", "length over the mean length of a prompt token's own prompt: short beside it")
PROMPT_SHORT_SHARE: Final = Threshold(0.25, "ratio", "share of requests that are short beside the prompts they wait for")
INTERFERENCE_RATIO: Final = Threshold(4.0, "ratio", "ITL p99 / p50 of an undisturbed decode stays below (batch size drifts)")
INTERFERENCE_PROMPT_SHARE: Final = Threshold(0.5, "ratio", "share of prompt tokens in all processed tokens")
LARGE_RUNNING: Final = Threshold(128.0, "requests", "batch from which one more sequence costs about as much as it yields")
STEPS_TELLING: Final = Threshold(100.0, "steps", "a ratio of fewer counts has an error of a tenth and more")
STEPS_UNSEEN_MAX: Final = Threshold(
    0.1, "ratio", "share of steps without a token: vLLM does not count them, so with more the rest is no sample"
)

CPU_SATURATED: Final = Threshold(0.9, "cores", "one Python process cannot use more than about one core")
CPU_SPARE: Final = Threshold(0.5, "cores", "half of what one Python process can use: not what holds requests up")
BATCH_BUSY: Final = Threshold(4.0, "requests", "requests in the batch from which the engine hardly ever stands still")
FORWARD_OCCUPANCY_LOW: Final = Threshold(0.7, "ratio", "SGLang fwd_occupancy: share of time in forward passes, with work queued")
PRESCHEDULE_SHARE_MIN: Final = Threshold(0.5, "ratio", "share of TTFT before the scheduler saw the request")
SPEC_ACCEPTED_PER_DRAFT_MIN: Final = Threshold(0.3, "tokens", "accepted tokens per draft; less does not repay the draft")
SPEC_ACCEPTED_PER_DRAFT_NONE: Final = Threshold(0.05, "tokens", "accepted per draft; one in twenty pays for no draft")
SPEC_DRAFTS_TELLING: Final = Threshold(500.0, "drafts", "so many and the accepted tokens per draft are known to some hundredths")
SPEC_RATE_LOW: Final = Threshold(0.35, "ratio", "accepted over proposed draft tokens; most of the checking is thrown away")

ERROR_RATIO: Final = Threshold(0.01, "ratio", "99 % success, the usual floor of an availability objective")
ERROR_RATIO_HIGH: Final = Threshold(0.05, "ratio", "one request in twenty fails")
ERROR_RATIO_CRITICAL: Final = Threshold(0.25, "ratio", "one request in four fails")
ABORT_RATIO: Final = Threshold(0.1, "ratio", "one client in ten leaves before its answer")
EVENTS_MIN: Final = Threshold(3.0, "requests", "fewer are chance")

IDLE_SECONDS: Final = Threshold(30.0, "s", "idle before or after a load for so long is no part of it")
IDLE_PAUSES: Final = Threshold(3.0, "ratio", "and for so many times its longest pause: of 100 Poisson arrivals one in 10^6 is so late")
STALL_SECONDS: Final = Threshold(10.0, "s", "no token for longer than any step or prompt seen needs")
PILED_UP_CLIENTS: Final = Threshold(5.0, "connections", "more than a scrape, a health probe and an operator's shell open between them")
STALL_MATERIAL: Final = Threshold(0.1, "ratio", "share of a window stood still from which its means are of the standstill")
STALL_STEPS: Final = Threshold(5.0, "ratio", "times the longest usual pause between tokens")
TGI_STEPS_BEFORE_PREFILL: Final = Threshold(20.0, "steps", "TGI max_waiting_tokens, default: decode steps before those who wait are let in")
REQUESTS_MIN: Final = Threshold(5.0, "requests", "fewer finished requests say little about means")
REQUESTS_CERTAIN: Final = Threshold(20.0, "requests", "a mean of fewer has a standard error above a quarter of its spread")
LOAD_STEP_RATIO: Final = Threshold(2.0, "ratio", "arrivals or prompt length changed by this factor inside the window")
SLOWDOWN_RATIO: Final = Threshold(1.5, "ratio", "per-token time rose by this factor while the load did not change")
REGRESSION_RATIO: Final = Threshold(1.15, "ratio", "time per token, new version / old; one version repeats within some percent")
LOAD_SAME_RATIO: Final = Threshold(1.25, "ratio", "within this factor the load counts as unchanged")
LOAD_ALIKE_RATIO: Final = Threshold(1.5, "ratio", "before and after a restart: some minutes of open-loop traffic repeat no better")
IMBALANCE_RATIO: Final = Threshold(2.0, "ratio", "busiest replica's running + waiting over the mean of all")
IMBALANCE_EXCESS: Final = Threshold(2.0, "requests", "and at least this many requests above that mean")
UNDER_USE_RUNNING: Final = Threshold(1.0, "requests", "mean running below one while every objective is met")
CONSERVATION_TOLERANCE: Final = Threshold(0.25, "ratio", "phases may miss E2E by the frontend's share, not by more")
LITTLE_TOLERANCE: Final = Threshold(1.8, "ratio", "gauge over Little's law; one of two processes missing gives 2, sampling gives less")
LITTLE_SIGMA: Final = Threshold(4.0, "sigma", "and this many standard errors of so many samples of a Poisson number")
REFUTED_RATIO: Final = Threshold(0.5, "ratio", "requests held constant at less than this share of a told limit refute it")

MISS_RATIO_CAP: Final = Threshold(30.0, "ratio", "an objective missed thirty times over is as lost as one missed a hundred times")
SLO_RATIO_CRITICAL: Final = Threshold(4.0, "ratio", "value / target")
SLO_RATIO_HIGH: Final = Threshold(1.5, "ratio", "value / target")
SLO_RATIO_MEDIUM: Final = Threshold(1.1, "ratio", "value / target")
BUILTIN_RATIO_MEDIUM: Final = Threshold(2.0, "ratio", "value / built-in target; below it the note is LOW")
BURN_CRITICAL: Final = Threshold(14.4, "ratio", "2 % of a 30-day error budget in one hour (Google SRE Workbook, ch. 5)")
BURN_HIGH: Final = Threshold(6.0, "ratio", "5 % of a 30-day error budget in six hours (Google SRE Workbook, ch. 5)")

CONFIDENCE_NAMED: Final = Threshold(0.4, "ratio", "below it the cause is told as unknown, with the candidates")
"""A cause must hold at least this share of the belief to be named."""

CONFIDENCE_FOR_A_NOTE: Final = Threshold(0.6, "ratio", "below it no restart is advised for a default that is missed by less than twice")

REQUEST_HISTOGRAMS: Final = (Hist.E2E_SECONDS, Hist.INFERENCE_SECONDS, Hist.TTFT_SECONDS, Hist.QUEUE_SECONDS)
"""Where finished requests are counted, best first."""


def table() -> dict[str, Threshold]:
    """All thresholds by name, for documentation and for people who ask."""
    return {name.lower(): value for name, value in globals().items() if isinstance(value, Threshold)}
