"""Conversion between a model (frozen dataclass) and its message, derived once from the two shapes, which mirror each other.

What differs between them is told in the module of each noun; a field that exists on one side only and is not told is an error at
import time, so the contract and the models cannot drift apart unseen.
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any, Final, Generic, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from google.protobuf import message_factory
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from perf_service.models.config import KnobValue
from perf_service.models.errors import InvalidArgumentError
from perf_service.v1 import config_pb2

M = TypeVar("M")
P = TypeVar("P", bound=Message)
Descriptor = Any  # the two implementations of protobuf have types of their own

ABSENT: Final[Any] = object()
"""Decoded from a field that is not set: the model's default applies."""


@dataclasses.dataclass(frozen=True)
class Codec:
    """Both directions of one field. `decode` may return ABSENT."""

    encode: Callable[[Any, Any], None]  # (model value, message)
    decode: Callable[[Any], Any]  # (message)


@dataclasses.dataclass(frozen=True)
class Item:
    """Both directions of one value, as it stands in a list, a map or a message field."""

    encode: Callable[[Any], Any]
    decode: Callable[[Any], Any]


_REGISTRY: dict[type[Any], Mirror[Any, Any]] = {}


class Mirror(Generic[M, P]):
    """A model and its message. `codecs` replaces what would be derived for a model's field, `derived` fills fields that only the message
    has from an attribute of the model, `model_only` and `message_only` are left alone."""

    def __init__(
        self,
        model: type[M],
        message: type[P],
        *,
        codecs: Mapping[str, Codec] | None = None,
        derived: Mapping[str, str] | None = None,
        model_only: frozenset[str] = frozenset(),
        message_only: frozenset[str] = frozenset(),
        register: bool = True,
    ) -> None:
        self.model, self.message = model, message
        self.derived = dict(derived or {})
        hints = get_type_hints(model)
        fields = {field.name: field for field in dataclasses.fields(cast(Any, model)) if field.name not in model_only}
        descriptors = message.DESCRIPTOR.fields_by_name
        self.codecs: dict[str, Codec] = {}
        for name, field in fields.items():
            if codecs and name in codecs:
                self.codecs[name] = codecs[name]
            elif name in descriptors:
                self.codecs[name] = _codec(name, hints[name], descriptors[name], field)
            else:
                raise TypeError(f"{model.__name__}.{name} has no counterpart in {message.DESCRIPTOR.full_name}")
        unmatched = set(descriptors) - set(fields) - set(self.derived) - message_only
        if unmatched:
            raise TypeError(f"{message.DESCRIPTOR.full_name} has fields without a counterpart in {model.__name__}: {sorted(unmatched)}")
        if register:
            _REGISTRY[model] = self

    def to_proto(self, value: M) -> P:
        """The message of a model."""
        message = self.message()
        self.encode_into(value, message)
        return message

    def encode_into(self, value: M, message: Any) -> None:
        """Fill a message from a model."""
        for name, codec in self.codecs.items():
            codec.encode(getattr(value, name), message)
        for name, attribute in self.derived.items():
            setattr(message, name, getattr(value, attribute))

    def from_proto(self, message: P) -> M:
        """The model of a message. Raises InvalidArgumentError where a field is missing that the model cannot do without."""
        values = self.decode(message)
        for field in dataclasses.fields(cast(Any, self.model)):
            if field.name not in values and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
                raise InvalidArgumentError(f"{field.name} of {self.message.DESCRIPTOR.name} must be set", field=field.name)
        return self.model(**values)

    def decode(self, message: P) -> dict[str, Any]:
        """The model's fields that the message has."""
        found = {name: codec.decode(message) for name, codec in self.codecs.items()}
        return {name: value for name, value in found.items() if value is not ABSENT}


def optional(hint: Any) -> tuple[Any, bool]:
    """The hint without `| None`, and whether it had it."""
    if get_origin(hint) not in (Union, types.UnionType):
        return hint, False
    arms = [arm for arm in get_args(hint) if arm is not type(None)]
    bare = arms[0] if len(arms) == 1 else Union[tuple(arms)]  # noqa: UP007 (built at run time)
    return bare, len(arms) < len(get_args(hint))


def _codec(name: str, hint: Any, descriptor: Descriptor, field: dataclasses.Field[Any]) -> Codec:
    bare, may_be_none = optional(hint)
    if get_origin(bare) is tuple:
        return _repeated(name, item_of(get_args(bare)[0], descriptor))
    if isinstance(get_origin(bare), type) and issubclass(get_origin(bare), Mapping):
        return _map(name, get_args(bare), descriptor)
    return single(name, item_of(bare, descriptor), descriptor, may_be_none=may_be_none, default=field.default)


def single(name: str, item: Item, descriptor: Descriptor, *, may_be_none: bool, default: Any = dataclasses.MISSING) -> Codec:
    """One value. A time of 0 that is the model's default means "none" and is left out."""
    is_message = descriptor.message_type is not None
    zero_is_none = is_message and default == 0.0 and descriptor.message_type.name == "Timestamp"

    def encode(value: Any, message: Any) -> None:
        if value is None or (zero_is_none and value == 0.0):
            return
        if is_message:
            getattr(message, name).CopyFrom(item.encode(value))
        else:
            setattr(message, name, item.encode(value))

    def decode(message: Any) -> Any:
        if descriptor.has_presence and not message.HasField(name):
            return None if may_be_none else ABSENT
        value = item.decode(getattr(message, name))
        return None if value is ABSENT and may_be_none else value

    return Codec(encode, decode)


def _repeated(name: str, item: Item) -> Codec:
    def encode(values: Any, message: Any) -> None:
        getattr(message, name).extend(item.encode(value) for value in values)

    def decode(message: Any) -> Any:
        return tuple(value for raw in getattr(message, name) if (value := item.decode(raw)) is not ABSENT)

    return Codec(encode, decode)


def _map(name: str, arguments: tuple[Any, ...], descriptor: Descriptor) -> Codec:
    key_type, value_type = arguments
    value_field = descriptor.message_type.fields_by_name["value"]
    item = _inner_map(value_type, value_field) if get_origin(value_type) else item_of(value_type, value_field)
    is_message = value_field.message_type is not None

    def encode(values: Any, message: Any) -> None:
        target = getattr(message, name)
        for key, value in values.items():
            if is_message:
                target[str(key)].CopyFrom(item.encode(value))
            else:
                target[str(key)] = item.encode(value)

    def decode(message: Any) -> Any:
        return {key: item.decode(value) for raw, value in getattr(message, name).items() if (key := _key(key_type, raw)) is not ABSENT}

    return Codec(encode, decode)


def _key(kind: Any, raw: str) -> Any:
    """A name that a newer server added is passed over."""
    try:
        return kind(raw)
    except ValueError:
        return ABSENT


def _inner_map(hint: Any, descriptor: Descriptor) -> Item:
    """A map inside a map: a message whose only field is the inner one."""
    inner = descriptor.message_type.fields[0]
    codec = _map(inner.name, get_args(hint), inner)
    message_class = message_class_of(descriptor)

    def encode(value: Any) -> Any:
        message = message_class()
        codec.encode(value, message)
        return message

    return Item(encode, codec.decode)


def message_class_of(descriptor: Descriptor) -> Any:
    """The generated class of a message field."""
    return message_factory.GetMessageClass(descriptor.message_type)


def item_of(hint: Any, descriptor: Descriptor) -> Item:
    """How one value is written in a field."""
    if descriptor.enum_type is not None:
        return enum_item(hint, descriptor.enum_type)
    if descriptor.message_type is None:
        return _PLAIN
    if descriptor.message_type.full_name == Timestamp.DESCRIPTOR.full_name:
        return _TIME
    if descriptor.message_type.full_name == config_pb2.KnobValue.DESCRIPTOR.full_name:
        return _KNOB
    mirror = _REGISTRY[hint]
    return Item(mirror.to_proto, mirror.from_proto)


def enum_item(kind: Any, descriptor: Descriptor) -> Item:
    """A StrEnum and its prefixed counterpart. Raises TypeError at import where a member has none."""
    arms = get_args(kind)
    kind = next((arm for arm in arms if isinstance(arm, type) and issubclass(arm, StrEnum)), kind)
    prefix = descriptor.values[0].name.removesuffix("UNSPECIFIED")
    numbers = {value.name.removeprefix(prefix): value.number for value in descriptor.values if value.number}
    missing = {member.name for member in kind} ^ set(numbers)
    if missing:
        raise TypeError(f"{descriptor.full_name} and {kind.__name__} differ in {sorted(missing)}")
    to_number = {member: numbers[member.name] for member in kind}
    to_member = {number: member for member, number in to_number.items()}
    return Item(lambda value: to_number[kind(value)], lambda number: to_member.get(number, ABSENT))


def timestamp(seconds: float) -> Timestamp:
    """Unix seconds as a Timestamp, to the nanosecond that the float holds."""
    whole = math.floor(seconds)
    nanos = round((seconds - whole) * 1e9)
    return Timestamp(seconds=whole + nanos // 1_000_000_000, nanos=nanos % 1_000_000_000)


def seconds(time: Timestamp) -> float:
    """A Timestamp as unix seconds."""
    return time.seconds + time.nanos / 1e9


def knob_value(value: KnobValue) -> config_pb2.KnobValue:
    """A knob's value with its type. bool comes first: it is an int too."""
    if isinstance(value, bool):
        return config_pb2.KnobValue(bool_value=value)
    if isinstance(value, int):
        return config_pb2.KnobValue(int_value=value)
    if isinstance(value, float):
        return config_pb2.KnobValue(double_value=value)
    return config_pb2.KnobValue(string_value=value)


def plain_value(message: config_pb2.KnobValue) -> KnobValue:
    """The value of a knob. Raises InvalidArgumentError where none is set."""
    kind = message.WhichOneof("kind")
    if kind is None:
        raise InvalidArgumentError("a knob value must be one of bool_value, int_value, double_value and string_value", field="value")
    return cast(KnobValue, getattr(message, kind))


_PLAIN = Item(lambda value: value, lambda value: value)
_TIME = Item(timestamp, seconds)
_KNOB = Item(knob_value, plain_value)
