"""From the text of one page to a typed `Snapshot`: absent stays absent, and what is doubtful is said, not guessed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from perf_service.collectors.dialects import detect_engine, dialect_of
from perf_service.collectors.dialects.base import Dialect
from perf_service.collectors.exposition import (
    DEFAULT_MAX_BODY_BYTES,
    DEFAULT_MAX_REMEMBERED,
    DEFAULT_MAX_SERIES,
    ExpositionParser,
    Page,
)
from perf_service.collectors.plan import Plan
from perf_service.collectors.reading import Reading
from perf_service.collectors.series_syntax import Series
from perf_service.models.config import EngineConfig
from perf_service.models.errors import CollectError, ErrorReason
from perf_service.models.metrics import DataIssue, DataQuality, Engine, IssueCode, IssueLevel, Snapshot
from perf_service.models.redaction import redacted_url

_MAX_PLANS: Final = 32
_MAX_PLANNED_SERIES: Final = 5_000
"""Together at most some 30 MB, and 3 MB with the pages of real engines."""
_LISTED_NAMES: Final = 20
_LISTED_NAME_CHARS: Final = 100


class SnapshotBuilder:
    """Makes snapshots of pages of one engine. Keep one per engine: its parser remembers the series of earlier pages.

    Not for use by several threads at once.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        max_body_bytes: int = DEFAULT_MAX_BODY_BYTES,
        max_series: int = DEFAULT_MAX_SERIES,
        max_remembered: int = DEFAULT_MAX_REMEMBERED,
    ) -> None:
        self.engine = engine
        self._dialect = dialect_of(engine)
        self._plans: dict[tuple[Series, ...], Plan] = {}
        self._parser = ExpositionParser(
            self._dialect.bind, max_body_bytes=max_body_bytes, max_series=max_series, max_remembered=max_remembered
        )

    @property
    def remembered(self) -> int:
        """How many spellings of series are remembered from earlier pages."""
        return self._parser.remembered

    def build(
        self,
        body: bytes | str,
        instance_id: str,
        collected_at: float | None,
        *,
        endpoint: str = "",
        config: EngineConfig | None = None,
        engine_version: str = "",
        content_type: str = "",
    ) -> Snapshot:
        """The typed content of a page. `collected_at` is unix seconds, None where a saved page's time is unknown.

        Of an `endpoint` no secret is kept. `config` holds what is known from elsewhere; it wins over what the page tells. Both text
        formats are read alike; a `content_type` of OpenMetrics makes a page without `# EOF` one that was cut.

        Raises:
            CollectError: BODY_TOO_LARGE or TOO_MANY_SERIES when the page exceeds the limits.
        """
        page = self._parser.parse(body, instance_id)
        reading = Reading(self._dialect, page, self._plan_of(page))
        issues = [*_page_issues(page, _is_openmetrics(content_type)), *reading.issues]
        known = len(reading.gauges) + len(reading.counters) + len(reading.histograms)
        if not reading.own_series:
            issues.insert(0, _nothing_known(self.engine, body))
            known = 0
        else:
            issues += _missing(self._dialect, reading)
        return Snapshot(
            instance_id=instance_id,
            engine=self.engine,
            collected_at=collected_at,
            gauges=reading.gauges,
            counters=reading.counters,
            histograms=reading.histograms,
            ranks=reading.ranks,
            config=config.over(reading.config) if config else reading.config,
            engine_version=engine_version,
            model_name=reading.model_name,
            process_start_time=reading.process_start_time,
            endpoint=redacted_url(endpoint),
            derived=tuple(dict.fromkeys(reading.derived)),
            quality=DataQuality(_once(issues), known),
        )

    def _plan_of(self, page: Page) -> Plan:
        """The plan for the page's series: that of its layout, or of a page whose other lines differ (as adapters come and go)."""
        layout = page.layout
        if layout is not None and isinstance(layout.reading, Plan):
            return layout.reading
        series = tuple(page.series)
        plan = self._plans.get(series)
        if plan is None:
            plan = Plan(self._dialect, series)
            if len(self._plans) >= _MAX_PLANS:
                self._plans.clear()
            if len(series) <= _MAX_PLANNED_SERIES:
                self._plans[series] = plan
        if layout is not None:
            layout.reading = plan
        return plan


def snapshot_of(
    body: bytes | str,
    instance_id: str,
    *,
    engine: Engine | None = None,
    collected_at: float | None = None,
    endpoint: str = "",
    config: EngineConfig | None = None,
    engine_version: str = "",
    content_type: str = "",
    strict: bool = False,
) -> Snapshot:
    """One page's snapshot, for callers without a series of pages. `engine` None detects it from the page.

    Raises:
        CollectError: ENGINE_UNKNOWN when the engine was to be detected and no engine's metric is on the page; with
            `strict`, ENGINE_MISMATCH or BODY_NOT_METRICS when the page is not one of the told engine; BODY_TOO_LARGE,
            TOO_MANY_SERIES beyond the limits.
    """
    if engine is None:
        engine = detect_engine(body)
        if engine is None:
            raise CollectError(
                ErrorReason.ENGINE_UNKNOWN,
                "The page has no metric of vLLM, SGLang or TGI, so its engine cannot be told. "
                "Check that it is the engine's /metrics page and that metrics are on (SGLang needs --enable-metrics).",
            )
    snapshot = SnapshotBuilder(engine).build(
        body, instance_id, collected_at, endpoint=endpoint, config=config, engine_version=engine_version, content_type=content_type
    )
    if strict:
        require_engine(snapshot)
    return snapshot


def require_engine(snapshot: Snapshot) -> None:
    """Raise where the page was not one of the told engine.

    Raises:
        CollectError: ENGINE_MISMATCH for another engine's page, BODY_NOT_METRICS for a page of no engine.
    """
    for issue in snapshot.quality.blocking:
        if issue.code is IssueCode.ENGINE_MISMATCH:
            raise CollectError(ErrorReason.ENGINE_MISMATCH, issue.message, {"engine": snapshot.engine.value})
        if issue.code is IssueCode.NO_KNOWN_METRICS:
            raise CollectError(ErrorReason.BODY_NOT_METRICS, issue.message, {"engine": snapshot.engine.value})


def _is_openmetrics(content_type: str) -> bool:
    return content_type.partition(";")[0].strip().lower() == "application/openmetrics-text"


def _page_issues(page: Page, is_openmetrics: bool) -> list[DataIssue]:
    issues = []
    if page.malformed_count:
        lines = "; ".join(f"line {entry.number}: {entry.text!r}" for entry in page.malformed_lines)
        text = f"{page.malformed_count} line(s) make no sense and are left out ({lines})."
        issues.append(DataIssue(IssueCode.MALFORMED_LINES, IssueLevel.WARNING, text))
    if page.is_truncated:
        text = "The page ends in the middle of a line: it was cut, and metrics at its end are missing."
        issues.append(DataIssue(IssueCode.TRUNCATED, IssueLevel.WARNING, text))
    elif is_openmetrics and not page.has_eof:
        text = "The page is OpenMetrics and does not end with # EOF: it was cut, and metrics at its end are missing."
        issues.append(DataIssue(IssueCode.TRUNCATED, IssueLevel.WARNING, text))
    elif page.is_unterminated and page.types and not page.has_eof:
        text = "The page does not end with a line feed: its last value may be cut."
        issues.append(DataIssue(IssueCode.TRUNCATED, IssueLevel.INFO, text))
    if page.duplicates:
        names = _listed(dict.fromkeys(series.name for series in page.duplicates))
        text = f"{len(page.duplicates)} series stand on the page twice; the first value of each is taken ({names})."
        issues.append(DataIssue(IssueCode.DUPLICATE_SERIES, IssueLevel.WARNING, text))
    if page.unknown_names:
        families = dict.fromkeys(_family(page, name) for name in page.unknown_names)
        text = f"Names that no known version of the engine has are ignored: {_listed(families)}."
        issues.append(DataIssue(IssueCode.UNKNOWN_METRICS, IssueLevel.INFO, text))
    return issues


def _family(page: Page, name: str) -> str:
    """The declared family of a sample, so that a histogram is named once; the sample itself where none is declared."""
    bases = (name.removesuffix(suffix) for suffix in ("_bucket", "_sum", "_count", "_total"))
    return next((base for base in bases if base in page.types), name)


def _nothing_known(engine: Engine, body: bytes | str) -> DataIssue:
    other = detect_engine(body)
    if other is not None and other is not engine:
        text = f"The page is one of {other.value}, not of {engine.value}: set the instance's engine to {other.value}."
        return DataIssue(IssueCode.ENGINE_MISMATCH, IssueLevel.BLOCKING, text)
    hint = " Metrics are off unless it was started with --enable-metrics." if engine is Engine.SGLANG else ""
    what = "The page is empty" if not body.strip() else "The page has no metric of the engine that is known"
    text = f"{what}: nothing can be said about this {engine.value} server.{hint}"
    return DataIssue(IssueCode.NO_KNOWN_METRICS, IssueLevel.BLOCKING, text)


def _missing(dialect: Dialect, reading: Reading) -> list[DataIssue]:
    issues = []
    for target in dialect.core:
        if target not in reading.gauges and target not in reading.counters and target not in reading.histograms:
            spellings = next(rule.names for rule in dialect.rules if rule.target is target)
            text = f"The page has no {' or '.join(spellings)}: {target.value} is unknown."
            issues.append(DataIssue(IssueCode.MISSING_METRIC, IssueLevel.WARNING, text, target.value))
    return issues


def _once(issues: Iterable[DataIssue]) -> tuple[DataIssue, ...]:
    """The first issue of each kind and metric: a page of ten thousand odd values is told of once."""
    first: dict[tuple[IssueCode, str], DataIssue] = {}
    for issue in issues:
        first.setdefault((issue.code, issue.metric), issue)
    return tuple(first.values())


def _listed(names: Iterable[str]) -> str:
    listed = [name if len(name) <= _LISTED_NAME_CHARS else f"{name[:_LISTED_NAME_CHARS]}..." for name in names]
    more = f" and {len(listed) - _LISTED_NAMES} more" if len(listed) > _LISTED_NAMES else ""
    return ", ".join(listed[:_LISTED_NAMES]) + more
