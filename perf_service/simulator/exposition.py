"""Renders the ``/metrics`` page of a simulated engine exactly as the real engine spells it.

The vLLM (0.32) and SGLang (0.5.23) pages are templates taken from the real engines' own collectors:
``$name`` is a value, ``@histogram family name labels`` a histogram, ``?name`` in front of a line keeps
the line away while that value is zero (the real series appears with its first event). Series of parts
that the simulator does not have (LoRA, disaggregation ...) keep the zero that an engine without them shows.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files

from prometheus_client.utils import floatToGoString

from perf_service.simulator.core import EngineCore

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
DEFAULT_VERSIONS = {"vllm": "0.32.0", "sglang": "0.5.23", "tgi": "3.3.7"}


@dataclass(frozen=True, slots=True)
class PageContext:
    """What a page tells beside the engine's own counters. Times are Unix seconds."""

    model_name: str = "sim"
    process_start: float = 0.0
    ready_at: float = 0.0
    process: Mapping[str, float] = field(default_factory=dict)
    http: Mapping[str, int] = field(default_factory=dict)
    pid: int = 1


def render(core: EngineCore, context: PageContext, now: float) -> str:
    """The page of ``core`` at ``now`` (Unix seconds)."""
    if core.flags.engine == "tgi":
        return _render_tgi(core)
    values = _values(core, context, now)
    lines: list[str] = []
    for condition, renderer in _template(core.flags.engine):
        if condition is None or values[condition]:
            renderer(lines, values, core, context)
    return "\n".join(lines) + "\n"


_go_float: Callable[[float], str] = floatToGoString


class _Values(dict[str, float]):
    """Template values; a counter that was never touched is zero."""

    def __missing__(self, key: str) -> float:
        return 0.0


def _values(core: EngineCore, context: PageContext, now: float) -> _Values:
    g, stats, engine = core.gauges, core.stats, core.engine
    out = _Values(stats.counters)
    out.update(g.extra)
    size = core.flags.kv_block_tokens
    used = g.kv_used_blocks * size
    capacity = g.kv_total_blocks * size
    cached = core.pool.cached_free * size if core.flags.engine == "sglang" else 0
    page = core.flags.block_size
    weights = engine.hardware.weights_gib
    kv_gib = capacity * engine.hardware.kv_bytes_per_token / 2**30
    http = context.http
    out.update(
        running=g.running, waiting=g.waiting, kv_usage=g.kv_usage, one=1.0, nan=math.nan,
        kv_used_tokens=used, kv_available_tokens=max(capacity - used - cached, 0), kv_evictable_tokens=cached,
        kv_capacity_tokens=capacity, page_size=page, num_pages=capacity // page,
        max_model_len=core.flags.max_model_len, weights_gib=weights, kv_gib=kv_gib,
        spare_gib=max(engine.hardware.memory_gib - weights - kv_gib, 0.0),
        prompt_tokens_computed=stats.get("prompt_tokens") - stats.get("prompt_tokens_cached"),
        prefix_misses=stats.get("prefix_queries") - stats.get("prefix_hits"),
        finished=stats.get("finished_length") + stats.get("finished_stop"),
        idle_seconds=max(now - context.ready_at - core.busy_seconds, 0.0),
        created=context.ready_at, process_start_time_seconds=context.process_start,
        http_any=sum(http.values()), http_2xx=http.get("2xx", 0), http_4xx=http.get("4xx", 0),
        http_5xx=http.get("5xx", 0),
    )  # fmt: skip
    out.update(context.process)
    return out


_Renderer = Callable[[list[str], _Values, EngineCore, PageContext], None]


@cache
def _template(engine: str) -> tuple[tuple[str | None, _Renderer], ...]:
    text = (files("perf_service.simulator") / "templates" / f"{engine}.prom").read_text(encoding="utf-8")
    return tuple(_compile(line) for line in text.splitlines())


def _compile(line: str) -> tuple[str | None, _Renderer]:
    condition = None
    if line.startswith("?"):
        condition, line = line[1:].split(" ", 1)
    if line.startswith("@histogram "):
        _, family, name, labels = line.split(" ", 3)
        return condition, _histogram(family, name, labels)
    match = re.search(r" \$(\w+)$", line)
    text, key = (line[: match.start()], match[1]) if match else (line, None)

    def renderer(lines: list[str], values: _Values, core: EngineCore, context: PageContext) -> None:
        shown = text
        if "$" in text:
            shown = _fill(text, context)
            if "$CACHE_CONFIG" in shown:
                shown = shown.replace("$CACHE_CONFIG", cache_config_labels(core))
        lines.append(shown if key is None else f"{shown} {_go_float(values[key])}")

    return condition, renderer


def _fill(text: str, context: PageContext) -> str:
    return text.replace("$MODEL", _escape(context.model_name)).replace("$PID", str(context.pid))


def _escape(label: str) -> str:
    return label.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _histogram(family: str, name: str, labels: str) -> _Renderer:
    others = labels.replace('le="$LE",', "").replace(',le="$LE"', "").replace('le="$LE"', "")
    plain = f"{{{others}}}" if others else ""

    def renderer(lines: list[str], values: _Values, core: EngineCore, context: PageContext) -> None:
        hist = core.stats.hist(name)
        filled, short = _fill(labels, context), _fill(plain, context)
        before, after = filled.split("$LE")
        prefix, suffix = f"{family}_bucket{{{before}", after + "}"
        for bound, count in hist.cumulative():
            lines.append(f"{prefix}{_go_float(bound)}{suffix} {_go_float(count)}")
        lines.append(f"{family}_count{short} {_go_float(hist.count)}")
        lines.append(f"{family}_sum{short} {_go_float(hist.sum)}")

    return renderer


def cache_config_labels(core: EngineCore) -> str:
    """Labels of ``vllm:cache_config_info``: every field of vLLM's CacheConfig as ``str()`` of its value."""
    flags, engine = core.flags, core.engine
    tokens = engine.kv_capacity_tokens
    labels: dict[str, object] = {
        "_block_size_resolved": True, "block_size": flags.block_size, "cache_dtype": flags.kv_cache_dtype,
        "cache_hit_alignment_tokens": None, "effective_attention_block_size": flags.block_size,
        "enable_mamba_shared_prefix_checkpoint": False, "enable_prefix_caching": flags.enable_prefix_caching,
        "engine": 0, "gpu_memory_utilization": flags.gpu_memory_utilization, "hash_block_size": None,
        "is_attention_free": False, "kv_cache_dtype_skip_layers": "[]", "kv_cache_layout": None,
        "kv_cache_max_concurrency": tokens / flags.max_model_len,
        "kv_cache_memory_bytes": None, "kv_cache_size_tokens": tokens, "kv_offloading_backend": "native",
        "kv_offloading_size": None, "kv_sharing_fast_prefill": False, "mamba_block_size": None,
        "mamba_cache_dtype": "auto", "mamba_cache_mode": "none", "mamba_page_size_padded": None,
        "mamba_ssm_cache_dtype": "auto", "num_cpu_blocks": None, "num_gpu_blocks": engine.num_blocks,
        "num_gpu_blocks_override": flags.num_gpu_blocks_override, "prefix_cache_retention_interval": 0,
        "prefix_caching_hash_algo": "sha256", "prefix_match_unit": None, "replayssm_buffer_len": 16,
        "skip_page_size_padded": None, "sliding_window": None, "swa_bounded_replay": True,
        "use_kda_recoverssm": False, "use_replayssm": False, "user_specified_block_size": False,
    }  # fmt: skip
    return ",".join(f'{k}="{v}"' for k, v in labels.items())


# -- TGI: metrics-exporter-prometheus (Rust): no _total suffix, integers bare, a series appears with its first event

_TGI_COUNTERS = (
    ("tgi_request_count", "", "requests"),
    ("tgi_request_success", "", "succeeded"),
    ("tgi_request_failure", 'err="overloaded"', "failed_overloaded"),
    ("tgi_request_failure", 'err="validation"', "failed_validation"),
    ("tgi_batch_inference_count", 'method="prefill"', "batch_prefill"),
    ("tgi_batch_inference_count", 'method="decode"', "batch_decode"),
    ("tgi_batch_inference_success", 'method="prefill"', "batch_prefill"),
    ("tgi_batch_inference_success", 'method="decode"', "batch_decode"),
    ("tgi_batch_concat", 'reason="chunking"', "concat_chunking"),
)
_TGI_HISTOGRAMS = (
    ("tgi_request_duration", "", "e2e"),
    ("tgi_request_validation_duration", "", "validation"),
    ("tgi_request_queue_duration", "", "queue"),
    ("tgi_request_inference_duration", "", "inference"),
    ("tgi_request_mean_time_per_token_duration", "", "mean_time_per_token"),
    ("tgi_request_input_length", "", "prompt_tokens"),
    ("tgi_request_max_new_tokens", "", "max_tokens"),
    ("tgi_request_generated_tokens", "", "generation_tokens"),
    ("tgi_batch_next_size", "", "batch_next_size"),
    ("tgi_batch_inference_duration", 'method="prefill"', "step_prefill"),
    ("tgi_batch_inference_duration", 'method="decode"', "step_decode"),
    ("tgi_batch_forward_duration", 'method="prefill"', "step_prefill"),
    ("tgi_batch_forward_duration", 'method="decode"', "step_decode"),
)


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)


def _render_tgi(core: EngineCore) -> str:
    g = core.gauges
    lines: list[str] = []
    seen: set[str] = set()
    counters = dict(core.stats.counters)
    counters["succeeded"] = core.stats.get("finished_length") + core.stats.get("finished_stop")

    def announce(name: str, kind: str) -> None:
        if name not in seen:
            seen.add(name)
            if lines:
                lines.append("")
            lines.append(f"# TYPE {name} {kind}")

    for name, label, key in _TGI_COUNTERS:
        if counters.get(key):
            announce(name, "counter")
            lines.append(f"{name}{{{label}}} {_number(counters[key])}" if label else f"{name} {_number(counters[key])}")
    for name, value in (
        ("tgi_queue_size", g.waiting),
        ("tgi_batch_current_size", g.running),
        ("tgi_batch_current_max_tokens", g.reserved_tokens),
        ("tgi_batch_max_total_tokens", core.engine.kv_capacity_tokens),
    ):
        announce(name, "gauge")
        lines.append(f"{name} {value}")
    for name, label, key in _TGI_HISTOGRAMS:
        hist = core.stats.hist(key)
        if not hist.count:
            continue
        announce(name, "histogram")
        extra, braces = (label + ",", f"{{{label}}}") if label else ("", "")
        for bound, count in hist.cumulative():
            le = "+Inf" if math.isinf(bound) else _number(bound)
            lines.append(f'{name}_bucket{{{extra}le="{le}"}} {count}')
        lines.append(f"{name}_sum{braces} {_number(hist.sum)}")
        lines.append(f"{name}_count{braces} {hist.count}")
    if core.stats.hist("e2e").count:
        announce("tgi_request_skipped_tokens", "summary")
        lines += [f'tgi_request_skipped_tokens{{quantile="{q}"}} 0' for q in ("0", "0.5", "0.9", "0.95", "0.99", "1")]
        lines += ["tgi_request_skipped_tokens_sum 0", f"tgi_request_skipped_tokens_count {core.stats.hist('e2e').count}"]
    return "\n".join(lines) + "\n"
