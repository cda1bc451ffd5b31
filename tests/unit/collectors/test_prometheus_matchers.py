"""Matchers as people write them, and as they are sent."""

from __future__ import annotations

import pytest

from perf_service.collectors.prometheus.matchers import Matcher, any_of, parse_matchers, selector, selects
from perf_service.collectors.prometheus.selecting import name_matchers, own_labels
from perf_service.models.errors import InvalidArgumentError
from perf_service.models.metrics import Engine


@pytest.mark.parametrize(
    ("text", "sent"),
    [
        ("", "{}"),
        ("{}", "{}"),
        ('job="vllm"', '{job="vllm"}'),
        ('{job="vllm", instance=~"10[.]0.*" ,}', '{job="vllm",instance=~"10[.]0.*"}'),
        ("pod!='a\"b', env!~`\\d+`", '{pod!="a\\"b",env!~"\\\\d+"}'),
        (r'path="a\\b\nc\x41\u00e9"', '{path="a\\\\b\\ncAé"}'),
        ('"app.kubernetes.io/name"="x"', '{"app.kubernetes.io/name"="x"}'),
        ('a="}",b="{,"', '{a="}",b="{,"}'),
        ('a="1",a="1"', '{a="1"}'),
    ],
)
def test_matchers_are_sent_as_they_were_meant(text: str, sent: str) -> None:
    assert selector(*parse_matchers(text)) == sent
    assert parse_matchers(sent) == parse_matchers(text)


@pytest.mark.parametrize(
    "text",
    ["job", "job=vllm", 'a="b" or up', 'a="b"} or up{x="y"', 'a="b', 'a==""', '__name__="up"', '{__name__=~"x"}', 'a="b"c="d"', "x" * 5000],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgumentError) as error:
        parse_matchers(text, field="here")
    assert error.value.field == "here"


def test_a_list_of_values_matches_only_them() -> None:
    assert str(Matcher("instance", "=~", any_of(["10.0.0.1:8000", "a|b"]))) == 'instance=~"10\\\\.0\\\\.0\\\\.1:8000|a\\\\|b"'


def test_names_are_those_of_the_engine() -> None:
    pattern = name_matchers(Engine.VLLM)[0].value.split("|")
    assert {"vllm:.+", "vllm_.+", "up", "process_start_time_seconds", "http_request_duration_highr_seconds_bucket"} <= set(pattern)
    assert not [name for name in pattern if name.startswith(("sglang", "tgi"))]
    assert {"sglang:.+", "tgi_.+", "vllm:.+"} <= set(name_matchers(None)[0].value.split("|"))
    assert {"engine", "le", "model_name", "pid", "finished_reason"} <= own_labels(Engine.VLLM)


def test_what_matchers_select() -> None:
    labels = {"job": "vllm", "instance": "10.0.0.1:8000"}
    for text, told in {
        "": True,
        'job="vllm",instance=~"10[.].*"': True,
        'instance=~"10"': False,  # anchored
        'cluster=""': True,
        'job!="vllm"': False,
        'job!~"tgi|sglang"': True,
        'job=~"("': False,
    }.items():
        assert selects(parse_matchers(text), labels) is told, text
