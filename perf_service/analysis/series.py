"""What changed inside the window: a step of the load, or an engine that became slower under the same load."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from perf_service.analysis import thresholds as t
from perf_service.collectors.histograms import added
from perf_service.models.metrics import Counter, Gauge, Hist
from perf_service.models.window import Window, histogram_quantile

_MIN_PARTS = 2
_MIN_REQUESTS = 20.0
_MIN_LENGTHS = 30.0
_SCATTER_SIGMA = 4.0  # few parts: their own scatter is known roughly
_SIGMA = 5.0  # a Poisson rate differs by this many standard deviations once in millions of comparisons


@dataclass(frozen=True, slots=True)
class Change:
    """Something changed at the beginning of part `index`. `factor`: after / before."""

    index: int
    what: str  # "arrivals", "prompt length", "time per token"
    before: float
    after: float
    text: str

    @property
    def factor(self) -> float:
        """After divided by before."""
        return self.after / self.before if self.before > 0 else math.inf


@dataclass(frozen=True, slots=True)
class _Side:
    seconds: float
    arrivals: float
    prompt: float | None
    prompt_median: float | None
    itl: float | None
    itl_median: float | None
    itls: tuple[float, ...]
    tokens: float
    demand: float

    @property
    def rate(self) -> float:
        return self.arrivals / self.seconds if self.seconds > 0 else 0.0


def load_step(parts: Sequence[Window]) -> Change | None:
    """The largest sudden change of arrivals or prompt length, None where the load was steady enough."""
    best: Change | None = None
    for index, before, after in _splits(parts):
        found = _rate_change(index, before, after) or _length_change(index, before, after)
        if found is not None and (best is None or abs(math.log(found.factor)) > abs(math.log(best.factor))):
            best = found
    return best


def slowdown(parts: Sequence[Window]) -> Change | None:
    """The largest rise of the time per token while neither the load nor its shape changed (a neighbour, clocks, throttling)."""
    found = [change for index, before, after in _splits(parts) if (change := _speed_change(index, before, after)) and change.factor > 1]
    return max(found, key=lambda change: change.factor, default=None)


def speedup(parts: Sequence[Window]) -> Change | None:
    """The largest fall of the time per token under the same load (start-up is over, a neighbour left); one slow part is enough."""
    splits = _splits(parts, from_start=True)
    found = [change for index, before, after in splits if (change := _speed_change(index, before, after)) and change.factor < 1]
    return min(found, key=lambda change: change.factor, default=None)


def same_load_since(parts: Sequence[Window], index: int) -> bool:
    """Whether requests came as often before part `index` as from it on, and enough of them came since."""
    if not 0 < index < len(parts):
        return False
    before, after = _side(parts[:index]), _side(parts[index:])
    return after.arrivals >= t.REQUESTS_CERTAIN.value and _same_rate(before, after)


def _speed_change(index: int, before: _Side, after: _Side) -> Change | None:
    if before.itl is None or after.itl is None or min(before.itl, after.itl) <= 0 or min(before.tokens, after.tokens) < 100:
        return None
    slow, fast = (after, before) if after.itl > before.itl else (before, after)
    # A slower machine slows every step; requests that stall (preempted, behind a prompt) move the mean alone.
    if slow.itl_median and fast.itl_median and slow.itl_median < t.LOAD_SAME_RATIO.value * fast.itl_median:
        return None
    if (slow.itl or 0.0) < t.SLOWDOWN_RATIO.value * (fast.itl or 0.0) or not _beyond_scatter(before.itls, after.itls):
        return None
    same_demand = before.demand > 0 and _within(after.demand / before.demand, t.LOAD_SAME_RATIO.value)
    same_shape = not (before.prompt and after.prompt) or _within(after.prompt / before.prompt, t.LOAD_SAME_RATIO.value)
    if not same_shape or not (same_demand or _same_rate(before, after)):
        return None
    text = (
        f"A token took {before.itl * 1000:.0f} ms and then {after.itl * 1000:.0f} ms, "
        f"at {before.rate:.1f} and {after.rate:.1f} requests/s of the same length."
    )
    return Change(index, "time per token", before.itl, after.itl, text)


def _same_rate(before: _Side, after: _Side) -> bool:
    """Equal within a factor, or within what chance makes of so few arrivals (Poisson, two standard deviations)."""
    if before.rate <= 0 or after.rate <= 0:
        return False
    error = math.sqrt(1.0 / max(before.arrivals, 1.0) + 1.0 / max(after.arrivals, 1.0))
    return _within(after.rate / before.rate, max(t.LOAD_SAME_RATIO.value, 1.0 + 2.0 * min(error, 0.3)))


def _beyond_scatter(before: Sequence[float], after: Sequence[float]) -> bool:
    """Whether the means differ by more than the parts of either side do among themselves: the noise of the same load."""
    if not before or not after or len(before) + len(after) < 2 * _MIN_PARTS:
        return False
    low, high = sum(before) / len(before), sum(after) / len(after)
    squares = sum((x - low) ** 2 for x in before) + sum((x - high) ** 2 for x in after)
    error = math.sqrt(squares / max(1, len(before) + len(after) - 2) * (1 / len(before) + 1 / len(after)))
    return abs(high - low) >= _SCATTER_SIGMA * error


def _within(ratio: float, factor: float) -> bool:
    return 1.0 / factor <= ratio <= factor


def _splits(parts: Sequence[Window], *, from_start: bool = False) -> list[tuple[int, _Side, _Side]]:
    """Every split of the parts with load into two sides.

    The first and the last of them are only partly loaded and left out; with `from_start` the first counts, alone too.
    """
    loaded = [i for i, part in enumerate(parts) if _demand(part) > 0 or _started(part) > 0]
    if not loaded:
        return []
    first, last = loaded[0], loaded[-1]
    if _demand_at_start(parts[first]) > 0.5 * _demand_at_end(parts[first]):
        first -= 1  # loaded from its beginning on
    elif from_start:
        first -= 1
    inner = range(first + 1, last if _demand_at_end(parts[last]) <= 0 else last + 1)
    result = []
    for index in inner:
        before, after = [parts[i] for i in inner if i < index], [parts[i] for i in inner if i >= index]
        if len(before) >= (1 if from_start else _MIN_PARTS) and len(after) >= _MIN_PARTS:
            result.append((index, _side(before), _side(after)))
    return result


def _demand(part: Window) -> float:
    return sum(stats.mean for g in (Gauge.RUNNING_REQUESTS, Gauge.WAITING_REQUESTS) if (stats := part.gauge(g)) is not None)


def _demand_at_end(part: Window) -> float:
    return sum(stats.last for g in (Gauge.RUNNING_REQUESTS, Gauge.WAITING_REQUESTS) if (stats := part.gauge(g)) is not None)


def _demand_at_start(part: Window) -> float:
    """A part has two scrapes: the first is twice the mean less the last."""
    return sum(2 * s.mean - s.last for g in (Gauge.RUNNING_REQUESTS, Gauge.WAITING_REQUESTS) if (s := part.gauge(g)) is not None)


def _started(part: Window) -> float:
    return max(part.count(Hist.TTFT_SECONDS), part.count(Hist.E2E_SECONDS), part.counters.get(Counter.REQUESTS_SUCCEEDED, 0.0))


def _side(parts: Sequence[Window]) -> _Side:
    waiting = [s for part in parts if (s := part.gauge(Gauge.WAITING_REQUESTS)) is not None]
    grown = waiting[-1].last - (2 * waiting[0].mean - waiting[0].last) if waiting else 0.0
    prompts = [part.histograms[Hist.PROMPT_TOKENS] for part in parts if Hist.PROMPT_TOKENS in part.histograms]
    itls = [part.histograms[h] for part in parts for h in (Hist.ITL_SECONDS,) if h in part.histograms]
    merged = added(prompts) if prompts else None
    middle = histogram_quantile(merged, 0.5) if merged is not None else None
    pauses = histogram_quantile(added(itls), 0.5) if itls else None
    counted, gaps = sum(p.count for p in prompts), sum(i.count for i in itls)
    return _Side(
        seconds=sum(part.duration_seconds or 0.0 for part in parts),
        arrivals=max(0.0, sum(_started(part) for part in parts) + grown),
        prompt=sum(p.sum for p in prompts) / counted if counted >= _MIN_LENGTHS else None,
        prompt_median=middle.value if middle is not None else None,
        itl=sum(i.sum for i in itls) / gaps if gaps > 0 else None,
        itl_median=pauses.value if pauses is not None else None,
        itls=tuple(i.mean for i in itls if i.mean is not None),
        tokens=gaps,
        demand=sum(_demand(part) for part in parts) / len(parts),
    )


def _rate_change(index: int, before: _Side, after: _Side) -> Change | None:
    if before.seconds <= 0 or after.seconds <= 0 or max(before.arrivals, after.arrivals) < _MIN_REQUESTS:
        return None
    low, high = sorted((before.rate, after.rate))
    error = math.sqrt(max(before.arrivals, 1.0) / before.seconds**2 + max(after.arrivals, 1.0) / after.seconds**2)
    if high < t.LOAD_STEP_RATIO.value * low or high - low < _SIGMA * error or not _demand_moved(before, after):
        return None
    text = f"Arrivals changed from {before.rate:.1f} to {after.rate:.1f} requests/s inside the window."
    return Change(index, "arrivals", max(before.rate, 1e-9), max(after.rate, 1e-9), text)


def _demand_moved(before: _Side, after: _Side) -> bool:
    """A closed loop that becomes faster or slower has another rate with as many requests in the engine: no step of the load."""
    return not (before.demand > 0 and _within(after.demand / before.demand, t.LOAD_SAME_RATIO.value))


def _length_change(index: int, before: _Side, after: _Side) -> Change | None:
    if not before.prompt or not after.prompt or _within(after.prompt / before.prompt, t.LOAD_STEP_RATIO.value):
        return None
    if before.prompt_median and after.prompt_median and _within(after.prompt_median / before.prompt_median, t.LOAD_STEP_RATIO.value):
        return None  # a few very long ones move the mean, not the median
    text = f"Prompts changed from {before.prompt:.0f} to {after.prompt:.0f} tokens inside the window."
    return Change(index, "prompt length", before.prompt, after.prompt, text)
