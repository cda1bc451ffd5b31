"""One knob of the catalogue with what depends on version and hardware, and reading it from its table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from perf_service.models.config import KnobValue
from perf_service.models.metrics import Engine
from perf_service.models.plan import Knob, KnobType, OptimizerKind
from perf_service.optimization.catalogue.versions import in_bracket, release


@dataclass(frozen=True, slots=True)
class ChoiceBracket:
    """The choices of an enum knob in the versions [since, removed)."""

    values: tuple[str, ...]
    since: str = ""
    removed: str = ""


@dataclass(frozen=True, slots=True)
class DefaultRule:
    """A default that holds in a version bracket and, where bounded, for an accelerator's memory (GiB) and kind."""

    value: KnobValue
    since: str = ""
    removed: str = ""
    min_gib: float | None = None
    max_gib: float | None = None
    not_accelerator: str = ""


@dataclass(frozen=True, slots=True)
class ValueNeed:
    """Values that need at least a compute capability."""

    values: tuple[str, ...]
    min_compute_capability: str


@dataclass(frozen=True, slots=True)
class KnobEntry:
    """One knob with what depends on version and hardware."""

    knob: Knob
    aliases: tuple[str, ...] = ()
    brackets: tuple[ChoiceBracket, ...] = ()
    defaults: tuple[DefaultRule, ...] = ()
    needs: tuple[ValueNeed, ...] = ()
    page_is_resolved: bool = False  # what the page shows is the resolved value, not what somebody set
    env_only: bool = False

    def supported(self, version: str) -> bool | None:
        """Whether the version has the knob; None where that cannot be told."""
        return in_bracket(version, self.knob.since, self.knob.removed)

    def choices(self, version: str) -> tuple[str, ...]:
        """The values that the version takes; of an unknown version, every value of any version."""
        taken = [b.values for b in self.brackets if in_bracket(version, b.since, b.removed) is not False]
        return tuple(dict.fromkeys(value for values in taken for value in values))

    def certain_choices(self, version: str) -> tuple[str, ...]:
        """The values that the version surely takes; of an unknown version, those of every version."""
        if release(version) is not None or not self.brackets:
            return self.choices(version)
        common = set(self.brackets[0].values).intersection(*(b.values for b in self.brackets[1:]))
        return tuple(v for v in self.brackets[0].values if v in common)

    def capability_needed(self, value: KnobValue | None) -> str:
        """Compute capability that the knob or this value of it needs; empty: none known."""
        return next((n.min_compute_capability for n in self.needs if value in n.values), self.knob.min_compute_capability)


def entry_of(engine: Engine, raw: Mapping[str, Any], env_from_name: bool) -> KnobEntry:
    """A knob from its TOML table. `env_from_name`: the environment variable is the name in capitals."""
    name = raw["name"]
    env_only = bool(raw.get("env_only"))
    knob = Knob(
        engine=engine,
        name=name,
        flag="" if env_only else raw.get("flag", "--" + name.replace("_", "-")),
        type=KnobType(raw["type"]),
        group=OptimizerKind(raw["group"]),
        description=raw["description"],
        default=raw.get("default", ""),
        minimum=raw.get("minimum"),
        maximum=raw.get("maximum"),
        negative_flag=raw.get("negative_flag", ""),
        since=raw.get("since", ""),
        removed=raw.get("removed", ""),
        min_compute_capability=raw.get("min_compute_capability", ""),
        conflicts=tuple(raw.get("conflicts", ())),
        trades=raw.get("trades", ""),
        tunable=raw.get("tunable", True),
        env=raw.get("env", name.upper() if env_from_name else ""),
    )
    return KnobEntry(
        knob=knob,
        aliases=tuple(raw.get("aliases", ())),
        brackets=tuple(ChoiceBracket(tuple(c["values"]), c.get("since", ""), c.get("removed", "")) for c in raw.get("choices", ())),
        defaults=tuple(DefaultRule(**d) for d in raw.get("defaults", ())),
        needs=tuple(ValueNeed(tuple(n["values"]), n["min_compute_capability"]) for n in raw.get("needs", ())),
        page_is_resolved=bool(raw.get("page_is_resolved")),
        env_only=env_only,
    )
