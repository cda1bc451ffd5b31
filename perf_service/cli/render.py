"""Analysis, plan and prediction for people: cause -> symptoms -> evidence -> verdict -> change -> effect. Reads well at 80 columns."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable

from rich import box
from rich.console import Console, ConsoleRenderable, Group
from rich.table import Table
from rich.text import Text

from perf_service.cli.text import amount, estimate, interval, metric_title, number, percent, quantile, ratio, seconds, title_of
from perf_service.models.analysis import Analysis, Bottleneck, EvidenceRole, Severity, SLOState, SLOStatus, Verdict
from perf_service.models.config import ConfigChange
from perf_service.models.metrics import Counter, Gauge, Hist, IssueLevel
from perf_service.models.plan import Calibration, Direction, LatencyEstimate, Plan, PredictedEffect, Prediction
from perf_service.models.window import Window

__all__ = ["analysis_view", "change_text", "effects_table", "measured_table", "plain_table", "plan_view", "prediction_view", "sections"]

Row = tuple[str, ConsoleRenderable | str]

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
_SENTENCE = re.compile(r".+?[.!?](?=\s|$)|.+$", re.DOTALL)


def sections(console: Console, rows: Iterable[Row]) -> None:
    """Label on the left, text on the right."""
    table = Table.grid(padding=(0, 2, 0, 0), expand=False)
    table.add_column(style="bold", no_wrap=True, width=9)
    table.add_column(overflow="fold", ratio=1)
    for label, body in rows:
        table.add_row(label, body)
    console.print(table)


def _bullets(texts: Iterable[str], mark: str = "-") -> str:
    return "\n".join(f"{mark} {text}" for text in texts)


def plain_table(*headers: str) -> Table:
    """A table without a box, numbers to the right."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1), header_style="dim")
    for index, header in enumerate(headers):
        table.add_column(header, justify="left" if index == 0 else "right", overflow="fold", no_wrap=index == 0)
    return table


def analysis_view(analysis: Analysis) -> list[Row]:
    """Cause, symptoms, evidence, verdict, objectives, data quality."""
    rows: list[Row] = []
    root = analysis.root_cause
    if root is not None:
        rows.append(("CAUSE", _cause(root)))
        symptoms = [b for b in analysis.bottlenecks[1:] if b.symptom_of is not None]
        others = [b for b in analysis.bottlenecks[1:] if b.symptom_of is None]
        if symptoms:
            rows.append(("SYMPTOMS", _bullets(f"{title_of(b.type)}: {b.description}" for b in symptoms)))
        if root.evidence:
            rows.append(("EVIDENCE", _evidence(root)))
        if others:
            rows.append(("ALSO", _bullets(f"{title_of(b.cause)} ({b.severity}): {b.description}" for b in others)))
        rows.append(("VERDICT", _verdict(root.verdict, root.recommendation)))
    else:
        rows.append(("VERDICT", _verdict(analysis.verdict, "")))
        if analysis.summary:
            rows.append(("WHY", analysis.summary))
    if analysis.slo_statuses:
        rows.append(("SLO", _objectives(analysis.slo_statuses)))
    rows.append(("HEALTH", _health(analysis)))
    issues = [i for i in analysis.quality.issues if i.level is not IssueLevel.INFO]
    if issues:
        rows.append(("DATA", _bullets(dict.fromkeys(i.message for i in issues), "!")))
    return rows


def _cause(root: Bottleneck) -> Text:
    name = title_of(root.cause) if root.cause != "unknown" else title_of(root.type)
    head = Text(name, style="bold")
    head.append(f"  {root.severity.upper()}", style=SEVERITY_STYLE[root.severity])
    head.append(f"  confidence {root.confidence_ratio:.0%}", style="dim")
    # Where the evidence is listed below, its sentences are not said twice.
    said = {e.text.strip() for e in root.evidence}
    sentences = [s for s in _SENTENCE.findall(root.description) if s.strip() not in said] if said else [root.description]
    return head.append("\n" + " ".join(s.strip() for s in sentences), style="not bold")


def _evidence(root: Bottleneck) -> str:
    marks = {EvidenceRole.FOR: "+", EvidenceRole.AGAINST: "-"}
    lines = [f"{marks[e.role]} {e.text}" for e in sorted(root.evidence, key=lambda e: e.role is EvidenceRole.AGAINST)]
    if root.alternative is not None:
        behind = f", {100 * root.margin_ratio:.0f} points behind" if root.margin_ratio is not None else ""
        lines.append(f"? next best: {title_of(root.alternative)}{behind}")
    if root.would_settle:
        lines.append(f"? would settle it: {root.would_settle}")
    return "\n".join(lines)


def _verdict(verdict: Verdict, recommendation: str) -> str:
    return VERDICT_TEXT[verdict] + (f"\n{recommendation}" if recommendation else "")


def _objectives(statuses: Iterable[SLOStatus]) -> Table:
    statuses = tuple(statuses)
    missed = any(s.phases is not None and s.state is SLOState.MISSED for s in statuses)
    table = plain_table("objective", "measured", "", "where the time went" if missed else "")
    styles = {SLOState.MET: "green", SLOState.MISSED: "red", SLOState.NOT_MEASURED: "dim"}
    for status in statuses:
        name = status.target.base_metric if status.target.histogram else status.target.metric_name
        sign = "<" if status.target.comparison == "less_than" else ">"
        goal = f"{status.target.metric_name} {sign} {amount(name, status.target.target_value)}"
        goal += " (built-in)" if status.target.builtin else ""
        phases = ""
        if status.phases is not None and status.state is SLOState.MISSED:
            parts = {"queue": status.phases.queue_ratio, "prefill": status.phases.prefill_ratio,
                     "decode": status.phases.decode_ratio, "preemption": status.phases.preemption_ratio}  # fmt: skip
            phases = ", ".join(f"{phase} {share:.0%}" for phase, share in parts.items() if share >= 0.01)
        measured = amount(name, status.current_value)
        table.add_row(goal, measured, Text(title_of(status.state), style=styles[status.state]), phases)
    return table


def _health(analysis: Analysis) -> str:
    score = analysis.health_score
    if score is None:
        return "unknown: not enough evidence"
    parts = [f"-{p.penalty:.0f}  {p.text}" for p in analysis.health_parts if p.penalty >= 0.5]
    return "\n".join([f"{score:.0f} of 100", *parts])


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
    for gauge, name in ((Gauge.RUNNING_REQUESTS, "requests running"), (Gauge.WAITING_REQUESTS, "requests waiting")):
        stats = window.gauge(gauge)
        if stats is not None:
            table.add_row(name, number(stats.mean), "", f"max {number(stats.max)}")
    usage = window.gauge(Gauge.KV_CACHE_USAGE_RATIO)
    if usage is not None:
        table.add_row("KV cache in use", percent(usage.mean), "", f"max {percent(usage.max)}")
    return table


def change_text(change: ConfigChange) -> str:
    """`max_num_seqs: 2 -> 64 (restart)`."""
    before = "not set or unknown" if change.current_value is None else str(change.current_value)
    after = "removed" if change.recommended_value is None else str(change.recommended_value)
    return f"{change.parameter}: {before} -> {after} ({change.apply_mode})"


def plan_view(plan: Plan) -> list[Row]:
    """The changes as diff and command line, their predicted effect, risks, and advice that is no config change."""
    rows: list[Row] = []
    if plan.empty:
        rows.append(("CHANGE", plan.summary or "none: no config change is expected to help"))
    else:
        rows.append(("CHANGE", "\n".join(change_text(c) for c in plan.changes)))
        if plan.diff:
            rows.append(("DIFF", _diff(plan.diff)))
        if plan.command_line:
            rows.append(("COMMAND", _command(plan.command_line)))
        rows.append(("EFFECT", effects_table(plan.effects) if plan.effects else _why_not(plan.prediction)))
        risks = dict.fromkeys(risk for o in plan.optimizations for risk in o.risks)
        costs = dict.fromkeys(o.restart_cost for o in plan.optimizations if o.restart_cost)
        needs = dict.fromkeys(need for o in plan.optimizations for need in o.prerequisites)
        back = dict.fromkeys(o.rollback for o in plan.optimizations if o.rollback)
        for label, texts in (("NEEDS", needs), ("RISKS", {**costs, **risks}), ("BACK", back)):
            if texts:
                rows.append((label, _bullets(texts)))
    if plan.advice:
        rows.append(("ADVICE", _bullets(f"{o.title}: {o.description}" for o in plan.advice)))
    return rows


def _diff(diff: str) -> Text:
    text = Text()
    for line in diff.rstrip("\n").splitlines():
        style = "green" if line.startswith("+") else "red" if line.startswith("-") else "dim"
        text.append(line + "\n", style=style)
    text.rstrip()
    return text


def _command(line: str, width: int = 66) -> str:
    """A command line broken before its flags, so that it can be pasted into a shell as it is."""
    try:
        words = shlex.split(line)
    except ValueError:
        return line
    rows, row = [], ""
    for index, word in enumerate(words):
        flag_ahead = word.startswith("-")
        piece = shlex.quote(word)
        value = words[index + 1] if flag_ahead and index + 1 < len(words) and not words[index + 1].startswith("-") else ""
        if flag_ahead and row and len(row) + len(piece) + len(value) + 4 > width:
            rows.append(row + " \\")
            row = "  " + piece
        else:
            row = f"{row} {piece}" if row else piece
    return "\n".join([*rows, row])


def _why_not(prediction: Prediction | None) -> str:
    notes = "; ".join(prediction.notes) if prediction is not None else ""
    return f"not predictable{': ' + notes if notes else ''}"


def effects_table(effects: Iterable[PredictedEffect]) -> Table:
    """Before, after with its interval, and which way it goes for the operator."""
    table = plain_table("metric", "now", "predicted", "interval", "")
    marks = {Direction.IMPROVES: Text("better", "green"), Direction.WORSENS: Text("worse", "red"), Direction.UNCHANGED: Text("same", "dim")}
    for e in effects:
        table.add_row(
            metric_title(e.metric), amount(e.metric, e.before.value), amount(e.metric, e.after.value),
            interval(e.metric, e.after.low, e.after.high), marks[e.direction],
        )  # fmt: skip
    return table


_CALIBRATION = {
    Calibration.FITTED: "fitted from this instance's own pages",
    Calibration.EXTRAPOLATED: "fitted from this instance's own pages, but outside of what was observed",
    Calibration.PRIOR: "from typical values of the engine and hardware only: coarse",
    Calibration.NONE: "not predictable",
}


def prediction_view(baseline: Prediction, prediction: Prediction) -> ConsoleRenderable:
    """What-if: every measure now and under the change, with intervals."""
    table = plain_table("metric", "now", "what if", "interval")
    for name in ("throughput_tokens_per_second", "requests_per_second"):
        before, after = getattr(baseline, name), getattr(prediction, name)
        if after is not None:
            table.add_row(metric_title(name), estimate(name, before).split(" (")[0],
                          amount(name, after.value), interval(name, after.low, after.high))  # fmt: skip
    for name in ("ttft_seconds", "itl_seconds", "tpot_seconds", "e2e_seconds"):
        before, after = getattr(baseline, name), getattr(prediction, name)
        if isinstance(after, LatencyEstimate):
            for statistic in ("mean", "p50", "p95"):
                now, then = getattr(before, statistic, None), getattr(after, statistic)
                if then is not None:
                    table.add_row(f"{name.split('_')[0]} {statistic}", seconds(now.value if now else None), seconds(then.value),
                                  interval(name, then.low, then.high))  # fmt: skip
    notes = [f"Prediction {_CALIBRATION[prediction.calibration]}.", *dict.fromkeys(prediction.notes)]
    return Group(table, Text("\n".join(notes), style="dim")) if table.row_count else Text("\n".join(notes))


def speedup(effect: PredictedEffect) -> str:
    """`x 0.12 (0.08 .. 0.2)`."""
    return f"{ratio(effect.ratio.value)} ({number(effect.ratio.low)} .. {number(effect.ratio.high)})"
