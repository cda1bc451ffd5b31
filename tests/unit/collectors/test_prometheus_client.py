"""What is made of the answers of a Prometheus, or of what stands in its place."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from perf_service.collectors.exposition import body_too_large
from perf_service.collectors.prometheus.client import Answer, PrometheusClient, api_url, check_source
from perf_service.models.errors import CollectError, ErrorReason, InvalidArgumentError
from perf_service.models.fleet import PrometheusSource

SOURCE = PrometheusSource("http://p:9090", 'job="x"', "hush", {"X-Scope-OrgID": "hush2"})
Handler = Callable[[httpx.Request], httpx.Response]


async def ask(handler: Handler, expression: str = "up", source: PrometheusSource = SOURCE) -> Answer:
    async with PrometheusClient(1.0, client=httpx.AsyncClient(transport=httpx.MockTransport(handler))) as client:
        return await client.query(source, expression, 12.5)


def answering(status: int, content: Any, **headers: str) -> Handler:
    body = content if isinstance(content, str) else json.dumps(content)
    return lambda request: httpx.Response(status, text=body, headers=headers)


def success(result: list[Any], **more: Any) -> dict[str, Any]:
    return {"status": "success", "data": {"resultType": "matrix", "result": result}, **more}


def failure(kind: str, text: str) -> dict[str, Any]:
    return {"status": "error", "errorType": kind, "error": text}


async def test_token_headers_and_parameters_are_sent() -> None:
    seen: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json=success([], warnings=["part is missing"]))

    source = PrometheusSource("https://p/prefix/?dedup=true", "", "hush", {"X-Scope-OrgID": "team"})
    answer = await ask(handler, "up", source)
    await ask(handler, "x" * 3000, source)
    short, long = seen
    assert answer.warnings == ("part is missing",)
    assert (short.method, short.url.path, dict(short.url.params)) == (
        "GET",
        "/prefix/api/v1/query",
        {"dedup": "true", "query": "up", "time": "12.500", "timeout": "1s"},
    )
    assert (short.headers["authorization"], short.headers["x-scope-orgid"]) == ("Bearer hush", "team")
    assert (long.method, long.url.query, long.headers["content-type"]) == ("POST", b"", "application/x-www-form-urlencoded")
    assert b"dedup=true&query=xxx" in long.content


@pytest.mark.parametrize(
    ("handler", "reason", "words"),
    [
        (answering(401, "<html>login"), ErrorReason.ENDPOINT_HTTP_STATUS, "wants a login"),
        (answering(403, {}), ErrorReason.ENDPOINT_HTTP_STATUS, "may not read"),
        (answering(404, "404 page not found"), ErrorReason.ENDPOINT_HTTP_STATUS, "prefix"),
        (answering(400, failure("bad_data", "parse error at 3")), ErrorReason.INVALID_ARGUMENT, "parse error at 3"),
        (
            answering(422, failure("execution", "would load too many samples")),
            ErrorReason.TOO_MANY_SERIES,
            "shorter range",
        ),
        (answering(422, failure("execution", "the query exceeded the limit of 5 series")), ErrorReason.TOO_MANY_SERIES, "narrower"),
        (answering(422, failure("execution", "something else")), ErrorReason.INVALID_ARGUMENT, "something else"),
        (answering(429, "slow down"), ErrorReason.ENDPOINT_HTTP_STATUS, "less often"),
        (answering(500, failure("internal", "disk on fire")), ErrorReason.ENDPOINT_HTTP_STATUS, "disk on fire"),
        (answering(502, "<html>"), ErrorReason.ENDPOINT_HTTP_STATUS, "HTTP 502"),
        (answering(503, failure("timeout", "query timed out")), ErrorReason.ENDPOINT_TIMEOUT, "query timed out"),
        (answering(504, ""), ErrorReason.ENDPOINT_TIMEOUT, "within 1 s"),
        (answering(302, "", Location="https://login"), ErrorReason.ENDPOINT_REDIRECTED, "https://login"),
        (answering(200, "<!doctype html><html>"), ErrorReason.BODY_NOT_METRICS, "an HTML page"),
        (answering(200, {"status": "success", "data": []}), ErrorReason.BODY_NOT_METRICS, "something else"),
        (answering(200, {"status": "success", "data": {"resultType": "scalar", "result": [1, "2"]}}), ErrorReason.BODY_NOT_METRICS, "else"),
        (answering(200, "# HELP up\nup 1\n"), ErrorReason.BODY_NOT_METRICS, "something else"),
    ],
)
async def test_every_refusal_says_what_to_do(handler: Handler, reason: ErrorReason, words: str) -> None:
    with pytest.raises(CollectError) as error:
        await ask(handler)
    assert error.value.reason is reason
    assert words in error.value.message
    assert "hush" not in str(error.value.metadata) + error.value.message


@pytest.mark.parametrize(
    ("raised", "reason"),
    [
        (httpx.ConnectError("refused"), ErrorReason.ENDPOINT_UNREACHABLE),
        (httpx.ReadTimeout("slow"), ErrorReason.ENDPOINT_TIMEOUT),
        (httpx.DecodingError("bad gzip"), ErrorReason.BODY_NOT_METRICS),
        (body_too_large(10), ErrorReason.BODY_TOO_LARGE),
        (CollectError(ErrorReason.ENDPOINT_FORBIDDEN, "metadata service"), ErrorReason.ENDPOINT_FORBIDDEN),
    ],
)
async def test_trouble_of_the_network_is_told(raised: Exception, reason: ErrorReason) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        raise raised

    with pytest.raises(CollectError) as error:
        await ask(handler)
    assert error.value.reason is reason


async def test_addresses_are_checked_as_where_engines_are_scraped() -> None:
    async with PrometheusClient(1.0) as client:
        with pytest.raises(CollectError) as error:
            await client.query(PrometheusSource("http://169.254.169.254"), "up", None)
    assert error.value.reason is ErrorReason.ENDPOINT_FORBIDDEN


@pytest.mark.parametrize(
    ("url", "asked"),
    [
        ("p:9090", "http://p:9090/api/v1/query"),
        ("http://p/", "http://p/api/v1/query"),
        ("http://p/prometheus/api/v1/query_range", "http://p/prometheus/api/v1/query"),
        ("https://p/graph?g0.expr=up", "https://p/api/v1/query"),
    ],
)
def test_addresses_are_taken_as_people_copy_them(url: str, asked: str) -> None:
    assert api_url(url, "query")[0] == asked


@pytest.mark.parametrize("url", ["", "ftp://p", "http://", "http://user:hush@p", "http://p:99999", "http://p p"])
def test_other_addresses_are_refused(url: str) -> None:
    with pytest.raises(CollectError) as error:
        check_source(PrometheusSource(url))
    assert error.value.reason is ErrorReason.ENDPOINT_INVALID
    assert "hush" not in error.value.message


@pytest.mark.parametrize(
    "source",
    [
        PrometheusSource("http://p", "", "hush\r\nX: y"),
        PrometheusSource("http://p", "", "", {"Host": "hush"}),
        PrometheusSource("http://p", "", "", {"X": "hush\n"}),
        PrometheusSource("http://p", "", "", {"X Y": "hush"}),
        PrometheusSource("http://p", 'job="x'),
    ],
)
def test_what_cannot_be_sent_is_refused_without_telling_secrets(source: PrometheusSource) -> None:
    with pytest.raises((CollectError, InvalidArgumentError)) as error:
        check_source(source)
    assert error.value.reason is ErrorReason.INVALID_ARGUMENT
    assert "hush" not in str(error.value.metadata) + str(error.value) + repr(source)
