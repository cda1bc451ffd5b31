"""Workflows: what is asked for, how it stands, what happened, what came of it."""

from __future__ import annotations

from perf_service.models.errors import InvalidArgumentError
from perf_service.models.metrics import Engine
from perf_service.models.workflow import (
    Approval,
    Event,
    EventKind,
    MetricSample,
    Outcome,
    RealisedEffect,
    ReplicaProgress,
    RolloutPolicy,
    StagePolicy,
    StageRecord,
    StageSample,
    Workflow,
    WorkflowRequest,
    WorkflowStatus,
)
from perf_service.rpc.convert import fleet as _fleet
from perf_service.rpc.convert import plan as _plan
from perf_service.rpc.convert.mirror import ABSENT, Codec, Mirror, enum_item
from perf_service.rpc.convert.slo import targets_of
from perf_service.v1 import engine_pb2, event_pb2, workflow_pb2

_ = (_fleet, _plan)  # the mirrors below stand on theirs
_ENGINE = enum_item(Engine, engine_pb2.Engine.DESCRIPTOR)
STATUS = enum_item(WorkflowStatus, workflow_pb2.WorkflowStatus.DESCRIPTOR)
_FACTS = frozenset({"stage", "replica", "sample", "approval", "outcome", "previous_status"})


def _set_engine(value: str, message: workflow_pb2.WorkflowSpec) -> None:
    if value in set(Engine):
        message.engine = _ENGINE.encode(value)


def _engine(message: workflow_pb2.WorkflowSpec) -> object:
    engine = _ENGINE.decode(message.engine)
    return ABSENT if engine is ABSENT else engine.value


def _set_approval(value: Approval | None, message: workflow_pb2.Workflow) -> None:
    if value is not None:
        message.approvals.append(APPROVAL.to_proto(value))


def _approval(message: workflow_pb2.Workflow) -> Approval | None:
    return APPROVAL.from_proto(message.approvals[-1]) if message.approvals else None


STAGE_POLICY = Mirror(StagePolicy, workflow_pb2.StagePolicy, message_only=frozenset({"exposure"}))
ROLLOUT_POLICY = Mirror(RolloutPolicy, workflow_pb2.RolloutPolicy)
REPLICA_PROGRESS = Mirror(ReplicaProgress, workflow_pb2.ReplicaProgress)
METRIC_SAMPLE = Mirror(MetricSample, workflow_pb2.MetricSample)
STAGE_SAMPLE = Mirror(StageSample, workflow_pb2.StageSample)
STAGE_RECORD = Mirror(StageRecord, workflow_pb2.StageRecord)
APPROVAL = Mirror(Approval, workflow_pb2.Approval)
REALISED_EFFECT = Mirror(RealisedEffect, workflow_pb2.RealisedEffect)
OUTCOME = Mirror(Outcome, workflow_pb2.Outcome)
WORKFLOW_REQUEST = Mirror(
    WorkflowRequest, workflow_pb2.WorkflowSpec, codecs={"instance_type": Codec(_set_engine, _engine)}, message_only=frozenset({"engine"})
)
WORKFLOW = Mirror(
    Workflow, workflow_pb2.Workflow, codecs={"approval": Codec(_set_approval, _approval)}, message_only=frozenset({"approvals"})
)
_EVENT = Mirror(
    Event,
    event_pb2.WorkflowEvent,
    model_only=_FACTS | {"kind"},
    message_only=frozenset(kind.value for kind in EventKind),
    register=False,
)
_EVENT_FACTS = Mirror(Event, event_pb2.EventFacts, model_only=frozenset(_EVENT.codecs) | {"kind"}, register=False)


def event_to_proto(event: Event) -> event_pb2.WorkflowEvent:
    """An event with the facts of its kind."""
    message = _EVENT.to_proto(event)
    facts = getattr(message, event.kind.value)
    facts.SetInParent()
    _EVENT_FACTS.encode_into(event, facts)
    return message


def event_from_proto(message: event_pb2.WorkflowEvent) -> Event:
    """The event. A kind that this version does not know becomes a warning, whose message still says what happened."""
    kind = message.WhichOneof("kind")
    facts = _EVENT_FACTS.decode(getattr(message, kind)) if kind else {}
    return Event(kind=EventKind(kind) if kind else EventKind.WARNING, **_EVENT.decode(message), **facts)


def request_of(spec: workflow_pb2.WorkflowSpec, *, request_id: str, requested_by: str) -> WorkflowRequest:
    """What a caller asks for. Raises InvalidArgumentError where its parts contradict each other; the manager checks the policy."""
    if not (spec.instance_id or spec.fleet_id or spec.plan_id):
        raise InvalidArgumentError("name an instance_id, a fleet_id or a plan_id to roll out to", field="workflow.fleet_id")
    if spec.instance_id and spec.fleet_id:
        raise InvalidArgumentError("name either an instance_id or a fleet_id, not both", field="workflow.instance_id")
    if spec.plan_id and spec.changes:
        raise InvalidArgumentError("name either a plan_id or changes, not both", field="workflow.changes")
    if any(stage.exposure == workflow_pb2.EXPOSURE_KIND_TRAFFIC for stage in spec.policy.stages):
        text = "no target of this server can weight traffic; use EXPOSURE_KIND_REPLICAS"
        raise InvalidArgumentError(text, field="workflow.policy.stages")
    targets_of(spec.slo_targets, "workflow.slo_targets")
    own = workflow_pb2.WorkflowSpec()
    own.CopyFrom(spec)
    own.request_id, own.requested_by = request_id, requested_by
    if spec.HasField("policy") and not spec.policy.stages:
        own.policy.stages.extend(STAGE_POLICY.to_proto(stage) for stage in RolloutPolicy().stages)
    return WORKFLOW_REQUEST.from_proto(own)
