"""Every reason has its status, its details, and no more text than trailers carry."""

from __future__ import annotations

from google.rpc import code_pb2, error_details_pb2, status_pb2

from perf_service.models.errors import ErrorReason, InvalidArgumentError, NotFoundError, PerfServiceError, WrongStateError
from perf_service.rpc.errors import TABLE, ValidationError, internal, to_status


def details(status: status_pb2.Status) -> dict[str, object]:
    found: dict[str, object] = {}
    for packed in status.details:
        for kind in (
            error_details_pb2.ErrorInfo,
            error_details_pb2.BadRequest,
            error_details_pb2.RetryInfo,
            error_details_pb2.PreconditionFailure,
        ):
            message = kind()
            if packed.Unpack(message):
                assert kind.__name__ not in found, "each detail at most once"
                found[kind.__name__] = message
    assert len(found) == len(status.details)
    return found


def test_the_table_knows_every_reason() -> None:
    assert set(TABLE) == set(ErrorReason)


def test_every_reason_carries_its_info_and_fits_into_trailers() -> None:
    for reason in ErrorReason:
        status = to_status(PerfServiceError(reason, "m" * 100_000, {"workflow_id": "v" * 100_000}))
        info = details(status)["ErrorInfo"]
        assert isinstance(info, error_details_pb2.ErrorInfo)
        assert (info.reason, info.domain) == (reason.value, "perf-service")
        assert status.code == code_pb2.Code.Value(TABLE[reason].code.name)
        assert status.ByteSize() < 8192


def test_where_a_retry_helps_it_says_when() -> None:
    found = details(to_status(PerfServiceError(ErrorReason.STORE_UNAVAILABLE, "locked", retry_after_seconds=2.5)))
    retry = found["RetryInfo"]
    assert isinstance(retry, error_details_pb2.RetryInfo)
    assert (retry.retry_delay.seconds, retry.retry_delay.nanos) == (2, 500_000_000)
    assert "RetryInfo" not in details(to_status(NotFoundError(ErrorReason.FLEET_NOT_FOUND, "gone")))


def test_a_wrong_state_names_its_subject() -> None:
    error = WrongStateError(ErrorReason.WORKFLOW_WRONG_STATE, "it has ended", {"status": "completed", "workflow_id": "wf-1"})
    failure = details(to_status(error))["PreconditionFailure"]
    assert isinstance(failure, error_details_pb2.PreconditionFailure)
    assert [(v.type, v.subject, v.description) for v in failure.violations] == [("WORKFLOW_WRONG_STATE", "wf-1", "it has ended")]


def test_a_wrong_field_is_named() -> None:
    bad = details(to_status(InvalidArgumentError("no", field="workflow.fleet_id")))["BadRequest"]
    assert isinstance(bad, error_details_pb2.BadRequest)
    assert [(v.field, v.description) for v in bad.field_violations] == [("workflow.fleet_id", "no")]


def test_violations_are_capped_and_the_message_stays_short() -> None:
    status = to_status(ValidationError([(f"changes[{i}].parameter", "wrong " * 100) for i in range(500)]))
    bad = details(status)["BadRequest"]
    assert isinstance(bad, error_details_pb2.BadRequest)
    assert len(bad.field_violations) == 20
    assert status.ByteSize() < 8192
    assert "and 497 more" in ValidationError([(f"f{i}", "x") for i in range(500)]).message


def test_a_defect_shows_only_its_correlation_id() -> None:
    status = to_status(internal("abc123"))
    assert status.code == code_pb2.INTERNAL
    assert "abc123" in status.message
