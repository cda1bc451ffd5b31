"""Engines of local fleets are watched over while the service runs, and left alone when it stops."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from perf_service.models.errors import PerfServiceError
from perf_service.models.fleet import Fleet, Instance
from perf_service.targets import LocalSupervision


async def test_an_engine_that_dies_between_rollouts_is_started_again(local: Any, kit: Any) -> None:
    await (await local.start()).close()
    registered: list[tuple[Fleet, Sequence[Instance]]] = [(local.fleet, local.instances)]
    complaints: list[tuple[str, PerfServiceError]] = []

    async def fleets() -> list[tuple[Fleet, Sequence[Instance]]]:
        return registered

    supervision = LocalSupervision(fleets, state_dir=local.directory, clock=time.time, failed=lambda *told: complaints.append(told))
    await supervision.look()
    os.kill(kit.processes_with(f"--port {local.ports[0]} ")[0], signal.SIGKILL)
    observer = local.make()
    await kit.until(observer, "a", lambda state: state.ready and state.restarts == 1)

    # A fleet whose target makes no sense is complained of once, and the others go on.
    registered.append((replace(local.fleet, fleet_id="broken", target=replace(local.fleet.target, options={})), []))
    await supervision.look()
    await supervision.look()
    assert [fleet_id for fleet_id, _ in complaints] == ["broken"]
    registered.clear()
    await supervision.look()
    await supervision.close()
    assert (await kit.replica(observer, "a")).ready
