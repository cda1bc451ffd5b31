"""What `doctor` is given: files, directories, URLs."""

from pathlib import Path

import pytest

from perf_service.cli.pages import is_url, read_pages, spaced
from perf_service.collectors.saved import SavedPage
from perf_service.models.errors import InvalidArgumentError

PAGE = b"# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running 1\n"


def test_files_and_directories_come_in_the_order_given(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    paths = [tmp_path / "z.prom", folder / "b.prom", folder / "a.prom", tmp_path / "a.prom"]
    for path in paths:
        path.write_bytes(PAGE)
    pages = read_pages([str(paths[0]), str(folder), str(paths[3])])
    assert [p.name for p in pages] == [str(paths[n]) for n in (0, 2, 1, 3)]
    assert {p.body for p in pages} == {PAGE}


def test_what_is_not_there_is_bad_usage(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="no file or directory"):
        read_pages([str(tmp_path / "nothing.prom")])
    with pytest.raises(InvalidArgumentError, match=r"for a URL write http://127\.0\.0\.1:8000$"):
        read_pages(["127.0.0.1:8000"])


def test_interval_spaces_pages_up_to_now() -> None:
    pages = [SavedPage("a", PAGE, None), SavedPage("b", PAGE, 5.0), SavedPage("c", PAGE, None)]
    assert [p.collected_at for p in spaced(pages, 10.0, now=100.0)] == [80.0, 90.0, 100.0]
    assert [p.collected_at for p in spaced(pages, None, now=100.0)] == [None, 5.0, None]


def test_urls_are_told_from_paths() -> None:
    assert is_url("http://127.0.0.1:8000")
    assert not is_url("captures/a.prom")
