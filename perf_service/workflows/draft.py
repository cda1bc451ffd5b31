"""The next state while it is being written: keeps the event sequence gap-free and one STATE_CHANGED per transition."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from perf_service.models.errors import ErrorReason
from perf_service.models.workflow import (
    Approval,
    Event,
    EventKind,
    Gate,
    Outcome,
    ReplicaProgress,
    StageRecord,
    StageSample,
    Workflow,
    WorkflowStatus,
)
from perf_service.workflows.types import Action, Decision

_GATELESS = frozenset({WorkflowStatus.ROLLING_BACK, WorkflowStatus.ROLLBACK_INCOMPLETE})


class Draft:
    """Changes to one workflow at one time, gathered into a `Decision`."""

    def __init__(self, workflow: Workflow, now: float) -> None:
        self.workflow = workflow
        self.now = now
        self._events: list[Event] = []
        self._actions: list[Action] = []
        self._write_ledger = False

    def set(self, **changes: Any) -> None:
        """Change fields of the workflow."""
        self.workflow = replace(self.workflow, **changes)

    def emit(
        self,
        kind: EventKind,
        message: str,
        *,
        reason: str = "",
        stage: StageRecord | None = None,
        replica: ReplicaProgress | None = None,
        sample: StageSample | None = None,
        approval: Approval | None = None,
        outcome: Outcome | None = None,
        previous_status: WorkflowStatus | None = None,
        details: Mapping[str, str] | None = None,
    ) -> None:
        """Append the next event; its status and gate are the present ones."""
        sequence = self.workflow.last_sequence + 1
        self._events.append(
            Event(
                workflow_id=self.workflow.workflow_id,
                sequence=sequence,
                at=self.now,
                kind=kind,
                status=self.workflow.status,
                gate=self.workflow.gate,
                message=message,
                reason=reason,
                stage=stage,
                replica=replica,
                sample=sample,
                approval=approval,
                outcome=outcome,
                previous_status=previous_status,
                details=dict(details or {}),
            )
        )
        self.set(last_sequence=sequence)

    def move(self, status: WorkflowStatus, message: str, *, reason: ErrorReason | str = "", deadline: float | None = None) -> None:
        """One transition with its event. A terminal state and a rollback know no gate; `reason` is kept as the failure's."""
        before = self.workflow.status
        text = reason.value if isinstance(reason, ErrorReason) else reason
        changes: dict[str, Any] = {
            "status": status,
            "message": message,
            "phase_started_at": self.now,
            "phase_deadline": deadline,
        }
        if text:
            changes["failure_reason"] = text
        if status.terminal or status in _GATELESS:
            changes.update(gate=Gate.OPEN, held_since=None, paused_at=None)
        if status.terminal:
            changes["finished_at"] = self.now
        self.set(**changes)
        self.emit(EventKind.STATE_CHANGED, message, reason=text, previous_status=before)

    def gate(self, gate: Gate, message: str, *, reason: str = "") -> None:
        """Change the gate with its event; nothing if it is so already."""
        if self.workflow.gate is gate:
            return
        self.set(gate=gate, message=message)
        self.emit(EventKind.GATE_CHANGED, message, reason=reason)

    def replica(self, progress: ReplicaProgress, message: str = "") -> None:
        """Replace one replica's progress; with an event where there is something to say."""
        if message:
            progress = replace(progress, message=message)
        replicas = tuple(progress if r.instance_id == progress.instance_id else r for r in self.workflow.replicas)
        self.set(replicas=replicas)
        if message:
            self.emit(EventKind.REPLICA_CHANGED, message, replica=progress)

    def stage(self, record: StageRecord) -> None:
        """Add or replace a stage's record in the history."""
        history = [r for r in self.workflow.rollout_history if r.index != record.index]
        self.set(rollout_history=tuple(sorted((*history, record), key=lambda r: r.index)))

    def act(self, action: Action) -> None:
        """Ask for an effect."""
        self._actions.append(action)

    def ledger(self) -> None:
        """Ask for the ledger entry, before the state is stored."""
        self._write_ledger = True

    def done(self) -> Decision:
        """The decision."""
        if self._events:
            self.set(updated_at=max(self.now, self.workflow.updated_at))
        return Decision(self.workflow, tuple(self._events), tuple(self._actions), self._write_ledger)
