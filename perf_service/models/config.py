"""Engine configuration: knob values with their provenance, and changes to them.

A knob is named as the engine names its own flag, with underscores and no dashes (`max_num_seqs`, `chunked_prefill_size`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

KnobValue = bool | int | float | str


class Source(StrEnum):
    """Where a config value is known from, strongest first."""

    USER = "user"  # told at registration or on the command line
    LAUNCH_ARGS = "launch_args"
    SERVER_INFO = "server_info"  # the engine's own introspection endpoint
    PAGE = "page"  # read off /metrics
    INFERRED = "inferred"  # concluded from behaviour
    DEFAULT = "default"  # the engine version's documented default


@dataclass(frozen=True, slots=True)
class Setting:
    """One knob's value and where it is known from."""

    value: KnobValue
    source: Source


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """What is known of an engine's launch configuration. A knob that is not in `settings` is unknown, not default."""

    settings: Mapping[str, Setting] = field(default_factory=dict)

    @classmethod
    def of(cls, values: Mapping[str, KnobValue], source: Source = Source.USER) -> EngineConfig:
        """A config from plain values of one source."""
        return cls({name: Setting(value, source) for name, value in values.items()})

    def get(self, name: str) -> KnobValue | None:
        """The value, or None where it is unknown."""
        setting = self.settings.get(name)
        return setting.value if setting else None

    def number(self, name: str) -> float | None:
        """The value as a float where it is a number (bool excluded)."""
        value = self.get(name)
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None

    def source(self, name: str) -> Source | None:
        """Where the value is known from."""
        setting = self.settings.get(name)
        return setting.source if setting else None

    def over(self, weaker: EngineConfig) -> EngineConfig:
        """This config on top of a weaker one: own values win."""
        return EngineConfig({**weaker.settings, **self.settings})

    def with_changes(self, changes: tuple[ConfigChange, ...]) -> EngineConfig:
        """The config after the changes (a recommended None removes the flag)."""
        settings = dict(self.settings)
        for change in changes:
            if change.recommended_value is None:
                settings.pop(change.parameter, None)
            else:
                settings[change.parameter] = Setting(change.recommended_value, Source.LAUNCH_ARGS)
        return EngineConfig(settings)

    def values(self) -> dict[str, KnobValue]:
        """Plain values by knob."""
        return {name: setting.value for name, setting in self.settings.items()}

    def __iter__(self) -> Iterator[str]:
        return iter(self.settings)

    def __len__(self) -> int:
        return len(self.settings)


class ApplyMode(StrEnum):
    """What it takes for a knob's change to act."""

    HOT = "hot"
    RESTART = "restart"


@dataclass(frozen=True, slots=True)
class ConfigChange:
    """One exact change. `current_value` None: unknown or not set; `recommended_value` None: remove the flag."""

    parameter: str
    current_value: KnobValue | None
    recommended_value: KnobValue | None
    flag: str = ""  # as the engine's command line spells it, e.g. --max-num-seqs
    apply_mode: ApplyMode = ApplyMode.RESTART
    reason: str = ""
    current_source: Source | None = None


def config_hash(config: EngineConfig) -> str:
    """Hex SHA-256 of the values (not their sources): equal hash means that the engine would run alike."""
    plain = {name: repr(value) for name, value in sorted(config.values().items())}
    return hashlib.sha256(json.dumps(plain).encode()).hexdigest()
