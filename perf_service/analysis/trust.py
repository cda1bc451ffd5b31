"""The trust gate: what of a window may be believed, before anything is concluded from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby, pairwise

from perf_service.analysis import thresholds as t
from perf_service.analysis.facts import Facts
from perf_service.analysis.steps import chunks
from perf_service.models.metrics import Counter, DataIssue, Engine, Gauge, Hist, IssueCode, IssueLevel, Snapshot

OCCUPANCY, BUDGET = "occupancy", "token_budget"  # what an issue blocks beside single metrics


def gate(facts: Facts) -> tuple[DataIssue, ...]:
    """Issues beyond those the collector noted: conservation of time, Little's law, under-counting, too few requests, idleness."""
    window = facts.window
    issues: list[DataIssue] = []
    if not window.quality.usable:
        return ()
    if facts.idle:
        known = Gauge.RUNNING_REQUESTS in window.gauges or bool(window.counters) or bool(window.histograms)
        if known:
            issues.append(DataIssue(IssueCode.IDLE, IssueLevel.INFO, "The engine was asked nothing in this window."))
        return tuple(issues)
    issues += _conservation(facts)
    issues += _stale_gauges(facts)
    issues += _undercount(facts)
    issues += _told_budget_refuted(facts)
    refuted = told_limit_refuted(facts)
    issues += [refuted] if refuted is not None else []
    if 0 < facts.finished < t.REQUESTS_MIN.value:
        text = f"Only {facts.finished:.0f} requests finished in this window: means and quantiles say little."
        issues.append(DataIssue(IssueCode.FEW_REQUESTS, IssueLevel.WARNING, text))
    missing = [hist for hist in (Hist.TTFT_SECONDS, Hist.E2E_SECONDS) if hist not in window.histograms]
    if len(missing) == 2 and window.counters:
        text = "Neither time to first token nor end-to-end latency is on the page: latency is not judged."
        issues.append(DataIssue(IssueCode.MISSING_METRIC, IssueLevel.WARNING, text, Hist.TTFT_SECONDS.value))
    return tuple(issues)


def copies_at_the_end(pages: Sequence[Snapshot]) -> DataIssue | None:
    """That the last pages are copies of one: what the engine does now is not known.

    A living process uses CPU for each scrape, so equal CPU seconds settle it. Without that metric a frozen page and an engine that
    hangs look alike, and this says nothing.
    """
    same = 0
    for before, after in pairwise(reversed(pages)):
        if Counter.PROCESS_CPU_SECONDS not in before.counters or not _equal(before, after):
            break
        same += 1
    if same < 2:
        return None
    text = f"The last {same + 1} pages are copies of one page (not even CPU time moved): what the engine does since then is not known."
    return DataIssue(IssueCode.STALE, IssueLevel.BLOCKING, text)


def alternating(pages: Sequence[Snapshot]) -> DataIssue | None:
    """That the pages come from several processes in turn: each counts for itself, and no difference of two pages means anything.

    Several API servers behind one port without a shared metrics directory do that (vLLM's `--api-server-count` sets one up).
    """
    starts = [page.process_start_time for page in pages]
    known = [start for start in starts if start is not None]
    lives = [start for start, _ in groupby(known, key=lambda start: round(start, -1))]
    returns = len(lives) - len(set(lives)) if len(known) == len(pages) else _returns(pages)
    if returns < 2:
        return None
    text = "The pages come from different processes in turn (counters fall and come back): each scrape sees a part of the traffic."
    return DataIssue(IssueCode.UNDERCOUNT, IssueLevel.BLOCKING, text)


def _returns(pages: Sequence[Snapshot]) -> int:
    """How often a counter of tokens fell and was back above its old value on a later page."""
    values = [max(p.counters.get(Counter.GENERATION_TOKENS, 0.0), p.counters.get(Counter.PROMPT_TOKENS, 0.0)) for p in pages]
    return sum(b < a and max(values[i + 2 :], default=0.0) >= a > 0 for i, (a, b) in enumerate(pairwise(values)))


def _equal(one: Snapshot, other: Snapshot) -> bool:
    return one.counters == other.counters and one.gauges == other.gauges and one.histograms == other.histograms


def _conservation(facts: Facts) -> list[DataIssue]:
    """Queue + prefill + decode must make up E2E, up to the time before the scheduler."""
    window = facts.window
    hists = (Hist.QUEUE_SECONDS, Hist.PREFILL_SECONDS, Hist.DECODE_SECONDS, Hist.E2E_SECONDS)
    if window.engine is not Engine.VLLM or any(window.count(hist) < t.REQUESTS_CERTAIN.value for hist in hists):
        return []
    counts = [window.count(hist) for hist in hists]
    queue, prefill, decode, whole = (window.mean(hist) or 0.0 for hist in hists)
    if max(counts) > 1.1 * min(counts):
        text = "The phases of a request were counted for different numbers of requests: part of the page is missing or under-counted."
        return [DataIssue(IssueCode.UNDERCOUNT, IssueLevel.BLOCKING, text, "phases")]
    parts = queue + prefill + decode
    if whole > 0 and parts > (1.0 + t.CONSERVATION_TOLERANCE.value) * whole:
        text = f"Queue {queue:.2f} s + prefill {prefill:.2f} s + decode {decode:.2f} s exceed the whole latency of {whole:.2f} s."
        return [DataIssue(IssueCode.CONSERVATION, IssueLevel.BLOCKING, text, "phases")]
    if whole > 0 and whole - parts > 0.5 * whole and facts.ttft is not None and whole - parts > 2.0 * facts.ttft:
        text = f"Queue, prefill and decode make up only {parts:.2f} of {whole:.2f} s end to end: a phase is missing from the page."
        return [DataIssue(IssueCode.CONSERVATION, IssueLevel.BLOCKING, text, "phases")]
    return []


def _stale_gauges(facts: Facts) -> list[DataIssue]:
    """Gauges that stay at zero while requests finish one after the other, or that contradict Little's law."""
    running, occupancy = facts.running, facts.running_occupancy
    if running is None or occupancy is None or running.samples < 5:
        return []
    name = Gauge.RUNNING_REQUESTS.value
    if running.max <= 0 and occupancy >= 2.0:
        text = f"The running gauge stays at 0 over {running.samples} scrapes while Little's law says {occupancy:.1f}: it is stale."
        return [DataIssue(IssueCode.STALE, IssueLevel.BLOCKING, text, name)]
    active = running.mean / running.nonzero_share if running.nonzero_share > 0 else 0.0
    # Only where requests come and go many times: what began before the window or ends after it is not in the law.
    short = facts.e2e is not None and facts.busy_seconds is not None and facts.e2e < 0.2 * facts.busy_seconds
    noise = t.LITTLE_SIGMA.value * (max(active, 1.0) / running.samples) ** 0.5
    steady = running.min >= 0.5 * active and short and facts.finished >= t.REQUESTS_CERTAIN.value
    if steady and active > t.LITTLE_TOLERANCE.value * occupancy and active - occupancy > noise:
        text = (
            f"{active:.1f} requests run by the gauge, {occupancy:.1f} by finished requests (Little's law): "
            "the counters may cover one process of several, so rates and occupancies are not used."
        )
        return [DataIssue(IssueCode.UNDERCOUNT, IssueLevel.BLOCKING, text, OCCUPANCY)]
    return []


def told_limit_refuted(facts: Facts) -> DataIssue | None:
    """A told sequence limit far above the number at which running requests are held while others wait and nothing else is short."""
    limit, held = facts.sequence_limit, facts.pinning
    if limit is None or held is None or held.tightness < 0.8 or held.scrapes < 4 or facts.engine is Engine.TGI:
        return None
    free = not facts.preemptions and (facts.kv_peak or 0.0) < t.KV_FREE_MAX.value and not (facts.deferred_share or 0.0) > 0.3
    other = (facts.prefill_occupancy or 0.0) >= 0.8 or facts.waiting_mean < t.WAITING_MIN.value
    if not free or other or held.limit > t.REFUTED_RATIO.value * limit or facts.prefill_occupancy is None:
        return None
    text = (
        f"the limit on running requests is told as {limit:.0f}, but {held.limit:.0f} run, never more, in {held.scrapes} scrapes "
        f"with {facts.waiting_mean:.1f} waiting, KV cache free and prefill idle."
    )
    return DataIssue(IssueCode.CONSERVATION, IssueLevel.WARNING, text[0].upper() + text[1:], "sequence_limit")


def _told_budget_refuted(facts: Facts) -> list[DataIssue]:
    """A told step budget that the length of steps contradicts."""
    budget, prompt, cut = facts.token_budget, facts.computed_tokens, chunks(facts)
    if budget is None or not prompt or cut.least < t.CHUNKS_MANY.value or prompt / cut.least > t.REFUTED_RATIO.value * min(budget, prompt):
        return []
    text = (
        f"The step budget is told as {budget:.0f} tokens, but prompts of {prompt:.0f} tokens are cut into {cut.least:.0f} steps or more: "
        "the running process has another one."
    )
    return [DataIssue(IssueCode.CONSERVATION, IssueLevel.BLOCKING, text, BUDGET)]


def _undercount(facts: Facts) -> list[DataIssue]:
    """Requests against their latencies, tokens generated against tokens of finished requests: what was counted twice must agree."""
    window, issues = facts.window, []
    succeeded, e2e = window.delta(Counter.REQUESTS_SUCCEEDED), window.histograms.get(Hist.E2E_SECONDS)
    if succeeded is not None and e2e is not None and max(succeeded, e2e.count) >= t.REQUESTS_CERTAIN.value and e2e.count < 0.5 * succeeded:
        text = f"{succeeded:.0f} requests finished and {e2e.count:.0f} have a latency: part of the processes is missing from the page."
        issues.append(DataIssue(IssueCode.UNDERCOUNT, IssueLevel.WARNING, text, Hist.E2E_SECONDS.value))
    tokens, answers = window.delta(Counter.GENERATION_TOKENS), window.histograms.get(Hist.GENERATION_TOKENS)
    if tokens and answers is not None and answers.count >= t.REQUESTS_CERTAIN.value and not window.lifetime:
        # Finished requests bring along what they had generated before the window; those under way leave theirs out.
        slack = 0.2 * answers.sum + facts.running_top * answers.sum / answers.count
        if abs(tokens - answers.sum) > slack + 0.2 * tokens:
            text = f"{tokens:.0f} tokens were generated, {answers.sum:.0f} by the finished requests' count: part of the page is missing."
            issues.append(DataIssue(IssueCode.UNDERCOUNT, IssueLevel.WARNING, text, Counter.GENERATION_TOKENS.value))
    return issues


def trusted(facts: Facts, issues: tuple[DataIssue, ...]) -> Facts:
    """The facts without what a blocking issue names, so that nothing is concluded from it."""
    blocked = {issue.metric for issue in (*issues, *facts.window.quality.issues) if issue.level is IssueLevel.BLOCKING and issue.metric}
    if "phases" in blocked:
        facts = replace(
            facts,
            queue=None,
            prefill=None,
            decode=None,
            inference=None,
            waiting_occupancy=None,
            prefill_occupancy=None,
            running_occupancy=None,
            budget_estimate=None,
            kv_need_ratio=None,
        )
    if OCCUPANCY in blocked:
        facts = replace(
            facts, waiting_occupancy=None, prefill_occupancy=None, running_occupancy=None, budget_estimate=None, kv_need_ratio=None
        )
    if BUDGET in blocked:
        facts = replace(facts, token_budget=None)
    if Gauge.RUNNING_REQUESTS.value in blocked:
        facts = replace(facts, running=None, waiting=None, pinning=None)
    if Gauge.KV_CACHE_USAGE_RATIO.value in blocked:
        facts = replace(facts, kv=None)
    return facts
