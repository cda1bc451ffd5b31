"""Errors that a caller can act on. One class per family, one `ErrorReason` per cause.

The rpc floor maps a reason to a gRPC status in one table; the command line prints the message as it is,
so a message says what was wrong, with which value, and what to do.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from perf_service.models.redaction import redacted


class ErrorReason(StrEnum):
    """Machine-readable cause of an error. Mirrors `perf_service.v1.ErrorReason`."""

    # Requests
    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    PAGE_TOKEN_INVALID = "PAGE_TOKEN_INVALID"
    REQUEST_ID_REUSED = "REQUEST_ID_REUSED"
    MESSAGE_TOO_LARGE = "MESSAGE_TOO_LARGE"
    # Things that are not there, or are there already
    FLEET_NOT_FOUND = "FLEET_NOT_FOUND"
    INSTANCE_NOT_FOUND = "INSTANCE_NOT_FOUND"
    SNAPSHOT_NOT_FOUND = "SNAPSHOT_NOT_FOUND"
    ANALYSIS_NOT_FOUND = "ANALYSIS_NOT_FOUND"
    PLAN_NOT_FOUND = "PLAN_NOT_FOUND"
    WORKFLOW_NOT_FOUND = "WORKFLOW_NOT_FOUND"
    FLEET_ALREADY_EXISTS = "FLEET_ALREADY_EXISTS"
    INSTANCE_ALREADY_EXISTS = "INSTANCE_ALREADY_EXISTS"
    FLEET_NOT_EMPTY = "FLEET_NOT_EMPTY"
    ETAG_MISMATCH = "ETAG_MISMATCH"
    # Collecting
    ENDPOINT_INVALID = "ENDPOINT_INVALID"
    ENDPOINT_FORBIDDEN = "ENDPOINT_FORBIDDEN"
    ENDPOINT_UNREACHABLE = "ENDPOINT_UNREACHABLE"
    ENDPOINT_TIMEOUT = "ENDPOINT_TIMEOUT"
    ENDPOINT_HTTP_STATUS = "ENDPOINT_HTTP_STATUS"
    ENDPOINT_REDIRECTED = "ENDPOINT_REDIRECTED"
    BODY_EMPTY = "BODY_EMPTY"
    BODY_NOT_METRICS = "BODY_NOT_METRICS"
    BODY_TOO_LARGE = "BODY_TOO_LARGE"
    TOO_MANY_SERIES = "TOO_MANY_SERIES"
    ENGINE_UNKNOWN = "ENGINE_UNKNOWN"
    ENGINE_MISMATCH = "ENGINE_MISMATCH"
    NOT_ENOUGH_DATA = "NOT_ENOUGH_DATA"
    # Optimizing
    KNOB_UNKNOWN = "KNOB_UNKNOWN"
    KNOB_VALUE_INVALID = "KNOB_VALUE_INVALID"
    KNOB_NOT_IN_VERSION = "KNOB_NOT_IN_VERSION"
    KNOB_NEEDS_HARDWARE = "KNOB_NEEDS_HARDWARE"
    CONFIG_CONFLICT = "CONFIG_CONFLICT"
    PLAN_EMPTY = "PLAN_EMPTY"
    PLAN_STALE = "PLAN_STALE"
    # Workflows and targets
    WORKFLOW_WRONG_STATE = "WORKFLOW_WRONG_STATE"
    WORKFLOW_ACTIVE_ON_FLEET = "WORKFLOW_ACTIVE_ON_FLEET"
    APPROVAL_STALE = "APPROVAL_STALE"
    CURSOR_OUT_OF_RANGE = "CURSOR_OUT_OF_RANGE"
    LEASE_LOST = "LEASE_LOST"
    TARGET_KIND_UNKNOWN = "TARGET_KIND_UNKNOWN"
    TARGET_UNAVAILABLE = "TARGET_UNAVAILABLE"
    TARGET_APPLY_FAILED = "TARGET_APPLY_FAILED"
    TARGET_DRIFT = "TARGET_DRIFT"
    # The service itself
    STORE_UNAVAILABLE = "STORE_UNAVAILABLE"
    STORE_READ_ONLY = "STORE_READ_ONLY"
    STORE_SCHEMA_NEWER = "STORE_SCHEMA_NEWER"
    SETTINGS_INVALID = "SETTINGS_INVALID"
    UNAUTHENTICATED = "UNAUTHENTICATED"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    RATE_LIMITED = "RATE_LIMITED"
    SHUTTING_DOWN = "SHUTTING_DOWN"
    INTERNAL = "INTERNAL"
    # Collecting from a Prometheus
    SERIES_NOT_FOUND = "SERIES_NOT_FOUND"
    SERIES_AMBIGUOUS = "SERIES_AMBIGUOUS"


class PerfServiceError(Exception):
    """Base of every expected failure.

    `metadata` holds each dynamic value of the message, so that a program need not parse prose.
    `retry_after_seconds` is set where the same call may succeed later. Errors end up in logs and with callers: secrets in the URLs of
    either are masked here, so that no one who raises need think of it.
    """

    def __init__(
        self,
        reason: ErrorReason,
        message: str,
        metadata: Mapping[str, str] | None = None,
        *,
        retry_after_seconds: float | None = None,
    ) -> None:
        self.message = redacted(message)
        super().__init__(self.message)
        self.reason = reason
        self.metadata: dict[str, str] = {name: redacted(value) for name, value in (metadata or {}).items()}
        self.retry_after_seconds = retry_after_seconds


class InvalidArgumentError(PerfServiceError):
    """A value that can never be right, whatever the state. `field` is the request's field path."""

    def __init__(
        self,
        message: str,
        *,
        field: str = "",
        reason: ErrorReason = ErrorReason.INVALID_ARGUMENT,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(reason, message, {**(metadata or {}), **({"field": field} if field else {})})
        self.field = field


class NotFoundError(PerfServiceError):
    """The named thing does not exist."""


class ConflictError(PerfServiceError):
    """The thing exists already, or another request got there first."""


class WrongStateError(PerfServiceError):
    """The call is right, but not in the present state."""


class CollectError(PerfServiceError):
    """A page could not be fetched or is not what it should be."""


class TargetError(PerfServiceError):
    """The rollout target refused, failed or cannot be reached.

    `permanent` means that the same effect cannot succeed by being tried again.
    """

    def __init__(
        self,
        reason: ErrorReason,
        message: str,
        metadata: Mapping[str, str] | None = None,
        *,
        permanent: bool = False,
    ) -> None:
        super().__init__(reason, message, metadata)
        self.permanent = permanent


class StoreError(PerfServiceError):
    """The store is locked, read-only, gone, or from another version."""
