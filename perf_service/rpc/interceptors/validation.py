"""The rules beside the fields, once, at the edge: what comes behind may rely on them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import protovalidate

from perf_service.models.errors import ErrorReason, PerfServiceError
from perf_service.rpc.errors import ValidationError
from perf_service.rpc.interceptors.base import Context, Interceptor, Proceed, ProceedStream
from perf_service.rpc.methods import Method


class Validation(Interceptor):
    """Refuses a request that is too large or breaks a rule."""

    def __init__(self, *, max_message_bytes: int) -> None:
        self._max_message_bytes = max_message_bytes
        self._validator = protovalidate.Validator()

    async def unary(self, method: Method, request: Any, context: Context, proceed: Proceed) -> Any:
        """Check, then go on."""
        self.check(request)
        return await proceed(request)

    async def stream(self, method: Method, request: Any, context: Context, proceed: ProceedStream) -> AsyncIterator[Any]:
        """Check, then go on."""
        self.check(request)
        async for response in proceed(request):
            yield response

    def check(self, request: Any) -> None:
        """Raises MESSAGE_TOO_LARGE, or INVALID_ARGUMENT with every violation."""
        size = request.ByteSize()
        if size > self._max_message_bytes:
            raise PerfServiceError(
                ErrorReason.MESSAGE_TOO_LARGE,
                f"the request has {size} bytes, {self._max_message_bytes} are allowed; send less at a time",
                {"size_bytes": str(size), "limit_bytes": str(self._max_message_bytes)},
            )
        violations = self._validator.collect_violations(request)
        if violations:
            raise ValidationError([(_path(v.proto.field), _text(v.proto)) for v in violations])


# Rules whose own text is for programmers.
_TEXTS = {
    "string.pattern": "must consist of letters, digits and . _ : - and begin and end with a letter or digit (a knob: lower case and _)",
    "enum.not_in": "must be set",
}


def _text(violation: Any) -> str:
    if text := _TEXTS.get(violation.rule_id):
        return text
    return str(violation.message or violation.rule_id)


def _path(field: Any) -> str:
    """`workflow.policy.stages[2].percent`; empty for a rule over the whole message."""
    parts = []
    for element in field.elements if field is not None else ():
        subscript = element.subscript
        suffix = "" if subscript is None else f"[{getattr(subscript, 'value', subscript)}]"
        parts.append(f"{element.field_name}{suffix}")
    return ".".join(parts)
