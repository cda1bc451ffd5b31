"""`perf-service doctor`: a diagnosis from saved pages or a live URL, with no server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated

import typer

from perf_service.cli.console import Output, OutputOption, complain, out, working
from perf_service.cli.pages import failures, is_url, read_pages, spaced
from perf_service.cli.prometheus import (
    EndOption,
    HeaderOption,
    MatchOption,
    PrometheusOption,
    RangeOption,
    StartOption,
    TokenFileOption,
    read_engine,
    source_of,
    time_range,
)
from perf_service.cli.settings_text import parse_settings
from perf_service.collectors.saved import SavedPage, check_page, snapshots_of
from perf_service.models.config import EngineConfig, KnobValue
from perf_service.models.errors import ErrorReason, InvalidArgumentError
from perf_service.models.metrics import Engine
from perf_service.models.redaction import redacted_url
from perf_service.models.slo import SLOTarget, parse_slo

if TYPE_CHECKING:
    from perf_service.models.analysis import Analysis, SLOStatus
    from perf_service.models.metrics import Snapshot
    from perf_service.models.plan import Plan, PredictedEffect, Prediction
    from perf_service.models.window import Window

__all__ = ["Diagnosis", "EngineChoice", "diagnose", "doctor"]

DEFAULT_INTERVAL_SECONDS = 10.0
BUDGET_SECONDS_MIN = 3600.0
"""A 30-day budget seen through a keyhole says nothing; see the server's `analyze` for one over its history."""
_ID = "doctor"  # the instance, which has no id of its own here
EngineChoice = Annotated[str, typer.Option("--engine", help="auto, vllm, sglang or tgi.")]


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Everything that `doctor` found."""

    snapshots: tuple[Snapshot, ...]
    window: Window | None
    analysis: Analysis
    plan: Plan
    what_if: tuple[Prediction, Prediction, tuple[PredictedEffect, ...]] | None = None


def doctor(
    pages: Annotated[
        list[str] | None,
        typer.Argument(metavar="PAGE...", help="A saved /metrics page (.gz too), a directory of pages, or a URL.", show_default=False),
    ] = None,
    engine: EngineChoice = "auto",
    slo: Annotated[list[str] | None, typer.Option("--slo", help="An objective, e.g. 'ttft_p95<0.5'. Repeatable.")] = None,
    config: Annotated[list[str] | None, typer.Option("--config", help="A present launch flag, e.g. max_num_seqs=256. Repeatable.")] = None,
    what_if: Annotated[list[str] | None, typer.Option("--what-if", help="Predict this change, e.g. max_num_seqs=64. Repeatable.")] = None,
    interval: Annotated[
        float | None,
        typer.Option("--interval", min=0.001, help="Seconds between two scrapes of a URL (default 10), or between the saved pages."),
    ] = None,
    prometheus: PrometheusOption = "",
    match: MatchOption = None,
    range_: RangeOption = "",
    start: StartOption = "",
    end: EndOption = "",
    header: HeaderOption = None,
    token_file: TokenFileOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Diagnose an engine from its /metrics pages: cause, evidence, the exact change, and what it would do.

    No server is needed. One page gives lifetime totals only; two or more show the present. With --prometheus the pages are those that
    it scraped, in the last 10 minutes or over any range of the past.
    """
    told_engine = parse_engine(engine)
    objectives = [parse_slo(text) for text in slo or ()]
    current = parse_settings(config or (), option="--config")
    changes = parse_settings(what_if or (), option="--what-if")
    if prometheus:
        if pages or interval is not None:
            raise InvalidArgumentError("give PAGE... or --prometheus, not both; its scrapes have times of their own", field="PAGE")
        since, until = time_range(range_, start, end, time.time())
        with working(f"reading {redacted_url(prometheus)}"):
            history = asyncio.run(read_engine(source_of(prometheus, match, header, token_file), since, until, told_engine))
        snapshots = snapshots_of(history.pages, _ID, engine=told_engine, config=current)
        snapshots[-1] = replace(snapshots[-1], quality=snapshots[-1].quality.plus(*history.issues))
    elif match or range_ or start or end or header or token_file:
        raise InvalidArgumentError(
            "--match, --range, --start, --end, --header and --token-file go with --prometheus URL", field="--prometheus"
        )
    elif isinstance(saved := _pages_of(pages or (), interval), str):
        snapshots = asyncio.run(_scrape_twice(saved, told_engine, current, interval or DEFAULT_INTERVAL_SECONDS))
    else:
        snapshots = snapshots_of(saved, _ID, engine=told_engine, config=current)
        check_order(snapshots)
        snapshots[-1] = replace(snapshots[-1], quality=snapshots[-1].quality.plus(*failures(pages or ())))
    with working("diagnosing"):
        diagnosis = diagnose(snapshots, objectives, current, changes)
    if output is Output.JSON:
        typer.echo(_json(diagnosis))
    else:
        _print(diagnosis)


def parse_engine(name: str) -> Engine | None:
    """None for `auto`. InvalidArgumentError for an engine that is not supported."""
    if name.lower() == "auto":
        return None
    try:
        return Engine(name.lower())
    except ValueError:
        known = ", ".join(e.value for e in Engine)
        raise InvalidArgumentError(f"--engine {name!r} is not supported; choose auto, {known}", field="engine") from None


def _pages_of(arguments: Sequence[str], interval: float | None) -> list[SavedPage] | str:
    """The saved pages, or the one URL to scrape."""
    if not arguments:
        raise InvalidArgumentError("give PAGE... (a saved page, a directory of pages, a URL) or --prometheus URL", field="PAGE")
    if any(is_url(a) for a in arguments):
        if len(arguments) > 1:
            raise InvalidArgumentError("give one URL, or saved pages, not several of both", field="PAGE")
        return arguments[0]
    read = read_pages(arguments)
    if interval is not None and (timed := sum(page.collected_at is not None for page in read)):
        complain(f"note: --interval {interval:g} takes the place of the recorded times of {timed} pages")
    return spaced(read, interval, now=time.time())


def check_order(snapshots: Sequence[Snapshot]) -> None:
    """Raise InvalidArgumentError where the pages were given newest first.

    One process' counters never fall. Taken for restarts, all pages but one would be left out. Counters that fall and rise again are
    those of several processes behind one address, which the analysis tells.
    """
    from perf_service.collectors.window import START_TIME_TOLERANCE_SECONDS, is_reset

    def is_older(page: Snapshot, than: Snapshot) -> bool:
        was, now = than.process_start_time, page.process_start_time
        same_process = was is not None and now is not None and abs(now - was) <= START_TIME_TOLERANCE_SECONDS
        return same_process and is_reset(than, page) and not is_reset(page, than)

    if len(snapshots) > 1 and all(is_older(after, before) for before, after in pairwise(snapshots)):
        first, second = snapshots[:2]
        raise InvalidArgumentError(
            f"{second.endpoint} is older than {first.endpoint}: of the same process, with lower counters; give the oldest page first",
            field="PAGE",
        )


async def _scrape_twice(url: str, engine: Engine | None, config: EngineConfig, interval: float) -> list[Snapshot]:
    from perf_service.collectors.fetch import Fetcher

    pages: list[SavedPage] = []
    async with Fetcher() as fetcher:
        for index in range(2):
            if index:
                with working(f"waiting {interval:g} s for the second page of {redacted_url(url)}"):
                    await asyncio.sleep(interval)
            with working(f"reading {redacted_url(url)}"):
                page = await fetcher.fetch(url)
            check_page(page.url, page.body)
            pages.append(SavedPage(page.url, page.body, time.time()))
    return snapshots_of(pages, _ID, engine=engine, config=config)


def diagnose(
    snapshots: Sequence[Snapshot],
    objectives: Sequence[SLOTarget] = (),
    current: EngineConfig | None = None,
    changes: EngineConfig | None = None,
) -> Diagnosis:
    """Analyze, plan, and predict the what-if. InvalidArgumentError for a what-if that the engine does not know."""
    from perf_service.analysis.engine import AnalysisEngine
    from perf_service.collectors.window import overall_window
    from perf_service.optimization.engine import OptimizationEngine
    from perf_service.optimization.predictor import Predictor, parts_of

    last = snapshots[-1]
    known = told_config(current or EngineConfig(), last.engine, last.engine_version).over(last.config)
    analysis = AnalysisEngine().analyze(
        snapshots if len(snapshots) > 1 else last, last.engine, list(objectives) or None, config=known if len(known) else None
    )
    if last.collected_at is not None:
        analysis = replace(analysis, slo_statuses=tuple(_with_budget(s, snapshots, last.collected_at) for s in analysis.slo_statuses))
    parts = parts_of(snapshots, analysis.window)
    plan = OptimizationEngine().generate_plan(
        analysis,
        known if len(known) else None,
        slo_targets=list(objectives) or None,
        engine_version=last.engine_version,
        windows=parts,
    )
    window = overall_window(snapshots)
    what_if = None
    if changes and len(changes) and analysis.window is not None:
        what_if = Predictor().predict(parts or [analysis.window], known, changes.values())
    return Diagnosis(tuple(snapshots), window, analysis, plan, what_if)


def _with_budget(status: SLOStatus, snapshots: Sequence[Snapshot], now: float) -> SLOStatus:
    """With its error budget, where the pages or the engine's own totals since its start tell of an hour or more."""
    from perf_service.analysis.error_budget import error_budget

    budget = error_budget(status.target, {"": snapshots}, now)
    return replace(status, budget=budget) if budget is not None and budget.covered_seconds >= BUDGET_SECONDS_MIN else status


def told_config(config: EngineConfig, engine: Engine, version: str = "") -> EngineConfig:
    """Launch flags as told, in the type of each. Flags that are no knob are kept, as an engine has hundreds more.

    Raises InvalidArgumentError: KNOB_VALUE_INVALID, or KNOB_UNKNOWN for a name so near to a knob's that it is a slip of the pen.
    """
    from difflib import get_close_matches

    from perf_service.optimization.catalogue import KnobCatalogue

    catalogue = KnobCatalogue.load()
    names = [entry.knob.name for entry in catalogue.entries(engine)]
    values: dict[str, KnobValue] = {}
    for name, value in config.values().items():
        if catalogue.get(engine, name) is not None:
            values[name] = catalogue.parse(engine, name, value, version)
        elif not catalogue.is_fact(engine, name) and (near := get_close_matches(name, names, 1, 0.85)):
            raise InvalidArgumentError(
                f"{name!r} is not a knob of {engine.value}; is {near[0]} meant?", field="--config", reason=ErrorReason.KNOB_UNKNOWN
            )
        else:
            values[name] = value
    return EngineConfig.of(values)


def _json(diagnosis: Diagnosis) -> str:
    from perf_service.cli.jsonable import analysis_json, dumps, plain, plan_json, prediction_json, snapshot_json

    body = {
        "snapshot": {**snapshot_json(diagnosis.snapshots[-1]), "pages": len(diagnosis.snapshots)},
        "analysis": analysis_json(diagnosis.analysis),
        "plan": plan_json(diagnosis.plan),
    }
    if diagnosis.what_if is not None:
        baseline, prediction, effects = diagnosis.what_if
        body["prediction"] = {**prediction_json(prediction), "baseline": prediction_json(baseline), "effects": plain(effects)}
    return dumps(body)


def _print(diagnosis: Diagnosis) -> None:
    from rich.text import Text

    from perf_service.cli import diagnosis_view, render, text

    console = out()
    last, window = diagnosis.snapshots[-1], diagnosis.window
    head = Text(f"{last.engine.value} {last.engine_version}".strip(), style="bold")
    if last.model_name:
        head.append(f"  model {last.model_name}", style="not bold")
    count = len(diagnosis.snapshots)
    span = f"{count} page{'s' if count > 1 else ''}"
    if window is not None and window.lifetime:
        span += ", totals since the process started"
    elif window is not None and window.duration_seconds:
        span += f" over {text.seconds(window.duration_seconds)}"
    elif count > 1:
        span += ", time between them unknown: no rates (give --interval SECONDS)"
    console.print(head.append(f"  {span}", style="dim"))
    console.print()
    rows = diagnosis_view.analysis_view(diagnosis.analysis)
    if window is not None:
        rows.append(("MEASURED", diagnosis_view.measured_table(window)))
    rows += render.plan_view(diagnosis.plan)
    if diagnosis.what_if is not None:
        rows.append(("WHAT IF", render.prediction_view(diagnosis.what_if[0], diagnosis.what_if[1])))
    render.sections(console, rows)
