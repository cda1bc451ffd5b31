"""The catalogue and the commands against the real parser of vLLM 0.32: every flag that `vllm serve` takes, with what it takes.

The table was written by asking that parser itself (vllm/entrypoints/launchers/cli_args.py of 0.32.0): `switch` has no value, `choice`
one of a list, `int`, `float`, `json` and `text` are what its types accept.
"""

from __future__ import annotations

import csv
import json
import shlex
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from perf_service.models.config import EngineConfig, KnobValue
from perf_service.models.metrics import Engine
from perf_service.models.plan import KnobType
from perf_service.optimization import render
from perf_service.optimization.catalogue import KnobCatalogue
from perf_service.optimization.catalogue.entry import KnobEntry

VERSION = "0.32.0"
CATALOGUE = KnobCatalogue.load()
READS: dict[str, Callable[[str], object]] = {"int": int, "float": float, "json": json.loads}
KNOBS = [e for e in CATALOGUE.entries(Engine.VLLM) if not e.env_only and e.supported(VERSION)]


@cache
def taken() -> dict[str, tuple[str, tuple[str, ...]]]:
    """Flag -> (what it takes, its choices)."""
    table = Path(__file__).parents[2] / "fixtures" / "engine_flags" / "vllm_0.32.csv"
    with table.open(newline="") as lines:
        return {row["flag"]: (row["takes"], tuple(row["choices"].split())) for row in csv.DictReader(lines)}


def refused(words: list[str]) -> str:
    """Why vLLM 0.32 would not parse these arguments; empty: it would."""
    rest = list(words)
    while rest:
        flag = rest.pop(0)
        if flag not in taken():
            return f"{flag} is unknown"
        takes, choices = taken()[flag]
        if takes == "switch":
            continue
        if not rest:
            return f"{flag} wants a value"
        value = rest.pop(0)
        try:
            READS.get(takes, str)(value)
        except ValueError:
            return f"{flag} {value} is not {takes}"
        if choices and value not in choices:
            return f"{flag} {value} is none of its choices"
    return ""


def values_of(entry: KnobEntry) -> list[KnobValue]:
    """Values that the catalogue allows in that version, every choice and both ends among them."""
    knob = entry.knob
    if knob.type is KnobType.BOOL:
        return [True, False]
    if entry.brackets:
        return list(entry.choices(VERSION))
    if knob.type is KnobType.STRING:
        return ['{"method": "ngram"}']
    low, high = knob.minimum if knob.minimum is not None else 1, knob.maximum if knob.maximum is not None else 4096
    return [int(low), int(high)] if knob.type is KnobType.INT else [low, high, (low + high) / 2]


@pytest.mark.parametrize("entry", KNOBS, ids=lambda e: e.knob.name)
def test_what_the_catalogue_allows_is_what_the_engine_parses(entry: KnobEntry) -> None:
    for value in values_of(entry):
        config = EngineConfig.of({entry.knob.name: CATALOGUE.parse(Engine.VLLM, entry.knob.name, value, VERSION)})
        assert not refused(render.flags(config, Engine.VLLM))
    takes, choices = taken()[entry.knob.flag]
    if choices:
        assert set(entry.choices(VERSION)) == set(choices)
    assert (takes == "switch") is (entry.knob.type is KnobType.BOOL)


def test_what_the_version_has_not_is_not_in_the_catalogue_for_it() -> None:
    absent = [e.knob for e in CATALOGUE.entries(Engine.VLLM) if not e.env_only and not e.supported(VERSION)]
    assert absent
    assert not [k.flag for k in absent if k.flag in taken()]


def test_a_command_line_parses_as_a_whole() -> None:
    every = EngineConfig.of({e.knob.name: values_of(e)[0] for e in KNOBS})
    line = shlex.split(render.command_line(every, Engine.VLLM, model="tiny", version=VERSION))
    assert line[:3] == ["vllm", "serve", "tiny"]
    assert not refused(line[3:])
    assert len(line) > 50
    assert refused(["--max-num-seqs", "many"])
    assert refused(["--no-such-flag"])
