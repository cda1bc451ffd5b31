"""Tokens a step: how much of a prompt is in one, against what those who decode beside it wait."""

from __future__ import annotations

from perf_service.models.analysis import Bottleneck
from perf_service.models.config import ConfigChange
from perf_service.models.metrics import Engine, Hist
from perf_service.models.plan import Optimization, OptimizerKind
from perf_service.optimization.capacity_advice import capacity_advice
from perf_service.optimization.situation import Situation, optimization, power_of_two_at_least, power_of_two_at_most

# The vLLM optimization guide names 2048 for better ITL and more than 8192 for throughput of small models on large accelerators.
TOKEN_BUDGET_LOW, TOKEN_BUDGET_HIGH, TOKEN_BUDGET_FLOOR = 2048, 8192, 512
CHUNK_FLOOR = 128  # tokens of a prompt; below it the steps' fixed cost outweighs what others gain


def budget_for(at: Situation, sequences: int) -> ConfigChange | None:
    """vLLM refuses a token budget below the batch limit: raise both together."""
    budget = at.config.number(at.knobs.token_budget)
    if at.engine is Engine.VLLM and budget is not None and budget < sequences:
        return at.propose(at.knobs.token_budget, max(sequences, TOKEN_BUDGET_LOW), f"must be at least max_num_seqs ({sequences})")
    return None


def _prompt_length(at: Situation) -> float | None:
    """Tokens of a long but usual prompt: the 95th percentile's upper bound kept within twice the mean."""
    if at.window is None:
        return None
    mean, high = at.window.mean(Hist.PROMPT_TOKENS), at.window.quantile(Hist.PROMPT_TOKENS, 0.95)
    if mean is None:
        return None
    return min(2.0 * mean, max(mean, high.value)) if high else 1.2 * mean


def budget_up(bottleneck: Bottleneck, at: Situation) -> list[Optimization]:
    """Prompts take too many steps: more tokens a step, or no cap on the piece of a prompt where that is what binds."""
    knob = at.knobs.token_budget
    present = at.number(knob)
    if present is not None and present < 0:
        return []  # chunking is off: there is no budget to raise
    default = at.catalogue.default(at.engine, knob, at.version, at.hardware)
    base = int(default) if isinstance(default, int) else TOKEN_BUDGET_LOW
    prompt = _prompt_length(at)
    target = min(max(base, TOKEN_BUDGET_HIGH), max(base, power_of_two_at_least(prompt or 0.0)))
    if present is not None and target <= present:
        target = int(min(max(base, TOKEN_BUDGET_HIGH), 2 * present))
    sequences = at.config.number(at.knobs.sequences)
    if at.engine is Engine.VLLM and sequences:
        target = max(target, int(sequences))
    length = f"; prompts have {prompt:.0f} tokens" if prompt else ""
    reason = f"one prompt takes many steps{length}"
    chunk = at.number("long_prefill_token_threshold")
    if chunk and chunk < (present or base):
        return _whole_prompts(bottleneck, at, reason)
    # The page tells the default's value as little as the set one: only a told value can be compared.
    told = at.config.number(knob)
    change = at.propose(knob, target, reason) if told is None or target > told else None
    if change is None and told is None and default == target:
        change = at.catalogue.change(at.engine, knob, target, current=at.config, version=at.version, hardware=at.hardware, reason=reason)
    if change is None:
        return capacity_advice(bottleneck, at)
    return [
        optimization(
            OptimizerKind.BATCHING, bottleneck, f"Raise {knob} to {target}",
            "The step's token budget cuts prompts into many small chunks; with more tokens a step they take fewer of them.",
            change,
            risks=("the steps in which a prompt is processed get longer for requests that decode", "more activation memory per step"),
            prerequisites=() if told is not None else (f"the present {knob} is below {target}: read it off the launch arguments",),
            losers=("itl_seconds_p99",),
        )
    ]  # fmt: skip


def _whole_prompts(bottleneck: Bottleneck, at: Situation, reason: str) -> list[Optimization]:
    """The step's budget is larger than the piece of a prompt that may be in it: the cap on the piece is what binds."""
    change = at.propose("long_prefill_token_threshold", None, reason)
    return [
        optimization(
            OptimizerKind.BATCHING, bottleneck, "Take the cap off the chunk of long prompts",
            "long_prefill_token_threshold cuts prompts into smaller pieces than the step's token budget does.", change,
            risks=("a long prompt fills whole steps again: short ones behind it wait longer",), losers=("itl_seconds_p99",),
        )
    ] if change else []  # fmt: skip


def budget_down(bottleneck: Bottleneck, at: Situation) -> list[Optimization]:
    """Prompts stall those who decode: fewer tokens a step."""
    knob, found = at.knobs.token_budget, list[Optimization]()
    present = at.number(knob)
    floor = max(TOKEN_BUDGET_FLOOR, int(at.number(at.knobs.sequences) or 0) if at.engine is Engine.VLLM else 0)
    # A budget that no step has reached binds nothing: what steps really hold has to be cut.
    binding = min((v for v in (present, at.largest_step_tokens) if v is not None and v > 0), default=None)
    target = TOKEN_BUDGET_LOW if binding is None or binding > TOKEN_BUDGET_LOW else max(floor, power_of_two_at_most(binding / 2))
    losers = ("ttft_seconds", "throughput_tokens_per_second")
    if at.engine is Engine.SGLANG:
        mixed = at.propose("enable_mixed_chunk", True, "decodes ride along with a prefill chunk instead of waiting for it")
        if present is not None and present < 0:
            return _chunks(bottleneck, at, mixed)
        if mixed:
            found.append(
                optimization(
                    OptimizerKind.BATCHING, bottleneck, "Mix decodes into prefill chunks",
                    "A prefill step stops decoding here; mixed steps keep tokens flowing.", mixed, losers=losers[:1],
                )
            )  # fmt: skip
    if target >= floor and (binding is None or target < binding):
        seen = f"; steps hold up to {binding:.0f} tokens" if binding is not None else ""
        change = at.propose(knob, target, f"decoding requests wait for a step full of prompt tokens{seen}")
        chunked = _chunking_on(at, "a budget below the longest prompt needs prompts in chunks")
        if change and (chunked or not _whole(at)):
            found.append(
                optimization(
                    OptimizerKind.BATCHING, bottleneck, f"Lower {knob} to {target}",
                    "Smaller prefill chunks shorten the stalls of requests that decode.",
                    change, chunked, risks=("first tokens come later and prompts need more steps",), losers=losers,
                )
            )  # fmt: skip
    return found


def _chunks(bottleneck: Bottleneck, at: Situation, mixed: ConfigChange | None) -> list[Optimization]:
    """SGLang told to take prompts whole: no chunk is there for decodes to ride along with, so the chunks come with it."""
    knob = at.knobs.token_budget
    change = at.propose(knob, TOKEN_BUDGET_LOW, "decoding requests wait for whole prompts: chunking is off")
    return [
        optimization(
            OptimizerKind.BATCHING, bottleneck, f"Cut prompts into chunks of {TOKEN_BUDGET_LOW} tokens",
            "A long prompt stops decoding until all of it is computed; in chunks, decodes ride along with each.", change, mixed,
            risks=("first tokens come later and prompts need more steps",), losers=("ttft_seconds", "throughput_tokens_per_second"),
        )
    ] if change else []  # fmt: skip


def head_of_line(bottleneck: Bottleneck, at: Situation) -> list[Optimization]:
    """Long prompts hold up short ones: smaller pieces of them, or replicas of their own."""
    threshold = _chunk_of_long_prompts(at)
    present = at.number("long_prefill_token_threshold")
    if present and present <= threshold:
        return [_apart(bottleneck)]  # long prompts go in small pieces already
    mixed = _chunking_on(at, "a long prompt holds the engine for one whole step")
    change = at.propose("long_prefill_token_threshold", threshold, "long prompts keep short ones from their first token")
    if change:
        return [
            optimization(
                OptimizerKind.BATCHING, bottleneck, f"Cap the chunk of long prompts at {threshold} tokens",
                "Short prompts get a share of each step while a long one is processed.", mixed, change,
                risks=("long prompts take more steps: their first token comes later",), losers=("ttft_seconds_p99",),
            )
        ]  # fmt: skip
    knob = at.catalogue.get(at.engine, "long_prefill_token_threshold")
    unsure = (
        f" {knob.knob.flag} {threshold} would cap their chunk; the engine has it since {knob.knob.since}, and which one runs is not known."
        if knob and at.has(knob.knob.name) is None
        else ""
    )
    return [_apart(bottleneck, unsure)]


def _whole(at: Situation) -> bool:
    """Whether vLLM is told to take prompts whole: it then starts only with a budget of max_model_len or more."""
    return at.engine is Engine.VLLM and at.config.get("enable_chunked_prefill") is False


def _chunking_on(at: Situation, reason: str) -> ConfigChange | None:
    return at.propose("enable_chunked_prefill", True, reason) if _whole(at) else None


def _apart(bottleneck: Bottleneck, more: str = "") -> Optimization:
    return optimization(
        OptimizerKind.BATCHING, bottleneck, "Serve long prompts from replicas of their own",
        f"Long prompts hold up the first token of everybody behind them; route them to a separate pool.{more}",
    )  # fmt: skip


def _chunk_of_long_prompts(at: Situation) -> int:
    """Tokens of a long prompt in one step: an eighth of the longest prompts, and a usual prompt whole where that is less than a quarter.

    Never as long as the longest prompt itself: it would cap nothing, and vLLM does not start with more than max_model_len.
    """
    long = at.window.quantile(Hist.PROMPT_TOKENS, 0.99) if at.window else None
    median = at.window.quantile(Hist.PROMPT_TOKENS, 0.5) if at.window else None
    if long is None or median is None:
        return TOKEN_BUDGET_FLOOR
    whole = power_of_two_at_least(median.value)
    return max(CHUNK_FLOOR, power_of_two_at_most(long.value / 8), whole if whole <= long.value / 4 else 0)
