"""Plan and prediction for people: change -> effect, and how sections are laid out. Reads well at 80 columns."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console, ConsoleRenderable, Group
from rich.table import Table
from rich.text import Text

from perf_service.cli.text import amount, estimate, interval, metric_title, number, ratio, seconds
from perf_service.models.config import ConfigChange
from perf_service.models.plan import Calibration, Direction, LatencyEstimate, Plan, PlanOption, PredictedEffect, Prediction
from perf_service.models.units import goal, of_target

__all__ = ["Row", "bullets", "change_text", "effects_table", "plain_table", "plan_view", "prediction_view", "sections"]

Row = tuple[str, ConsoleRenderable | str]


def sections(console: Console, rows: Iterable[Row]) -> None:
    """Label on the left, text on the right."""
    table = Table.grid(padding=(0, 2, 0, 0), expand=False)
    table.add_column(style="bold", no_wrap=True, width=9)
    table.add_column(overflow="fold", ratio=1)
    for label, body in rows:
        table.add_row(label, body)
    console.print(table)


def bullets(texts: Iterable[str], mark: str = "-") -> str:
    """One line each."""
    return "\n".join(f"{mark} {text}" for text in texts)


def plain_table(*headers: str) -> Table:
    """A table without a box, numbers to the right."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1), header_style="dim")
    for index, header in enumerate(headers):
        table.add_column(header, justify="left" if index == 0 else "right", overflow="fold", no_wrap=index == 0)
    return table


def change_text(change: ConfigChange) -> str:
    """`max_num_seqs: 2 -> 64 (restart)`."""
    before = "not set or unknown" if change.current_value is None else str(change.current_value)
    after = "removed" if change.recommended_value is None else str(change.recommended_value)
    return f"{change.parameter}: {before} -> {after} ({change.apply_mode})"


_OBJECTIVE = ("predicted to be missed", "may be missed", "is not predicted")  # risks that come before what every change costs
_OTHER_FLAGS = "# plus all other flags it runs with: pages do not tell them"
"""A comment, and short enough for one line of 80 columns, so that it does no harm where the command is pasted with it."""


def plan_view(plan: Plan) -> list[Row]:
    """The changes as diff and command line, their predicted effect, risks, and advice that is no config change."""
    rows: list[Row] = []
    if plan.empty:
        rows.append(("CHANGE", plan.summary or "none: no config change is expected to help"))
    else:
        rows.append(("CHANGE", "\n".join(change_text(c) for c in plan.changes)))
        why = [f"{c.parameter}: {c.reason}" if len(plan.changes) > 1 else c.reason for c in plan.changes if c.reason]
        if why:
            rows.append(("WHY", "\n".join(why)))
        if plan.diff:
            rows.append(("DIFF", _diff(plan.diff)))
        if plan.command_line:
            rows.append(("COMMAND", f"{_command(plan.command_line)}\n{_OTHER_FLAGS}"))
        rows.append(("EFFECT", effects_table(plan.effects) if plan.effects else _why_not(plan.prediction)))
        # What needs a quality test first is no part of the changes; neither are its risks.
        applied = [o for o in plan.optimizations if not o.needs_quality_gate]
        # One restart applies all changes: what the dearest of them costs.
        costs = dict.fromkeys(sorted((o.restart_cost for o in applied if o.restart_cost), key=len)[-1:])
        risks = sorted(
            {**costs, **dict.fromkeys(risk for o in applied for risk in o.risks)}, key=lambda text: not any(o in text for o in _OBJECTIVE)
        )
        needs = dict.fromkeys(need for o in applied for need in o.prerequisites)
        back = dict.fromkeys(o.rollback for o in applied if o.rollback)
        for label, texts in (("NEEDS", needs), ("RISKS", risks), ("BACK", back)):
            if texts:
                rows.append((label, bullets(texts)))
    options = _options_table(plan.options)
    if options is not None:
        rows.append(("OPTIONS", options))
    gated = () if plan.empty else tuple(o for o in plan.optimizations if o.needs_quality_gate)
    if plan.advice or gated:
        rows.append(("ADVICE", bullets(f"{o.title}: {o.description}" for o in (*plan.advice, *gated))))
    return rows


_OPTION_ROWS = 8


def _options_table(options: Sequence[PlanOption]) -> Table | None:
    """What was weighed, best first, by the operator's objectives; None where there are none, or nothing is predicted of them."""
    weighed = [o for o in options if o.changes]
    if not any(f.value is not None for o in weighed for f in o.objectives):
        return None
    knobs = {tuple(c.parameter for c in o.changes) for o in weighed}
    alone = next(iter(knobs))[0] if len(knobs) == 1 and len(next(iter(knobs))) == 1 else ""
    table = plain_table(alone, *(goal(f.target) for f in options[0].objectives))
    shown: set[tuple[object, ...]] = set()
    for option in options:
        cells = []
        for f in option.objectives:
            said, style = {None: ("", "dim"), True: (" met", "green"), False: (" missed", "red")}[f.met]
            cells.append(Text(f"{of_target(f.target, f.value.value if f.value else None)}{said}", style=style))
        # Values of one knob that come to the same are one row.
        same = (tuple(c.parameter for c in option.changes), *(cell.plain for cell in cells))
        if option.changes and (same in shown or len(shown) >= _OPTION_ROWS):
            continue
        shown.add(same)
        table.add_row(_option_name(option, alone), *cells)
    return table


def _option_name(option: PlanOption, alone: str) -> str:
    if not option.changes:
        return "as it is"
    if option.chosen and len(option.changes) > 1:
        return "as proposed"
    name = ", ".join(_set_to(c, alone) for c in option.changes)
    if option.chosen:
        return f"{name} (proposed)"
    return f"{name} (less likely cause)" if "less likely" in option.note else name


def _set_to(change: ConfigChange, alone: str) -> str:
    value = "removed" if change.recommended_value is None else str(change.recommended_value)
    return value if alone else f"{change.parameter} {value}"


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
