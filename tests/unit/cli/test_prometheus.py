"""Options of commands that read a Prometheus: times as people write them, and the source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from perf_service.cli.main import run
from perf_service.cli.prometheus import parse_duration, parse_time, source_of, time_range
from perf_service.models.errors import InvalidArgumentError
from perf_service.v1 import fleet_service_pb2, instance_pb2

NOW = 1_777_777_777.0


@pytest.mark.parametrize(("text", "seconds"), [("10m", 600.0), ("1h30m", 5400.0), ("90s", 90.0), ("1.5h", 5400.0), ("2d", 172_800.0)])
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text, option="--range") == seconds
    assert parse_time(f"-{text}", NOW, option="--start") == NOW - seconds


@pytest.mark.parametrize("text", ["", "10", "m", "-5m", "10 minutes", "0s"])
def test_other_durations_are_refused(text: str) -> None:
    with pytest.raises(InvalidArgumentError):
        parse_duration(text, option="--range")


def test_times() -> None:
    assert parse_time("now", NOW, option="--end") == NOW
    assert parse_time("1777000000.5", NOW, option="--end") == 1_777_000_000.5
    same = {parse_time(text, NOW, option="--end") for text in ("2026-05-01T12:00:00Z", "2026-05-01 12:00", "2026-05-01T14:00:00+02:00")}
    assert same == {1_777_636_800.0}
    with pytest.raises(InvalidArgumentError):
        parse_time("yesterday", NOW, option="--end")


def test_ranges() -> None:
    assert time_range("", "", "", NOW) == (NOW - 600, NOW)
    assert time_range("1h", "", "-1h", NOW) == (NOW - 7200, NOW - 3600)
    assert time_range("", "-30m", "-10m", NOW) == (NOW - 1800, NOW - 600)
    for wrong in (("1h", "-1h", ""), ("", "-10m", "-20m")):
        with pytest.raises(InvalidArgumentError):
            time_range(*wrong, NOW)


def test_a_source_takes_its_secrets_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERF_SERVICE_PROMETHEUS_TOKEN", "of the environment")
    file = tmp_path / "token"
    file.write_text("of the file\n")
    assert source_of("http://p", ['{a="1"}', 'b="2"'], ["X-Scope-OrgID: team"]).match == 'a="1",b="2"'
    assert source_of("http://p", None).bearer_token == "of the environment"
    assert source_of("http://p", None, None, file).bearer_token == "of the file"
    for header in ("no colon", ": x", "X:"):
        with pytest.raises(InvalidArgumentError):
            source_of("http://p", None, [header])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([], 'a="b" *** X=***'),
        (["--prometheus", "http://p/"], 'a="b" *** X=***'),
        (["--match", 'c="d"'], 'c="d" *** X=***'),
        (["--header", "Y: new"], 'a="b" *** Y=new'),
        (["--clear-token"], 'a="b"  X=***'),
        (["--clear-headers"], 'a="b" ***'),
        (["--prometheus", "http://other", "--match", 'a="b"'], 'a="b" '),  # never the secrets of another address
    ],
)
def test_an_update_keeps_what_is_not_told_anew(monkeypatch: pytest.MonkeyPatch, options: list[str], told: str) -> None:
    stored = instance_pb2.PrometheusSource(url="http://p", match='a="b"', bearer_token="***", headers={"X": "***"})
    sent: list[Any] = []

    def call(_server: Any, _timeout: float, _stub: Any, method: str, request: Any) -> Any:
        if method == "UpdateInstance":
            sent.append(request)
        instance = instance_pb2.Instance(instance_id="i", prometheus=stored)
        return fleet_service_pb2.GetInstanceResponse(instance=instance)

    monkeypatch.delenv("PERF_SERVICE_PROMETHEUS_TOKEN", raising=False)
    monkeypatch.setattr("perf_service.cli.instances.call", call)
    assert run(["instances", "update", "i", "--prometheus", "http://p", *options, "--output", "json"]) == 0
    (request,) = sent
    assert list(request.update_mask.paths) == ["prometheus"]
    source = request.instance.prometheus
    assert " ".join([source.match, source.bearer_token, *(f"{k}={v}" for k, v in source.headers.items())]) == told


def test_the_match_of_a_masked_url_does_not_go_to_another_tenant(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = instance_pb2.PrometheusSource(url="http://p?tenant=***", match='a="b"')
    response = fleet_service_pb2.GetInstanceResponse(instance=instance_pb2.Instance(instance_id="i", prometheus=stored))
    monkeypatch.setattr("perf_service.cli.instances.call", lambda *_: response)
    monkeypatch.delenv("PERF_SERVICE_PROMETHEUS_TOKEN", raising=False)
    update = ["instances", "update", "i", "--output", "json", "--prometheus"]
    assert run([*update, "http://p?tenant=b"]) == 2
    assert run([*update, "http://p?tenant=***"]) == 0
    assert run([*update, "http://p?tenant=b", "--match", 'a="b"']) == 0


def test_secrets_are_cleared_by_a_mask_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = instance_pb2.PrometheusSource(url="http://p", match='a="b"', bearer_token="***", headers={"X": "***"})
    sent: list[Any] = []

    def call(_server: Any, _timeout: float, _stub: Any, method: str, request: Any) -> Any:
        sent.append(request)
        return fleet_service_pb2.GetInstanceResponse(instance=instance_pb2.Instance(instance_id="i", prometheus=stored))

    monkeypatch.setattr("perf_service.cli.instances.call", call)
    assert run(["instances", "update", "i", "--clear-token", "--clear-headers", "--output", "json"]) == 0
    assert list(sent[-1].update_mask.paths) == ["prometheus.bearer_token", "prometheus.headers"]
    assert (sent[-1].instance.prometheus.bearer_token, dict(sent[-1].instance.prometheus.headers)) == ("", {})
    stored.Clear()
    assert run(["instances", "update", "i", "--clear-token", "--token-file", "/nowhere"]) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["doctor"], "give PAGE"),
        (["doctor", "--match", 'a="b"'], "go with --prometheus"),
        (["doctor", "page", "--prometheus", "http://p"], "not both"),
        (["doctor", "--prometheus", "http://p", "--match", "a=b"], "are no label matchers"),
        (["doctor", "--prometheus", "http://p", "--range", "soon"], "no duration"),
        (["doctor", "--prometheus", "http://p", "--token-file", "/nowhere"], "cannot be read"),
        (["instances", "register", "i"], "--endpoint URL, or --prometheus"),
        (["instances", "register", "i", "--prometheus", "http://p"], "needs --match"),
        (["instances", "register", "i", "--endpoint", "http://h", "--match", 'a="b"'], "go with --prometheus"),
        (["instances", "update", "i", "--model", "m", "--match", 'a="b"'], "go with --prometheus"),
        (["instances", "update", "i", "--header", "A: b"], "go with --prometheus"),
        (["instances", "update", "i", "--fleet", "f", "--token-file", "/nowhere"], "go with --prometheus"),
    ],
)
def test_bad_usage_is_one_line_and_exit_2(capsys: pytest.CaptureFixture[str], arguments: list[str], words: str) -> None:
    assert run(arguments) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
