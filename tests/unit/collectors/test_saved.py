"""Saved pages: files, gzip, directories with an index, and everything that is no page."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest

from perf_service.collectors.saved import SavedPage, read_page, read_saved, snapshots_of
from perf_service.models.config import EngineConfig
from perf_service.models.errors import CollectError, ErrorReason
from perf_service.models.metrics import Engine, IssueCode

PAGE = b"# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running 3\nvllm:generation_tokens_total 5\n"


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


def test_a_file_of_several_gzip_members_is_read_in_full(tmp_path: Path) -> None:
    path = tmp_path / "page.prom.gz"
    path.write_bytes(gzip.compress(PAGE[:50]) + gzip.compress(PAGE[50:]))
    assert read_page(path) == PAGE


def test_a_directory_is_read_in_the_order_of_its_index(captures: Path) -> None:
    pages = read_saved(captures / "h_restart")
    index = [json.loads(line) for line in (captures / "h_restart/scrapes.jsonl").read_text().splitlines()]
    assert [(Path(page.name).name, page.collected_at) for page in pages] == [(entry["file"], entry["t_unix"]) for entry in index]
    snapshots = snapshots_of(pages, "i", config=EngineConfig.of({"max_num_seqs": 4}))
    assert {snapshot.engine for snapshot in snapshots} == {Engine.VLLM}
    assert snapshots[0].config.get("max_num_seqs") == 4
    assert snapshots[0].collected_at == index[0]["t_unix"]


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
    pages = read_saved(tmp_path)
    assert [(Path(p.name).name, p.collected_at) for p in pages] == [("a.prom", 10.0), ("b.prom.gz", 20.5)]


def test_where_a_time_is_lost_the_index_tells_the_order(tmp_path: Path) -> None:
    for name in ("a.prom", "b.prom"):
        write(tmp_path, name)
    (tmp_path / "scrapes.jsonl").write_text('{"file": "b.prom", "t_unix": 20}\n{"file": "a.prom"}\n{"file": null, "error": "refused"}\n')
    assert [(Path(p.name).name, p.collected_at) for p in read_saved(tmp_path)] == [("b.prom", 20.0), ("a.prom", None)]


@pytest.mark.parametrize("name", ["../secret.prom", "/etc/hostname", "inner/../../secret.prom"])
def test_an_index_reaches_no_file_outside_its_directory(tmp_path: Path, name: str) -> None:
    write(tmp_path, "secret.prom")
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / "scrapes.jsonl").write_text(json.dumps({"file": name, "t_unix": 1}))
    with pytest.raises(CollectError, match="line 1 names a file outside of its directory") as caught:
        read_saved(inner)
    assert caught.value.reason is ErrorReason.BODY_NOT_METRICS


@pytest.mark.parametrize(
    "line", ["not json", "[1]", '{"file": "a.prom", "t_unix": "soon"}', '{"file": "a.prom", "t_unix": true}', '{"file": 5}']
)
def test_a_broken_index_names_the_line(tmp_path: Path, line: str) -> None:
    write(tmp_path, "a.prom")
    (tmp_path / "scrapes.jsonl").write_text("\n" + line)
    with pytest.raises(CollectError, match="line 2") as caught:
        read_saved(tmp_path)
    assert caught.value.reason is ErrorReason.BODY_NOT_METRICS


def test_a_directory_without_index_goes_by_name_and_knows_no_time(tmp_path: Path) -> None:
    for name in ("2.prom", "1.prom.gz", "3.metrics", "notes.md"):
        write(tmp_path, name)
    pages = read_saved(tmp_path)
    assert [Path(p.name).name for p in pages] == ["1.prom.gz", "2.prom", "3.metrics"]
    assert {p.collected_at for p in pages} == {None}


def test_numbers_in_names_count_as_numbers(tmp_path: Path) -> None:
    for name in ("page10.prom", "page9.prom", "1.prom", "page9b.prom"):
        write(tmp_path, name)
    assert [Path(p.name).name for p in read_saved(tmp_path)] == ["1.prom", "page9.prom", "page9b.prom", "page10.prom"]


def test_what_has_no_page_or_cannot_be_opened_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CollectError, match="cannot read"):
        read_saved(tmp_path / "missing")
    with pytest.raises(CollectError, match="no page in") as empty:
        read_saved(tmp_path)
    assert empty.value.reason is ErrorReason.BODY_EMPTY
    (tmp_path / "scrapes.jsonl").write_text('{"file": "gone.prom", "t_unix": 1}')
    with pytest.raises(CollectError, match=r"no page in .* the files of 1 are missing \(gone.prom\)"):
        read_saved(tmp_path)
    (tmp_path / "scrapes.jsonl").write_text('{"file": "gone.prom"}\n{"file": "b.prom"}\n{"error": "refused"}')
    with pytest.raises(CollectError, match=r"1 failed and the files of 2 are missing \(gone.prom, b.prom\)"):
        read_saved(tmp_path)


@pytest.mark.parametrize(
    ("body", "reason", "words"),
    [
        (b"", ErrorReason.BODY_EMPTY, "empty"),
        (b" \n\t\n", ErrorReason.BODY_EMPTY, "empty"),
        (b"<!DOCTYPE html><html></html>", ErrorReason.BODY_NOT_METRICS, "HTML"),
        (b"\x7fELF\x02\x01\x01\0\0\0", ErrorReason.BODY_NOT_METRICS, "binary"),
        (gzip.compress(PAGE, mtime=0)[:-12], ErrorReason.BODY_NOT_METRICS, "ends too early"),
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


@pytest.mark.parametrize(
    ("bodies", "engine", "reason"),
    [
        ([b""], None, ErrorReason.BODY_EMPTY),
        ([b"<html></html>"], None, ErrorReason.BODY_NOT_METRICS),
        ([b"other 1\n"], None, ErrorReason.ENGINE_UNKNOWN),
        ([b"other 1\n"], Engine.VLLM, ErrorReason.BODY_NOT_METRICS),
        ([PAGE], Engine.SGLANG, ErrorReason.ENGINE_MISMATCH),
        ([PAGE, b"tgi_queue_size 1\n"], None, ErrorReason.ENGINE_MISMATCH),
    ],
)
def test_pages_of_no_or_another_engine_are_errors(bodies: list[bytes], engine: Engine | None, reason: ErrorReason) -> None:
    with pytest.raises(CollectError) as error:
        snapshots_of([SavedPage(f"{n}", body, None) for n, body in enumerate(bodies)], "i", engine=engine)
    assert error.value.reason is reason


@pytest.mark.parametrize("silent", [0, 1, 2])
def test_a_page_without_metrics_among_others_is_left_out_and_told(silent: int) -> None:
    """A server that has just started, or a proxy before it, answers so; the others still tell, and the diagnosis must say what it lacks."""
    pages = [SavedPage(name, PAGE, at) for name, at in (("a", 1.0), ("b", 2.0), ("c", 3.0))]
    pages[silent] = replace(pages[silent], body=b"python_info 1\n")
    name = pages[silent].name
    snapshots = snapshots_of(pages, "i")
    assert [snapshot.endpoint for snapshot in snapshots] == [page.name for page in pages if page.name != name]
    assert not any(snapshot.quality.has(IssueCode.GAP) for snapshot in snapshots[:-1])
    (issue,) = [issue for issue in snapshots[-1].quality.issues if issue.code is IssueCode.GAP]
    assert issue.message == f"1 of 3 pages have no metric of vllm and are left out: {name}."
    assert all(snapshot.quality.usable for snapshot in snapshots)
