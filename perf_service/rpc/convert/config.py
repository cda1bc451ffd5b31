"""Engine configuration and hardware."""

from __future__ import annotations

from collections.abc import Iterable

from perf_service.models.config import ConfigChange, EngineConfig, KnobValue, Setting, Source
from perf_service.models.fleet import Hardware
from perf_service.rpc.convert.mirror import ABSENT, Codec, Mirror, enum_item, plain_value
from perf_service.v1 import config_pb2, optimize_service_pb2

_SOURCE = enum_item(Source, config_pb2.ConfigSource.DESCRIPTOR)


def _source(message: config_pb2.Setting) -> Source:
    """A caller that does not say where a value comes from has told it himself."""
    source = _SOURCE.decode(message.source)
    return Source.USER if source is ABSENT else source


def _set_source(value: Source, message: config_pb2.Setting) -> None:
    message.source = _SOURCE.encode(value)


SETTING = Mirror(Setting, config_pb2.Setting, codecs={"source": Codec(_set_source, _source)})
ENGINE_CONFIG = Mirror(EngineConfig, config_pb2.EngineConfig)
CONFIG_CHANGE = Mirror(ConfigChange, config_pb2.ConfigChange)
HARDWARE = Mirror(Hardware, config_pb2.Hardware)


def changes_of(assignments: Iterable[optimize_service_pb2.KnobAssignment]) -> dict[str, KnobValue | None]:
    """What a caller wants changed, by knob; None removes the flag. The last of two assignments to one knob counts."""
    return {item.parameter: plain_value(item.value) if item.HasField("value") else None for item in assignments}
