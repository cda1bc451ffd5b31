"""Text Generation Inference's names, 2.x and 3.x (router/ and backends/ of v3.3.7). They are frozen: TGI is in maintenance mode.

TGI writes counters without `_total` and has no metric for TTFT, ITL, cache use, preemption or prefix hits. What is put in
their place is marked as derived.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from perf_service.collectors.dialects.base import Dialect, GaugeFact, Rule, having, lacking
from perf_service.models.metrics import Counter, Engine, Gauge, Hist, Histogram

_RULES: Final = (
    Rule(Gauge.RUNNING_REQUESTS, ("tgi_batch_current_size",)),
    Rule(Gauge.WAITING_REQUESTS, ("tgi_queue_size",)),
    Rule(Gauge.KV_CAPACITY_TOKENS, ("tgi_batch_max_total_tokens",)),
    # Worst-case reservation of the running batch, not tokens in the cache; the ratio to the capacity is taken afterwards.
    Rule(Gauge.KV_USED_TOKENS, ("tgi_batch_current_max_tokens",), derived=True),
    Rule(Counter.REQUESTS_RECEIVED, ("tgi_request_count",)),
    Rule(Counter.REQUESTS_SUCCEEDED, ("tgi_request_success",)),
    # "overloaded" is the refusal by --max-concurrent-requests (HTTP 429).
    Rule(Counter.REQUESTS_FAILED, ("tgi_request_failure",), where=(lacking("err", "overloaded"),)),
    Rule(Counter.REQUESTS_REJECTED, ("tgi_request_failure",), where=(having("err", "overloaded"),)),
    # There is no token counter; the histograms' sums grow when a request finishes.
    Rule(Counter.GENERATION_TOKENS, ("tgi_request_generated_tokens_sum",), derived=True),
    Rule(Counter.PROMPT_TOKENS, ("tgi_request_input_length_sum",), derived=True),
    Rule(Hist.E2E_SECONDS, ("tgi_request_duration",)),
    Rule(Hist.QUEUE_SECONDS, ("tgi_request_queue_duration",)),
    Rule(Hist.INFERENCE_SECONDS, ("tgi_request_inference_duration",)),
    Rule(Hist.VALIDATION_SECONDS, ("tgi_request_validation_duration",)),
    # Inference time over generated tokens: it includes the prefill.
    Rule(Hist.TPOT_SECONDS, ("tgi_request_mean_time_per_token_duration",), derived=True),
    # One decode step gives one token to each running request. With chunked prefill mixed steps count as prefill.
    Rule(Hist.ITL_SECONDS, ("tgi_batch_inference_duration",), where=(having("method", "decode"),), derived=True),
    Rule(Hist.PREFILL_SECONDS, ("tgi_batch_inference_duration",), where=(having("method", "prefill"),), derived=True),
    Rule(Hist.PROMPT_TOKENS, ("tgi_request_input_length",)),
    Rule(Hist.GENERATION_TOKENS, ("tgi_request_generated_tokens",)),
    Rule(Hist.MAX_TOKENS, ("tgi_request_max_new_tokens",)),
)


def derive_histograms(histograms: Mapping[Hist, Histogram]) -> dict[Hist, Histogram]:
    """TTFT ~ queue + validation + one prefill step, as mean and count without buckets.

    Every request waits in the queue once, so the queue's count is the number of requests.
    """
    queue, prefill = histograms.get(Hist.QUEUE_SECONDS), histograms.get(Hist.PREFILL_SECONDS)
    if queue is None or prefill is None:
        return {}
    validation = histograms.get(Hist.VALIDATION_SECONDS)
    parts = [part.mean for part in (queue, prefill, validation) if part is not None and part.mean is not None]
    return {Hist.TTFT_SECONDS: Histogram(queue.count, sum(parts) * queue.count)}


TGI: Final = Dialect(
    engine=Engine.TGI,
    prefix="tgi_",
    aliases=("tgi:",),
    rules=_RULES,
    facts=(GaugeFact("tgi_batch_max_total_tokens", "max_batch_total_tokens"),),
    known_elsewhere=(
        "tgi_request_",
        "tgi_batch_next_size",
        "tgi_batch_inference_",
        "tgi_batch_forward_duration",
        "tgi_batch_decode_duration",
        "tgi_batch_filter_duration",
        "tgi_batch_concat",
        "tgi_batch_total_tokens",
    ),
    derive_histograms=derive_histograms,
    core=(
        Gauge.RUNNING_REQUESTS,
        Gauge.WAITING_REQUESTS,
        Counter.REQUESTS_SUCCEEDED,
        Hist.E2E_SECONDS,
        Hist.QUEUE_SECONDS,
    ),
)
