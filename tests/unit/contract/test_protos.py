"""The contract holds what it promises: comments, reasons, idempotency, pages, and stubs that load everywhere."""

from __future__ import annotations

import json
import re
import tomllib
from functools import cache
from pathlib import Path

from google.api import annotations_pb2
from google.protobuf.descriptor_pb2 import MethodOptions

from perf_service.models.errors import ErrorReason
from perf_service.rpc.errors import TABLE
from perf_service.rpc.methods import FILES, methods, service_names
from perf_service.v1 import error_reason_pb2
from perf_service.v1._vendor.externalscaler import externalscaler_pb2

ROOT = Path(__file__).resolve().parents[3]
OWN = [file for file in FILES if file is not externalscaler_pb2]

# What callers build on: nothing of it may go.
EXPECTED = {
    "FleetService": "CreateFleet GetFleet ListFleets UpdateFleet DeleteFleet RegisterInstance GetInstance ListInstances UpdateInstance "
    "DeregisterInstance",
    "CollectService": "CollectMetrics ImportMetrics BackfillMetrics ListSnapshots WatchMetrics",
    "AnalyzeService": "Analyze GetAnalysis ListAnalyses WatchHealth",
    "OptimizeService": "CreatePlan GetPlan ListPlans Predict ListKnobs GetTrackRecord",
    "WorkflowService": "StartWorkflow GetWorkflow ListWorkflows WatchWorkflow ApproveWorkflow RejectWorkflow PauseWorkflow ResumeWorkflow "
    "PromoteWorkflow AbortWorkflow",
    "SystemService": "GetConfig GetCapabilities GetVersion",
}


@cache
def rpc_comments() -> dict[str, str]:
    found = {}
    for path in sorted((ROOT / "protos").rglob("*.proto")):
        for comment, name in re.findall(r"((?:^  //.*\n)+)  rpc (\w+)\(", path.read_text(), re.MULTILINE):
            found[name] = re.sub(r"^  // ?", "", comment, flags=re.MULTILINE)
    return found


@cache
def reason_comments() -> dict[str, str]:
    text = (ROOT / "protos/perf_service/v1/error_reason.proto").read_text()
    pairs = re.findall(r"((?:^  //.*\n)+)  ERROR_REASON_(\w+) = \d+;", text, re.MULTILINE)
    return {name: comment for comment, name in pairs}


def test_services_and_methods_are_those_that_callers_build_on() -> None:
    present = {s.name: " ".join(m.name for m in s.methods) for f in OWN for s in f.DESCRIPTOR.services_by_name.values()}
    assert present == EXPECTED
    assert "externalscaler.ExternalScaler" in service_names()


def test_every_rpc_tells_its_idempotency_and_its_errors() -> None:
    for name in (m.name for m in methods().values()):
        comment = rpc_comments()[name]
        assert "Idempotent" in comment, name
        head, _, errors = comment.partition("Errors:\n")
        assert head, name
        lines = [line.strip() for line in errors.strip().splitlines()]
        assert lines, f"{name} has no Errors: list"
        for line in lines:
            if line == "- none of its own.":
                continue
            match = re.fullmatch(r"- ([A-Z_]+): .+\.", line)
            assert match, f"{name}: {line!r} must name a reason and what to do"
            assert match[1] in ErrorReason.__members__, f"{name} names {match[1]}, which is no ErrorReason"


def test_error_reasons_mirror_the_models() -> None:
    names = [value.name for value in error_reason_pb2.ErrorReason.DESCRIPTOR.values]
    assert names[0] == "ERROR_REASON_UNSPECIFIED"
    assert [name.removeprefix("ERROR_REASON_") for name in names[1:]] == [reason.value for reason in ErrorReason]


def test_error_reason_has_a_worked_example_and_the_status_of_the_table() -> None:
    for reason in ErrorReason:
        comment = reason_comments()[reason.value]
        example = re.search(r"Example: (\{.*\})", comment)
        assert example, f"{reason} has no example"
        body = json.loads(example[1])
        assert body["reason"] == reason.value
        assert body["domain"] == "perf-service"
        assert body["metadata"], reason
        status = re.search(r"Status: (\w+)(, retryable)?\.", comment)
        assert status, reason
        spec = TABLE[reason]
        assert (status[1], bool(status[2])) == (spec.code.name, spec.retry_seconds is not None)


def test_every_mutation_can_be_repeated_safely_and_every_read_says_that_it_is_one() -> None:
    for file in OWN:
        for service in file.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                reads = method.GetOptions().idempotency_level == MethodOptions.NO_SIDE_EFFECTS
                has_id = "request_id" in method.input_type.fields_by_name
                assert reads != has_id, f"{method.full_name}: either it only reads, or it has a request_id"
                assert methods()[f"/{service.full_name}/{method.name}"].mutating is has_id


def test_every_listing_has_pages() -> None:
    for file in OWN:
        for service in file.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                if method.name.startswith("List"):
                    assert {"page_size", "page_token"} <= set(method.input_type.fields_by_name), method.full_name
                    assert "next_page_token" in method.output_type.fields_by_name, method.full_name


def test_every_method_has_an_http_mapping_of_its_own() -> None:
    seen: set[tuple[str, str]] = set()
    for file in OWN:
        for service in file.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                rule = method.GetOptions().Extensions[annotations_pb2.http]
                verb = rule.WhichOneof("pattern")
                assert verb, method.full_name
                route = (verb, re.sub(r"\{[^}]+\}", "{}", getattr(rule, verb)))
                assert route not in seen, route
                seen.add(route)


def test_every_stream_can_be_resumed_and_ends_with_a_last_message() -> None:
    for file in OWN:
        for service in file.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                if method.server_streaming:
                    assert {"heartbeat", "draining"} <= set(method.output_type.fields_by_name), method.full_name
                    assert method.name.startswith("Watch")


def test_stubs_install_nothing_outside_of_our_package() -> None:
    foreign = re.compile(
        r"^(?:from|import) (?!perf_service\.|google\.|grpc|collections|typing|builtins|abc|sys|warnings|__future__|types)(\S+)"
    )
    for path in (ROOT / "perf_service/v1").rglob("*.py*"):
        if path.suffix in (".py", ".pyi"):
            found = [line for line in path.read_text().splitlines() if foreign.match(line) and "typing_extensions" not in line]
            assert not found, (path.name, found)


def test_runtime_lower_bounds_are_not_below_the_generator() -> None:
    pins = dict(re.findall(r'"(grpcio-tools|mypy-protobuf)==([\d.]+)"', (ROOT / "scripts/proto.py").read_text()))
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    floors = {match[1]: match[2] for d in dependencies if (match := re.match(r"([\w-]+)>=([\d.]+)", d))}
    generated = (ROOT / "perf_service/v1/workflow_pb2.py").read_text()
    protobuf = re.search(r"Protobuf Python Version: ([\d.]+)", generated)
    assert protobuf
    assert numbers(floors["grpcio"]) >= numbers(pins["grpcio-tools"])[:2]
    assert numbers(floors["protobuf"]) >= numbers(protobuf[1])


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
