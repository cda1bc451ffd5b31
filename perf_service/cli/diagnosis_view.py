"""An analysis for people: cause -> symptoms -> evidence -> verdict. `doctor` and `analyze` show the same. Reads well at 80 columns."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from rich.console import ConsoleRenderable, Group
from rich.table import Table
from rich.text import Text

from perf_service.analysis.error_budget import ALERTS
from perf_service.cli.render import Row, bullets, plain_table
from perf_service.cli.text import amount, number, percent, quantile, seconds, title_of
from perf_service.models.analysis import (
    Analysis,
    Bottleneck,
    BudgetState,
    Cause,
    EvidenceRole,
    HealthPart,
    HealthStatus,
    Severity,
    SLOState,
    SLOStatus,
    Verdict,
)
from perf_service.models.metrics import Counter, Gauge, Hist, IssueLevel
from perf_service.models.units import MISSING, amount_range, goal, percent_range
from perf_service.models.window import Window

__all__ = ["analysis_view", "cause_name", "measured_table"]

SEVERITY_STYLE = {Severity.LOW: "dim", Severity.MEDIUM: "yellow", Severity.HIGH: "red", Severity.CRITICAL: "bold red"}
VERDICT_TEXT = {
    Verdict.TUNE: "tune the engine's configuration",
    Verdict.SCALE: "add capacity: no flag cures this",
    Verdict.RESTART: "restart the engine",
    Verdict.ROLL_BACK_UPGRADE: "roll back the upgrade",
    Verdict.LOOK_AT_CLIENT: "look at the client, not at the engine",
    Verdict.WAIT: "wait: this passes by itself",
    Verdict.NOTHING_TO_DO: "nothing to do",
    Verdict.NOT_ENOUGH_EVIDENCE: "not enough evidence to say",
}


def analysis_view(analysis: Analysis) -> list[Row]:
    """Cause -> symptoms -> evidence -> verdict, then the objectives with their budgets, the health and what is wrong with the data."""
    rows: list[Row] = []
    root = analysis.root_cause
    if root is not None:
        rows.append(("CAUSE", _cause(root)))
        symptoms = [b for b in analysis.bottlenecks[1:] if b.symptom_of is not None]
        others = [b for b in analysis.bottlenecks[1:] if b.symptom_of is None]
        if symptoms:
            rows.append(("SYMPTOMS", bullets(dict.fromkeys(b.description for b in symptoms))))
        if root.evidence:
            rows.append(("EVIDENCE", _evidence(root, analysis.cause_confidences)))
        if others:
            rows.append(("ALSO", bullets(f"{cause_name(b.cause)}, {b.severity}: {b.description}" for b in others)))
    rows.append(("VERDICT", _verdict(analysis)))
    if root is None and analysis.summary:
        rows.append(("WHY", _sentence(analysis.summary.removeprefix("Nothing to do: ").removeprefix("Not enough evidence: "))))
    if analysis.slo_statuses:
        rows.append(("SLO", _objectives(analysis.slo_statuses)))
    spent = [line for status in analysis.slo_statuses if status.phases is not None for line in _time_spent(status)]
    if spent:
        rows.append(("TIME", "\n".join(spent)))
    budgets = _budgets(analysis.slo_statuses)
    if budgets is not None:
        rows.append(("BUDGET", budgets))
    rows.append(("HEALTH", _health(analysis)))
    issues = _issues(analysis)
    if issues:
        rows.append(("DATA", bullets(issues, "!")))
    return rows


def _issues(analysis: Analysis) -> list[str]:
    """What is wrong with the data; of a fleet the same words only once, with the replicas that they are about."""
    is_fleet = analysis.window is not None and analysis.window.replicas > 1
    whose: dict[str, list[str]] = {}
    for message in dict.fromkeys(i.message for i in analysis.quality.issues if i.level is not IssueLevel.INFO):
        name, colon, text = message.partition(": ")
        if is_fleet and colon and " " not in name:
            whose.setdefault(text, []).append(name)
        else:
            whose.setdefault(message, [])
    return [_about(names) + text for text, names in whose.items()]


def _about(names: Sequence[str]) -> str:
    if len(names) < 2:
        return f"{names[0]}: " if names else ""
    return f"{len(names)} replicas ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''}): "


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def cause_name(cause: str) -> str:
    """What a cause is called in tables."""
    from perf_service.analysis.explain import NAMES

    return NAMES.get(cause, title_of(cause))  # type: ignore[call-overload, no-any-return]


def _cause(root: Bottleneck) -> Text:
    head = Text(cause_name(root.cause), style="bold")
    head.append(f"  {root.severity.upper()}", style=SEVERITY_STYLE[root.severity])
    if root.cause is not Cause.UNKNOWN:
        head.append(f"  confidence {root.confidence_ratio:.0%}", style="dim")
    return head.append("\n" + root.description, style="not bold")


def _evidence(root: Bottleneck, confidences: Mapping[Cause, float]) -> str:
    marks = {EvidenceRole.FOR: "+", EvidenceRole.AGAINST: "-"}
    said = {root.description}
    ordered = sorted(root.evidence, key=lambda e: e.role is EvidenceRole.AGAINST)
    lines = [f"{marks[e.role]} {e.text}" for e in ordered if e.text not in said]
    if root.alternative is not None:
        share = confidences.get(root.alternative)
        belief = f" ({share:.0%})" if share is not None else ""
        lines.append(f"? next guess: {cause_name(root.alternative)}{belief}")
    if root.would_settle:
        lines.append(f"? to be sure: {root.would_settle}")
    return "\n".join(lines)


def _verdict(analysis: Analysis) -> str:
    root, verdict = analysis.root_cause, analysis.verdict
    text = VERDICT_TEXT[verdict]
    if root is None:
        return text
    if verdict is root.verdict:
        return f"{text}\n{root.recommendation}" if root.recommendation else text
    if verdict is Verdict.NOTHING_TO_DO:
        return f"nothing to do: only a built-in default is missed, no objective of yours\nIf it matters to you: {root.recommendation}"
    if verdict is Verdict.WAIT:
        why = (
            analysis.summary.removeprefix("Wait: ") if analysis.summary.startswith("Wait: ") else "Too little has been seen yet to act on."
        )
        return f"wait, then look again\n{why}\nIf it lasts: {root.recommendation}"
    return f"{text}\n{root.recommendation}"


def _objectives(statuses: Iterable[SLOStatus]) -> ConsoleRenderable:
    statuses = tuple(statuses)
    table = plain_table("objective", "measured", "result")
    styles = {SLOState.MET: "green", SLOState.MISSED: "red", SLOState.NOT_MEASURED: "dim", SLOState.UNDECIDED: "yellow"}
    for status in statuses:
        mark = " *" if status.target.builtin else ""
        table.add_row(goal(status.target) + mark, _measured(status), Text(title_of(status.state), style=styles[status.state]))
    notes = [f"? {status.message}" for status in statuses if status.state is SLOState.UNDECIDED]
    if any(status.target.builtin for status in statuses):
        notes.append("* built-in default; set your own: --slo 'ttft_p95<0.5'")
    return Group(table, Text("\n".join(notes), style="dim")) if notes else table


def _measured(status: SLOStatus) -> str:
    """The value, with its bounds where only they are known."""
    target = status.target
    name = target.base_metric if target.histogram else target.metric_name
    if target.objective_ratio is not None and status.attainment_low is not None and status.attainment_high is not None:
        return percent_range(status.attainment_low, status.attainment_high)
    if status.low is not None and status.high is not None and (status.low <= 0 or not math.isfinite(status.high)):
        return amount_range(name, status.low, status.high)
    about = "~ " if status.low != status.high else ""
    return about + amount(name, status.current_value)


def _time_spent(status: SLOStatus) -> list[str]:
    """Where the time of a missed latency objective went."""
    phases = status.phases
    if phases is None or status.state is not SLOState.MISSED:
        return []
    parts = {"waiting": phases.queue_ratio, "prefill": phases.prefill_ratio,
             "decode": phases.decode_ratio, "preempted": phases.preemption_ratio}  # fmt: skip
    shares = ", ".join(f"{share:.0%} {name}" for name, share in parts.items() if share >= 0.01)
    return [f"{status.target.metric_name}: {shares}"]


def _budgets(statuses: Iterable[SLOStatus]) -> ConsoleRenderable | None:
    """What is left of each budget, over how much known time, and how fast it burns; in words where it matters."""
    with_budget = [(s, s.budget) for s in statuses if s.budget is not None and s.budget.state is not BudgetState.NOT_MEASURED]
    if not with_budget:
        return None
    table = plain_table("error budget", "left", "known", *("/".join(seconds(s).replace(" ", "") for s in alert[:2]) for alert in ALERTS))
    notes = [f"burn rates: 1 spends it in 30 days; {ALERTS[0].threshold:g} in both is worth a page, {ALERTS[1].threshold:g} a ticket"]
    for status, budget in with_budget:
        left = MISSING
        if budget.left_low is not None and budget.left_high is not None:
            low, high = (f"{100 * share:.0f}" for share in (max(0.0, budget.left_low), budget.left_high))
            left = "overspent" if budget.left_high <= 0 else f"{high} %" if low == high else f"{low}-{high} %"
        rates = ["/".join(map(_rate, (b.long_rate, b.short_rate), (b.long_rate_high, b.short_rate_high))) for b in budget.burns]
        table.add_row(goal(status.target), left, seconds(budget.covered_seconds), *rates)
        if budget.state is BudgetState.OK and budget.exhausted_in_seconds:
            notes.append(f"{goal(status.target)}: spent in {seconds(budget.exhausted_in_seconds)} at the rate of the last hour")
        elif budget.state is not BudgetState.OK:
            notes.append(f"! {goal(status.target)}, {title_of(budget.state)}: {budget.message[:1].lower()}{budget.message[1:]}")
    return Group(table, Text("\n".join(notes)))


def _rate(low: float | None, high: float | None) -> str:
    """A burn rate; its upper bound where the target lies inside a bucket."""
    if low is None or high is None:
        return MISSING
    return number(high) if low == high else f"<{high:.2g}"


def _health(analysis: Analysis) -> str:
    score = analysis.health_score
    if score is None:
        return (
            "no load yet: there is nothing to score" if analysis.health_status is HealthStatus.NO_LOAD else "unknown: not enough evidence"
        )
    goals = {str(status.target): goal(status.target) for status in analysis.slo_statuses}
    parts = [f"-{p.penalty:.0f}  {_part(p, goals)}" for p in analysis.health_parts if p.penalty >= 0.5]
    return "\n".join([f"{score:.0f} of 100, {analysis.health_status}", *parts])


def _part(part: HealthPart, goals: Mapping[str, str]) -> str:
    """Objectives by their name: what was measured stands above."""
    kind, _, name = part.name.partition(":")
    return f"missed objective: {goals.get(name, name)}" if kind == "objective" else part.text


def measured_table(window: Window) -> Table:
    """What the window says: latencies with their quantiles, rates where the time is known."""
    table = plain_table("measured", "mean", "p50", "p95", "requests")
    for hist, name in (
        (Hist.TTFT_SECONDS, "time to first token"), (Hist.ITL_SECONDS, "between tokens (ITL)"), (Hist.E2E_SECONDS, "end to end"),
        (Hist.QUEUE_SECONDS, "in queue"), (Hist.PREFILL_SECONDS, "in prefill"), (Hist.DECODE_SECONDS, "in decode"),
    ):  # fmt: skip
        if window.count(hist):
            unit = window.count(hist) if hist is not Hist.ITL_SECONDS else None
            quantiles = [quantile(window.quantile(hist, q)) for q in (0.5, 0.95)]
            table.add_row(name, seconds(window.mean(hist)), *quantiles, f"{unit:,.0f}" if unit is not None else "")
    for counter, name in ((Counter.GENERATION_TOKENS, "output tokens"), (Counter.PROMPT_TOKENS, "prompt tokens")):
        rate = window.rate(counter)
        if rate is not None:
            table.add_row(name, f"{number(rate)}/s")
    each = ", sum" if window.replicas > 1 else ""
    for gauge, name in ((Gauge.RUNNING_REQUESTS, f"running at scrapes{each}"), (Gauge.WAITING_REQUESTS, f"waiting at scrapes{each}")):
        stats = window.gauge(gauge)
        if stats is not None:
            table.add_row(name, number(stats.mean), "", f"max {number(stats.max)}")
    usage = window.gauge(Gauge.KV_CACHE_USAGE_RATIO)
    if usage is not None:
        table.add_row("KV cache in use", percent(usage.mean), "", f"max {percent(usage.max)}")
    return table
