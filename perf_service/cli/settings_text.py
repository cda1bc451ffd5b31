"""Launch flags as people type them: `max_num_seqs=256`, `--max-num-seqs=256`."""

from __future__ import annotations

import math
from collections.abc import Sequence

from perf_service.models.config import EngineConfig, KnobValue
from perf_service.models.errors import InvalidArgumentError

__all__ = ["parse_settings", "parse_value"]

_BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def parse_settings(pairs: Sequence[str], *, option: str) -> EngineConfig:
    """NAME=VALUE pairs; dashes and underscores are alike. InvalidArgumentError for anything else, or a name told twice."""
    settings: dict[str, KnobValue] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        knob = name.strip().lstrip("-").replace("-", "_")
        if not equals or not knob or not value.strip():
            raise InvalidArgumentError(f"{option} {pair!r} is not NAME=VALUE; write for example {option} max_num_seqs=64", field=option)
        if knob in settings:
            raise InvalidArgumentError(f"{option} {knob} is given twice", field=option)
        settings[knob] = parse_value(value.strip())
    return EngineConfig.of(settings)


def parse_value(text: str) -> KnobValue:
    """true/false/yes/no/on/off, an integer, a finite number, else text."""
    if text.lower() in _BOOLEANS:
        return _BOOLEANS[text.lower()]
    try:
        return int(text)
    except ValueError:
        pass
    try:
        number = float(text)
    except ValueError:
        return text
    return number if math.isfinite(number) else text
