"""How an engine's own metric names become engine-neutral ones: rules as data, compiled once into a look-up table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from perf_service.collectors.exposition import UNKNOWN
from perf_service.models.config import KnobValue
from perf_service.models.metrics import Counter, Engine, Gauge, Hist, Histogram


class Merge(Enum):
    """How the values of several data-parallel ranks, or of several series of one rank, become one value."""

    SUM = "sum"
    MEAN = "mean"
    MAX = "max"
    MIN = "min"


class Part(Enum):
    """What a series is within its family."""

    VALUE = "value"
    BUCKET = "bucket"
    SUM = "sum"
    COUNT = "count"
    BARE = "bare"
    """A plain value under a histogram's base name: not a histogram, reported and left out."""
    INFO = "info"
    START = "start"


MAX_SPELLINGS: Final = 8
LARGEST_VALUE: Final = 1e280
"""What is larger is no measurement: left out like an infinite one, so that no sum or product of values is infinite."""
LARGEST_INTEGER: Final = 2.0**53
"""Up to here a float holds every integer; a larger configuration value is not believed."""
MAX_TEXT_CHARS: Final = 512
"""Longest configuration value or model name (a path at most) that is kept."""

LabelTest = tuple[str, frozenset[str], bool]
"""Label name, values, and whether the label must (True) or must not (False) have one of them."""


def having(label: str, *values: str) -> LabelTest:
    """Only series whose label has one of these values. A series without the label has the value ""."""
    return (label, frozenset(values), True)


def lacking(label: str, *values: str) -> LabelTest:
    """Only series whose label has none of these values."""
    return (label, frozenset(values), False)


@dataclass(frozen=True, slots=True)
class Rule:
    """One engine-neutral metric and the engine's spellings of it, newest first.

    Where a page carries several spellings (old and new names live side by side for a release or two, a relay adds its own), they
    are not added up: the first that has a non-zero value is taken. `scale` converts the engine's unit. `derived` marks a value that the
    engine means differently and that only approximates the target.
    """

    target: Gauge | Counter | Hist
    names: tuple[str, ...]
    where: tuple[LabelTest, ...] = ()
    merge: Merge = Merge.SUM
    scale: float = 1.0
    derived: bool = False
    foreign: bool = False
    """Not the engine's own (process_*, http_*): says nothing about which engine wrote the page."""


@dataclass(frozen=True, slots=True)
class InfoLabel:
    """A label of an info metric that tells a configuration value."""

    label: str
    knob: str
    convert: Callable[[str], KnobValue | None]


@dataclass(frozen=True, slots=True)
class NameList:
    """Labels of an info metric that list names, separated by commas: how many different ones all its series name is a gauge."""

    labels: tuple[str, ...]
    target: Gauge

    def names(self, labels: Mapping[str, str]) -> set[str]:
        """The names in one series' labels."""
        return {name for label in self.labels for name in labels.get(label, "").split(",") if name}


@dataclass(frozen=True, slots=True)
class GaugeFact:
    """A gauge that tells a configuration value."""

    name: str
    knob: str
    convert: Callable[[float], KnobValue] = int


def group_of(rule: int, spelling: int) -> int:
    """One number for one spelling of one rule."""
    return rule * MAX_SPELLINGS + spelling


class Slot:
    """Where one series belongs. Made once per series by `Dialect.bind`. `origin` is the rank and the process it comes from."""

    __slots__ = ("bound", "group", "is_class", "origin", "part")

    def __init__(self, rule: int, spelling: int, part: Part, rank: str, replica: str, is_class: bool, bound: float | None) -> None:
        self.group = group_of(rule, spelling)
        self.part = part
        self.origin = (rank, replica)
        self.is_class = is_class
        self.bound = bound

    @property
    def rule(self) -> int:
        """Index of the rule among the dialect's rules."""
        return self.group // MAX_SPELLINGS


class Binding:
    """All that one series feeds: its slots, its labels where they are configuration, its configuration facts."""

    __slots__ = ("facts", "info", "is_start", "model_name", "own", "rank", "slots")

    def __init__(
        self,
        slots: tuple[Slot, ...],
        own: bool,
        info: Mapping[str, str] | None = None,
        facts: tuple[GaugeFact, ...] = (),
        is_start: bool = False,
        rank: str = "",
        model_name: str = "",
    ) -> None:
        self.slots = slots
        self.own = own
        self.info = info
        self.facts = facts
        self.is_start = is_start
        self.rank = rank
        self.model_name = model_name


Histograms = dict[Hist, Histogram]
DeriveHistograms = Callable[[Mapping[Hist, Histogram]], Histograms]

PART_SUFFIXES: Final = {Part.BUCKET: "_bucket", Part.SUM: "_sum", Part.COUNT: "_count", Part.BARE: ""}


@dataclass(slots=True)
class Dialect:
    """One engine's tables.

    `prefix` is the canonical spelling of the name space and `aliases` others that relays make of it (a colon is not legal
    everywhere). `rank_labels` tell data-parallel ranks, whose values are merged by the rule; `replica_labels` tell processes
    that report the same requests, of which the largest value counts. `totals` name labels that carry both a total and its
    parts: where the total is there, the parts are left out. `known_elsewhere` are prefixes of families that exist and are
    not used, so that only names nobody knows are reported as unknown.
    """

    engine: Engine
    prefix: str
    aliases: tuple[str, ...]
    rules: tuple[Rule, ...]
    rank_labels: tuple[str, ...] = ()
    replica_labels: tuple[str, ...] = ()
    totals: Mapping[str, str] = field(default_factory=dict)
    info_metrics: tuple[str, ...] = ()
    info_labels: tuple[InfoLabel, ...] = ()
    name_lists: tuple[NameList, ...] = ()
    facts: tuple[GaugeFact, ...] = ()
    start_names: tuple[str, ...] = ("process_start_time_seconds",)
    known_elsewhere: tuple[str, ...] = ()
    core: tuple[Gauge | Counter | Hist, ...] = ()
    derive_histograms: DeriveHistograms | None = None
    capacity_tokens: Callable[[Mapping[str, str]], float | None] | None = None
    _table: dict[str, list[tuple[int, int, Part]]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        for index, rule in enumerate(self.rules):
            for spelling, name in enumerate(rule.names):
                if isinstance(rule.target, Hist):
                    for part, suffix in PART_SUFFIXES.items():
                        self._table.setdefault(name + suffix, []).append((index, spelling, part))
                else:
                    self._table.setdefault(name, []).append((index, spelling, Part.VALUE))

    def canonical(self, name: str) -> str:
        """The name in the engine's own spelling: `vllm_x` -> `vllm:x`, and a counter with or without `_total` as the engine has it."""
        for alias in self.aliases:
            if name.startswith(alias):
                name = self.prefix + name[len(alias) :]
                break
        if name not in self._table:
            if name + "_total" in self._table:
                return name + "_total"
            if name.endswith("_total") and name[:-6] in self._table:
                return name[:-6]
        return name

    def bind(self, name: str, labels: Mapping[str, str]) -> object | None:
        """What a series means: a `Binding`, `UNKNOWN` for an engine's name that no table has, None for what is not used."""
        name = self.canonical(name)
        own = name.startswith(self.prefix)
        rank = ",".join(labels[key] for key in self.rank_labels if key in labels)
        if name in self.start_names:
            return Binding((), own, is_start=True)
        info = labels if name in self.info_metrics else None
        facts = tuple(fact for fact in self.facts if fact.name == name)
        slots = self._slots(name, labels, rank)
        if slots or facts or info is not None:
            return Binding(slots, own, info, facts, rank=rank, model_name=labels.get("model_name", ""))
        if not own or name in self._table or name.endswith("_created") or name.startswith(self.known_elsewhere):
            return None
        return UNKNOWN

    def _slots(self, name: str, labels: Mapping[str, str], rank: str) -> tuple[Slot, ...]:
        entries = self._table.get(name)
        if not entries:
            return ()
        replica = ",".join(labels[key] for key in self.replica_labels if key in labels)
        is_class = any(labels.get(key, total) != total for key, total in self.totals.items())
        slots = []
        for index, spelling, part in entries:
            if not _passes(self.rules[index].where, labels):
                continue
            bound = None
            if part is Part.BUCKET:
                bound = _bound(labels.get("le", ""))
                if bound is None:
                    continue
            elif part is Part.BARE and ("quantile" in labels or name.endswith(("_total", "_count", "_sum", "_bucket"))):
                # A summary's quantile covers the whole lifetime (or a sliding span): nothing can be concluded from it.
                continue
            slots.append(Slot(index, spelling, part, rank, replica, is_class, bound))
        return tuple(slots)


def _passes(tests: tuple[LabelTest, ...], labels: Mapping[str, str]) -> bool:
    return all((labels.get(label, "") in values) is wanted for label, values, wanted in tests)


def _bound(text: str) -> float | None:
    try:
        bound = float(text)
    except ValueError:
        return None
    return bound if bound > -LARGEST_VALUE else None


def as_int(text: str) -> KnobValue | None:
    """An integer as an info label spells it, None for "None" and anything else."""
    try:
        value = float(text)
    except ValueError:
        return None
    return int(value) if abs(value) <= LARGEST_INTEGER else None


def as_float(text: str) -> KnobValue | None:
    """A float as an info label spells it, None for "None" and anything else."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if abs(value) <= LARGEST_VALUE else None


def as_bool(text: str) -> KnobValue | None:
    """Python's or JSON's spelling of a truth value, None for "None" and anything else."""
    return {"true": True, "1": True, "false": False, "0": False}.get(text.strip().lower())


def as_text(text: str) -> KnobValue | None:
    """The text itself, None for "None", the empty string, and what is too long to be a flag's value."""
    return None if text in ("", "None", "null") or len(text) > MAX_TEXT_CHARS else text
