"""Asking a local engine whether it serves: a real completion once after its start, its health endpoint at every look.

A health endpoint answers before the model can; a completion under overload may wait for minutes in the engine's own queue. So the
first proves that a new process serves, and the second that it still does.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import httpx

_CONNECT_SECONDS: Final = 2.0
_EVERY_SECONDS: Final = 0.25
_COMPLETION_SECONDS: Final = 120.0  # of one: the fleet's clients may have filled the new engine's queue before it


class EngineProbe:
    """One HTTP client for all replicas of a fleet. Proxies of the environment are not used: engines are on this host."""

    def __init__(self, host: str) -> None:
        self._host = f"[{host}]" if ":" in host else {"0.0.0.0": "127.0.0.1"}.get(host, host)
        self._client = httpx.AsyncClient(trust_env=False, follow_redirects=False)

    def base(self, port: int) -> str:
        """Base URL of the engine on a port."""
        return f"http://{self._host}:{port}"

    async def completion(self, port: int, path: str, body: Mapping[str, Any], *, timeout_seconds: float) -> str:
        """Why a completion does not answer; empty when it does."""
        try:
            response = await self._client.post(
                f"{self.base(port)}{path}", json=dict(body), timeout=httpx.Timeout(timeout_seconds, connect=_CONNECT_SECONDS)
            )
        except httpx.HTTPError as error:
            return f"{path} does not answer yet ({type(error).__name__})"
        return "" if response.is_success else f"{path} answers HTTP {response.status_code}: {response.text[:200].strip()}"

    async def served_model(self, port: int) -> str:
        """The name under which an OpenAI-compatible server serves its model, empty where it does not tell."""
        try:
            response = await self._client.get(f"{self.base(port)}/v1/models", timeout=_CONNECT_SECONDS)
            name = response.json()["data"][0]["id"] if response.is_success else ""
        except (httpx.HTTPError, ValueError, LookupError, TypeError):
            return ""
        return name if isinstance(name, str) else ""

    async def health(self, port: int, path: str, *, timeout_seconds: float) -> tuple[bool, str]:
        """Whether the engine answers, and what is wrong. Slow is not dead: an overloaded server's loop may need seconds for it."""
        try:
            response = await self._client.get(f"{self.base(port)}{path}", timeout=httpx.Timeout(timeout_seconds, connect=_CONNECT_SECONDS))
        except httpx.ReadTimeout:
            return True, f"{path} took more than {timeout_seconds:g} s"
        except httpx.HTTPError as error:
            return False, f"{path} does not answer ({type(error).__name__})"
        # An engine without this path still shows that it is there.
        healthy = response.status_code < 500
        return healthy, "" if healthy else f"{path} answers HTTP {response.status_code}"

    async def close(self) -> None:
        """Close idle connections."""
        await self._client.aclose()


async def until_served(
    ask: Callable[[float], Awaitable[str]], still_starting: Callable[[], Awaitable[None]], *, timeout_seconds: float
) -> str:
    """Ask for a completion until there is one. Empty; or why there was none within `timeout_seconds`.

    `ask` takes the seconds it may last. `still_starting` is called all the while, and what it raises ends the wait.
    """
    deadline = time.monotonic() + timeout_seconds
    why = "nothing has answered yet"
    attempt: asyncio.Future[str] | None = None
    try:
        while True:
            await still_starting()
            # The answer counts only if it came from our process: it was there a moment ago, and the port was free before it.
            if attempt is not None and attempt.done():
                why = attempt.result()
                if not why:
                    return ""
                attempt = None
            if time.monotonic() > deadline:
                return why
            if attempt is None:
                attempt = asyncio.ensure_future(ask(max(0.05, min(_COMPLETION_SECONDS, deadline - time.monotonic()))))
            # A completion may wait in the engine's queue for long; a newer intent or the process's end must not.
            begun = time.monotonic()
            await asyncio.wait({attempt}, timeout=_EVERY_SECONDS)
            if attempt.done() and attempt.result():
                await asyncio.sleep(_EVERY_SECONDS - (time.monotonic() - begun))
    finally:
        if attempt is not None:
            attempt.cancel()
