"""A change cut off before or after every single effect: the next supervisor ends at the same state, with one process."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Any

import pytest

from perf_service.targets.local import processes
from perf_service.targets.local.state import StateFile


class Cut(BaseException):
    """The supervisor is gone. No handler of its own sees this."""


class Knife:
    """Lets `spare` effects pass and cuts before or after the next one."""

    def __init__(self) -> None:
        self.spare: int | None = None
        self.after = False
        self.fell = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def around(self, effect: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **named: Any) -> Any:
            if self.spare is None:
                return effect(*arguments, **named)
            self.spare -= 1
            if self.spare == -1 and not self.after:
                self.fall()
            result = effect(*arguments, **named)
            if self.spare == -1:
                self.fall()
            if self.spare < -1:
                raise Cut  # a dead supervisor does nothing more
            return result

        return wrapped

    def fall(self) -> None:
        self._loop.call_soon_threadsafe(self.fell.set)
        raise Cut


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_cut_off_at_every_effect(local: Any, kit: Any, monkeypatch: pytest.MonkeyPatch, after: bool) -> None:
    target = await local.start()
    knife = Knife()
    monkeypatch.setattr(StateFile, "_write", knife.around(StateFile._write))
    monkeypatch.setattr(processes, "spawn", knife.around(processes.spawn))
    monkeypatch.setattr(processes, "send", knife.around(processes.send))
    present, cuts, generation = kit.config(2), 0, 1
    while True:
        desired = kit.config(20 + cuts)
        knife.fell.clear()
        knife.after, knife.spare = after, cuts
        was = await kit.replica(target, "a")
        try:
            await target.apply("a", desired, expect_hash=was.config_hash, op=kit.op())
        except Cut:
            accepted = after  # the intent was on the disk before the caller could hear of it
        else:
            accepted = True
            done = asyncio.create_task(kit.settled(target, "a", desired))
            await asyncio.wait({done, asyncio.create_task(knife.fell.wait())}, return_when=asyncio.FIRST_COMPLETED)
            if not knife.fell.is_set():
                assert not done.result().failed
                break
            done.cancel()
        cuts += 1
        await target.close()
        knife.spare = None

        target = local.make()
        present = desired if accepted else present
        state = await kit.settled(target, "a", present)
        generation += accepted
        assert (state.failed, state.restarts, state.generation) == (False, 0, generation), f"cut at effect {cuts}"
        pids = kit.processes_with(f"--port {local.ports[0]} ")
        assert len(pids) == 1, f"cut at effect {cuts}: {pids}"
        assert os.getpid() not in pids
    assert cuts >= 4, "intent, stop, start, fact"
