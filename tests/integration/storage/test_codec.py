"""An instance of every class that is ever stored, with everything it may hold, comes back exactly."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from perf_service.models.analysis import Analysis
from perf_service.models.config import EngineConfig, config_hash
from perf_service.models.fleet import Fleet, Instance
from perf_service.models.metrics import Snapshot
from perf_service.models.plan import Plan
from perf_service.models.slo import SLOTarget
from perf_service.models.window import Window
from perf_service.models.workflow import Event, Workflow
from perf_service.storage.codec import from_json, pack, to_json, unpack
from tests.support.examples import examples

# An instance of every class that is ever stored, with everything it may hold, is drawn from its type hints. Collections stay short:
# what matters is the variety of types, and the models nest up to eight deep.
_FLOATS = st.floats(allow_nan=False)


_SCALARS = st.one_of(st.booleans(), st.integers(), _FLOATS, st.text(max_size=8))


_SLOS = st.builds(
    SLOTarget,
    metric_name=st.sampled_from(["ttft", "itl_p99"]),
    target_value=st.floats(allow_nan=False, allow_infinity=False),
    comparison=st.sampled_from(["less_than", "greater_than"]),
    objective_ratio=st.none() | st.floats(0.01, 0.99),
)


st.register_type_strategy(float, _FLOATS)
st.register_type_strategy(str, st.text(max_size=8))
st.register_type_strategy(SLOTarget, _SLOS)


@pytest.mark.parametrize("cls", [Snapshot, Fleet, Instance, Window])
@settings(max_examples=examples(20), deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_model_survives_the_round_trip(cls: type[Any], data: st.DataObject) -> None:
    value = data.draw(st.from_type(cls))
    assert unpack(cls, pack(value)) == value


@pytest.mark.parametrize("cls", [Analysis, Plan, Workflow, Event])
@settings(max_examples=examples(6), deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_large_model_survives_the_round_trip(cls: type[Any], data: st.DataObject) -> None:
    value = data.draw(st.from_type(cls))
    assert from_json(cls, to_json(value)) == value


@settings(max_examples=examples(40), deadline=None)
@given(st.dictionaries(st.text(min_size=1, max_size=10), _SCALARS, max_size=6))
def test_knob_values_keep_their_type(values: dict[str, bool | int | float | str]) -> None:
    config = EngineConfig.of(values)
    back = from_json(EngineConfig, to_json(config)).values()
    assert [(k, type(v), v) for k, v in back.items()] == [(k, type(v), v) for k, v in values.items()]
    assert config_hash(EngineConfig.of(back)) == config_hash(config)
