"""Simulated engines as real processes on a free port."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest


@dataclass
class Program:
    """A running simulated engine."""

    process: asyncio.subprocess.Process
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def event(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        async with asyncio.timeout(20):
            value = json.loads(await self.process.stdout.readline())
        assert isinstance(value, dict)
        return value

    async def stop(self) -> int:
        self.process.terminate()
        async with asyncio.timeout(20):
            return await self.process.wait()


StartEngine = Callable[..., Awaitable[Program]]


async def spawn(*argv: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "perf_service.simulator", *argv,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip


@pytest.fixture
def spawn_engine() -> Callable[..., Awaitable[asyncio.subprocess.Process]]:
    """Starts the program with exactly these arguments."""
    return spawn


@pytest.fixture
async def start_engine() -> AsyncIterator[StartEngine]:
    """Starts engines with the given flags; ends them after the test."""
    started: list[Program] = []

    async def start(*argv: str, port: int = 0, until: str = "ready") -> Program:
        program = Program(await spawn("--port", str(port), *argv), port)
        started.append(program)
        while True:
            event = await program.event()
            program.port = event.get("port", program.port)
            if event["event"] == until:
                return program

    yield start
    for program in started:
        if program.process.returncode is None:
            program.process.kill()
        await program.process.communicate()
