"""Fetch one page over HTTP: time, size and address limits, no redirects, and errors that say what to do."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Protocol
from urllib.parse import SplitResult, urlsplit, urlunsplit

import httpx

from perf_service.collectors.exposition import DEFAULT_MAX_BODY_BYTES
from perf_service.collectors.page import looks_like_html
from perf_service.collectors.transport import NetworkPolicy, guarded_client
from perf_service.models.errors import CollectError, ErrorReason
from perf_service.models.redaction import MASK, redacted_url

DEFAULT_TIMEOUT_SECONDS: Final = 10.0
"""A loaded vLLM was seen to take 1.3 s for its page; Prometheus' own default is 10 s."""
ACCEPT: Final = "text/plain;version=0.0.4,*/*;q=0.1"
"""The text format, and not OpenMetrics at a lower quality: prometheus_client, which vLLM and SGLang serve their page with, sends
OpenMetrics as soon as it is named, whatever its quality (0.26, `choose_encoder`), with `_created` series that nobody reads and with
`vllm_` for `vllm:`. A server that has nothing else may send it; both formats are read."""

_SCHEMES: Final = ("http", "https")


class EndpointTimeoutError(CollectError, httpx.TimeoutException, TimeoutError):
    """The endpoint did not answer in time. Also a `TimeoutError` and httpx's own, for callers that know those."""


class EndpointUnreachableError(CollectError, httpx.ConnectError, ConnectionError):
    """No connection, or it broke. Also a `ConnectionError` and httpx's own, for callers that know those."""


class EndpointStatusError(CollectError):
    """The endpoint answered with a status other than 200."""


@dataclass(frozen=True, slots=True)
class FetchedPage:
    """A page as it came: the body, decompressed, and where it was read from."""

    url: str
    body: bytes
    content_type: str = ""


class PageFetcher(Protocol):
    """What the sources need of a fetcher: `Fetcher` (httpx), or `lean.LeanFetcher` for pages by the hundred a second."""

    async def fetch(self, endpoint: str) -> FetchedPage:
        """The metrics page of an engine. Raises as `Fetcher.fetch`."""
        ...

    async def fetch_json(self, url: str) -> dict[str, Any]:
        """A JSON object. Raises as `Fetcher.fetch_json`."""
        ...

    async def aclose(self) -> None:
        """Close the connections."""
        ...


def base_url(endpoint: str) -> str:
    """The server's base URL, of a base URL, a /metrics URL or a plain host:port. See `metrics_url` for errors."""
    parts = urlsplit(metrics_url(endpoint))
    return urlunsplit((parts.scheme, parts.netloc, parts.path.removesuffix("/metrics"), "", ""))


def checked_parts(url: str, invalid: Callable[[str, str], CollectError], *, instead: str = "") -> SplitResult:
    """The parts of an http or https URL with a host and without credentials; http where no scheme is told.

    `invalid(url, why)` makes the error that is raised otherwise; `instead` says where credentials go.
    """
    text = url.strip()
    if "://" not in text:
        text = f"http://{text}"
    if "@" in text:
        # Before it is parsed: a password with `/`, `?` or `#` in it would pass for a port, and the error for that repeats it.
        scheme, _, rest = text.partition("://")
        shown = f"{scheme if scheme.lower() in _SCHEMES else 'http'}://{MASK}@{rest.rpartition('@')[2]}"
        raise invalid(shown, f"it carries credentials, which would end up in logs{instead}; an @ of its path is written %40")
    url = redacted_url(url)
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise invalid(url, str(error)) from error
    if parts.scheme not in _SCHEMES:
        raise invalid(url, f"its scheme is {parts.scheme!r}, not http or https")
    if not host or any(char.isspace() or ord(char) < 32 for char in text):
        raise invalid(url, "it has no host" if not host else "it contains white space")
    if port == 0:
        raise invalid(url, "nothing listens on port 0")
    return parts


def metrics_url(endpoint: str) -> str:
    """The page's URL, of a base URL, a /metrics URL or a plain host:port.

    Raises:
        CollectError: ENDPOINT_INVALID when it is not an http or https URL with a host, or carries credentials.
    """
    parts = checked_parts(endpoint, invalid)
    path = parts.path.rstrip("/")
    if not path.endswith("/metrics"):
        path += "/metrics"
    return urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))


class Fetcher:
    """Fetches pages over one `httpx.AsyncClient` with limits. An async context manager.

    `timeout` is the total time in seconds for one page: connecting, waiting and reading. A `client` of one's own (with a
    proxy, a login, other certificates) takes the place of the guarded one; the limits of the network are then its own.
    """

    def __init__(
        self,
        timeout: float = DEFAULT_TIMEOUT_SECONDS,
        *,
        max_body_bytes: int = DEFAULT_MAX_BODY_BYTES,
        policy: NetworkPolicy | None = None,
        client: httpx.AsyncClient | None = None,
    ) -> None:
        self.timeout = timeout
        self.client = client or guarded_client(ACCEPT, timeout, max_body_bytes=max_body_bytes, policy=policy)

    async def __aenter__(self) -> Fetcher:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self.client.aclose()

    async def fetch(self, endpoint: str, *, check_body: bool = True) -> FetchedPage:
        """The metrics page of an engine. `endpoint` is its base URL, its /metrics URL or host:port.

        With `check_body` off an empty or HTML body is returned as it is.

        Raises:
            EndpointTimeoutError: ENDPOINT_TIMEOUT.
            EndpointUnreachableError: ENDPOINT_UNREACHABLE, connection refused, reset, or broken off.
            EndpointStatusError: ENDPOINT_HTTP_STATUS, ENDPOINT_REDIRECTED.
            CollectError: ENDPOINT_INVALID, ENDPOINT_FORBIDDEN, BODY_TOO_LARGE, BODY_EMPTY, BODY_NOT_METRICS.
        """
        page = await self._get(metrics_url(endpoint))
        if check_body:
            check_body_of(page)
        return page

    async def fetch_json(self, url: str) -> dict[str, Any]:
        """A JSON object from an engine's introspection endpoint. Raises as `fetch`, BODY_NOT_METRICS for other content."""
        return json_object(await self._get(url))

    async def _get(self, url: str) -> FetchedPage:
        try:
            async with asyncio.timeout(self.timeout):
                response = await self.client.get(url)
        except CollectError:
            raise
        except (httpx.TimeoutException, TimeoutError) as error:
            raise timed_out(url, self.timeout) from error
        except httpx.DecodingError as error:
            raise not_readable(url, str(error)) from error
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise invalid(url, str(error)) from error
        except (httpx.HTTPError, OSError) as error:
            raise unreachable(url, error) from error
        return _page_of(url, response)


def timed_out(url: str, seconds: float) -> EndpointTimeoutError:
    """The error for a page that did not come within the time."""
    return EndpointTimeoutError(
        ErrorReason.ENDPOINT_TIMEOUT,
        f"{url} did not answer within {seconds:g} s. Check that the engine is not hung, or raise the timeout.",
        {"url": url, "timeout_seconds": f"{seconds:g}"},
        retry_after_seconds=seconds,
    )


def unreachable(url: str, error: Exception) -> EndpointUnreachableError:
    """The error for a connection that could not be made, or broke."""
    return EndpointUnreachableError(
        ErrorReason.ENDPOINT_UNREACHABLE,
        f"{url} cannot be reached: {str(error) or type(error).__name__}. Check the address, and that the engine runs.",
        {"url": url},
        retry_after_seconds=5.0,
    )


def not_readable(url: str, why: str) -> CollectError:
    """The error for an answer or a body that cannot be decoded."""
    return CollectError(ErrorReason.BODY_NOT_METRICS, f"{url} sent a body that cannot be read: {why}.", {"url": url})


def json_object(page: FetchedPage) -> dict[str, Any]:
    """The JSON object in a page. Raises CollectError BODY_NOT_METRICS for other content."""
    try:
        content = json.loads(page.body)
    except ValueError as error:
        raise CollectError(ErrorReason.BODY_NOT_METRICS, f"{page.url} does not answer with JSON.", {"url": page.url}) from error
    if not isinstance(content, dict):
        raise CollectError(ErrorReason.BODY_NOT_METRICS, f"{page.url} does not answer with a JSON object.", {"url": page.url})
    return content


def _page_of(url: str, response: Any) -> FetchedPage:
    """The page in a response. Of anything but an `httpx.Response` only `.status_code` and `.text` are relied on."""
    status = response.status_code if isinstance(response.status_code, int) else 200
    location = content_type = ""
    if isinstance(response, httpx.Response):
        content_type = response.headers.get("content-type", "")
        location = response.headers.get("location", "")
        body = response.content
    else:
        body = response.text.encode("utf-8", "replace") if isinstance(response.text, str) else bytes(response.text)
    return checked_page(url, status, body, content_type, location)


def checked_page(url: str, status: int, body: bytes, content_type: str, location: str) -> FetchedPage:
    """The page of an answer. Raises EndpointStatusError for any status but 200."""
    if 300 <= status < 400:
        raise EndpointStatusError(
            ErrorReason.ENDPOINT_REDIRECTED,
            f"{url} redirects{f' to {location[:200]}' if location else ''} (HTTP {status}); redirects are not followed. "
            "Register the final address.",
            {"url": url, "status": str(status), "location": location[:200]},
        )
    if status != 200:
        raise EndpointStatusError(
            ErrorReason.ENDPOINT_HTTP_STATUS,
            f"{url} answered HTTP {status}. {_status_hint(status)}",
            {"url": url, "status": str(status)},
        )
    return FetchedPage(url, body, content_type)


def _status_hint(status: int) -> str:
    if status == 404:
        return "Metrics may be off (SGLang needs --enable-metrics), or the path is not /metrics."
    if status in (401, 403):
        return "The page is protected; the service cannot log in there."
    return "The engine may be starting or broken; see its log."


def check_body_of(page: FetchedPage) -> None:
    """Raise CollectError BODY_EMPTY or BODY_NOT_METRICS where the page is plainly no metrics page."""
    if not page.body.strip():
        raise CollectError(
            ErrorReason.BODY_EMPTY,
            f"{page.url} answered with an empty page. Check that the engine's metrics are on.",
            {"url": page.url},
        )
    kind = page.content_type.partition(";")[0].strip().lower()
    if kind in ("text/html", "application/xhtml+xml", "application/json") or looks_like_html(page.body):
        what = "JSON" if kind == "application/json" else "an HTML page"
        raise CollectError(
            ErrorReason.BODY_NOT_METRICS,
            f"{page.url} answered with {what}, not with metrics. Check the port and path: a proxy or web page may be there.",
            {"url": page.url, "content_type": kind},
        )


def invalid(endpoint: str, why: str) -> CollectError:
    """The error for an address that is none."""
    return CollectError(
        ErrorReason.ENDPOINT_INVALID,
        f"{endpoint!r} is not an endpoint: {why}. Write for example http://10.0.0.5:8000.",
        {"endpoint": endpoint},
    )
