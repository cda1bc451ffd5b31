"""The Prometheus HTTP API, as far as it is needed: queries with limits, and errors that say what to do."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode, urlunsplit

import httpx

from perf_service.collectors.fetch import (
    EndpointStatusError,
    EndpointTimeoutError,
    EndpointUnreachableError,
    checked_parts,
)
from perf_service.collectors.page import looks_like_html
from perf_service.collectors.prometheus.matchers import parse_matchers
from perf_service.collectors.prometheus.matrix import read_matrix
from perf_service.collectors.transport import NetworkPolicy, guarded_client
from perf_service.models.errors import CollectError, ErrorReason
from perf_service.models.fleet import PrometheusSource

DEFAULT_TIMEOUT_SECONDS: Final = 30.0
DEFAULT_MAX_BODY_BYTES: Final = 64 * 1024 * 1024
"""An engine's scrape is about 70 kB of JSON with its labels, and 10 kB more for each further one."""
_LONGEST_GET_CHARS: Final = 2000
"""A longer query goes as a POST, which every server of this API takes, but not every proxy before it."""
_THREAD_BYTES: Final = 256 * 1024
_RESERVED_HEADERS: Final = frozenset(
    {"host", "content-length", "transfer-encoding", "connection", "content-type", "accept-encoding", "upgrade", "te", "trailer"}
)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a query gave: the series, and what the server warned of (a warning means that a part may be missing)."""

    series: Sequence[Mapping[str, Any]]
    warnings: tuple[str, ...] = ()


def api_url(url: str, method: str) -> tuple[str, list[tuple[str, str]]]:
    """The URL of a method and the parameters that stand in the base, such as Thanos' `dedup=true`.

    Raises:
        CollectError: ENDPOINT_INVALID when the base is not an http or https URL with a host, or carries credentials.
    """
    parts = checked_parts(url, _invalid, instead="; give a token or a header")
    path = parts.path.rstrip("/")
    for ending in ("/api/v1/query_range", "/api/v1/query", "/api/v1", "/graph", "/query"):
        path = path.removesuffix(ending)
    return urlunsplit((parts.scheme, parts.netloc, f"{path}/api/v1/{method}", "", "")), parse_qsl(parts.query)


def check_source(source: PrometheusSource) -> None:
    """Check what can be checked without asking. Raises CollectError (ENDPOINT_INVALID, INVALID_ARGUMENT), InvalidArgumentError."""
    api_url(source.url, "query")
    check_headers(source)
    parse_matchers(source.match, field="instance.prometheus.match")


def check_headers(source: PrometheusSource) -> dict[str, str]:
    """The headers to send. Raises CollectError INVALID_ARGUMENT for one that cannot be sent; never tells its value."""
    headers = {"Authorization": f"Bearer {source.bearer_token}"} if source.bearer_token else {}
    for name, value in (*source.headers.items(), ("Authorization", source.bearer_token)):
        is_name = bool(name) and all(char.isalnum() or char in "!#$%&'*+-.^_`|~" for char in name) and name.isascii()
        if not is_name or name.lower() in _RESERVED_HEADERS or not (value.isascii() and value.isprintable()):
            raise CollectError(
                ErrorReason.INVALID_ARGUMENT,
                f"the header {name!r} cannot be sent to {source.url}: it is set by the service itself, or its name or value has "
                "characters that HTTP does not allow.",
                {"field": "prometheus.headers", "header": name},
            )
    return {**headers, **source.headers}


class PrometheusClient:
    """Asks servers with the Prometheus HTTP API. An async context manager.

    `timeout` is the total time in seconds for one query. The addresses are checked, redirects are not followed and no proxy is used, as
    where engines are scraped. A `client` of one's own takes the place of the guarded one.
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
        self._max_body_bytes = max_body_bytes
        self._client = client or guarded_client("application/json", timeout, max_body_bytes=max_body_bytes, policy=policy)

    async def __aenter__(self) -> PrometheusClient:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def query(self, source: PrometheusSource, expression: str, at: float | None) -> Answer:
        """An instant query at `at` (unix seconds; None: the server's present).

        Raises:
            EndpointTimeoutError, EndpointUnreachableError, EndpointStatusError: as for an engine's page.
            CollectError: INVALID_ARGUMENT for a query that is not accepted; TOO_MANY_SERIES, BODY_TOO_LARGE where it selects too much;
                ENDPOINT_INVALID, ENDPOINT_FORBIDDEN; BODY_NOT_METRICS where something else answers than this API.
        """
        moment = {} if at is None else {"time": f"{at:.3f}"}
        return await self._ask(source, "query", {"query": expression, **moment, "timeout": f"{self.timeout:g}s"})

    async def query_range(self, source: PrometheusSource, expression: str, start: float, end: float, step: float) -> Answer:
        """A range query: values at `start`, `start + step`, ... Raises as `query`."""
        form = {"query": expression, "start": f"{start:.3f}", "end": f"{end:.3f}", "step": f"{step:.3f}", "timeout": f"{self.timeout:g}s"}
        return await self._ask(source, "query_range", form)

    async def _ask(self, source: PrometheusSource, method: str, form: Mapping[str, str]) -> Answer:
        url, extra = api_url(source.url, method)
        headers = check_headers(source)
        query = urlencode([*extra, *form.items()])
        try:
            async with asyncio.timeout(self.timeout):
                if len(url) + len(query) < _LONGEST_GET_CHARS:
                    response = await self._client.get(f"{url}?{query}", headers=headers)
                else:
                    headers["Content-Type"] = "application/x-www-form-urlencoded"
                    response = await self._client.post(url, content=query, headers=headers)
        except CollectError as error:
            raise self._limited(url, error) from error
        except (httpx.TimeoutException, TimeoutError) as error:
            raise _timed_out(url, self.timeout) from error
        except httpx.DecodingError as error:
            raise CollectError(ErrorReason.BODY_NOT_METRICS, f"{url} sent a body that cannot be read: {error}.", {"url": url}) from error
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise _invalid(url, str(error)) from error
        except (httpx.HTTPError, OSError) as error:
            raise EndpointUnreachableError(
                ErrorReason.ENDPOINT_UNREACHABLE,
                f"{url} cannot be reached: {str(error) or type(error).__name__}. Check the address, and that Prometheus runs.",
                {"url": url},
                retry_after_seconds=5.0,
            ) from error
        body = response.content
        # A large answer is read beside the loop, which has other engines to look after.
        content = await asyncio.to_thread(_json, body) if len(body) > _THREAD_BYTES else _json(body)
        if response.status_code != 200:
            raise _refused(url, response, content, self.timeout)
        return _answer(url, body, content)

    def _limited(self, url: str, error: CollectError) -> CollectError:
        if error.reason is not ErrorReason.BODY_TOO_LARGE:
            return error
        return CollectError(
            ErrorReason.BODY_TOO_LARGE,
            f"{url} answered with more than {self._max_body_bytes} bytes. Take a shorter range or narrower matchers.",
            {"url": url, "limit_bytes": str(self._max_body_bytes)},
        )


def _json(body: bytes) -> Any:
    try:
        return (read_matrix(body) if len(body) > _THREAD_BYTES else None) or json.loads(body)
    except ValueError:
        return None


def _answer(url: str, body: bytes, content: Any) -> Answer:
    data = content.get("data") if isinstance(content, dict) and content.get("status") == "success" else None
    result = data.get("result") if isinstance(data, dict) else None
    if not isinstance(data, dict) or not isinstance(result, list) or data.get("resultType") not in ("matrix", "vector"):
        what = "an HTML page" if looks_like_html(body[:200]) else "something else"
        raise CollectError(
            ErrorReason.BODY_NOT_METRICS,
            f"{url} answered with {what}, not as the Prometheus API does. Give the base URL of a Prometheus, Thanos, Mimir or "
            "VictoriaMetrics server, with its path prefix where it has one.",
            {"url": url},
        )
    warnings = content.get("warnings")
    return Answer(result, tuple(str(text)[:300] for text in warnings[:5]) if isinstance(warnings, list) else ())


def _refused(url: str, response: httpx.Response, content: Any, timeout: float) -> CollectError:
    """Why it was refused. What the server says is shortened; nothing of what was sent to it is repeated."""
    status = response.status_code
    told = content if isinstance(content, dict) else {}
    kind, text = str(told.get("errorType", "")), " ".join(str(told.get("error", "")).split())[:400]
    facts = {"url": url, "status": str(status), **({"error": text} if text else {})}
    if 300 <= status < 400:
        location = response.headers.get("location", "")[:200]
        return EndpointStatusError(
            ErrorReason.ENDPOINT_REDIRECTED,
            f"{url} redirects to {location!r}, which is not followed. Give the address it redirects to (a login page needs a token).",
            {"url": url, "location": location},
        )
    if kind == "timeout" or status == 504 or (status == 503 and kind == "canceled"):
        return _timed_out(url, timeout, text)
    if "too many samples" in text or "too many series" in text or ("limit" in text and status in (422, 429)):
        return CollectError(
            ErrorReason.TOO_MANY_SERIES, f"{url} refuses so large a query: {text}. Take a shorter range or narrower matchers.", facts
        )
    if text and (kind == "bad_data" or status in (400, 422)):
        return CollectError(ErrorReason.INVALID_ARGUMENT, f"{url} does not accept the query: {text}. Check the matchers.", facts)
    hints = {
        401: "It wants a login: give a bearer token or a header.",
        403: "The token or tenant may not read there.",
        404: "There is no Prometheus API at this path; the base URL may need a prefix such as /prometheus.",
        429: "It limits queries; ask less often.",
    }
    hint = hints.get(status, "See its log." if status >= 500 else "Check the base URL.")
    return EndpointStatusError(
        ErrorReason.ENDPOINT_HTTP_STATUS, f"{url} answered HTTP {status}{f' ({text})' if text else ''}. {hint}", facts
    )


def _timed_out(url: str, timeout: float, text: str = "") -> EndpointTimeoutError:
    return EndpointTimeoutError(
        ErrorReason.ENDPOINT_TIMEOUT,
        f"{url} did not answer within {timeout:g} s{f' ({text})' if text else ''}. Take a shorter range or narrower matchers, or raise the "
        "timeout.",
        {"url": url, "timeout_seconds": f"{timeout:g}"},
        retry_after_seconds=timeout,
    )


def _invalid(url: str, why: str) -> CollectError:
    return CollectError(
        ErrorReason.ENDPOINT_INVALID,
        f"{url!r} is no address of a Prometheus: {why}. Write for example http://prometheus:9090.",
        {"endpoint": url},
    )
