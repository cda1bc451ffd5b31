"""What the server says becomes one sentence with the right exit code."""

from typing import Any

import grpc
import pytest
from google.protobuf.any_pb2 import Any as Packed
from google.rpc import code_pb2, error_details_pb2, status_pb2

from perf_service.cli.client import error_of
from perf_service.models.errors import ErrorReason, InvalidArgumentError, PerfServiceError


class Refusal(grpc.RpcError):
    """A call's error as grpc hands it out."""

    def __init__(self, code: grpc.StatusCode, text: str, *details: Any) -> None:
        self._code, self._text = code, text
        packed = []
        for detail in details:
            any_ = Packed()
            any_.Pack(detail)
            packed.append(any_)
        status = status_pb2.Status(code=code.value[0], message=text, details=packed)
        self._trailers = (("grpc-status-details-bin", status.SerializeToString()),) if details else ()

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._text

    def trailing_metadata(self) -> Any:
        return self._trailers


def test_reason_violations_and_retry_are_told() -> None:
    info = error_details_pb2.ErrorInfo(reason="INVALID_ARGUMENT", metadata={"field": "fleet_id"})
    bad = error_details_pb2.BadRequest(
        field_violations=[error_details_pb2.BadRequest.FieldViolation(field="fleet.fleet_id", description="too long")]
    )
    error = error_of(Refusal(grpc.StatusCode.INVALID_ARGUMENT, "the request is not valid", info, bad), "host:1")
    assert isinstance(error, InvalidArgumentError)
    assert error.reason is ErrorReason.INVALID_ARGUMENT
    assert error.message == "the request is not valid: fleet.fleet_id: too long [INVALID_ARGUMENT]"


def test_a_violation_that_is_the_message_itself_is_said_once() -> None:
    why = "'max_num_seqqs' is not a knob of vllm; did you mean max_num_seqs?"
    bad = error_details_pb2.BadRequest(field_violations=[error_details_pb2.BadRequest.FieldViolation(field="parameter", description=why)])
    info = error_details_pb2.ErrorInfo(reason="KNOB_UNKNOWN")
    error = error_of(Refusal(grpc.StatusCode.INVALID_ARGUMENT, why, info, bad), "host:1")
    assert error.message == f"{why} [KNOB_UNKNOWN]"


def test_a_reason_that_this_client_does_not_know_is_shown_as_it_is() -> None:
    info = error_details_pb2.ErrorInfo(reason="BRAND_NEW")
    error = error_of(Refusal(grpc.StatusCode.FAILED_PRECONDITION, "not now", info), "host:1")
    assert error.reason is ErrorReason.INTERNAL
    assert error.message == "not now [BRAND_NEW]"


def test_retry_info_says_when() -> None:
    retry = error_details_pb2.RetryInfo()
    retry.retry_delay.FromMilliseconds(2500)
    info = error_details_pb2.ErrorInfo(reason="RATE_LIMITED")
    error = error_of(Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many calls", info, retry), "host:1")
    assert error.retry_after_seconds == 2.5
    assert "try again in 2.5 s" in error.message


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (grpc.StatusCode.UNAVAILABLE, "perf-service serve"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "--timeout"),
        (grpc.StatusCode.UNIMPLEMENTED, "another version"),
    ],
)
def test_transport_errors_say_what_to_do(code: grpc.StatusCode, words: str) -> None:
    error = error_of(Refusal(code, "internals of grpc"), "host:1")
    assert type(error) is PerfServiceError
    assert words in error.message
    assert "internals" not in error.message


def test_codes_line_up_with_the_wire() -> None:
    assert grpc.StatusCode.INVALID_ARGUMENT.value[0] == code_pb2.INVALID_ARGUMENT
