"""A real server on a free port over a store of its own, for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from perf_service.app import App, build_app
from perf_service.settings import load_settings
from tests.support.remote import Remote, Start


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    """Starts a server over this test's store; may be called again after a stop."""
    apps: list[App] = []

    async def run(**overrides: Any) -> App:
        defaults = {
            "host": "127.0.0.1",
            "port": 0,
            "database_url": f"sqlite:///{tmp_path}/store.db",
            "state_dir": tmp_path,
            "scrape": False,
            "heartbeat_seconds": 0.1,
            "watch_poll_seconds": 0.02,
            "drain_seconds": 2.0,
            "log_level": "error",
        }
        app = build_app(load_settings(**{**defaults, **overrides}))
        apps.append(app)
        await app.start()
        return app

    yield run
    for app in apps:
        await app.stop(0)


@pytest.fixture
async def app(start: Start) -> App:
    """A running server."""
    return await start()


@pytest.fixture
async def remote(app: App) -> AsyncIterator[Remote]:
    """A client of it."""
    async with grpc.aio.insecure_channel(app.address) as channel:
        yield Remote(channel)
