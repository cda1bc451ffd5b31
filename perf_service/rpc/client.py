"""A synchronous client: one channel with deadlines, retries and a token, and a watch that re-attaches by itself.

channel = connect("localhost:50051", token="...")
workflow = WorkflowServiceStub(channel).StartWorkflow(request).workflow
for update in watch_workflow(channel, workflow.workflow_id): ...
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import grpc

from perf_service.rpc.methods import methods
from perf_service.v1 import workflow_service_pb2, workflow_service_pb2_grpc

DEFAULT_TIMEOUT_SECONDS: Final = 30.0
# Only what the server says it has not done. Mutations are safe to repeat by their request_id. Deadlines are set for each call instead:
# a timeout in the service config has been seen to fire early.
SERVICE_CONFIG: Final = json.dumps(
    {
        "methodConfig": [
            {
                "name": [{}],
                "retryPolicy": {
                    "maxAttempts": 4,
                    "initialBackoff": "0.2s",
                    "maxBackoff": "3s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ]
    }
)
CHANNEL_OPTIONS: Final = (
    ("grpc.service_config", SERVICE_CONFIG),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
)
_REATTACH = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED})


def connect(
    address: str,
    *,
    token: str = "",
    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
    ca_file: Path | None = None,
    cert_file: Path | None = None,
    key_file: Path | None = None,
) -> grpc.Channel:
    """A channel on which every call has a deadline, the token and, where it mutates, a request_id. `ca_file` turns TLS on."""
    if ca_file is None:
        channel = grpc.insecure_channel(address, options=CHANNEL_OPTIONS)
    else:
        pair = (key_file.read_bytes() if key_file else None, cert_file.read_bytes() if cert_file else None)
        credentials = grpc.ssl_channel_credentials(ca_file.read_bytes(), *pair)
        channel = grpc.secure_channel(address, credentials, options=CHANNEL_OPTIONS)
    return with_defaults(channel, token=token, timeout_seconds=timeout_seconds)


def with_defaults(channel: grpc.Channel, *, token: str = "", timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS) -> grpc.Channel:
    """The same defaults on a channel that is there already."""
    return grpc.intercept_channel(channel, _Defaults(token, timeout_seconds))


class _Details(NamedTuple):
    method: str
    timeout: float | None
    metadata: Any
    credentials: Any
    wait_for_ready: Any
    compression: Any


class _Details2(_Details, grpc.ClientCallDetails):
    """What the next interceptor sees."""


class _Defaults(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor):
    """Deadline (of calls with one answer: a watch has none), token, request_id."""

    def __init__(self, token: str, timeout_seconds: float) -> None:
        self._token = token
        self._timeout = timeout_seconds

    def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return continuation(self._details(client_call_details, self._timeout), _identified(client_call_details.method, request))

    def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return continuation(self._details(client_call_details, None), request)

    def _details(self, told: Any, timeout: float | None) -> _Details2:
        metadata = [*(told.metadata or ())]
        if self._token and not any(key == "authorization" for key, _ in metadata):
            metadata.append(("authorization", f"Bearer {self._token}"))
        return _Details2(
            told.method,
            told.timeout if told.timeout is not None else timeout,
            metadata,
            told.credentials,
            getattr(told, "wait_for_ready", None),
            getattr(told, "compression", None),
        )


def _identified(path: str | bytes, request: Any) -> Any:
    """A mutation without a request_id gets one, so that a retry of the transport cannot do it twice."""
    method = methods().get(path.decode() if isinstance(path, bytes) else path)
    if method is None or not method.mutating or request.request_id:
        return request
    own = type(request)()
    own.CopyFrom(request)
    own.request_id = str(uuid.uuid4())
    return own


def watch_workflow(
    channel: grpc.Channel,
    workflow_id: str,
    *,
    after_sequence: int = 0,
    give_up_seconds: float = 60.0,
    sleep: Callable[[float], None] = time.sleep,
    now: Callable[[], float] = time.monotonic,
) -> Iterator[workflow_service_pb2.WatchWorkflowResponse]:
    """A workflow's updates until it ends, across restarts of the server: no event is missed, none comes twice.

    After a break the stream begins with a fresh snapshot. Raises grpc.RpcError for anything but a server that is away, and for that after
    `give_up_seconds` without a message.
    """
    stub = workflow_service_pb2_grpc.WorkflowServiceStub(channel)
    cursor, last_sign, pause = after_sequence, now(), 0.2
    while True:
        request = workflow_service_pb2.WatchWorkflowRequest(workflow_id=workflow_id, after_sequence=cursor)
        wait: float | None = None
        try:
            for update in stub.WatchWorkflow(request):
                cursor, last_sign, pause = max(cursor, update.sequence), now(), 0.2
                if update.HasField("draining"):
                    wait = update.draining.retry_after_seconds
                else:
                    yield update
            if wait is None:
                return
        except grpc.RpcError as error:
            failed: Any = error  # of a call it always is a grpc.Call, which the type does not say
            code = failed.code()
            if code not in _REATTACH or now() - last_sign > give_up_seconds:
                raise
            wait, pause = pause, min(5.0, pause * 2)
        sleep(wait)
