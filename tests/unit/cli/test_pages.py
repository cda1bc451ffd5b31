"""What `doctor` is given: files, directories, URLs."""

import re
from pathlib import Path

import pytest

from perf_service.cli.pages import failures, is_url, read_pages, spaced
from perf_service.collectors.saved import SavedPage
from perf_service.models.errors import CollectError, InvalidArgumentError

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


def test_scrapes_that_failed_are_told(tmp_path: Path) -> None:
    (tmp_path / "a.prom").write_bytes(PAGE)
    index = tmp_path / "scrapes.jsonl"
    well, failed = '{"file": "a.prom", "t_unix": 1}', '{"file": null, "t_unix": 2, "error": "refused"}'
    told = {(well,): None, (failed, well): r"1 of 2 .* failed\.$", (well, failed, failed): "2 of 3 .* the last 2 of them in a row"}
    for lines, text in told.items():
        index.write_text("\n".join(lines))
        messages = [issue.message for issue in failures([str(tmp_path)])]
        assert len(messages) == (text is not None)
        assert text is None or re.search(text, messages[0])
        assert len(read_pages([str(tmp_path)])) == 1
    assert failures([str(tmp_path / "a.prom")]) == []
    index.write_text(failed)
    with pytest.raises(CollectError, match=r"all 1 scrapes in scrapes.jsonl failed"):
        read_pages([str(tmp_path)])


def test_urls_are_told_from_paths() -> None:
    assert is_url("http://127.0.0.1:8000")
    assert not is_url("captures/a.prom")
