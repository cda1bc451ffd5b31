"""Documents come back exactly, and documents of other versions as far as they can."""

from __future__ import annotations

import json
import math
import random
from typing import Any

import pytest

from perf_service.models.analysis import Analysis
from perf_service.models.config import EngineConfig, config_hash
from perf_service.models.errors import StoreError
from perf_service.models.fleet import Fleet, Instance
from perf_service.models.metrics import Engine, Gauge, Hist, Histogram, Snapshot
from perf_service.models.plan import Plan
from perf_service.models.window import Window
from perf_service.models.workflow import Event, Workflow
from perf_service.storage.codec import from_json, pack, to_json, unpack
from tests.support.random_models import model


@pytest.mark.parametrize("kind", [Snapshot, Fleet, Instance, Window, Analysis, Plan, Workflow, Event])
def test_a_model_with_every_field_survives_the_round_trip(kind: type[Any]) -> None:
    for seed in range(3):
        value = model(kind, random.Random(seed))
        assert unpack(kind, pack(value)) == value


@pytest.mark.parametrize("value", [True, False, 1, 0, 1.0, -0.5, "1", "", "true"])
def test_a_knob_value_keeps_its_type(value: bool | int | float | str) -> None:
    config = EngineConfig.of({"knob": value})
    back = from_json(EngineConfig, to_json(config)).values()["knob"]
    assert (type(back), back) == (type(value), value)
    assert config_hash(EngineConfig.of({"knob": back})) == config_hash(config)


def test_what_is_not_finite_survives() -> None:
    snapshot = Snapshot("i", Engine.TGI, None, gauges={Gauge.RUNNING_REQUESTS: math.nan, Gauge.KV_USED_TOKENS: -math.inf})
    back = unpack(Snapshot, pack(snapshot))
    assert math.isnan(back.gauges[Gauge.RUNNING_REQUESTS])
    assert back.gauges[Gauge.KV_USED_TOKENS] == -math.inf
    assert all(isinstance(name, Gauge) for name in back.gauges)


def test_collections_come_back_as_what_they_were() -> None:
    histogram = from_json(Histogram, to_json(Histogram(2.0, 1.0, (0.5, math.inf), (1.0, 2.0))))
    assert isinstance(histogram.bounds, tuple)


def test_a_document_of_an_older_version_takes_defaults_for_new_fields() -> None:
    document = json.loads(to_json(Fleet("f", Engine.VLLM, display_name="x")))
    for name in ("labels", "slo_targets", "etag", "target"):
        del document[name]
    assert from_json(Fleet, json.dumps(document)) == Fleet("f", Engine.VLLM, display_name="x")


def test_fields_of_a_newer_version_are_ignored() -> None:
    document = {**json.loads(to_json(Fleet("f", Engine.VLLM))), "quota": {"requests": 5}}
    assert from_json(Fleet, json.dumps(document)) == Fleet("f", Engine.VLLM)


@pytest.mark.parametrize(
    ("document", "names"),
    [("{", "Fleet"), ("[]", "Fleet"), ('{"fleet_id": "f"}', "engine"), ('{"fleet_id": "f", "engine": "triton"}', "triton")],
)
def test_an_unreadable_document_says_why(document: str, names: str) -> None:
    with pytest.raises(StoreError, match=names):
        from_json(Fleet, document)


def test_damaged_compression_is_told() -> None:
    data = bytearray(pack(Snapshot("i" * 2000, Engine.VLLM, 1.0)))
    data[10] ^= 0xFF
    with pytest.raises(StoreError, match="Snapshot"):
        unpack(Snapshot, bytes(data))


def test_a_scrape_is_compressed() -> None:
    numbers = tuple(float(b) for b in range(30))
    histograms = {name: Histogram(9.0, 2.0, numbers, numbers) for name in Hist}
    snapshot = Snapshot("i", Engine.VLLM, 1.0, histograms=histograms)
    assert len(pack(snapshot)) < len(to_json(snapshot)) / 4
    assert unpack(Snapshot, pack(snapshot)) == snapshot
