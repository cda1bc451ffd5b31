"""`collect import` of a directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from perf_service.cli.main import run
from perf_service.models.errors import CollectError, ErrorReason, NotFoundError, PerfServiceError
from perf_service.v1 import collect_service_pb2


@pytest.fixture
def pages(tmp_path: Path) -> Path:
    for name, body in (("1.prom", "up 1\n"), ("2.prom", "proxy 1\n"), ("3.prom", ""), ("4.prom", "<html>"), ("5.prom", "up 5\n")):
        (tmp_path / name).write_text(body)
    index = [{"file": file.name, "t_unix": float(file.name[0])} for file in tmp_path.iterdir()]
    (tmp_path / "scrapes.jsonl").write_text("\n".join(map(json.dumps, index)))
    return tmp_path


class Server:
    """Stores what begins with `up`."""

    def __init__(self, error: PerfServiceError) -> None:
        self.error, self.stored = error, list[bytes]()

    def __call__(self, _server: Any, _timeout: float, _stub: Any, _method: str, request: Any) -> Any:
        if not request.page.startswith(b"up"):
            raise self.error
        self.stored.append(request.page)
        return collect_service_pb2.ImportMetricsResponse(outcome=collect_service_pb2.IMPORT_OUTCOME_STORED)


def test_a_page_that_is_none_is_told_and_the_others_are_stored(
    pages: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server = Server(CollectError(ErrorReason.BODY_NOT_METRICS, "no metric of vllm"))
    monkeypatch.setattr("perf_service.cli.metrics.call", server)
    assert run(["collect", "import", "i", str(pages), "-o", "json"]) == 1
    said = capsys.readouterr()
    told = json.loads(said.out)
    assert (server.stored, told["stored"]) == ([b"up 1\n", b"up 5\n"], 2)
    assert {one["file"]: one["reason"] for one in told["refused"]} == {
        "2.prom": "BODY_NOT_METRICS",
        "3.prom": "BODY_EMPTY",
        "4.prom": "BODY_NOT_METRICS",
    }
    assert "3 of 5 pages" in said.err
    assert "2.prom: no metric of vllm" in said.err
    assert run(["collect", "import", "i", str(pages)]) == 1
    assert "2 stored; 3 refused" in capsys.readouterr().out


def test_what_is_wrong_with_all_of_them_ends_it(pages: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    server = Server(NotFoundError(ErrorReason.INSTANCE_NOT_FOUND, "there is no instance 'i'"))
    monkeypatch.setattr("perf_service.cli.metrics.call", server)
    assert run(["collect", "import", "i", str(pages)]) == 1
    assert "no instance" in capsys.readouterr().err
    assert server.stored == [b"up 1\n"]
