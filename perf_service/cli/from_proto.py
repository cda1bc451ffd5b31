"""Messages of the service as the models that the views print. The contract and the models share their field names, so this is generic.

What a message does not carry takes the model's default; what a newer server adds is passed over.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from enum import StrEnum
from functools import cache
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from perf_service.models.config import EngineConfig, Setting, Source
from perf_service.models.workflow import Event, EventKind, Workflow

__all__ = ["event_of", "to_model", "workflow_of"]

M = TypeVar("M")
E = TypeVar("E", bound=StrEnum)


def to_model(message: Message, kind: type[M]) -> M:
    """A dataclass of the models from the message of the same shape."""
    values: dict[str, Any] = {}
    hints = _hints(cast(Any, kind))
    for field in dataclasses.fields(cast(Any, kind)):
        descriptor = message.DESCRIPTOR.fields_by_name.get(field.name)
        if descriptor is None or not field.init:
            continue
        value = _value(message, field.name, descriptor, hints[field.name])
        if value is not None or _optional(hints[field.name]):
            values[field.name] = value
    for field in dataclasses.fields(cast(Any, kind)):
        if field.name not in values and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            values[field.name] = _empty(hints[field.name])
    return kind(**values)


def workflow_of(message: Any) -> Workflow:
    """A workflow; the newest approval is the one that counts."""
    from perf_service.models.workflow import Approval

    workflow = to_model(message, Workflow)
    if len(message.approvals):
        workflow = dataclasses.replace(workflow, approval=to_model(message.approvals[-1], Approval))
    return workflow


def event_of(message: Any) -> Event:
    """An event with the facts of its kind."""
    kind = message.WhichOneof("kind")
    event = to_model(message, Event)
    known = {member.value for member in EventKind}
    if kind is None or kind not in known:
        return dataclasses.replace(event, kind=EventKind.WARNING)
    facts = getattr(message, kind)
    hints = _hints(Event)
    found = {
        name: _value(facts, name, descriptor, hints[name]) for name, descriptor in facts.DESCRIPTOR.fields_by_name.items() if name in hints
    }
    return dataclasses.replace(event, kind=EventKind(kind), **{name: value for name, value in found.items() if value is not None})


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _optional(hint: Any) -> bool:
    return type(None) in get_args(hint)


def _bare(hint: Any) -> Any:
    """The hint without `| None`."""
    if get_origin(hint) not in (Union, types.UnionType):
        return hint
    rest = [arm for arm in get_args(hint) if arm is not type(None)]
    return rest[0] if len(rest) == 1 else Union[tuple(rest)]  # noqa: UP007  (built at run time)


def _value(message: Message, name: str, descriptor: Any, hint: Any) -> Any:
    bare = _bare(hint)
    raw = getattr(message, name)
    if get_origin(bare) is tuple and hasattr(raw, "__len__") and not isinstance(raw, str | bytes):
        return tuple(_single(item, descriptor, get_args(bare)[0]) for item in raw)
    if get_origin(bare) is Mapping or (isinstance(get_origin(bare), type) and issubclass(get_origin(bare), Mapping)):
        return _mapping(raw, get_args(bare))
    if descriptor.has_presence and not message.HasField(name):
        return None
    return _single(raw, descriptor, bare)


def _mapping(raw: Any, arguments: tuple[Any, ...]) -> dict[Any, Any]:
    """A map with plain values or models; keys that are names of an enum become its members, unknown ones are left out."""
    if not hasattr(raw, "items"):
        return {}
    key_kind, item_kind = arguments
    if item_kind not in (str, float, int, bool) and not dataclasses.is_dataclass(item_kind):
        return {}
    known = {member.value: member for member in key_kind} if isinstance(key_kind, type) and issubclass(key_kind, StrEnum) else None
    items = {}
    for name, item in raw.items():
        key = name if known is None else known.get(name)
        if key is not None:
            items[key] = to_model(item, cast(type[Any], item_kind)) if isinstance(item, Message) else item
    return items


def _single(raw: Any, descriptor: Any, hint: Any) -> Any:
    bare = _bare(hint)
    if isinstance(raw, Timestamp):
        return raw.seconds + raw.nanos / 1e9
    if isinstance(raw, Message):
        if raw.DESCRIPTOR.name == "KnobValue":
            kind = raw.WhichOneof("kind")
            return getattr(raw, kind) if kind else None
        if bare is EngineConfig:
            return _config(raw)
        return to_model(raw, cast(type[Any], bare)) if dataclasses.is_dataclass(bare) else None
    if isinstance(bare, type) and issubclass(bare, StrEnum):
        return _member(raw, descriptor.enum_type, bare)
    return raw


def _member(number: int, enum_type: Any, kind: type[E]) -> E | None:
    """`CAUSE_BATCH_LIMIT` -> `Cause.BATCH_LIMIT`; None for unspecified and for what this client does not know."""
    entry = enum_type.values_by_number.get(number) if enum_type is not None else None
    matches = [member for member in kind if entry is not None and entry.name.endswith("_" + member.name)]
    return max(matches, key=lambda member: len(member.name), default=None)


def _config(message: Any) -> EngineConfig:
    settings = {}
    for name, setting in message.settings.items():
        kind = setting.value.WhichOneof("kind")
        if kind:
            enum_type = setting.DESCRIPTOR.fields_by_name["source"].enum_type
            source = _member(setting.source, enum_type, Source) or Source.USER
            settings[name] = Setting(getattr(setting.value, kind), source)
    return EngineConfig(settings)


def _empty(hint: Any) -> Any:
    """A value for a field that has no default and was not sent."""
    bare = _bare(hint)
    if _optional(hint):
        return None
    if isinstance(bare, type) and issubclass(bare, StrEnum):
        return next(iter(bare))
    if get_origin(bare) is tuple:
        return ()
    if isinstance(bare, type) and issubclass(bare, str | bool | int | float):
        return bare()
    return to_empty(bare)


def to_empty(kind: Any) -> Any:
    """A model with nothing in it."""
    hints = _hints(kind)
    required = [f for f in dataclasses.fields(kind) if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING]
    return kind(**{f.name: _empty(hints[f.name]) for f in required})
