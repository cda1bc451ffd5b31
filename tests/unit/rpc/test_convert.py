"""Round trips of every noun, and what conversion refuses."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any

import pytest

from perf_service.models.analysis import Analysis, Cause
from perf_service.models.config import EngineConfig, Source
from perf_service.models.errors import InvalidArgumentError
from perf_service.models.fleet import Fleet, Instance, PrometheusSource
from perf_service.models.metrics import Counter, Engine, Hist, Histogram, Snapshot
from perf_service.models.plan import Knob, Plan
from perf_service.models.window import Window
from perf_service.models.workflow import Event, EventKind, RealisedEffect, RolloutPolicy, StagePolicy, Workflow
from perf_service.rpc.convert.analysis import ANALYSIS
from perf_service.rpc.convert.config import ENGINE_CONFIG, changes_of
from perf_service.rpc.convert.fleet import FLEET, INSTANCE, shown_instance, with_secrets
from perf_service.rpc.convert.metrics import SNAPSHOT, WINDOW
from perf_service.rpc.convert.mirror import Mirror, seconds, timestamp
from perf_service.rpc.convert.plan import KNOB, PLAN
from perf_service.rpc.convert.slo import targets_of
from perf_service.rpc.convert.track_record import summary
from perf_service.rpc.convert.workflow import ROLLOUT_POLICY, WORKFLOW, event_from_proto, event_to_proto, request_of
from perf_service.storage.ports import LedgerEntry
from perf_service.v1 import config_pb2, event_pb2, fleet_pb2, optimize_service_pb2, slo_pb2, workflow_pb2
from tests.support.random_models import model

NOUNS: list[tuple[Mirror[Any, Any], type[Any]]] = [
    (FLEET, Fleet),
    (INSTANCE, Instance),
    (SNAPSHOT, Snapshot),
    (WINDOW, Window),
    (ANALYSIS, Analysis),
    (PLAN, Plan),
    (KNOB, Knob),
    (WORKFLOW, Workflow),
]


@pytest.mark.parametrize(("mirror", "kind"), NOUNS, ids=[kind.__name__ for _, kind in NOUNS])
def test_a_model_comes_back_as_it_went_over_the_wire(mirror: Mirror[Any, Any], kind: type[Any]) -> None:
    for seed in range(8):
        value = model(kind, random.Random(seed))
        wire = mirror.to_proto(value).SerializeToString()
        assert mirror.from_proto(mirror.message.FromString(wire)) == value, seed


@pytest.mark.parametrize("kind", list(EventKind))
def test_an_event_comes_back_with_the_facts_of_its_kind(kind: EventKind) -> None:
    event = replace(model(Event, random.Random(kind)), kind=kind)
    message = event_to_proto(event)
    assert message.WhichOneof("kind") == kind.value
    assert event_from_proto(event_pb2.WorkflowEvent.FromString(message.SerializeToString())) == event


def test_an_event_kind_of_a_newer_server_becomes_a_warning_with_its_message() -> None:
    message = event_pb2.WorkflowEvent(
        workflow_id="wf", sequence=3, status=workflow_pb2.WORKFLOW_STATUS_BAKING, gate=workflow_pb2.ROLLOUT_GATE_OPEN, message="new"
    )
    message.at.FromSeconds(5)
    event = event_from_proto(message)
    assert (event.kind.value, event.message, event.at) == ("warning", "new", 5.0)


@pytest.mark.parametrize("time", [0.0, 1.000001, 1795351916.591234, 2.0**33 + 0.999999])
def test_times_keep_their_microseconds(time: float) -> None:
    assert seconds(timestamp(time)) == time


def test_absent_is_not_zero() -> None:
    message = SNAPSHOT.to_proto(Snapshot("i", Engine.VLLM, None, counters={Counter.PREEMPTIONS: 0.0}))
    assert not message.HasField("collected_at")
    assert dict(message.counters) == {"preemptions": 0.0}
    assert "generation_tokens" not in message.counters


def test_knob_values_keep_their_type() -> None:
    config = EngineConfig.of({"a": True, "b": 1, "c": 1.0, "d": "1"})
    message = ENGINE_CONFIG.to_proto(config)
    kinds = {name: setting.value.WhichOneof("kind") for name, setting in message.settings.items()}
    assert kinds == {"a": "bool_value", "b": "int_value", "c": "double_value", "d": "string_value"}
    types = {name: type(value) for name, value in ENGINE_CONFIG.from_proto(message).values().items()}
    assert types == {"a": bool, "b": int, "c": float, "d": str}


def test_a_setting_without_a_source_was_told_by_the_caller() -> None:
    message = config_pb2.EngineConfig(settings={"a": config_pb2.Setting(value=config_pb2.KnobValue(int_value=1))})
    assert ENGINE_CONFIG.from_proto(message).source("a") is Source.USER


def test_a_snapshot_that_was_stored_with_a_secret_is_told_without() -> None:
    stored = Snapshot("i", Engine.VLLM, 1.0, endpoint="http://h/metrics?token=hush")
    assert SNAPSHOT.to_proto(stored).endpoint == "http://h/metrics?token=***"


def test_a_secret_in_a_url_is_masked_and_comes_back() -> None:
    stored = Instance(
        "i", Engine.VLLM, "http://h/metrics?token=hush", prometheus=PrometheusSource("http://p?key=hush&dedup=true", 'a="b"', "hush")
    )
    shown = shown_instance(stored)
    assert "hush" not in str(shown)
    assert (shown.endpoint, shown.prometheus.url) == ("http://h/metrics?token=***", "http://p?key=***&dedup=true")
    assert with_secrets(INSTANCE.from_proto(shown), stored) == stored
    shown.prometheus.url = "http://other?key=***&dedup=true"
    with pytest.raises(InvalidArgumentError, match=r"in full") as error:
        with_secrets(INSTANCE.from_proto(shown), stored)
    assert error.value.field == "instance.prometheus.url"
    with pytest.raises(InvalidArgumentError):
        with_secrets(Instance("j", Engine.VLLM, "http://h?token=***"), None)


def test_a_setting_without_a_value_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="value of Setting must be set"):
        ENGINE_CONFIG.from_proto(config_pb2.EngineConfig(settings={"a": config_pb2.Setting()}))


def test_a_fleet_without_an_engine_is_refused_by_name() -> None:
    with pytest.raises(InvalidArgumentError, match="engine of Fleet must be set") as caught:
        FLEET.from_proto(fleet_pb2.Fleet(fleet_id="f"))
    assert caught.value.field == "engine"


def test_an_absent_policy_field_has_the_documented_default() -> None:
    policy = ROLLOUT_POLICY.from_proto(workflow_pb2.RolloutPolicy(stages=[workflow_pb2.StagePolicy(percent=100)], warmup_seconds=0))
    assert policy == RolloutPolicy(stages=(StagePolicy(100),), warmup_seconds=0)


def test_an_assignment_without_a_value_removes_the_flag() -> None:
    items = [
        optimize_service_pb2.KnobAssignment(parameter="a"),
        optimize_service_pb2.KnobAssignment(parameter="b", value=config_pb2.KnobValue(int_value=64)),
    ]
    assert changes_of(items) == {"a": None, "b": 64}


def test_an_objective_must_name_a_known_metric() -> None:
    with pytest.raises(InvalidArgumentError, match="known: ttft") as caught:
        targets_of([slo_pb2.SLOTarget(metric_name="ttft", target_value=1), slo_pb2.SLOTarget(metric_name="speed", target_value=1)])
    assert caught.value.field == "slo_targets[1].metric_name"


@pytest.mark.parametrize(
    ("metric", "value", "side", "why"),
    [
        ("ttft_p95", 500, slo_pb2.COMPARISON_LESS_THAN, "500ms meant, which is 0.5"),
        ("itl", 50, slo_pb2.COMPARISON_UNSPECIFIED, "50ms meant"),
        ("error_ratio", 5, slo_pb2.COMPARISON_LESS_THAN, "5% meant, which is 0.05"),
        ("ttft_p95", 0.5, slo_pb2.COMPARISON_GREATER_THAN, "write ttft_p95<0.5"),
        ("throughput", 500, slo_pb2.COMPARISON_UNSPECIFIED, "write throughput>500"),
    ],
)
def test_an_objective_that_cannot_be_meant_is_refused_as_the_command_line_does(metric: str, value: float, side: Any, why: str) -> None:
    target = slo_pb2.SLOTarget(metric_name=metric, target_value=value, comparison=side)
    with pytest.raises(InvalidArgumentError, match=why) as caught:
        targets_of([target], "fleet.slo_targets")
    assert caught.value.field == "fleet.slo_targets[0].target_value"


def test_a_window_comes_with_its_rates_and_quantiles() -> None:
    histogram = Histogram(count=10, sum=2.0, bounds=(0.1, 0.5), cumulative=(5, 10))
    window = Window(
        "i", Engine.VLLM, 0.0, 10.0, 10.0, 3, counters={Counter.GENERATION_TOKENS: 50}, histograms={Hist.TTFT_SECONDS: histogram}
    )
    message = WINDOW.to_proto(window)
    assert message.rates_per_second["generation_tokens"] == 5.0
    ttft = message.summaries["ttft_seconds"]
    assert (ttft.mean, ttft.p50.value, ttft.p50.high) == (0.2, 0.1, 0.1)
    assert 0.1 < ttft.p95.value <= 0.5
    untimed = WINDOW.to_proto(Window("i", Engine.VLLM, None, None, None, 2, counters={Counter.GENERATION_TOKENS: 50}))
    assert not untimed.rates_per_second


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({}, "workflow.fleet_id"),
        ({"instance_id": "i", "fleet_id": "f"}, "workflow.instance_id"),
        ({"plan_id": "p", "changes": [config_pb2.ConfigChange(parameter="a")]}, "workflow.changes"),
        ({"fleet_id": "f", "slo_targets": [slo_pb2.SLOTarget(metric_name="x")]}, "workflow.slo_targets[0].metric_name"),
        (
            {
                "fleet_id": "f",
                "policy": workflow_pb2.RolloutPolicy(
                    stages=[workflow_pb2.StagePolicy(percent=100, exposure=workflow_pb2.EXPOSURE_KIND_TRAFFIC)]
                ),
            },
            "workflow.policy.stages",
        ),
    ],
)
def test_a_contradictory_request_is_refused(spec: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        request_of(workflow_pb2.WorkflowSpec(**spec), request_id="", requested_by="")
    assert caught.value.field == field


def test_a_request_takes_its_id_and_principal_from_the_call() -> None:
    spec = workflow_pb2.WorkflowSpec(fleet_id="f", request_id="forged", requested_by="forged", requires_approval=False)
    request = request_of(spec, request_id="r", requested_by="alice")
    assert (request.request_id, request.requested_by, request.requires_approval, request.auto_rollout) == ("r", "alice", False, True)
    assert request.policy is None


def test_a_policy_without_stages_has_the_default_ones() -> None:
    spec = workflow_pb2.WorkflowSpec(fleet_id="f", policy=workflow_pb2.RolloutPolicy(warmup_seconds=1))
    policy = request_of(spec, request_id="", requested_by="").policy
    assert policy is not None
    assert [stage.percent for stage in policy.stages] == [10, 50, 100]


def test_a_field_on_one_side_only_is_an_error_at_import() -> None:
    @dataclass(frozen=True)
    class Wrong:
        fleet_id: str = ""
        colour: str = ""

    with pytest.raises(TypeError, match=r"Wrong\.colour has no counterpart"):
        Mirror(Wrong, fleet_pb2.Fleet, register=False)
    with pytest.raises(TypeError, match="fields without a counterpart"):
        Mirror(Fleet, fleet_pb2.TargetSpec, model_only=frozenset(f for f in Fleet.__dataclass_fields__), register=False)


def test_track_record_counts_harm_and_coverage() -> None:
    def effect(ratio: float, *, within: bool | None) -> RealisedEffect:
        return RealisedEffect("ttft_seconds_mean", 1, ratio, ratio, 10, 10, None if within is None else 0.5, within_prediction=within)

    def entry(*effects: RealisedEffect, harmful: bool) -> LedgerEntry:
        return LedgerEntry("wf", "p", "vllm", "", (Cause.BATCH_LIMIT,), ("max_num_seqs",), effects, harmful, 1.0)

    record = summary(
        [entry(effect(0.5, within=True), effect(1.0, within=False), harmful=True), entry(effect(2, within=None), harmful=False)]
    )
    assert (record.rollouts, record.harmful, record.predictions, record.within_interval) == (2, 1, 2, 1)
    assert record.realised_coverage_ratio == 0.5
    assert record.median_error_ratio == pytest.approx(0.5)
    assert not summary([]).HasField("realised_coverage_ratio")
