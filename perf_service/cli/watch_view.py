"""A rollout as a live tree fleet > stage > replica: a pure reducer over events, and its picture."""

from __future__ import annotations

import dataclasses
from collections import Counter as Tally
from dataclasses import dataclass, field

from rich.console import Group, RenderableType
from rich.text import Text
from rich.tree import Tree

from perf_service.cli.text import amount, metric_title, number, percent, ratio, seconds, title_of
from perf_service.models.workflow import (
    Event,
    EventKind,
    Gate,
    Judgement,
    MetricSample,
    Outcome,
    ReplicaPhase,
    ReplicaProgress,
    StageRecord,
    StageSample,
    Workflow,
    WorkflowStatus,
)

__all__ = ["WatchState", "event_line", "exit_code", "outcome_table", "picture"]

_STATUS_STYLE = {
    WorkflowStatus.COMPLETED: ("✔", "bold green"), WorkflowStatus.NO_CHANGE: ("✔", "bold"), WorkflowStatus.FAILED: ("✖", "bold red"),
    WorkflowStatus.REJECTED: ("✖", "bold red"), WorkflowStatus.CANCELLED: ("✖", "bold yellow"),
    WorkflowStatus.ROLLED_BACK: ("↺", "bold yellow"), WorkflowStatus.ROLLING_BACK: ("↺", "bold yellow"),
    WorkflowStatus.ROLLBACK_INCOMPLETE: ("!", "bold red"), WorkflowStatus.AWAITING_APPROVAL: ("?", "bold magenta"),
}  # fmt: skip
_JUDGEMENT = {
    Judgement.PASS: ("✔ pass", "green"), Judgement.FAIL: ("✖ fail", "red"), Judgement.INCONCLUSIVE: ("~ inconclusive", "yellow"),
    Judgement.NO_DATA: ("· no data", "dim"), Judgement.NOT_APPLICABLE: ("- dry run", "dim"),
}  # fmt: skip
_PHASE = {
    ReplicaPhase.UNCHANGED: ("○", "dim"), ReplicaPhase.APPLYING: ("◐", "cyan"), ReplicaPhase.CONVERGED: ("●", "green"),
    ReplicaPhase.RESTORING: ("◐", "yellow"), ReplicaPhase.RESTORED: ("↺", "yellow"), ReplicaPhase.FAILED: ("✖", "red"),
}  # fmt: skip
_SHOWN_METRICS = 6


def exit_code(status: WorkflowStatus) -> int:
    """0 completed or nothing to change, 2 rolled back, 1 anything else."""
    if status in (WorkflowStatus.COMPLETED, WorkflowStatus.NO_CHANGE):
        return 0
    return 2 if status is WorkflowStatus.ROLLED_BACK else 1


@dataclass
class WatchState:
    """What a watcher knows: the workflow as of its first message, brought forward by every event."""

    workflow: Workflow
    tally: Tally[Judgement] = field(default_factory=Tally)
    last_sample: StageSample | None = None
    last_event: Event | None = None

    def __post_init__(self) -> None:
        for sample in self.workflow.samples:
            self._note(sample)

    @property
    def sequence(self) -> int:
        """Where to resume."""
        return self.last_event.sequence if self.last_event else self.workflow.last_sequence

    def replace(self, workflow: Workflow) -> None:
        """A full snapshot came (again): it knows more than what was pieced together."""
        self.workflow = workflow
        if workflow.samples:
            self.tally.clear()
            for sample in workflow.samples:
                self._note(sample)

    def apply(self, event: Event) -> None:
        """Bring the picture forward by one event."""
        changes: dict[str, object] = {"status": event.status, "gate": event.gate, "last_sequence": event.sequence}
        if event.message:
            changes["message"] = event.message
        if event.stage is not None:
            changes["rollout_history"] = _with_stage(self.workflow.rollout_history, event.stage)
            changes["stage_index"] = event.stage.index
            if event.kind is EventKind.STAGE_STARTED:
                self.tally.clear()
        if event.replica is not None:
            changes["replicas"] = _with_replica(self.workflow.replicas, event.replica)
        if event.sample is not None:
            self._note(event.sample)
        if event.outcome is not None:
            changes["outcome"] = event.outcome
        if event.approval is not None:
            changes["approval"] = event.approval
        self.workflow = dataclasses.replace(self.workflow, **changes)  # type: ignore[arg-type]
        self.last_event = event

    def _note(self, sample: StageSample) -> None:
        self.tally[sample.judgement] += 1
        self.last_sample = sample


def _with_stage(history: tuple[StageRecord, ...], stage: StageRecord) -> tuple[StageRecord, ...]:
    kept = [record for record in history if record.index != stage.index]
    return tuple(sorted([*kept, stage], key=lambda record: record.index))


def _with_replica(replicas: tuple[ReplicaProgress, ...], replica: ReplicaProgress) -> tuple[ReplicaProgress, ...]:
    if any(r.instance_id == replica.instance_id for r in replicas):
        return tuple(replica if r.instance_id == replica.instance_id else r for r in replicas)
    return (*replicas, replica)


def picture(state: WatchState, *, now: float) -> RenderableType:
    """Header, samples, and the tree."""
    workflow = state.workflow
    parts: list[RenderableType] = [_header(workflow, now)]
    if workflow.message:
        parts.append(Text(f"  {workflow.message}"))
    if workflow.changes:
        changes = ", ".join(f"{c.parameter} {_shown(c.current_value)} -> {_shown(c.recommended_value)}" for c in workflow.changes)
        parts.append(Text(f"  change   {changes}", style="bold"))
    if state.tally:
        parts.append(_verdicts(state))
    if state.last_sample is not None and not workflow.status.terminal:
        parts += [_metric_line(m) for m in state.last_sample.metrics[:_SHOWN_METRICS] if m.canary is not None]
    parts.append(_tree(workflow))
    return Group(*parts)


def _shown(value: object) -> str:
    return "unset" if value is None else str(value)


def _header(workflow: Workflow, now: float) -> Text:
    icon, style = _STATUS_STYLE.get(workflow.status, ("▶", "bold cyan"))
    head = Text(f"{icon} {workflow.workflow_id}  ", style="bold")
    head.append(title_of(workflow.status).upper(), style=style)
    if workflow.gate is not Gate.OPEN:
        head.append(f"  {workflow.gate.upper()}", style="bold yellow")
    stages = len(workflow.policy.stages)
    if workflow.stage_index >= 0:
        changed = sum(r.phase in (ReplicaPhase.APPLYING, ReplicaPhase.CONVERGED) for r in workflow.replicas)
        head.append(f"  stage {workflow.stage_index + 1}/{stages}", style="not bold")
        if workflow.replicas:
            exposure = changed / len(workflow.replicas)
            head.append(f"  {changed} of {len(workflow.replicas)} replicas changed ({percent(exposure)})", style="not bold")
    begun, ended = workflow.created_at, workflow.finished_at or now
    if begun:
        head.append(f"  {seconds(round(max(0.0, ended - begun)))}", style="dim")
    return head


def _verdicts(state: WatchState) -> Text:
    line = Text("  samples  ")
    for judgement, (name, style) in _JUDGEMENT.items():
        if state.tally[judgement]:
            line.append(f"{state.tally[judgement]} {name}  ", style=style)
    if state.last_sample is not None:
        line.append(f"requests {number(state.last_sample.canary_requests)} changed", style="dim")
        line.append(f" / {number(state.last_sample.baseline_requests)} unchanged", style="dim")
    return line


def _metric_line(metric: MetricSample) -> Text:
    name, style = _JUDGEMENT[metric.judgement]
    line = Text(f"  {metric_title(metric.metric):<26}")
    line.append(f"changed {amount(metric.metric, metric.canary):<10}", style="bold")
    if metric.baseline is not None:
        line.append(f"unchanged {amount(metric.metric, metric.baseline):<10}")
    return line.append(f" {name}", style=style)


def _tree(workflow: Workflow) -> Tree:
    tree = Tree(Text(f"fleet {workflow.fleet_id or workflow.instance_id}  ({workflow.engine})", style="bold"), guide_style="dim")
    history = {record.index: record for record in workflow.rollout_history}
    shown: set[str] = set()
    for index, policy in enumerate(workflow.policy.stages):
        record = history.get(index)
        branch = tree.add(_stage_line(index, policy.percent, record, workflow))
        for replica in workflow.replicas:
            mine = replica.stage == index or (record is not None and replica.instance_id in record.replicas)
            if mine and replica.instance_id not in shown:
                shown.add(replica.instance_id)
                branch.add(_replica_line(replica))
    rest = [replica for replica in workflow.replicas if replica.instance_id not in shown]
    if rest:
        branch = tree.add(Text("not changed yet", style="dim"))
        for replica in rest:
            branch.add(_replica_line(replica))
    return tree


def _stage_line(index: int, share: float, record: StageRecord | None, workflow: Workflow) -> Text:
    line = Text(f"stage {index + 1}  {share:g} %")
    if record is None:
        return line.append("  waiting", style="dim")
    line.append(f"  {record.exposure_percent:.0f} % exposed", style="dim")
    if record.finished_at is None and not workflow.status.terminal:
        return line.append(f"  ▶ {title_of(workflow.status)}", style="cyan")
    name, style = _JUDGEMENT[record.judgement]
    line.append(f"  {name}", style=style)
    line.append(f"  {record.samples} samples, {number(record.requests)} requests", style="dim")
    return line.append(f"  health {record.health_score:.0f}", style="dim") if record.health_score is not None else line


def _replica_line(replica: ReplicaProgress) -> Text:
    icon, style = _PHASE[replica.phase]
    line = Text(f"{icon} {replica.instance_id}  {replica.phase}", style=style)
    return line.append(f"  {replica.message}", style="dim") if replica.message else line


def event_line(event: Event) -> str:
    """One line for a log: `  12 baking             sample_taken        text`."""
    gate = f" [{event.gate}]" if event.gate is not Gate.OPEN else ""
    return f"{event.sequence:>4} {event.status + gate:<18} {event.kind:<18} {event.message}".rstrip()


def outcome_table(outcome: Outcome) -> RenderableType:
    """Predicted against realised, metric by metric."""
    from perf_service.cli.render import plain_table

    table = plain_table("metric", "before", "after", "realised", "predicted", "interval", "held")
    for effect in outcome.effects:
        inside = {True: Text("✔", "green"), False: Text("✖", "yellow"), None: Text("")}[effect.within_prediction]
        bounds = ""
        if effect.predicted_low is not None and effect.predicted_high is not None:
            bounds = f"{effect.predicted_low:.2g} .. {effect.predicted_high:.2g}"
        predicted = ratio(effect.predicted_ratio) if effect.predicted_ratio is not None else ""
        row = (amount(effect.metric, effect.before), amount(effect.metric, effect.after), ratio(effect.ratio), predicted, bounds, inside)
        table.add_row(metric_title(effect.metric), *row)
    parts: list[RenderableType] = [table] if outcome.effects else []
    if outcome.effects and not outcome.comparable:
        parts.append(Text("not comparable: the workload changed in between", style="yellow"))
    if outcome.summary:
        parts.append(Text(outcome.summary))
    return Group(*parts)
