"""The local target's options: what is accepted, and what each refusal says."""

from __future__ import annotations

import sys

import pytest

from perf_service.models.errors import InvalidArgumentError
from perf_service.models.fleet import Instance
from perf_service.models.metrics import Engine
from perf_service.targets import LocalOptions

COMMAND = "vllm serve 'my model' --host {host} --port {port} {flags}"


def instances(*endpoints: str) -> list[Instance]:
    return [Instance(f"r{n}", Engine.VLLM, endpoint) for n, endpoint in enumerate(endpoints, start=1)]


def test_a_command_is_split_once_and_filled_in_by_word() -> None:
    options = LocalOptions.parse({"command": "{python} run.py 'two words' --name={instance_id} --port {port} {flags} --json '{\"a\": 1}'"})
    argv = options.argv(port=81, instance_id="a b; rm -rf /", model="m", flags=["--x", "1 2"])
    assert argv == [
        sys.executable, "run.py", "two words", "--name=a b; rm -rf /", "--port", "81", "--x", "1 2", "--json", '{"a": 1}'
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "'command': is needed"),
        ({"command": "vllm 'unclosed --port {port} {flags}"}, "cannot be split"),
        ({"command": "vllm --port {port}"}, "needs {flags}"),
        ({"command": "sh -c 'vllm {flags}' --port {port} {flags}"}, "word of its own"),
        ({"command": "vllm {flags}"}, "needs {port}"),
        ({"command": "vllm --port {port} {flags} {gpu}"}, "{gpu} is not a placeholder"),
        ({"command": COMMAND, "port": "1"}, "'port': there is no such option"),
        ({"command": COMMAND, "ports": "80,eighty"}, "not a list of ports"),
        ({"command": COMMAND, "ports": "80,80"}, "different ports"),
        ({"command": COMMAND, "ports": "70000"}, "1 to 65535"),
        ({"command": COMMAND, "startup_timeout_seconds": "soon"}, "between 0 and 86400, not 'soon'"),
        ({"command": COMMAND, "stop_timeout_seconds": "nan"}, "between 0 and 86400"),
        ({"command": COMMAND, "probe_path": "v1/completions"}, "must start with '/'"),
        ({"command": COMMAND, "probe_body": "[1]"}, "must be a JSON object"),
        ({"command": COMMAND, "probe_body": "{"}, "is not JSON"),
        ({"command": COMMAND, "env.A=B": "1"}, "not the name of an environment variable"),
    ],
)
def test_a_bad_option_is_named(options: dict[str, str], says: str) -> None:
    with pytest.raises(InvalidArgumentError) as info:
        LocalOptions.parse(options)
    assert says in info.value.message
    assert info.value.field.startswith("target.options[")


@pytest.mark.parametrize(
    ("ports", "endpoints", "expected"),
    [
        ("", ["http://h:81", "h:82/metrics"], [81, 82]),
        ("8101", ["http://h", "http://h"], [8101, 8102]),
        ("8101-8103", ["http://h", "http://h"], [8101, 8102]),
        ("8105,8101", ["http://h:8105", "http://h"], [8105, 8101]),
    ],
)
def test_ports(ports: str, endpoints: list[str], expected: list[int]) -> None:
    options = LocalOptions.parse({"command": COMMAND, "ports": ports})
    assert list(options.port_of(instances(*endpoints)).values()) == expected


def test_ports_go_by_the_number_in_the_id_not_by_its_spelling() -> None:
    options = LocalOptions.parse({"command": COMMAND, "ports": "8100"})
    found = options.port_of([Instance(f"r{n}", Engine.VLLM, "") for n in (10, 9, 1)])
    assert found == {"r1": 8100, "r9": 8101, "r10": 8102}


@pytest.mark.parametrize(
    ("ports", "endpoints", "says"),
    [
        ("", ["http://h"], "names no port"),
        ("8101", ["http://h:9000"], "its endpoint is 'http://h:9000'"),
        ("81,82", ["h", "h", "h"], "2 ports for 3 replicas"),
        ("", ["h:81", "h:81"], "more than one replica"),
        ("", ["http://h:notaport"], "no valid port"),
    ],
)
def test_ports_that_cannot_be(ports: str, endpoints: list[str], says: str) -> None:
    options = LocalOptions.parse({"command": COMMAND, "ports": ports})
    with pytest.raises(InvalidArgumentError, match=says):
        options.port_of(instances(*endpoints))


def test_the_completion_speaks_the_engines_own_api_unless_told() -> None:
    options = LocalOptions.parse({"command": COMMAND})
    assert options.probe(Engine.VLLM, "m") == ("/v1/completions", {"model": "m", "prompt": "ping", "max_tokens": 1})
    assert options.probe(Engine.TGI, "m")[0] == "/generate"
    told = LocalOptions.parse({"command": COMMAND, "probe_path": "/ask", "probe_body": '{"q": 1}'})
    assert told.probe(Engine.SGLANG, "m") == ("/ask", {"q": 1})
