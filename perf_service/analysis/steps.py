"""What the page tells of single engine steps: how long they take, and into how many of them a prompt is cut.

No engine exports its step time while a prompt is computed. Three traces bound it:

* The pause between two tokens of a running request is one step. A whole prompt in one step makes every running decode pause for
  the prompt's prefill time; cut into small chunks it does not (vLLM V1: one budget for prompts and decodes of a step).
* vLLM's scheduler reads new requests between steps only (v1/engine/core.py: the input queue is drained before `schedule`), and
  queue time begins when it has read them. So what is left of TTFT before queueing is the rest of a step: with a busy engine half
  a step on average. Many short steps leave next to nothing there and much in the queue; few long ones the other way round.
* A step takes at least what a decode step takes, so a prompt takes at most prefill time / time between tokens steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from perf_service.analysis import thresholds as t
from perf_service.analysis.facts import Facts
from perf_service.models.metrics import Engine, Hist

DECODE_COST_TOKENS = 3.0
"""What a decoding sequence costs a step, in prompt tokens: about 1 on a CPU; quartiles 1, 2 and 8 on measured accelerators."""


FIXED_COST_TOKENS = 100.0
"""A step's fixed cost in prompt tokens of the same cost: 40 (small model, CPU) to some hundreds (8B model, H100)."""


@dataclass(frozen=True, slots=True)
class Chunks:
    """Bounds of the number of steps that the prefill of a mean prompt takes; `most` is infinite where nothing bounds it."""

    least: float = 1.0
    most: float = math.inf

    @property
    def known(self) -> bool:
        """Whether one of the bounds says something."""
        return self.least > 1.0 or self.most < math.inf

    @property
    def likely(self) -> float:
        """The number of steps in the middle of the bounds, by ratio; the least where nothing bounds it above."""
        return math.sqrt(self.least * self.most) if self.most < math.inf else self.least

    def budget(self, prompt: float) -> tuple[float, float]:
        """Bounds of the tokens per step for prompts of so many tokens; the upper one is infinite where a step takes whole prompts."""
        return prompt / self.most, (prompt / self.least if self.least > 1.0 else math.inf)


def chunks(facts: Facts) -> Chunks:
    """How finely prompts are cut, as far as the page tells; unknown where it contradicts itself."""
    prefill = facts.prefill
    if prefill is None or prefill <= 0 or facts.engine is not Engine.VLLM:
        return Chunks()
    longest = min((s for s in (_step_by_pauses(facts), _step_by_arrivals(facts)) if s is not None), default=math.inf)
    least = max(1.0, prefill / longest) if longest < math.inf else 1.0
    most = math.inf
    if facts.itl and facts.output_tokens is not None and facts.output_tokens >= 3:
        most = max(1.0, prefill / facts.itl)
    if _whole_prompt_pauses(facts) or (prompts_per_step(facts) or 0.0) >= t.WHOLE_PROMPTS.value:
        return Chunks(1.0 if least > 2.0 else least, min(most, 2.0)) if least <= 3.0 else Chunks()
    if facts.computed_tokens and facts.computed_tokens / least < max(t.BUDGET_LEAST.value, _running_in_one(facts)):
        least = 1.0  # no such budget: something else stretches the prefill (an adapter that is loaded, a slow first step)
    return Chunks(least if least <= most else max(1.0, 0.5 * most), most)  # beyond the other bound it is mostly noise


def _step_by_pauses(facts: Facts) -> float | None:
    """Longest step that decoding requests see, in seconds: ITL p99, where others decode while prompts are computed."""
    tail = facts.window.quantile(Hist.ITL_SECONDS, 0.99)
    running, occupancy = facts.running_mean, facts.prefill_occupancy
    if tail is None or running is None or occupancy is None:
        return None
    if running < 1.5 or occupancy < 0.3 or tail.samples < 100 or math.isinf(tail.high):
        return None
    return tail.high


def _step_by_arrivals(facts: Facts) -> float | None:
    """Longest mean step, in seconds: twice the time that a request passes before the scheduler reads it, over the chance to find one
    under way. Only where new requests find the engine busy, which their queue time tells."""
    before, queue, prefill = facts.preschedule, facts.queue, facts.prefill
    if before is None or queue is None or not prefill or queue < t.QUEUE_MATERIAL.value * prefill or _phases_lag(facts):
        return None
    if facts.finished < t.REQUESTS_MIN.value or (facts.hit_ratio or 0.0) > 0.5:
        return None  # where most is cached a few first prompts have the prefill time, and all others arrive in short steps
    busy = min(1.0, max(0.3, facts.running_mean or _found_busy(facts)))
    return 2.0 * max(before, 1e-4) / busy


def _found_busy(facts: Facts) -> float:
    """Share of the requests that certainly found the engine busy: those that waited longer than the lowest bucket bound."""
    queue = facts.window.histograms.get(Hist.QUEUE_SECONDS)
    return 1.0 - queue.cumulative[0] / queue.count if queue is not None and queue.bounds and queue.count > 0 else 0.0


def prompts_per_step(facts: Facts) -> float | None:
    """How many prompts end in a step in which any does, by vLLM's iteration histogram, which books a prompt where it ends (and its
    decodes beside it). A budget smaller than a prompt ends hardly more than one at a time. None where prompts and decodes of a step
    cannot be told apart by their number of tokens."""
    steps, prompt = facts.window.histograms.get(Hist.ITERATION_TOKENS), facts.prompt_tokens
    if steps is None or prompt is None or facts.engine is not Engine.VLLM or (facts.hit_ratio or 0.0) > 0.2:
        return None
    for bound, below in zip(steps.bounds, steps.cumulative, strict=True):
        if bound < (2.0 if facts.window.lifetime else 1.2) * _running_in_one(facts):  # the mean of a life, or the most seen
            continue
        shorter = facts.window.attainment(Hist.PROMPT_TOKENS, bound)
        with_prompts = steps.count - below
        if bound > 0.7 * prompt or shorter is None or with_prompts < t.REQUESTS_CERTAIN.value:
            return None
        found = facts.started * (1.0 - shorter.high) / with_prompts
        return found if found <= max(1.0, _running_in_one(facts)) else None
    return None


def _running_in_one(facts: Facts) -> float:
    """Most requests running in one engine: steps are not those of a fleet or of several ranks."""
    return facts.running_top / facts.limit_holders


def _phases_lag(facts: Facts) -> bool:
    """Whether TTFT speaks of other requests than the phases, which are booked at the end."""
    done = facts.window.count(Hist.QUEUE_SECONDS)
    return not 1 / 1.15 <= facts.started / done <= 1.15 if done else True


def _whole_prompt_pauses(facts: Facts) -> bool:
    """Whether decoding requests pause for half a prefill time as often as prompts arrive beside them."""
    running, occupancy, output = facts.running_mean, facts.prefill_occupancy, facts.output_tokens
    if facts.prefill is None or not facts.itl or running is None or occupancy is None or not output or output < 2:
        return False
    if facts.prefill < 4.0 * facts.itl:
        return False  # a few steps in any case
    within = facts.window.attainment(Hist.ITL_SECONDS, 0.5 * facts.prefill)
    decoding = running - occupancy
    if within is None or within.samples < 100 or decoding < 0.5:
        return False
    return 1.0 - within.high >= 0.3 * min(1.0, decoding / output)


def decode_step(facts: Facts) -> float | None:
    """Upper bound of a step without prompts, in seconds: the shortest tenth of the pauses between tokens."""
    low = facts.window.quantile(Hist.ITL_SECONDS, 0.1)
    if low is None or low.samples < 30:
        return None
    return low.value


def fixed_share(facts: Facts, budget: float) -> float | None:
    """Upper bound of the share of the prefill time that is the fixed cost of its steps: what a larger budget can save.

    A prompt of P tokens takes P / budget steps, each at least a decode step long.
    """
    base, prompt, prefill = decode_step(facts), facts.computed_tokens, facts.prefill
    if base is None or not prompt or not prefill or facts.engine is not Engine.VLLM:
        return None
    return min(1.0, base * max(1.0, prompt / budget) / prefill)


def prompt_part(facts: Facts) -> float:
    """Share of a step's time that prompts take, beside the sequences that decode in it, while prompts are in it."""
    prompt, occupancy, running = facts.computed_tokens, facts.prefill_occupancy, facts.running_mean
    if prompt is None or occupancy is None or running is None:
        return 1.0
    cut = chunks(facts)
    tokens = max(1.0, occupancy) * prompt / (1.0 if math.isinf(cut.most) else cut.likely)
    whole = tokens + max(0.0, running - occupancy) * DECODE_COST_TOKENS
    return tokens / whole if whole > 0 else 0.0


def interference_share(facts: Facts) -> float:
    """Share of the time per output token that goes to other requests' prefill in the same steps.

    In balance a step carries `running x prompt / output` prompt tokens beside its `running` decodes.
    """
    prompt, output, running = facts.computed_tokens, facts.output_tokens, facts.running_mean
    if prompt is None or not output or running is None or running <= 0:
        return 0.0
    carried = running * prompt / output
    return carried / (carried + running + FIXED_COST_TOKENS)
