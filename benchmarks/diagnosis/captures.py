"""Real runs: folders of saved pages with labels in a CSV file.

A run is a folder with ``*.prom`` or ``*.prom.gz`` pages and ``scrapes.jsonl`` (lines of ``{"file", "t_unix"}``; without it the
times are unknown).
The labels file is CSV with a header, or JSON lines, with these columns (lines that start with # are comments):

- ``run``: the folder's name, at any depth below the captures folder
- ``causes``: accepted root causes, separated by ``|`` (names of ``perf_service.models.analysis.Cause``); empty for a run with no
  fault
- ``args_causes``: as ``causes`` where the launch arguments are told; empty: the same
- ``flag``: the flag to blame, for people; empty where none is
- ``healthy``: ``no``; ``yes``: nobody is woken up (no HIGH or CRITICAL) and no flag, restart or upgrade is blamed; ``calm``: as
  ``yes``, and no
  scaling is asked for either
- ``slos``: objectives to tell, separated by ``|``, such as ``ttft<1|itl<50ms``; empty: the built-in ones
- ``args``: launch arguments as on the engine's command line, for the run with args known; empty: what ``command.txt`` or
  ``truth.txt`` beside the pages says
"""

from __future__ import annotations

import csv
import gzip
import json
import re
import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.diagnosis import traps
from benchmarks.diagnosis.judging import Outcome, answers
from benchmarks.diagnosis.labels import Label
from benchmarks.diagnosis.running import Page
from perf_service.collectors.dialects import detect_engine
from perf_service.models.analysis import Analysis, Cause, Verdict
from perf_service.models.config import EngineConfig, KnobValue, Source
from perf_service.models.slo import SLOTarget, parse_slo

_COLUMNS = ("run", "causes", "args_causes", "flag", "healthy", "slos", "args")


class LabelError(ValueError):
    """A labels file that makes no sense; the text says where and why."""


@dataclass(frozen=True)
class RunLabel:
    """One line of the labels file."""

    run: str
    causes: tuple[Cause, ...]
    args_causes: tuple[Cause, ...]
    flag: str
    healthy: str
    slos: tuple[SLOTarget, ...]
    args: str

    def truth(self, args_known: bool) -> Label:
        causes = self.args_causes if args_known and self.args_causes else self.causes
        return Label("fault" if self.healthy == "no" else "fine", causes)


def read_labels(lines: Iterable[str]) -> list[RunLabel]:
    """Labels in the file's order. Raises LabelError."""
    kept = [line for line in lines if line.strip() and not line.startswith("#")]
    rows = [json.loads(line) for line in kept] if kept and kept[0].startswith("{") else list(csv.DictReader(kept))
    labels = []
    for row in rows:
        missing = [name for name in _COLUMNS[:2] if name not in row]
        if missing:
            raise LabelError(f"the labels have no {' and no '.join(missing)} in {row}; columns: {', '.join(_COLUMNS)}")
        cell = {name: _cell(row.get(name)) for name in _COLUMNS}
        healthy = cell["healthy"].lower() or ("no" if cell["causes"] else "yes")
        if healthy not in ("yes", "no", "calm"):
            raise LabelError(f"run {cell['run']}: healthy is {healthy!r}; write yes, no or calm")
        causes, args_causes = (_causes(cell["run"], cell[name]) for name in ("causes", "args_causes"))
        if (healthy == "no") != bool(causes):
            raise LabelError(f"run {cell['run']}: healthy is {healthy}, and its causes are {cell['causes'] or 'none'}; these contradict")
        slos = tuple(parse_slo(text) for text in cell["slos"].split("|") if text.strip())
        labels.append(RunLabel(cell["run"], causes, args_causes, cell["flag"], healthy, slos, cell["args"]))
    return labels


def _cell(value: object) -> str:
    """A column's text; JSON may use lists and booleans."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return "|".join(str(item) for item in value)
    return str(value or "").strip()


def _causes(run: str, text: str) -> tuple[Cause, ...]:
    try:
        return tuple(Cause(name.strip()) for name in text.split("|") if name.strip())
    except ValueError as error:
        raise LabelError(f"run {run}: {error}; known: {', '.join(Cause)}") from None


def read_pages(folder: Path) -> list[Page]:
    """The pages in the order of their scrapes. Raises LabelError where there is none."""
    times: dict[str, float] = {}
    scrapes = folder / "scrapes.jsonl"
    if scrapes.exists():
        for line in scrapes.read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            if entry.get("file"):
                times[entry["file"]] = float(entry["t_unix"])
    files = {file.name: file for file in sorted(folder.iterdir()) if file.name.endswith((".prom", ".prom.gz"))}
    order = [name for name in times if name in files] or list(files)
    if not order:
        raise LabelError(f"{folder} holds no page (*.prom, *.prom.gz)")
    return [(times.get(name), _text(files[name]), "") for name in order]  # type: ignore[misc]


def _text(file: Path) -> str:
    return gzip.decompress(file.read_bytes()).decode() if file.suffix == ".gz" else file.read_text(encoding="utf-8")


def launch_args(text: str) -> EngineConfig:
    """Engine flags out of a command line; values are numbers or switches where they look like it."""
    words = shlex.split(text)
    values: dict[str, KnobValue] = {}
    for index, word in enumerate(words):
        if not word.startswith("--"):
            continue
        name, equal, given = word[2:].partition("=")
        after = words[index + 1] if index + 1 < len(words) else ""
        value: KnobValue = given if equal else after if after and not after.startswith("--") else True
        if name.startswith("no-") and value is True:
            name, value = name[3:], False
        if isinstance(value, str) and re.fullmatch(r"-?\d+", value):
            value = int(value)
        elif isinstance(value, str) and re.fullmatch(r"-?\d*\.\d+", value):
            value = float(value)
        values[name.replace("-", "_")] = value
    return EngineConfig.of(values, Source.LAUNCH_ARGS)


def _command(folder: Path, label: RunLabel) -> str:
    if label.args:
        return label.args
    command = folder / "command.txt"
    if command.exists():
        for line in command.read_text(encoding="utf-8").splitlines():
            if "vllm serve" in line or "sglang" in line or "text-generation" in line:
                return line
    truth = folder / "truth.txt"
    if truth.exists():
        for line in truth.read_text(encoding="utf-8").splitlines():
            if line.startswith("flags:"):
                return line.removeprefix("flags:")
    return ""


def _right(label: RunLabel) -> Callable[[Analysis, Label], bool]:
    def check(analysis: Analysis, truth: Label) -> bool:
        if label.healthy == "no":
            return traps.cause_of(analysis) in truth.accepted
        if label.healthy == "calm":
            return traps.calm(analysis)
        return not traps.loud(analysis) and analysis.verdict not in (Verdict.TUNE, Verdict.RESTART, Verdict.ROLL_BACK_UPGRADE)

    return check


def find(root: Path, run: str) -> Path | None:
    """The run's folder, None where there is none. Raises LabelError where there are two."""
    if (root / run).is_dir():
        return root / run
    found = sorted(path for path in root.rglob(run) if path.is_dir())
    if len(found) > 1:
        raise LabelError(f"{root} has {len(found)} folders {run!r}; name more of the path in the labels")
    return found[0] if found else None


def judge_run(folder: Path, label: RunLabel) -> tuple[Outcome, list[list[Page]]]:
    """One real run, with and without its launch arguments."""
    pages = read_pages(folder)
    engine = detect_engine(pages[-1][1])
    if engine is None:
        raise LabelError(f"{folder}: the pages are of no engine that this service knows")
    return answers(
        name=label.run, kind=f"real:{label.healthy}", engine=engine.value, group="fault" if label.healthy == "no" else "fine",
        truths=(label.truth(True), label.truth(False)), pages=[pages], targets=list(label.slos),
        config=launch_args(_command(folder, label)), right=_right(label), trap="",
    ), [pages]  # fmt: skip
