"""Who may call: a bearer token or a client certificate, where the server asks for one; and who it was, for approvals and the audit log."""

from __future__ import annotations

import hmac
from collections.abc import AsyncIterator, Callable
from contextvars import ContextVar
from typing import Any

import structlog
from google.protobuf.message import Message

from perf_service.models.errors import ErrorReason, PerfServiceError
from perf_service.rpc.interceptors.base import Context, Interceptor, Proceed, ProceedStream, metadata_of
from perf_service.rpc.methods import Method
from perf_service.storage.ports import AuditEntry, LedgerStore

_log = structlog.get_logger("perf_service.rpc")
_principal: ContextVar[str] = ContextVar("principal", default="")


def principal() -> str:
    """Who makes the present call; empty where the server has no authentication."""
    return _principal.get()


class Access(Interceptor):
    """Refuses a call without the right token, and remembers who calls."""

    def __init__(self, token: str) -> None:
        self._token = token.encode()

    async def unary(self, method: Method, request: Any, context: Context, proceed: Proceed) -> Any:
        """Check, then go on."""
        self.check(method, context)
        return await proceed(request)

    async def stream(self, method: Method, request: Any, context: Context, proceed: ProceedStream) -> AsyncIterator[Any]:
        """Check, then go on."""
        self.check(method, context)
        async for response in proceed(request):
            yield response

    def check(self, method: Method, context: Context) -> None:
        """Raises UNAUTHENTICATED."""
        name = _certificate_name(context)
        if self._token:
            scheme, _, token = metadata_of(context, "authorization").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(token.strip().encode(), self._token):
                raise PerfServiceError(
                    ErrorReason.UNAUTHENTICATED,
                    "this server asks for a token: send the header 'authorization: Bearer <token>'",
                    {"method": method.path},
                )
            name = name or "token"
        _principal.set(name)


def _certificate_name(context: Context) -> str:
    names = context.auth_context().get("x509_common_name") or ()
    return names[0].decode("utf-8", "replace") if names else ""


class Audit(Interceptor):
    """Writes down every mutation: who, what, when, with which result."""

    def __init__(self, store: LedgerStore, *, clock: Callable[[], float]) -> None:
        self._store = store
        self._clock = clock

    async def unary(self, method: Method, request: Any, context: Context, proceed: Proceed) -> Any:
        """Run, then write."""
        if not method.mutating:
            return await proceed(request)
        result = ErrorReason.INTERNAL.value
        who = principal() or getattr(request, "principal", "") or context.peer()  # the call may be gone when the handler ends
        try:
            response = await proceed(request)
            result = "OK"
            return response
        except PerfServiceError as error:
            result = error.reason.value
            raise
        finally:
            await self._write(method, request, who, result)

    async def _write(self, method: Method, request: Any, who: str, result: str) -> None:
        entry = AuditEntry(
            at=self._clock(),
            principal=who,
            method=method.path,
            resource=_resource(request),
            request_id=getattr(request, "request_id", ""),
            result=result,
            detail=getattr(request, "reason", ""),
        )
        try:
            await self._store.add_audit(entry)
        except PerfServiceError as error:  # the call itself has succeeded or failed already
            _log.error("audit entry lost", method=method.path, resource=entry.resource, result=result, error=error.message)


def _resource(request: Any) -> str:
    """The id that the request is about."""
    for part in (request, *(value for _, value in request.ListFields() if isinstance(value, Message))):
        for field, value in part.ListFields():
            if field.name.endswith("_id") and field.name != "request_id" and isinstance(value, str):
                return value
    return ""
