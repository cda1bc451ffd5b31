"""Addresses, and what is made of a response; the network itself is in the integration tests."""

from __future__ import annotations

from typing import Any
from unittest.mock import AsyncMock, Mock, patch

import httpx
import pytest

from perf_service.collectors.fetch import (
    EndpointStatusError,
    EndpointTimeoutError,
    EndpointUnreachableError,
    Fetcher,
    base_url,
    metrics_url,
)
from perf_service.models.errors import CollectError, ErrorReason


@pytest.mark.parametrize(
    ("endpoint", "url"),
    [
        ("http://h:8000", "http://h:8000/metrics"),
        ("http://h:8000/", "http://h:8000/metrics"),
        ("http://h:8000/metrics", "http://h:8000/metrics"),
        ("http://h:8000/metrics/", "http://h:8000/metrics"),
        ("https://h/engine", "https://h/engine/metrics"),
        ("h:8000", "http://h:8000/metrics"),
        (" 127.0.0.1 ", "http://127.0.0.1/metrics"),
        ("http://[::1]:8000", "http://[::1]:8000/metrics"),
        ("http://h/metrics?x=1#y", "http://h/metrics?x=1"),
    ],
)
def test_endpoints_become_page_urls(endpoint: str, url: str) -> None:
    assert metrics_url(endpoint) == url
    assert base_url(endpoint) + "/metrics" == url.partition("?")[0]


@pytest.mark.parametrize(
    "endpoint",
    [
        "",
        "http://",
        "ftp://h",
        "file:///etc/passwd",
        "http://h:99999",
        "http://h h",
        "http://user:hush@h",
        "user:hush@h",
        "ftp://user:hush@h",
        "http://user:hush@h h",
        "h:0?token=hush",
        "http://h?token=a hush",
        "http://h:0#hush",
        *(f"http://bob:{before}hush{after}@h:8000" for before in ("/", "a ", "#", "?") for after in ("", "/x", '"', "'<>", " x", "@")),
        "bob:hush/x@h:8000",
        "bob@x://hush@h",
        "http://h/@hush/../@x",
        "http://[::1",
        "javascript://h",
        "http://h:0",
        "h:0",
    ],
)
def test_other_endpoints_are_refused(endpoint: str) -> None:
    with pytest.raises(CollectError) as error:
        metrics_url(endpoint)
    assert error.value.reason is ErrorReason.ENDPOINT_INVALID
    assert "hush" not in error.value.message


async def fetch_with(**get: Any) -> bytes:
    with patch("httpx.AsyncClient.get", new=AsyncMock(**get)):
        async with Fetcher(timeout=1) as fetcher:
            return (await fetcher.fetch("http://h")).body


def response(status: int, text: str, **headers: str) -> httpx.Response:
    return httpx.Response(status, text=text, headers=headers, request=httpx.Request("GET", "http://h/metrics"))


async def test_a_stand_in_needs_only_text_and_status() -> None:
    assert await fetch_with(return_value=Mock(text="a 1\n", status_code=200)) == b"a 1\n"
    assert await fetch_with(return_value=AsyncMock(text="a 1\n", status_code=200)) == b"a 1\n"
    assert await fetch_with(return_value=Mock(text=b"a 1\n")) == b"a 1\n"
    assert await fetch_with(return_value=response(200, "a 1\n")) == b"a 1\n"


@pytest.mark.parametrize(
    ("failure", "kind", "reason"),
    [
        (TimeoutError(), EndpointTimeoutError, ErrorReason.ENDPOINT_TIMEOUT),
        (httpx.ReadTimeout("slow"), EndpointTimeoutError, ErrorReason.ENDPOINT_TIMEOUT),
        (ConnectionError("refused"), EndpointUnreachableError, ErrorReason.ENDPOINT_UNREACHABLE),
        (httpx.ConnectError("refused"), EndpointUnreachableError, ErrorReason.ENDPOINT_UNREACHABLE),
        (httpx.RemoteProtocolError("cut"), EndpointUnreachableError, ErrorReason.ENDPOINT_UNREACHABLE),
        (httpx.InvalidURL("bad"), CollectError, ErrorReason.ENDPOINT_INVALID),
        (httpx.DecodingError("gzip"), CollectError, ErrorReason.BODY_NOT_METRICS),
    ],
)
async def test_failures_have_a_reason(failure: Exception, kind: type[CollectError], reason: ErrorReason) -> None:
    with pytest.raises(kind) as error:
        await fetch_with(side_effect=failure)
    assert error.value.reason is reason
    assert error.value.__cause__ is failure


async def test_callers_that_know_httpx_or_python_catch_their_own() -> None:
    for failure, kinds in (
        (TimeoutError(), (TimeoutError, httpx.TimeoutException, httpx.HTTPError)),
        (ConnectionRefusedError(), (ConnectionError, OSError, httpx.ConnectError, httpx.HTTPError)),
    ):
        for kind in kinds:
            with pytest.raises(kind):
                await fetch_with(side_effect=failure)


@pytest.mark.parametrize(
    ("answer", "reason", "text"),
    [
        (Mock(status_code=500, text="x"), ErrorReason.ENDPOINT_HTTP_STATUS, "HTTP 500"),
        (response(404, "x"), ErrorReason.ENDPOINT_HTTP_STATUS, "--enable-metrics"),
        (response(401, "x"), ErrorReason.ENDPOINT_HTTP_STATUS, "protected"),
        (response(302, "", location="http://elsewhere/"), ErrorReason.ENDPOINT_REDIRECTED, "http://elsewhere/"),
        (response(204, ""), ErrorReason.ENDPOINT_HTTP_STATUS, "HTTP 204"),
    ],
)
async def test_any_other_status_is_an_error(answer: Any, reason: ErrorReason, text: str) -> None:
    with pytest.raises(EndpointStatusError, match=text) as error:
        await fetch_with(return_value=answer)
    assert error.value.reason is reason


@pytest.mark.parametrize(
    ("body", "content_type", "reason"),
    [
        ("", "text/plain", ErrorReason.BODY_EMPTY),
        (" \n ", "text/plain", ErrorReason.BODY_EMPTY),
        ("<!DOCTYPE html><p>", "text/plain", ErrorReason.BODY_NOT_METRICS),
        ("<HTML>", "", ErrorReason.BODY_NOT_METRICS),
        ("hello", "text/html; charset=utf-8", ErrorReason.BODY_NOT_METRICS),
        ('{"a": 1}', "application/json", ErrorReason.BODY_NOT_METRICS),
    ],
)
async def test_bodies_that_are_no_pages_are_errors(body: str, content_type: str, reason: ErrorReason) -> None:
    answer = httpx.Response(200, content=body.encode(), headers={"content-type": content_type} if content_type else {})
    with pytest.raises(CollectError) as error:
        await fetch_with(return_value=answer)
    assert error.value.reason is reason


async def test_json_is_an_object_or_an_error() -> None:
    async with Fetcher(timeout=1) as fetcher:
        for text, is_fine in (('{"version": "1"}', True), ("[1]", False), ("nonsense", False)):
            with patch("httpx.AsyncClient.get", new=AsyncMock(return_value=Mock(text=text, status_code=200))):
                if is_fine:
                    assert await fetcher.fetch_json("http://h/version") == {"version": "1"}
                else:
                    with pytest.raises(CollectError):
                        await fetcher.fetch_json("http://h/version")
