"""Policies and names that a workflow starts from."""

from __future__ import annotations

import pytest

from perf_service.models.errors import InvalidArgumentError
from perf_service.models.metrics import Engine
from perf_service.models.workflow import RolloutPolicy, StagePolicy, WorkflowRequest
from perf_service.workflows.admission import check_policy
from perf_service.workflows.collecting import implied_instance
from perf_service.workflows.stages import default_policy


@pytest.mark.parametrize(
    "policy",
    [
        RolloutPolicy(stages=()),
        RolloutPolicy(stages=(StagePolicy(50),)),
        RolloutPolicy(stages=(StagePolicy(50), StagePolicy(10), StagePolicy(100))),
        RolloutPolicy(stages=(StagePolicy(0), StagePolicy(100))),
        RolloutPolicy(stages=(StagePolicy(100, bake_seconds=-1),)),
        RolloutPolicy(stages=(StagePolicy(100, min_samples=0),)),
        RolloutPolicy(sample_interval_seconds=0),
        RolloutPolicy(false_alarm_probability=0),
        RolloutPolicy(slo_failures=6),
    ],
)
def test_policies_that_make_no_sense_are_refused(policy: RolloutPolicy) -> None:
    with pytest.raises(InvalidArgumentError):
        check_policy(policy)


@pytest.mark.parametrize("seconds", [0.1, 1.0, 30.0, 300.0, 3600.0])
def test_the_default_policy_fits_its_samples_into_the_bake(seconds: float) -> None:
    policy = default_policy(WorkflowRequest(instance_id="a", monitoring_duration_seconds=seconds))
    check_policy(policy)
    for stage in policy.stages:
        usable = stage.bake_seconds - policy.warmup_seconds
        assert stage.min_samples * policy.sample_interval_seconds <= usable + 1e-9


@pytest.mark.parametrize(
    ("instance_id", "engine", "endpoint"),
    [
        ("localhost:8000", Engine.VLLM, "http://localhost:8000"),
        ("10.0.0.7:9000", Engine.TGI, "http://10.0.0.7:9000"),
        ("my-engine", Engine.SGLANG, "http://localhost:30000"),
        ("https://host/base", Engine.VLLM, "https://host/base"),
    ],
)
def test_where_an_unregistered_instance_is(instance_id: str, engine: Engine, endpoint: str) -> None:
    assert implied_instance(instance_id, engine).endpoint == endpoint
