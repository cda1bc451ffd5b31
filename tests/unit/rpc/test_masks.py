"""Partial updates."""

from __future__ import annotations

import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from perf_service.models.errors import InvalidArgumentError
from perf_service.rpc.masks import merged
from perf_service.v1 import engine_pb2, fleet_pb2, slo_pb2

OUTPUT = frozenset({"fleet_id", "etag"})
STORED = fleet_pb2.Fleet(
    fleet_id="f",
    engine=engine_pb2.ENGINE_VLLM,
    display_name="old",
    target=fleet_pb2.TargetSpec(kind=fleet_pb2.TARGET_KIND_LOCAL, options={"command": "x", "host": "h"}),
    slo_targets=[slo_pb2.SLOTarget(metric_name="ttft", target_value=1)],
    labels={"a": "1", "b": "2"},
    etag="e",
)


def update(patch: fleet_pb2.Fleet, *paths: str) -> fleet_pb2.Fleet:
    return merged(STORED, patch, FieldMask(paths=paths), output_only=OUTPUT)


def test_only_the_masked_field_changes() -> None:
    result = update(fleet_pb2.Fleet(display_name="new", model_name="m"), "display_name")
    assert (result.display_name, result.model_name, result.etag) == ("new", "", "e")
    assert result.target == STORED.target


def test_lists_and_maps_are_replaced_as_a_whole() -> None:
    result = update(fleet_pb2.Fleet(labels={"c": "3"}, slo_targets=[]), "labels", "slo_targets")
    assert (dict(result.labels), len(result.slo_targets)) == ({"c": "3"}, 0)


def test_a_nested_path_leaves_its_siblings() -> None:
    result = update(fleet_pb2.Fleet(target=fleet_pb2.TargetSpec(options={"command": "y"})), "target.options")
    assert (result.target.kind, dict(result.target.options)) == (fleet_pb2.TARGET_KIND_LOCAL, {"command": "y"})


def test_without_a_mask_all_that_a_caller_may_set_is_replaced() -> None:
    result = update(fleet_pb2.Fleet(fleet_id="f", engine=engine_pb2.ENGINE_TGI, etag="forged"))
    assert (result.engine, result.display_name, result.fleet_id, result.etag) == (engine_pb2.ENGINE_TGI, "", "f", "e")
    assert not result.HasField("target")


@pytest.mark.parametrize(("path", "text"), [("colour", "no field"), ("etag", "only the server"), ("labels.a", "no field")])
def test_a_wrong_path_is_refused(path: str, text: str) -> None:
    with pytest.raises(InvalidArgumentError, match=text):
        update(fleet_pb2.Fleet(), path)
