"""Saved pages: files, gzip, directories with an index, and everything that is no page."""

import gzip
import json
from pathlib import Path

import pytest

from perf_service.cli.pages import SavedPage, is_url, read_page, read_pages, spaced
from perf_service.models.errors import CollectError, ErrorReason, InvalidArgumentError

PAGE = b"# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running 1\n"


def write(folder: Path, name: str, body: bytes = PAGE) -> Path:
    path = folder / name
    path.write_bytes(gzip.compress(body, mtime=0) if name.endswith(".gz") else body)
    return path


def test_plain_and_gzip_files_read_alike(tmp_path: Path) -> None:
    assert read_page(write(tmp_path, "a.prom")) == read_page(write(tmp_path, "b.prom.gz")) == PAGE


def test_gzip_is_known_by_its_content_not_its_name(tmp_path: Path) -> None:
    path = tmp_path / "page"
    path.write_bytes(gzip.compress(PAGE, mtime=0))
    assert read_page(path) == PAGE


def test_a_directory_follows_its_index_in_the_order_of_time(tmp_path: Path) -> None:
    for name in ("a.prom", "b.prom.gz", "not_listed.prom"):
        write(tmp_path, name)
    lines = [
        {"file": "b.prom.gz", "t_unix": 20.5},
        {"file": "a.prom", "t_unix": 10},
        {"t_unix": 30, "error": "refused"},
        {"file": "gone.prom", "t_unix": 1},
    ]
    (tmp_path / "scrapes.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    pages = read_pages([str(tmp_path)])
    assert [(Path(p.name).name, p.collected_at) for p in pages] == [("a.prom", 10.0), ("b.prom.gz", 20.5)]


def test_an_index_reaches_no_file_outside_its_directory(tmp_path: Path) -> None:
    write(tmp_path, "secret.prom")
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / "scrapes.jsonl").write_text('{"file": "../secret.prom", "t_unix": 1}')
    with pytest.raises(CollectError, match="no page in"):
        read_pages([str(inner)])


@pytest.mark.parametrize("line", ["not json", '{"file": "a.prom", "t_unix": "soon"}', '{"file": "a.prom"}', "[1]"])
def test_a_broken_index_names_the_line(tmp_path: Path, line: str) -> None:
    (tmp_path / "scrapes.jsonl").write_text("\n" + line)
    with pytest.raises(CollectError, match="line 2"):
        read_pages([str(tmp_path)])


def test_a_directory_without_index_goes_by_name_and_knows_no_time(tmp_path: Path) -> None:
    for name in ("2.prom", "1.prom.gz", "3.metrics", "notes.md"):
        write(tmp_path, name)
    pages = read_pages([str(tmp_path)])
    assert [Path(p.name).name for p in pages] == ["1.prom.gz", "2.prom", "3.metrics"]
    assert {p.collected_at for p in pages} == {None}


def test_what_is_not_there_is_bad_usage(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="no file or directory"):
        read_pages([str(tmp_path / "nothing.prom")])
    with pytest.raises(InvalidArgumentError, match=r"for a URL write http://127\.0\.0\.1:8000$"):
        read_pages(["127.0.0.1:8000"])


@pytest.mark.parametrize(
    ("body", "reason", "words"),
    [
        (b"", ErrorReason.BODY_EMPTY, "empty"),
        (b" \n\t\n", ErrorReason.BODY_EMPTY, "empty"),
        (b"<!DOCTYPE html><html></html>", ErrorReason.BODY_NOT_METRICS, "HTML"),
        (b"\x7fELF\x02\x01\x01\0\0\0", ErrorReason.BODY_NOT_METRICS, "binary"),
        (gzip.compress(PAGE, mtime=0)[:-12], ErrorReason.BODY_NOT_METRICS, "too early"),
        (b"\x1f\x8bnonsense", ErrorReason.BODY_NOT_METRICS, "damaged"),
    ],
)
def test_what_is_no_page_says_what_it_is(tmp_path: Path, body: bytes, reason: ErrorReason, words: str) -> None:
    path = tmp_path / "page.prom"
    path.write_bytes(body)
    with pytest.raises(CollectError, match=words) as caught:
        read_page(path)
    assert caught.value.reason is reason


@pytest.mark.parametrize("name", ["big.prom", "big.prom.gz"])
def test_a_page_beyond_the_limit_is_refused_before_it_is_unpacked_in_full(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, name, b"a" * 20_000)
    with pytest.raises(CollectError) as caught:
        read_page(path, max_bytes=10_000)
    assert caught.value.reason is ErrorReason.BODY_TOO_LARGE


def test_interval_spaces_pages_up_to_now() -> None:
    pages = [SavedPage("a", PAGE, None), SavedPage("b", PAGE, 5.0), SavedPage("c", PAGE, None)]
    assert [p.collected_at for p in spaced(pages, 10.0, now=100.0)] == [80.0, 90.0, 100.0]
    assert [p.collected_at for p in spaced(pages, None, now=100.0)] == [None, 5.0, None]


def test_urls_are_told_from_paths() -> None:
    assert is_url("http://127.0.0.1:8000")
    assert not is_url("captures/a.prom")
