"""The end of a replica's processes: the server first, then all it left behind, by force where asking does not help."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Sequence
from typing import Final

from perf_service.targets.local import processes
from perf_service.targets.local.processes import ProcessId

_TICK_SECONDS: Final = 0.05
_KILL_SECONDS: Final = 30.0  # after SIGKILL only the kernel's own work is waited for; a loaded host needs seconds for it
_LEFT_BEHIND_SECONDS: Final = 5.0  # for workers whose server has gone already


async def end_all(leader: ProcessId | None, belonging: Callable[[], Sequence[ProcessId]], timeout_seconds: float) -> Sequence[ProcessId]:
    """SIGTERM, then after `timeout_seconds` SIGKILL; those that survive even that are returned.

    `belonging` finds all processes of the replica, also children that left the process group; it blocks, and is called in a thread.
    """
    # The server first and alone: an engine shuts its workers down in order, and takes their sudden end for a crash.
    if leader is not None and processes.alive(leader):
        processes.send(leader, signal.SIGTERM)
        await _gone([leader], timeout_seconds)
    rest = await asyncio.to_thread(belonging)
    for process in rest:
        processes.send(process, signal.SIGTERM)
    await _gone(rest, min(_LEFT_BEHIND_SECONDS, timeout_seconds))
    deadline = time.monotonic() + _KILL_SECONDS
    while rest := await asyncio.to_thread(belonging):
        for process in rest:
            processes.send(process, signal.SIGKILL)
        await _gone(rest, 1.0)
        if time.monotonic() > deadline:
            break
    return rest


async def _gone(group: Sequence[ProcessId], timeout_seconds: float) -> None:
    deadline = time.monotonic() + timeout_seconds
    while any(processes.alive(p) for p in group) and time.monotonic() < deadline:  # noqa: ASYNC110 - nothing tells of it
        await asyncio.sleep(_TICK_SECONDS)
