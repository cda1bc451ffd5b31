"""Counters and histograms that a simulated engine keeps, with the real engines' bucket bounds."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field

from perf_service.simulator.flags import EngineFlags, EngineKind

INF = float("inf")

# vLLM 0.32 vllm/v1/metrics/buckets.py
_VLLM_TTFT: tuple[float, ...] = (.001, .005, .01, .02, .04, .06, .08, .1, .25, .5, .75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0)  # fmt: skip  # noqa: E501
_VLLM_ITL: tuple[float, ...] = (.01, .025, .05, .075, .1, .15, .2, .3, .4, .5, .75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0)  # fmt: skip
_VLLM_LATENCY: tuple[float, ...] = (.3, .5, .8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0)  # fmt: skip  # noqa: E501
_VLLM_ITERATION = (1.0, *(float(8 * 2**k) for k in range(12)))
_HTTP_HIGHR = (.01, .025, .05, .075, .1, .25, .5, .75, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 7.5, 10.0, 30.0, 60.0)  # fmt: skip
# SGLang 0.5.23 srt/observability/metrics_collector.py
_SGL_TTFT: tuple[float, ...] = (0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 2.0, 4.0, 6.0, 8.0, 10.0, 20.0, 40.0, 60.0, 80.0, 100.0, 200.0, 400.0)
_SGL_ITL: tuple[float, ...] = (.002, .004, .006, .008, .01, .015, .02, .025, .03, .035, .04, .06, .08, .1, .2, .4, .6, .8, 1.0, 2.0, 4.0, 6.0, 8.0)  # fmt: skip  # noqa: E501
_SGL_E2E: tuple[float, ...] = (.1, .2, .4, .6, .8, 1.0, 2.0, 4.0, 6.0, 8.0, 10.0, 20.0, 40.0, 60.0, 80.0, 100.0, 200.0, 400.0, 600.0, 1200.0, 1800.0, 2400.0)  # fmt: skip  # noqa: E501
_SGL_QUEUE: tuple[float, ...] = (0.0, .001, .005, .01, .05, .1, .2, .5, 1.0, 2.0, 3.0, 4.0, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0, 100.0, 200.0, 300.0, 400.0, 500.0, 600.0, 700.0, 800.0, 900.0, 1000.0, 1200.0, 1400.0, 1600.0, 1800.0, 2000.0, 2500.0, 3000.0)  # fmt: skip  # noqa: E501
_SGL_TOKENS: tuple[float, ...] = (100.0, 300.0, 500.0, 700.0, 1000.0, 1500.0, 2000.0, 3000.0, 4000.0, 5000.0, 6000.0, 7000.0, 8000.0, 9000.0, 10000.0, 12500.0, 15000.0, 17500.0, 20000.0, 22500.0, 25000.0, 27500.0, 30000.0, 35000.0, 40000.0, 60000.0, 80000.0, 100000.0, 200000.0, 300000.0, 400000.0, 600000.0, 800000.0, 1000000.0, 1100000.0)  # fmt: skip  # noqa: E501


def _one_two_five(limit: int) -> tuple[float, ...]:
    """1-2-5 series up to ``limit``, as vLLM builds token buckets from max_model_len."""
    out: list[float] = []
    exponent = 0
    while True:
        for mantissa in (1, 2, 5):
            value = mantissa * 10**exponent
            if value > limit:
                return tuple(out)
            out.append(float(value))
        exponent += 1


def _tgi_durations() -> tuple[float, ...]:
    """TGI router/src/server.rs: 35 bounds, each 1.5 times the one before, from 0.00015 s."""
    out, value = [], 0.0001
    for _ in range(35):
        value *= 1.5
        out.append(value)
    return tuple(out)


class Histogram:
    """A Prometheus histogram: per-bucket counts (not cumulative), sum and count."""

    __slots__ = ("bounds", "count", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0
        self.count = 0

    def observe(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times
        self.count += times

    def cumulative(self) -> list[tuple[float, int]]:
        out, total = [], 0
        for bound, n in zip((*self.bounds, INF), self.counts, strict=True):
            total += n
            out.append((bound, total))
        return out


def _bounds(flags: EngineFlags) -> dict[str, tuple[float, ...]]:
    tokens = _one_two_five(flags.max_model_len)
    seconds = ("e2e", "queue", "inference", "prefill", "decode")
    engine: EngineKind = flags.engine
    out: dict[str, tuple[float, ...]] = {}
    if engine == "vllm":
        out |= dict.fromkeys(seconds, _VLLM_LATENCY)
        out |= dict.fromkeys(("prompt_tokens", "generation_tokens", "max_tokens", "prefill_kv_computed"), tokens)
        out |= {"ttft": _VLLM_TTFT, "itl": _VLLM_ITL, "tpot": _VLLM_ITL, "iteration_tokens": _VLLM_ITERATION}
        out |= {"params_n": (1.0, 2.0, 5.0, 10.0, 20.0), "preemptions": (1.0, 2.0, 3.0, 4.0, 5.0, 10.0, 20.0)}
        return out | {"http_highr": _HTTP_HIGHR, "http": (0.1, 0.5, 1.0)}
    if engine == "sglang":
        out |= {"ttft": _SGL_TTFT, "itl": _SGL_ITL, "tpot": _SGL_ITL, "e2e": _SGL_E2E, "queue": _SGL_QUEUE}
        return out | dict.fromkeys(("prompt_tokens", "prefill_kv_computed", "generation_tokens"), _SGL_TOKENS)
    durations = _tgi_durations()
    names = ("e2e", "queue", "inference", "validation", "mean_time_per_token")
    out |= dict.fromkeys((*names, "step_prefill", "step_decode"), durations)
    max_in, max_all = flags.max_input_tokens or flags.max_model_len - 1, flags.max_model_len
    out["prompt_tokens"] = tuple(max_in / 100 * (k + 1) for k in range(100))
    out |= dict.fromkeys(("generation_tokens", "max_tokens"), tuple(max_all / 100 * (k + 1) for k in range(100)))
    out["batch_next_size"] = tuple(float(k + 1) for k in range(1024))
    return out


class _Discard(Histogram):
    """Stands for a histogram that this engine does not have."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(())

    def observe(self, value: float, times: int = 1) -> None:
        return None


_DISCARD = _Discard()


class EngineStats:
    """Cumulative counters (by name) and histograms of one engine process."""

    __slots__ = ("counters", "histograms")

    def __init__(self, flags: EngineFlags) -> None:
        self.histograms = {name: Histogram(bounds) for name, bounds in _bounds(flags).items()}
        self.counters: dict[str, float] = {}

    def hist(self, name: str) -> Histogram:
        return self.histograms.get(name, _DISCARD)

    def add(self, name: str, amount: float = 1.0) -> None:
        self.counters[name] = self.counters.get(name, 0.0) + amount

    def get(self, name: str) -> float:
        return self.counters.get(name, 0.0)


@dataclass(frozen=True, slots=True)
class Gauges:
    """Gauge values as the engine last published them; engines publish at the end of a step."""

    running: int = 0
    waiting: int = 0
    kv_used_blocks: int = 0
    kv_total_blocks: int = 0
    reserved_tokens: int = 0
    extra: dict[str, float] = field(default_factory=dict)

    @property
    def kv_usage(self) -> float:
        return self.kv_used_blocks / self.kv_total_blocks if self.kv_total_blocks else 0.0
