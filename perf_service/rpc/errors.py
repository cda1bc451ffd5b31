"""One table from the reason of an error to its gRPC status, and the standard details that go with it.

A caller gets `google.rpc.ErrorInfo` always, `BadRequest` where fields are wrong, `PreconditionFailure` where the state is, `RetryInfo`
where the same call may succeed later. Details travel in trailers, whose size is limited (8 KiB by default), so texts are cut.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc import StatusCode

from perf_service.models.errors import ErrorReason, InvalidArgumentError, PerfServiceError

DOMAIN: Final = "perf-service"
MAX_VIOLATIONS: Final = 20
_MAX_TEXT: Final = 1200
_MAX_VALUE: Final = 200


@dataclass(frozen=True, slots=True)
class Spec:
    """How a reason is told: its status, and after how many seconds a retry makes sense (None: it does not)."""

    code: StatusCode
    retry_seconds: float | None = None


_BAD, _STATE, _GONE = Spec(StatusCode.INVALID_ARGUMENT), Spec(StatusCode.FAILED_PRECONDITION), Spec(StatusCode.NOT_FOUND)
_THERE = Spec(StatusCode.ALREADY_EXISTS)

TABLE: Final[Mapping[ErrorReason, Spec]] = {
    ErrorReason.INVALID_ARGUMENT: _BAD,
    ErrorReason.PAGE_TOKEN_INVALID: _BAD,
    ErrorReason.REQUEST_ID_REUSED: _THERE,
    ErrorReason.MESSAGE_TOO_LARGE: Spec(StatusCode.RESOURCE_EXHAUSTED),
    ErrorReason.FLEET_NOT_FOUND: _GONE,
    ErrorReason.INSTANCE_NOT_FOUND: _GONE,
    ErrorReason.SNAPSHOT_NOT_FOUND: _GONE,
    ErrorReason.ANALYSIS_NOT_FOUND: _GONE,
    ErrorReason.PLAN_NOT_FOUND: _GONE,
    ErrorReason.WORKFLOW_NOT_FOUND: _GONE,
    ErrorReason.FLEET_ALREADY_EXISTS: _THERE,
    ErrorReason.INSTANCE_ALREADY_EXISTS: _THERE,
    ErrorReason.FLEET_NOT_EMPTY: _STATE,
    ErrorReason.ETAG_MISMATCH: Spec(StatusCode.ABORTED),
    ErrorReason.ENDPOINT_INVALID: _BAD,
    ErrorReason.ENDPOINT_FORBIDDEN: Spec(StatusCode.PERMISSION_DENIED),
    ErrorReason.ENDPOINT_UNREACHABLE: Spec(StatusCode.UNAVAILABLE, 5.0),
    ErrorReason.ENDPOINT_TIMEOUT: Spec(StatusCode.DEADLINE_EXCEEDED, 10.0),
    ErrorReason.ENDPOINT_HTTP_STATUS: _STATE,
    ErrorReason.ENDPOINT_REDIRECTED: _STATE,
    ErrorReason.BODY_EMPTY: _STATE,
    ErrorReason.BODY_NOT_METRICS: _STATE,
    ErrorReason.BODY_TOO_LARGE: _STATE,
    ErrorReason.TOO_MANY_SERIES: _STATE,
    ErrorReason.ENGINE_UNKNOWN: _STATE,
    ErrorReason.ENGINE_MISMATCH: _STATE,
    ErrorReason.NOT_ENOUGH_DATA: Spec(StatusCode.FAILED_PRECONDITION, 30.0),
    ErrorReason.SERIES_NOT_FOUND: _STATE,
    ErrorReason.SERIES_AMBIGUOUS: _STATE,
    ErrorReason.KNOB_UNKNOWN: _BAD,
    ErrorReason.KNOB_VALUE_INVALID: _BAD,
    ErrorReason.KNOB_NOT_IN_VERSION: _STATE,
    ErrorReason.KNOB_NEEDS_HARDWARE: _STATE,
    ErrorReason.CONFIG_CONFLICT: _STATE,
    ErrorReason.PLAN_EMPTY: _STATE,
    ErrorReason.PLAN_STALE: _STATE,
    ErrorReason.WORKFLOW_WRONG_STATE: _STATE,
    ErrorReason.WORKFLOW_ACTIVE_ON_FLEET: _STATE,
    ErrorReason.APPROVAL_STALE: _STATE,
    ErrorReason.CURSOR_OUT_OF_RANGE: Spec(StatusCode.OUT_OF_RANGE),
    ErrorReason.LEASE_LOST: Spec(StatusCode.ABORTED, 1.0),
    ErrorReason.TARGET_KIND_UNKNOWN: _STATE,
    ErrorReason.TARGET_UNAVAILABLE: Spec(StatusCode.UNAVAILABLE, 5.0),
    ErrorReason.TARGET_APPLY_FAILED: _STATE,
    ErrorReason.TARGET_DRIFT: _STATE,
    ErrorReason.STORE_UNAVAILABLE: Spec(StatusCode.UNAVAILABLE, 1.0),
    ErrorReason.STORE_READ_ONLY: _STATE,
    ErrorReason.STORE_SCHEMA_NEWER: _STATE,
    ErrorReason.SETTINGS_INVALID: _STATE,
    ErrorReason.UNAUTHENTICATED: Spec(StatusCode.UNAUTHENTICATED),
    ErrorReason.PERMISSION_DENIED: Spec(StatusCode.PERMISSION_DENIED),
    ErrorReason.RATE_LIMITED: Spec(StatusCode.RESOURCE_EXHAUSTED, 1.0),
    ErrorReason.SHUTTING_DOWN: Spec(StatusCode.UNAVAILABLE, 2.0),
    ErrorReason.INTERNAL: Spec(StatusCode.INTERNAL),
}


class ValidationError(InvalidArgumentError):
    """A request that breaks the rules beside its fields. `violations` are (field path, what is wrong)."""

    def __init__(self, violations: Sequence[tuple[str, str]]) -> None:
        self.violations = tuple(violations)
        shown = self.violations[:3]
        text = "; ".join(f"{field}: {message}" if field else message for field, message in shown)
        rest = len(self.violations) - len(shown)
        super().__init__(f"{text}{f'; and {rest} more' if rest else ''}", field=self.violations[0][0])


def to_status(error: PerfServiceError) -> status_pb2.Status:
    """The status that a caller gets for an error."""
    spec = TABLE[error.reason]
    details: list[Message] = [
        error_details_pb2.ErrorInfo(
            reason=error.reason.value, domain=DOMAIN, metadata={key: _cut(str(value), _MAX_VALUE) for key, value in error.metadata.items()}
        )
    ]
    if spec.code is StatusCode.INVALID_ARGUMENT:
        details.append(_bad_request(error))
    if spec.code is StatusCode.FAILED_PRECONDITION:
        subject = next((value for key, value in error.metadata.items() if key.endswith("_id")), "")
        violation = error_details_pb2.PreconditionFailure.Violation(
            type=error.reason.value, subject=_cut(subject, _MAX_VALUE), description=_cut(error.message, _MAX_VALUE)
        )
        details.append(error_details_pb2.PreconditionFailure(violations=[violation]))
    retry = error.retry_after_seconds if error.retry_after_seconds is not None else spec.retry_seconds
    if retry is not None:
        details.append(error_details_pb2.RetryInfo(retry_delay=_duration(retry)))
    return status_pb2.Status(code=_number(spec.code), message=_cut(error.message, _MAX_TEXT), details=[_packed(item) for item in details])


def internal(correlation_id: str) -> PerfServiceError:
    """What a caller gets for a defect: nothing of its text, only where to find it."""
    return PerfServiceError(
        ErrorReason.INTERNAL,
        f"internal error; report the correlation id {correlation_id}, under which the server's log has the details",
        {"correlation_id": correlation_id},
    )


def _bad_request(error: PerfServiceError) -> error_details_pb2.BadRequest:
    if isinstance(error, ValidationError):
        pairs: Sequence[tuple[str, str]] = error.violations[:MAX_VIOLATIONS]
    else:
        pairs = [(error.metadata.get("field", ""), error.message)]
    return error_details_pb2.BadRequest(
        field_violations=[
            error_details_pb2.BadRequest.FieldViolation(field=_cut(field, _MAX_VALUE), description=_cut(text, _MAX_VALUE))
            for field, text in pairs
        ]
    )


def _packed(message: Message) -> AnyMessage:
    packed = AnyMessage()
    packed.Pack(message)
    return packed


def _duration(seconds: float) -> Duration:
    whole = math.floor(seconds)
    return Duration(seconds=whole, nanos=int((seconds - whole) * 1e9))


def _number(code: grpc.StatusCode) -> int:
    number: int = code.value[0]
    return number


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
