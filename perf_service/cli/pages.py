"""Saved pages for `doctor`: files, gzip, directories with their `scrapes.jsonl`."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from perf_service.collectors.exposition import DEFAULT_MAX_BODY_BYTES
from perf_service.models.errors import CollectError, ErrorReason, InvalidArgumentError

__all__ = ["INDEX", "SavedPage", "is_url", "read_page", "read_pages", "spaced"]

INDEX = "scrapes.jsonl"
_SUFFIXES = (".prom", ".prom.gz", ".txt", ".txt.gz", ".metrics", ".metrics.gz")
_GZIP = b"\x1f\x8b"
_HOST_AND_PORT = re.compile(r"[\w.-]+:\d{1,5}(/|$)")


@dataclass(frozen=True, slots=True)
class SavedPage:
    """One page as it was served, with the Unix time of its scrape (None: unknown)."""

    name: str
    body: bytes
    collected_at: float | None


def is_url(page: str) -> bool:
    """Whether PAGE is to be fetched, not read."""
    return "://" in page


def read_pages(arguments: Sequence[str]) -> list[SavedPage]:
    """Pages of files and directories in the order given; a directory's in the order of its index or of its names.

    Raises InvalidArgumentError for a path that is not there, CollectError for one that cannot be a page.
    """
    pages: list[SavedPage] = []
    for argument in arguments:
        path = Path(argument)
        if path.is_dir():
            pages += _read_directory(path)
        elif path.exists():
            pages.append(SavedPage(argument, read_page(path), None))
        else:
            hint = f"; for a URL write http://{argument}" if _HOST_AND_PORT.match(argument) else ""
            raise InvalidArgumentError(f"there is no file or directory {argument!r}{hint}", field="PAGE")
    return pages


def spaced(pages: Sequence[SavedPage], interval_seconds: float | None, *, now: float) -> list[SavedPage]:
    """The pages with `interval_seconds` between them, the last one at `now`; as they are where no interval is told."""
    if interval_seconds is None:
        return list(pages)
    last = len(pages) - 1
    return [SavedPage(p.name, p.body, now - (last - index) * interval_seconds) for index, p in enumerate(pages)]


def _read_directory(folder: Path) -> list[SavedPage]:
    index = folder / INDEX
    if index.is_file():
        pages = [SavedPage(str(folder / name), read_page(folder / name), at) for name, at in _read_index(index)]
    else:
        files = sorted(p for p in folder.iterdir() if p.is_file() and p.name.endswith(_SUFFIXES))
        pages = [SavedPage(str(path), read_page(path), None) for path in files]
    if not pages:
        wanted = ", ".join(_SUFFIXES)
        raise CollectError(ErrorReason.BODY_EMPTY, f"no page in {folder}: looked for {INDEX} and for files ending in {wanted}")
    return pages


def _read_index(index: Path) -> list[tuple[str, float]]:
    """File names and times in time order. Lines about scrapes that saved no page (a server that was down) are passed over."""
    entries: list[tuple[str, float]] = []
    for number, line in enumerate(index.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            name, at = entry.get("file"), entry.get("t_unix")
            if not name:
                continue
            at = float(at)
        except (ValueError, TypeError, AttributeError) as error:
            raise CollectError(
                ErrorReason.BODY_NOT_METRICS, f'{index} line {number} is not {{"file": NAME, "t_unix": SECONDS}}: {line[:80]!r}'
            ) from error
        # The index names files beside it; anything else is not ours to read.
        if Path(name).name == name and (index.parent / name).is_file():
            entries.append((name, at))
    return sorted(entries, key=lambda entry: entry[1])


def read_page(path: Path, *, max_bytes: int = DEFAULT_MAX_BODY_BYTES) -> bytes:
    """A file's page, unpacked where it is gzip. CollectError where it is empty, too large, HTML, or no text."""
    try:
        with path.open("rb") as file:
            body = file.read(max_bytes + 1)
    except OSError as error:
        raise CollectError(ErrorReason.ENDPOINT_UNREACHABLE, f"cannot read {path}: {error.strerror or error}") from error
    if body.startswith(_GZIP):
        body = _unpack(path, body, max_bytes)
    if len(body) > max_bytes:
        raise CollectError(ErrorReason.BODY_TOO_LARGE, f"{path} is larger than {max_bytes} bytes; an engine's /metrics page is below 1 MB")
    check_page(str(path), body)
    return body


def check_page(name: str, body: bytes) -> None:
    """Raise where `body` is plainly no metrics page: empty, HTML or binary."""
    head = body[:4096].lstrip()
    if not head:
        raise CollectError(ErrorReason.BODY_EMPTY, f"{name} is empty; save the engine's /metrics page into it")
    if head[:1] == b"<":
        raise CollectError(ErrorReason.BODY_NOT_METRICS, f"{name} is an HTML or XML page, not an engine's /metrics page; check its address")
    if b"\0" in head:
        raise CollectError(ErrorReason.BODY_NOT_METRICS, f"{name} is a binary file, not the text of an engine's /metrics page")


def _unpack(path: Path, body: bytes, max_bytes: int) -> bytes:
    unpacker = zlib.decompressobj(wbits=31)
    try:
        text = unpacker.decompress(body, max_bytes + 1)
    except zlib.error as error:
        raise CollectError(ErrorReason.BODY_NOT_METRICS, f"{path} is damaged gzip: {error}") from error
    if not unpacker.eof and len(text) <= max_bytes:
        raise CollectError(ErrorReason.BODY_NOT_METRICS, f"{path} is gzip that ends too early: the file was cut")
    return text
