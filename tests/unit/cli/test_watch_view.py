"""The picture of a rollout follows its events."""

import dataclasses

from rich.console import Console, RenderableType

from perf_service.cli.watch_view import WatchState, event_line, exit_code, outcome_table, picture
from perf_service.models.config import ConfigChange
from perf_service.models.metrics import Engine
from perf_service.models.workflow import (
    Event,
    EventKind,
    Gate,
    Judgement,
    MetricSample,
    Outcome,
    RealisedEffect,
    ReplicaPhase,
    ReplicaProgress,
    StageRecord,
    StageSample,
    Workflow,
    WorkflowRequest,
    WorkflowStatus,
)

WORKFLOW = Workflow(
    "wf-1",
    WorkflowRequest(),
    Engine.VLLM,
    status=WorkflowStatus.APPLYING,
    fleet_id="chat",
    changes=(ConfigChange("max_num_seqs", 2, 64),),
    stage_index=0,
    replicas=tuple(ReplicaProgress(f"r{i}", stage=0 if i == 0 else 1) for i in range(4)),
    created_at=100.0,
    last_sequence=3,
)


def event(sequence: int, kind: EventKind, status: WorkflowStatus, **more: object) -> Event:
    return Event("wf-1", sequence, 110.0 + sequence, kind, status, Gate.OPEN, f"message {sequence}", **more)  # type: ignore[arg-type]


def shown(view: RenderableType, width: int = 80) -> str:
    console = Console(width=width, color_system=None, force_terminal=False)
    with console.capture() as capture:
        console.print(view)
    return capture.get()


def test_events_bring_the_picture_forward() -> None:
    state = WatchState(WORKFLOW)
    assert state.sequence == 3
    stage = StageRecord(0, 10.0, ("r0",), 25.0, 111.0)
    sample = StageSample(112.0, 114.0, 12.0, 40.0, (MetricSample("ttft_seconds_mean", 0.05, 1.2, None, Judgement.PASS),), Judgement.PASS)
    state.apply(event(4, EventKind.STAGE_STARTED, WorkflowStatus.APPLYING, stage=stage))
    state.apply(event(5, EventKind.REPLICA_CHANGED, WorkflowStatus.BAKING, replica=ReplicaProgress("r0", ReplicaPhase.CONVERGED, stage=0)))
    state.apply(event(6, EventKind.SAMPLE_TAKEN, WorkflowStatus.BAKING, sample=sample))
    text = shown(picture(state, now=130.0))
    assert state.sequence == 6
    assert "BAKING" in text
    assert "stage 1/3" in text
    assert "1 of 4 replicas changed (25.0 %)" in text
    assert "max_num_seqs 2 -> 64" in text
    assert "1 ✔ pass" in text
    assert "changed 50.0 ms" in text
    assert "unchanged 1.20 s" in text
    assert "● r0  converged" in text


def test_every_replica_is_shown_once_and_the_picture_fits_80_columns() -> None:
    history = (StageRecord(0, 10.0, ("r0",), 25.0, 1.0, 2.0, Judgement.PASS, 5, 100.0, 92.0), StageRecord(1, 50.0, ("r0", "r1"), 50.0, 3.0))
    text = shown(picture(WatchState(dataclasses.replace(WORKFLOW, rollout_history=history, stage_index=1)), now=130.0))
    assert [text.count(f" r{i} ") for i in range(4)] == [1, 1, 1, 1]
    assert "health 92" in text
    assert max(map(len, text.splitlines())) <= 80


def test_a_new_stage_starts_its_own_tally() -> None:
    state = WatchState(WORKFLOW)
    state.apply(event(4, EventKind.SAMPLE_TAKEN, WorkflowStatus.BAKING, sample=StageSample(1, 2, 1, 1, judgement=Judgement.FAIL)))
    assert state.tally[Judgement.FAIL] == 1
    state.apply(event(5, EventKind.STAGE_STARTED, WorkflowStatus.APPLYING, stage=StageRecord(1, 50.0, ("r0", "r1"), 50.0, 3.0)))
    assert not state.tally


def test_paused_is_seen() -> None:
    state = WatchState(WORKFLOW)
    paused = dataclasses.replace(event(4, EventKind.GATE_CHANGED, WorkflowStatus.BAKING), gate=Gate.PAUSED)
    state.apply(paused)
    assert "PAUSED" in shown(picture(state, now=130.0))
    assert "[paused]" in event_line(paused)


def test_exit_codes_are_what_scripts_rely_on() -> None:
    assert exit_code(WorkflowStatus.COMPLETED) == 0
    assert exit_code(WorkflowStatus.ROLLED_BACK) == 2
    assert {exit_code(s) for s in (WorkflowStatus.FAILED, WorkflowStatus.REJECTED, WorkflowStatus.CANCELLED)} == {1}


def test_the_outcome_sets_predicted_beside_realised() -> None:
    effects = (
        RealisedEffect("ttft_seconds_mean", 1.2, 0.06, 0.05, 200, 300, 0.06, 0.03, 0.1, True),
        RealisedEffect("itl_seconds_mean", 0.011, 0.021, 1.9, 200, 300, None, None, None, None),
    )
    text = shown(outcome_table(Outcome(effects, False, "TTFT fell to a twentieth")))
    assert "✔" in text
    assert "0.03 .. 0.1" in text
    assert "x 0.0500" in text
    assert "not comparable" in text
    assert "TTFT fell to a twentieth" in text
