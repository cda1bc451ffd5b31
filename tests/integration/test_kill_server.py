"""kill -9 of a real server process in the middle of a rollout over real engine processes, under load."""

from __future__ import annotations

import json
import signal
from pathlib import Path

from perf_service.models.workflow import WorkflowStatus
from tests.support.real_server import is_at, real_server

S = WorkflowStatus


async def test_killed_in_the_50_percent_stage_the_rollout_completes_after_a_restart(tmp_path: Path) -> None:
    async with real_server(tmp_path) as server:
        before = server.engine_pids()
        workflow_id = await server.rollout(16)
        await server.until(workflow_id, is_at(S.BAKING, 1))
        at_kill = server.engine_pids()
        await server.end(signal.SIGKILL)
        assert server.engine_pids() == at_kill, "engines outlive the server"

        await server.serve()
        done = await server.done(workflow_id)
        assert done.status is S.COMPLETED, done.message
        assert await server.settled() == {16}
        after = server.engine_pids()
        assert after[:2] == at_kill[:2], "those changed before were taken over, not restarted"
        assert after[2] != before[2]
        replicas = (await server.state()).replicas
        assert [(r.generation, r.restarts) for r in replicas] == [(2, 0)] * 3, "started once and changed once"
        events = await server.events(workflow_id)
        assert [e.sequence for e in events] == list(range(1, done.last_sequence + 1))
    lines = (tmp_path / "server.log").read_text().splitlines()
    assert all("event" in json.loads(line) for line in lines), "what the lower floors and the libraries tell has the same shape"
