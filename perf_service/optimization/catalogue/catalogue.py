"""The knob catalogue: what each engine's flags are, in which versions and on which hardware. The facts are in the TOML files."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from importlib import resources

from perf_service.models.config import ConfigChange, EngineConfig, KnobValue, Setting, Source
from perf_service.models.errors import ErrorReason, InvalidArgumentError
from perf_service.models.fleet import Hardware
from perf_service.models.metrics import Engine
from perf_service.models.plan import Knob, KnobType
from perf_service.optimization.catalogue.entry import KnobEntry, entry_of
from perf_service.optimization.catalogue.values import as_bool, as_float, as_int
from perf_service.optimization.catalogue.versions import capability, in_bracket

GIB = 1 << 30


def canonical(name: str) -> str:
    """A flag or knob name as the catalogue spells it: no leading dashes, underscores, lower case."""
    return name.strip().lstrip("-").replace("-", "_").lower()


class KnobCatalogue:
    """Every known knob by engine. Immutable once loaded; `load()` returns the shared instance."""

    def __init__(self, entries: Mapping[Engine, Mapping[str, KnobEntry]], facts: Mapping[Engine, frozenset[str]]) -> None:
        self._entries = {engine: dict(knobs) for engine, knobs in entries.items()}
        self._facts = dict(facts)
        self._aliases = {
            engine: {alias: name for name, entry in knobs.items() for alias in entry.aliases} for engine, knobs in self._entries.items()
        }

    @classmethod
    def load(cls) -> KnobCatalogue:
        """The catalogue that ships with the package."""
        return _load()

    # ---- Looking up ----

    def resolve(self, engine: Engine | str, name: str) -> str:
        """The engine's own name of a knob: aliases of other engines and either dash style are read; unknown names come back canonical.

        A negative flag (`--no-enable-prefix-caching`) resolves to its knob.
        """
        engine, key = Engine(engine), canonical(name)
        knobs = self._entries.get(engine, {})
        if key in knobs or key in self._facts.get(engine, ()):
            return key
        if key.startswith("no_") and key[3:] in knobs and knobs[key[3:]].knob.negative_flag:
            return key[3:]
        return self._aliases.get(engine, {}).get(key, key)

    def entry(self, engine: Engine | str, name: str) -> KnobEntry:
        """A knob's entry. Raises InvalidArgumentError (KNOB_UNKNOWN) naming the nearest knobs."""
        engine = Engine(engine)
        key = self.resolve(engine, name)
        found = self._entries.get(engine, {}).get(key)
        if found:
            return found
        near = difflib.get_close_matches(key, [*self._entries.get(engine, {}), *self._aliases.get(engine, {})], n=3, cutoff=0.5)
        near = list(dict.fromkeys(self.resolve(engine, n) for n in near))
        hint = (
            f"; did you mean {' or '.join(near)}?" if near else f"; ListKnobs (perf-service plan knobs {engine.value}) has the known ones"
        )
        what = "is reported by the engine but is no flag" if key in self._facts.get(engine, ()) else "is not a knob"
        raise InvalidArgumentError(
            f"{name!r} {what} of {engine.value}{hint}",
            field="parameter",
            reason=ErrorReason.KNOB_UNKNOWN,
            metadata={"parameter": name, "engine": engine.value, "nearest": ",".join(near)},
        )

    def get(self, engine: Engine | str, name: str) -> KnobEntry | None:
        """A knob's entry, or None where it is unknown."""
        engine = Engine(engine)
        return self._entries.get(engine, {}).get(self.resolve(engine, name))

    def is_fact(self, engine: Engine | str, name: str) -> bool:
        """Whether a config key is something that the engine reports, not a flag."""
        return self.resolve(engine, name) in self._facts.get(Engine(engine), ())

    def lookup(self, engine: Engine | str, name: str, version: str = "") -> Knob:
        """A knob with the choices of that version. Raises InvalidArgumentError (KNOB_UNKNOWN)."""
        found = self.entry(engine, name)
        return replace(found.knob, choices=found.choices(version)) if found.brackets else found.knob

    def knobs(self, engine: Engine | str, version: str = "", hardware: Hardware | None = None) -> tuple[Knob, ...]:
        """Knobs of an engine, without those that the version (where known) has not or the hardware (where known) cannot."""
        engine = Engine(engine)
        return tuple(
            self.lookup(engine, name, version)
            for name, found in self._entries.get(engine, {}).items()
            if found.supported(version) is not False and not _lacks(hardware, found.knob.min_compute_capability)
        )

    def entries(self, engine: Engine | str) -> Iterator[KnobEntry]:
        """Every entry of an engine, whatever the version."""
        yield from self._entries.get(Engine(engine), {}).values()

    def default(self, engine: Engine | str, name: str, version: str = "", hardware: Hardware | None = None) -> KnobValue | None:
        """The documented default for that version and hardware, or None where it cannot be told.

        A rule that is bounded by memory does not speak where the memory is unknown.
        """
        found = self.get(engine, name)
        if found is None:
            return None
        gib = (hardware.memory_bytes / GIB) if hardware and hardware.memory_bytes else None
        for rule in found.defaults:
            within = in_bracket(version, rule.since, rule.removed)
            if within is None:
                return None
            if not within:
                continue
            if rule.min_gib is None and rule.max_gib is None:
                return rule.value
            if gib is None:
                return None
            excluded = rule.not_accelerator and hardware and re.search(rule.not_accelerator, hardware.accelerator, re.IGNORECASE)
            if (rule.min_gib is None or gib >= rule.min_gib) and (rule.max_gib is None or gib < rule.max_gib) and not excluded:
                return rule.value
        return None

    # ---- Reading values ----

    def parse(self, engine: Engine | str, name: str, text: KnobValue, version: str = "") -> KnobValue:
        """A value in the knob's own type, from text or from a near type (`"64"`, `64.0`, `"true"`).

        Raises InvalidArgumentError: KNOB_UNKNOWN, or KNOB_VALUE_INVALID (type, bounds, choices) with what would be right.
        """
        found = self.entry(engine, name)
        knob = found.knob
        value: KnobValue | None
        if knob.type is KnobType.BOOL:
            value = as_bool(text)
        elif knob.type is KnobType.INT:
            value = as_int(text)
        elif knob.type is KnobType.FLOAT:
            value = as_float(text)
        else:
            value = str(text).strip() if not isinstance(text, bool) else None
        if value is None or value == "":
            raise _invalid(knob, text, f"is not {_A_TYPE[knob.type]}")
        choices = found.choices(version)
        if choices and value not in choices:
            raise _invalid(knob, text, f"is not one of {', '.join(choices)}" + (f" (of {version})" if version else ""))
        if isinstance(value, int | float) and not isinstance(value, bool):
            if knob.minimum is not None and value < knob.minimum:
                raise _invalid(knob, text, f"is below the least value {knob.minimum:g}")
            if knob.maximum is not None and value > knob.maximum:
                raise _invalid(knob, text, f"is above the largest value {knob.maximum:g}")
            if value in (0, -1) and knob.name in _NOT_ZERO and not (value == -1 and (knob.minimum or 0) < 0):
                raise _invalid(knob, text, "must be positive, or -1")
        return value

    def config(self, engine: Engine | str, values: Mapping[str, KnobValue | None], source: Source = Source.USER) -> EngineConfig:
        """A config of the engine's own names from a loose mapping. Values that mean "not set" (None, "", "none") are left out;
        names that are no knobs are kept as they are, values are only given their type where that is possible."""
        settings: dict[str, Setting] = {}
        for name, value in values.items():
            if value is None or (isinstance(value, str) and value.strip().lower() in ("", "none", "null")):
                continue
            key = self.resolve(engine, name)
            try:
                settings[key] = Setting(self.parse(engine, key, _negated(name, key, value)), source)
            except InvalidArgumentError:
                settings[key] = Setting(value, source)
        return EngineConfig(settings)

    # ---- Checking changes ----

    def change(
        self,
        engine: Engine | str,
        name: str,
        value: KnobValue | None,
        *,
        current: EngineConfig,
        version: str = "",
        hardware: Hardware | None = None,
        reason: str = "",
    ) -> ConfigChange:
        """A checked change of one knob (`value` None removes the flag), as the engine spells it.

        Raises InvalidArgumentError with KNOB_UNKNOWN, KNOB_VALUE_INVALID, KNOB_NOT_IN_VERSION or KNOB_NEEDS_HARDWARE.
        """
        found = self.entry(engine, name)
        knob = found.knob
        if found.supported(version) is False:
            raise InvalidArgumentError(
                f"{Engine(engine).value} {version} has no {knob.flag}" + _when(knob) + "; leave it out or change the version",
                field="parameter",
                reason=ErrorReason.KNOB_NOT_IN_VERSION,
                metadata={"parameter": knob.name, "version": version, "since": knob.since, "removed": knob.removed},
            )
        if value is not None:
            value = self.parse(engine, knob.name, _negated(name, knob.name, value), version)
            needed = found.capability_needed(value)
            if hardware is not None and _lacks(hardware, needed):
                raise InvalidArgumentError(
                    f"{knob.flag} {value} needs compute capability {needed}, "
                    f"{hardware.accelerator or 'this accelerator'} has {hardware.compute_capability}",
                    field="recommended_value",
                    reason=ErrorReason.KNOB_NEEDS_HARDWARE,
                    metadata={"parameter": knob.name, "needs": needed, "has": hardware.compute_capability},
                )
        flag = knob.negative_flag if value is False and knob.negative_flag else knob.flag
        return ConfigChange(
            knob.name, current.get(knob.name), value, flag=flag or knob.env, reason=reason, current_source=current.source(knob.name)
        )

    def changes(
        self,
        engine: Engine | str,
        values: Mapping[str, KnobValue | None],
        *,
        current: EngineConfig | None = None,
        version: str = "",
        hardware: Hardware | None = None,
    ) -> tuple[ConfigChange, ...]:
        """Checked changes that also fit together on top of the current config. Raises as `change`, and CONFIG_CONFLICT."""
        from perf_service.optimization.catalogue.conflicts import check_config

        current = current or EngineConfig()
        made: dict[str, ConfigChange] = {}
        for name, value in values.items():
            one = self.change(engine, name, value, current=current, version=version, hardware=hardware)
            if one.parameter in made:
                raise InvalidArgumentError(
                    f"{one.parameter} is given twice, the second time as {name!r}; give it once",
                    field="changes",
                    reason=ErrorReason.CONFIG_CONFLICT,
                    metadata={"parameter": one.parameter},
                )
            made[one.parameter] = one
        result = tuple(made.values())
        check_config(self, Engine(engine), current.with_changes(result), changed=frozenset(made))
        return result


_A_TYPE = {
    KnobType.BOOL: "true or false",
    KnobType.INT: "a whole number",
    KnobType.FLOAT: "a number",
    KnobType.ENUM: "a name",
    KnobType.STRING: "a text",
}
_NOT_ZERO = frozenset({"max_model_len", "chunked_prefill_size"})


def _negated(name: str, key: str, value: KnobValue) -> KnobValue:
    """`--no-x` given as true means x is false."""
    if canonical(name) == f"no_{key}":
        read = as_bool(value)
        return value if read is None else not read
    return value


def _invalid(knob: Knob, value: KnobValue, why: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"{knob.name}={value} {why}",
        field="recommended_value",
        reason=ErrorReason.KNOB_VALUE_INVALID,
        metadata={"parameter": knob.name, "value": str(value)},
    )


def _when(knob: Knob) -> str:
    parts = [f"since {knob.since}" if knob.since else "", f"gone in {knob.removed}" if knob.removed else ""]
    return f" ({', '.join(p for p in parts if p)})"


def _lacks(hardware: Hardware | None, needed: str) -> bool:
    """Whether the hardware is known to be below a compute capability. Unknown hardware lacks nothing."""
    have, need = capability(hardware.compute_capability if hardware else ""), capability(needed)
    return have is not None and need is not None and have < need


@cache
def _load() -> KnobCatalogue:
    entries: dict[Engine, dict[str, KnobEntry]] = {}
    facts: dict[Engine, frozenset[str]] = {}
    folder = resources.files("perf_service.optimization.catalogue")
    for engine in Engine:
        data = tomllib.loads((folder / f"{engine.value}.toml").read_text("utf-8"))
        facts[engine] = frozenset(data.get("facts", ()))
        entries[engine] = {raw["name"]: entry_of(engine, raw, bool(data.get("env_from_name"))) for raw in data["knob"]}
    return KnobCatalogue(entries, facts)
