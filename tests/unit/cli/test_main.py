"""The command as a whole: help, version, and failures that nobody foresaw."""

import pytest

from perf_service.cli import doctor, main
from perf_service.cli.main import run


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    out = capsys.readouterr().out
    for command in (
        "doctor",
        "simulate-engine",
        "demo",
        "serve",
        "fleets",
        "instances",
        "collect",
        "analyze",
        "plan",
        "predict",
        "rollout",
    ):
        assert f" {command} " in out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("perf-service 0")


@pytest.mark.parametrize("arguments", [["nope"], ["doctor", "--nope"], ["rollout", "nope"], ["fleets", "create"]])
def test_bad_usage_is_one_line_and_exit_2(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert run(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1


def test_a_group_without_a_command_shows_its_help_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan"]) == 2
    captured = capsys.readouterr()
    assert "track-record" in captured.out + captured.err
    assert "(see:" not in captured.err


def test_an_unforeseen_failure_is_one_line_unless_debug_asks_for_more(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(doctor, "read_pages", broken)
    assert run(["doctor", "page.prom"]) == 1
    err = capsys.readouterr().err
    assert "RuntimeError: a defect" in err
    assert err.count("\n") == 1
    with pytest.raises(RuntimeError, match="a defect"):
        run(["--debug", "doctor", "page.prom"])


def test_interrupted_is_130(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "read_pages", interrupted)
    assert run(["doctor", "page.prom"]) == main.INTERRUPTED
    assert capsys.readouterr().err == "perf-service: interrupted\n"


def test_a_value_that_is_none_of_the_choices_is_told_without_how_that_was_found_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["alerts", "render", "--engine", "foo"]) == 2
    said = capsys.readouterr().err
    assert "'foo' is not one of 'vllm', 'sglang', 'tgi'" in said
    assert "Value error" not in said
