"""Partial updates: a field mask applied to what is stored."""

from __future__ import annotations

from typing import Any, TypeVar

from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from perf_service.models.errors import InvalidArgumentError

M = TypeVar("M", bound=Message)


def merged(stored: M, patch: M, mask: FieldMask, *, output_only: frozenset[str]) -> M:
    """What is stored, with the masked fields as in the patch; without a mask all that a caller may set.

    A masked field that the patch leaves out is cleared; lists and maps are replaced as a whole. Raises InvalidArgumentError for a path
    that does not exist or that only the server sets.
    """
    result = type(stored)()
    result.CopyFrom(stored)
    paths = list(mask.paths) or [field.name for field in patch.DESCRIPTOR.fields if field.name not in output_only]
    descriptor: Any = patch.DESCRIPTOR
    for path in paths:
        if path.partition(".")[0] in output_only:
            raise InvalidArgumentError(f"update_mask names {path!r}, which only the server sets", field="update_mask")
        if not FieldMask(paths=[path]).IsValidForDescriptor(descriptor):
            raise InvalidArgumentError(f"update_mask names {path!r}, which is no field of {descriptor.name}", field="update_mask")
        names = path.split(".")
        source: Message | None = patch
        target: Message = result
        for name in names[:-1]:
            source = getattr(source, name)
            target = getattr(target, name)
        _replace(source, target, names[-1])
    return result


def _replace(source: Message | None, target: Message, name: str) -> None:
    """One field of `target` becomes that of `source`."""
    target.ClearField(name)
    if source is None:
        return
    alone = type(source)()
    alone.CopyFrom(source)
    for field in source.DESCRIPTOR.fields:
        if field.name != name:
            alone.ClearField(field.name)
    target.MergeFrom(alone)
