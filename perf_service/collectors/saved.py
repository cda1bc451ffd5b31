"""Pages that were saved: files, gzip or plain, directories with their `scrapes.jsonl`, and the snapshots of them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from perf_service.collectors.dialects import detect_engine
from perf_service.collectors.exposition import DEFAULT_MAX_BODY_BYTES
from perf_service.collectors.gunzip import DamagedGzipError, gunzip
from perf_service.collectors.page import looks_like_html
from perf_service.collectors.snapshot import SnapshotBuilder, require_engine
from perf_service.models.config import EngineConfig
from perf_service.models.errors import CollectError, ErrorReason
from perf_service.models.metrics import DataIssue, Engine, IssueCode, IssueLevel, Snapshot

INDEX_NAME: Final = "scrapes.jsonl"
_SUFFIXES: Final = (".prom", ".prom.gz", ".txt", ".txt.gz", ".metrics", ".metrics.gz")
_GZIP: Final = b"\x1f\x8b"


@dataclass(frozen=True, slots=True)
class SavedPage:
    """One page as it was served, with the unix seconds of its scrape (None: unknown)."""

    name: str
    body: bytes
    collected_at: float | None


def read_saved(
    path: Path, *, max_bytes: int = DEFAULT_MAX_BODY_BYTES, refused: Callable[[str, CollectError], None] | None = None
) -> list[SavedPage]:
    """The pages of a file or a directory.

    A directory is read by its index `scrapes.jsonl` (lines `{"file": NAME, "t_unix": SECONDS}`; no file: a scrape that failed; no
    time: unknown), in the order of time where every page has one; without an index by file name, `page2` before `page10`. Files that
    the index names and that are gone are passed over. `refused` is told the name and the error of a page in a directory that cannot be
    read, which is then left out; without it that is raised.

    Raises:
        CollectError: BODY_NOT_METRICS for a broken index and for files that are no page; BODY_EMPTY for a directory without
            pages and an empty page; BODY_TOO_LARGE beyond the limit, packed or not; ENDPOINT_UNREACHABLE for what cannot be opened.
    """
    if not path.is_dir():
        return [SavedPage(str(path), read_page(path, max_bytes=max_bytes), None)]
    index = path / INDEX_NAME
    if index.is_file():
        files = _read_index(index)
    else:
        files = [(file, None) for file in sorted(path.iterdir(), key=_natural) if file.name.endswith(_SUFFIXES) and file.is_file()]
    if not files and index.is_file() and (why := _why_no_page(index)):
        raise CollectError(ErrorReason.BODY_EMPTY, f"no page in {path}: {why}, so nothing is known of it")
    if not files:
        wanted = ", ".join(_SUFFIXES)
        raise CollectError(ErrorReason.BODY_EMPTY, f"no page in {path}: looked for {INDEX_NAME} and for files ending in {wanted}")
    pages = []
    for file, at in files:
        try:
            pages.append(SavedPage(str(file), read_page(file, max_bytes=max_bytes), at))
        except CollectError as error:
            if refused is None:
                raise
            refused(str(file), error)
    return pages


@dataclass(frozen=True, slots=True)
class FailedScrapes:
    """Scrapes of a directory's index that gave no page: how many, of how many, and how many of them in a row at the end."""

    failed: int
    scrapes: int
    at_the_end: int


def failed_scrapes(path: Path) -> FailedScrapes | None:
    """What a directory's index tells of scrapes that failed; None where there is no index, or none failed. Raises as `read_saved`."""
    index = path / INDEX_NAME
    if not index.is_file():
        return None
    went_well = [bool(name) for name, _ in _entries(index)]
    if all(went_well):
        return None
    at_the_end = next((n for n, is_page in enumerate(reversed(went_well)) if is_page), len(went_well))
    return FailedScrapes(went_well.count(False), len(went_well), at_the_end)


def _natural(path: Path) -> list[str | int]:
    """A key that orders names with numbers in them by the numbers; text and numbers take turns, so that like meets like."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", path.name)]


def read_page(path: Path, *, max_bytes: int = DEFAULT_MAX_BODY_BYTES) -> bytes:
    """A file's page, unpacked where it is gzip. Raises CollectError as `read_saved`."""
    try:
        with path.open("rb") as file:
            body = file.read(max_bytes + 1)
    except OSError as error:
        raise CollectError(ErrorReason.ENDPOINT_UNREACHABLE, f"cannot read {path}: {error.strerror or error}") from error
    if len(body) > max_bytes:
        raise _too_large(str(path), max_bytes)
    body = unpacked(body, str(path), max_bytes)
    check_page(str(path), body)
    return body


def check_page(name: str, body: bytes) -> None:
    """Raise CollectError (BODY_EMPTY, BODY_NOT_METRICS) where `body` is plainly no metrics page: empty, HTML or binary."""
    head = body[:4096].lstrip()
    if not head:
        raise CollectError(ErrorReason.BODY_EMPTY, f"{name} is empty; save the engine's /metrics page into it")
    if looks_like_html(head):
        raise CollectError(ErrorReason.BODY_NOT_METRICS, f"{name} is an HTML or XML page, not an engine's /metrics page; check its address")
    if b"\0" in head:
        raise CollectError(ErrorReason.BODY_NOT_METRICS, f"{name} is a binary file, not the text of an engine's /metrics page")


def unpacked(page: bytes, name: str, limit: int = DEFAULT_MAX_BODY_BYTES) -> bytes:
    """The page itself where it is gzip, else as it is. Raises CollectError: BODY_NOT_METRICS where the gzip is damaged, BODY_TOO_LARGE."""
    if not page.startswith(_GZIP):
        return page
    try:
        return gunzip(page, limit)
    except DamagedGzipError as error:
        raise CollectError(ErrorReason.BODY_NOT_METRICS, f"{name} is damaged gzip: {error}") from error
    except CollectError as error:
        raise _too_large(name, limit) from error


def snapshots_of(
    pages: Sequence[SavedPage], instance_id: str, *, engine: Engine | None = None, config: EngineConfig | None = None
) -> list[Snapshot]:
    """The snapshots of saved pages of one instance. `engine` None takes the engine of the first page that has one.

    A page without a metric of the engine, as a server that has just started and a proxy before it answer, is left out where others have
    some, and the quality of the last snapshot says so.

    Raises:
        CollectError: ENGINE_UNKNOWN when no page tells its engine; ENGINE_MISMATCH when a page is of another; BODY_EMPTY or
            BODY_NOT_METRICS when none of the pages is a metrics page.
    """
    engines = [detect_engine(page.body) for page in pages]
    found = engine or next(filter(None, engines), None)
    if found is None:
        raise _no_engine(pages)
    for page, other in zip(pages, engines, strict=True):
        if other not in (None, found):
            why = "and the engine told is" if engine else "and the pages before it are of"
            raise CollectError(
                ErrorReason.ENGINE_MISMATCH,
                f"{page.name} is a page of {other}, {why} {found}: give the pages of one engine at a time",
                {"engine": found.value},
            )
    # One builder for all pages: its parser remembers the series of the earlier ones.
    builder = SnapshotBuilder(found)
    snapshots = [builder.build(page.body, instance_id, page.collected_at, endpoint=page.name, config=config) for page in pages]
    told = [snapshot for snapshot in snapshots if not snapshot.quality.has(IssueCode.NO_KNOWN_METRICS)]
    if not told:
        for page in pages:
            check_page(page.name, page.body)
        require_engine(snapshots[0])
    if len(told) < len(snapshots):
        silent = [page.name for page, snapshot in zip(pages, snapshots, strict=True) if snapshot.quality.has(IssueCode.NO_KNOWN_METRICS)]
        names = ", ".join(silent[:3]) + (", ..." if len(silent) > 3 else "")
        text = f"{len(silent)} of {len(snapshots)} pages have no metric of {found.value} and are left out: {names}."
        told[-1] = replace(told[-1], quality=told[-1].quality.plus(DataIssue(IssueCode.GAP, IssueLevel.WARNING, text)))
    return told


def _no_engine(pages: Sequence[SavedPage]) -> CollectError:
    for page in pages:
        check_page(page.name, page.body)
    return CollectError(
        ErrorReason.ENGINE_UNKNOWN,
        "No page has a metric of vLLM, SGLang or TGI, so the engine cannot be told. "
        "Check that these are /metrics pages, and that metrics are on (SGLang needs --enable-metrics).",
    )


def _read_index(index: Path) -> list[tuple[Path, float | None]]:
    named = [(index.parent / name, at) for name, at in _entries(index) if name]
    files = [(file, at) for file, at in named if file.is_file()]
    return files if any(at is None for _, at in files) else sorted(files, key=lambda file: file[1] or 0.0)


def _why_no_page(index: Path) -> str:
    """What became of the scrapes of an index none of whose files is there; empty where it has none."""
    names = [name for name, _ in _entries(index)]
    missing = [name for name in names if name]
    failed = len(names) - len(missing)
    gone = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
    if not missing:
        return f"all {failed} scrapes in {INDEX_NAME} failed" if failed else ""
    return f"of the scrapes in {INDEX_NAME} {f'{failed} failed and ' if failed else ''}the files of {len(missing)} are missing ({gone})"


def _entries(index: Path) -> Iterator[tuple[str, float | None]]:
    """File (empty: the scrape failed) and time of each line of an index."""
    for number, line in enumerate(index.read_text("utf-8", "replace").splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            name, at = entry.get("file"), entry.get("t_unix")
            if isinstance(at, bool) or (name and not isinstance(name, str)):
                raise TypeError
            at = None if at is None or not name else float(at)
        except (ValueError, TypeError, AttributeError) as error:
            raise CollectError(
                ErrorReason.BODY_NOT_METRICS, f'{index} line {number} is not {{"file": NAME, "t_unix": SECONDS}}: {line[:80]!r}'
            ) from error
        if name and Path(name).name != name:
            raise CollectError(ErrorReason.BODY_NOT_METRICS, f"{index} line {number} names a file outside of its directory: {name!r}")
        yield name or "", at


def _too_large(name: str, limit: int) -> CollectError:
    return CollectError(ErrorReason.BODY_TOO_LARGE, f"{name} is larger than {limit} bytes; an engine's /metrics page is below 1 MB")
