"""A thin client: one channel, a deadline on every call, and the server's own words when it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import grpc
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from perf_service.models.errors import ErrorReason, InvalidArgumentError, PerfServiceError

__all__ = ["Server", "connect", "message_json", "translated"]

R = TypeVar("R")
_CHANNEL_OPTIONS = (
    # A watch lies idle for long: notice a dead peer, but stay below the server's ping limit.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
)
_REQUEST_ERRORS = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.OUT_OF_RANGE)


class Server:
    """Calls to one server. Errors come out as PerfServiceError, in one sentence that says what to do."""

    def __init__(self, address: str, *, timeout_seconds: float = 30.0, token: str = "") -> None:
        self.address = address
        self._timeout = timeout_seconds
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()
        try:
            self._channel = grpc.insecure_channel(address, options=_CHANNEL_OPTIONS)
        except (ValueError, TypeError) as error:
            raise InvalidArgumentError(f"--server {address!r} is not HOST:PORT: {error}", field="server") from error

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def stub(self, make: Callable[[grpc.Channel], Any]) -> Any:
        """A service's stub on this channel."""
        return make(self._channel)

    def call(self, method: Callable[..., R], request: Message, *, timeout_seconds: float | None = None) -> R:
        """One unary call. Raises PerfServiceError (InvalidArgumentError where the request can never be right)."""
        with translated(self.address):
            return method(request, timeout=timeout_seconds or self._timeout, metadata=self._metadata)

    def stream(self, method: Callable[..., Any], request: Message) -> Any:
        """A server stream without a deadline; iterate it inside `translated`, `cancel()` it when done."""
        return method(request, metadata=self._metadata)


@contextmanager
def connect(address: str, *, timeout_seconds: float = 30.0, token: str = "") -> Iterator[Server]:
    """A server for the time of a command."""
    server = Server(address, timeout_seconds=timeout_seconds, token=token)
    try:
        yield server
    finally:
        server.close()


@contextmanager
def translated(address: str) -> Iterator[None]:
    """Turns a gRPC error into the exception that the command line prints."""
    try:
        yield
    except grpc.RpcError as error:
        raise error_of(error, address) from error


def error_of(error: Any, address: str) -> PerfServiceError:
    """What the server said, with its reason, field violations and retry hint; or why it could not be asked."""
    code = error.code()
    reason, metadata, violations, retry = _details(error)
    if code is grpc.StatusCode.UNAVAILABLE and reason is None:
        text = f"no server answers at {address}; start one with 'perf-service serve', or name another with --server HOST:PORT"
        return PerfServiceError(ErrorReason.ENDPOINT_UNREACHABLE, text)
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return PerfServiceError(ErrorReason.ENDPOINT_TIMEOUT, f"{address} did not answer in time; try again, or raise --timeout")
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return PerfServiceError(ErrorReason.INTERNAL, f"{address} does not know this call; is it a perf-service of another version?")
    text = error.details() or code.name
    # A violation that is the message itself (an unknown knob) is said once.
    told = [said for said, why in violations if why not in text]
    if told:
        text += ": " + "; ".join(told)
    if retry:
        text += f" (try again in {retry:g} s)"
    if reason is not None:
        text += f" [{reason}]"
    known = ErrorReason.__members__.get(reason or "", ErrorReason.INTERNAL)
    if code in _REQUEST_ERRORS:
        return InvalidArgumentError(text, reason=known, metadata=metadata)
    return PerfServiceError(known, text, metadata, retry_after_seconds=retry)


def _details(error: Any) -> tuple[str | None, dict[str, str], list[tuple[str, str]], float | None]:
    """(reason, metadata, violations as (with the field, description), seconds until a retry) of what a server attached."""
    reason, metadata, violations, retry = None, {}, [], None
    try:
        status = rpc_status.from_call(error)
    except ValueError:  # the details contradict the status: print what there is
        status = None
    for detail in status.details if status is not None else ():
        info, bad, wait = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            reason, metadata = info.reason.removeprefix("ERROR_REASON_"), dict(info.metadata)
        elif detail.Unpack(bad):
            violations = [(f"{v.field}: {v.description}" if v.field else v.description, v.description) for v in bad.field_violations]
        elif detail.Unpack(wait):
            retry = wait.retry_delay.seconds + wait.retry_delay.nanos / 1e9
    return reason, metadata, violations, retry


def message_json(message: Message) -> str:
    """Proto3 JSON with the contract's own field names."""
    return json.dumps(MessageToDict(message, preserving_proto_field_name=True), indent=2, ensure_ascii=False)
