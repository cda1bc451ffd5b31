"""The supervisor of one replica: brings its one process to the recorded intent, whatever it finds, and keeps it there.

Each step looks at reality first, so it may be cut off anywhere and begun again, by this process or by another one. Two locks: the state
file's own (short), and a work lock that is held while processes are stopped and started and that the kernel frees when its holder dies.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

from perf_service.models.config import EngineConfig, config_hash
from perf_service.models.errors import ErrorReason, TargetError
from perf_service.targets.base import Op, ReplicaState
from perf_service.targets.checks import check_expected, check_fence
from perf_service.targets.files import hold, safe_name
from perf_service.targets.local import processes
from perf_service.targets.local.ending import end_all
from perf_service.targets.local.launch import Launch
from perf_service.targets.local.logs import ReplicaLogs
from perf_service.targets.local.probe import EngineProbe, until_served
from perf_service.targets.local.state import Intent, ReplicaRecord, StateFile, finished

_log = logging.getLogger(__name__)
_HEALTH_TIMEOUT_SECONDS: Final = 5.0
_BACKOFF_SECONDS: Final = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


class Superseded(Exception):
    """A newer intent has replaced the one that was being worked on: a signal between two steps, not an error."""


class ReplicaSupervisor:
    """One replica, its state and logs in `directory`."""

    def __init__(
        self,
        launch: Launch,
        *,
        endpoint: str,
        initial: EngineConfig,
        directory: Path,
        probe: EngineProbe,
        clock: Callable[[], float],
    ) -> None:
        self.instance_id = launch.instance_id
        self._launch = launch
        self._endpoint = endpoint
        self._probe = probe
        self._clock = clock
        name = safe_name(self.instance_id)
        self._state = StateFile(directory / f"{name}.json", initial)
        self._work_lock = directory / f"{name}.work"
        self._logs = ReplicaLogs(directory / f"{name}.")
        self._mark = str(directory.resolve() / name)
        self._job: asyncio.Task[None] | None = None

    # What the target asks of it

    async def accept(self, desired: EngineConfig, op: Op, *, expect_hash: str | None) -> None:
        """Record the intent to run `desired` and begin. `expect_hash` None: whatever runs now. See `base.Target.apply` for errors."""

        def change(record: ReplicaRecord) -> ReplicaRecord:
            check_fence(self.instance_id, record.fence, op)
            fenced = replace(record, fence=op.fence)
            wanted = config_hash(desired)
            if record.intent is not None:
                if config_hash(record.intent.config) == wanted:
                    return fenced  # under way
                if expect_hash is not None:
                    # Only a restore may cut off a change that is under way.
                    check_expected(self.instance_id, record.intent.config, expect_hash)
            elif config_hash(record.config) == wanted and record.wanted:
                if not record.failure:
                    return fenced
                if record.last_op_id == op.op_id:
                    raise self._apply_failed(record)
            elif expect_hash is not None:
                check_expected(self.instance_id, record.config, expect_hash)
            generation = max(record.generation, record.intent.generation if record.intent else 0) + 1
            return replace(fenced, wanted=True, failure="", failure_reason="", intent=Intent(op.op_id, desired, generation, self._clock()))

        await asyncio.to_thread(self._state.update, change)
        self.wake()

    async def observe(self) -> ReplicaState:
        """What runs now, and whether it serves. Never ready while a change is accepted and unfinished: what answers then is about to go."""
        record = await asyncio.to_thread(self._state.read)
        running = processes.alive(record.process)
        config, generation = record.config, record.generation
        if record.intent is not None and running and record.process_generation == record.intent.generation:
            config, generation = record.intent.config, record.intent.generation
        ready, message = False, record.failure
        if record.intent is not None:
            old = not running or record.process_generation != record.intent.generation
            message = "stopping the old process" if old else "starting: no completion has answered yet"
        elif running and record.proven:
            ready, message = await self._probe.health(
                self._launch.port, self._launch.options.health_path, timeout_seconds=_HEALTH_TIMEOUT_SECONDS
            )
            message = message or record.note
        elif not message:
            message = record.note or ("starting" if record.wanted else "not started by this target yet")
        return ReplicaState(
            instance_id=self.instance_id,
            endpoint=self._endpoint,
            config=config,
            config_hash=config_hash(config),
            generation=generation,
            ready=ready,
            engine_version=self._launch.engine_version,
            restarts=record.restarts,
            message=message,
            failed=bool(record.failure),
        )

    async def problems(self, desired: EngineConfig) -> list[str]:
        """What would keep `desired` from being applied, as far as can be told without touching anything."""
        record = await asyncio.to_thread(self._state.read)
        foreign = "" if processes.alive(record.process) else await asyncio.to_thread(self._launch.foreign_listener)
        return [problem for problem in (self._launch.missing_program(desired), foreign) if problem]

    async def fence(self) -> int:
        """The highest fence that has acted on the replica."""
        return (await asyncio.to_thread(self._state.read)).fence

    def wake(self) -> None:
        """Work towards the intent, or the restart, that the state file shows; nothing where neither is due."""
        if self._job is None or self._job.done():
            self._job = asyncio.get_running_loop().create_task(self._work(), name=f"supervise-{self.instance_id}")

    async def detach(self) -> None:
        """Stop working; the process keeps running and the intent stays on disk."""
        job, self._job = self._job, None
        if job is not None:
            job.cancel()
            await asyncio.wait({job})

    async def stop(self) -> None:
        """End the replica's process with all it left behind, and do not start it again."""
        await self.detach()
        await asyncio.to_thread(self._state.update, lambda record: replace(record, wanted=False, intent=None))
        async with hold(self._work_lock):
            await self._end_processes()
            await asyncio.to_thread(self._state.update, lambda record: replace(record, process=None, proven=False))

    # The work

    async def _work(self) -> None:
        while True:
            record = await asyncio.to_thread(self._state.read)
            if record.intent is None and not self._restart_is_due(record):
                return
            try:
                async with hold(self._work_lock):
                    record = await asyncio.to_thread(self._state.read)
                    if record.intent is not None:
                        await self._converge(record.intent)
                    elif self._restart_is_due(record):
                        await self._restart(record)
            except Superseded:
                continue
            except TargetError as error:
                # The state directory itself cannot be used: seen again by whoever asks next.
                with contextlib.suppress(TargetError):
                    await self._note(error.message)
                return
            except Exception as error:
                # A defect of ours: told to whoever looks, and tried again at the watcher's next round.
                _log.exception("supervision of %s failed", self.instance_id)
                await self._note(f"internal error of the supervisor: {type(error).__name__}: {error}")
                return

    async def _converge(self, intent: Intent) -> None:
        """Bring the replica to an intent: stop, start, prove. Ends with the fact recorded, good or bad."""
        try:
            record = await asyncio.to_thread(self._state.read)
            if not (processes.alive(record.process) and record.process_generation == intent.generation):
                await self._end_processes()
                await self._start(intent.config, intent.generation, intent)
            await self._prove(intent)
        except TargetError as error:
            await self._end_processes()
            await self._finish(
                intent, failure=error.message, failure_reason=error.reason.value, process=None, proven=False, note="", restarts=0
            )
        else:
            await self._finish(intent, failure="", failure_reason="", proven=True, note="", restarts=0, restart_at=0.0)

    async def _restart(self, record: ReplicaRecord) -> None:
        """Start a process that died by itself again, with its recorded config, later after each time."""
        note = record.note
        running = processes.alive(record.process)  # started by a supervisor that ended before it had seen the first completion
        if not running:
            exit_code = processes.reap(record.process.pid) if record.process else None
            how = (
                "" if exit_code is None else f" with exit code {exit_code}" if exit_code >= 0 else f" by {signal.Signals(-exit_code).name}"
            )
            count = record.restarts + 1
            note = f"the engine died by itself{how} and was started again ({count} so far). {self._logs.last_lines(record.generation)}"
            pause = _BACKOFF_SECONDS[min(count, len(_BACKOFF_SECONDS)) - 1]
            await asyncio.to_thread(
                self._state.update,
                lambda r: replace(r, restarts=count, restart_at=self._clock() + pause, note=note, proven=False),
            )
        try:
            if not running:
                await self._end_processes()
                await self._start(record.config, record.generation, None)
            await self._prove(None)
        except TargetError as error:
            await self._end_processes()
            await self._note(f"{note} Its restart failed: {error.message}".strip())
        else:
            await asyncio.to_thread(self._state.update, lambda r: replace(r, proven=True))

    async def _note(self, text: str) -> None:
        await asyncio.to_thread(self._state.update, lambda record: replace(record, note=text))

    def _restart_is_due(self, record: ReplicaRecord) -> bool:
        return (
            record.wanted
            and record.intent is None
            and not record.failure
            and record.generation > 0
            and not (processes.alive(record.process) and record.proven)
            and self._clock() >= record.restart_at
        )

    async def _end_processes(self) -> None:
        """Raises TargetError TARGET_APPLY_FAILED where one cannot be ended."""
        leader = (await asyncio.to_thread(self._state.read)).process
        left = await end_all(
            leader,
            lambda: processes.belonging(self._mark, self._logs.prefix, leader),
            self._launch.options.stop_timeout_seconds,
        )
        if left:
            pids = ", ".join(str(p.pid) for p in left)
            raise TargetError(
                ErrorReason.TARGET_APPLY_FAILED,
                f"replica {self.instance_id!r}: processes {pids} survive SIGKILL (waiting in the kernel for a device or a disk?)",
                {"instance_id": self.instance_id, "pids": pids},
            )

    async def _start(self, config: EngineConfig, generation: int, intent: Intent | None) -> None:
        foreign = await asyncio.to_thread(self._launch.foreign_listener)
        if foreign:
            raise TargetError(ErrorReason.TARGET_APPLY_FAILED, foreign, {"instance_id": self.instance_id, "port": str(self._launch.port)})
        argv = self._launch.argv(config)
        variables = self._launch.variables(config, self._mark)

        def begin(record: ReplicaRecord) -> ReplicaRecord:
            # Inside the state's lock: whoever replaces the intent does so before this process exists, or knows of it.
            if record.intent != intent or not record.wanted:
                raise Superseded
            if processes.alive(record.process):
                # Another worker was cut off in this very step, yet its start went through.
                return record
            process = processes.spawn(argv, log=self._logs.of(generation), variables=variables, environment=self._launch.environment)
            return replace(record, process=process, process_generation=generation, proven=False)

        try:
            await asyncio.to_thread(self._state.update, begin)
        except OSError as error:
            raise TargetError(
                ErrorReason.TARGET_APPLY_FAILED,
                f"replica {self.instance_id!r}: {argv[0]!r} cannot be started: {error}",
                {"instance_id": self.instance_id},
                permanent=True,
            ) from error
        self._logs.drop_old(generation)

    async def _prove(self, intent: Intent | None) -> None:
        """Wait for the first completion. Raises TargetError TARGET_APPLY_FAILED where the process dies or takes too long."""
        limit = self._launch.options.startup_timeout_seconds
        why = await until_served(
            lambda left: self._launch.completion(self._probe, left), lambda: self._still_starting(intent), timeout_seconds=limit
        )
        if why:
            generation = (await asyncio.to_thread(self._state.read)).process_generation
            raise self._start_failed(f"served no completion within {limit:g} s: {why}", generation)

    async def _still_starting(self, intent: Intent | None) -> None:
        """Raises Superseded, or TargetError where the process has ended."""
        record = await asyncio.to_thread(self._state.read)
        if record.intent != intent or not record.wanted:
            raise Superseded
        if not processes.alive(record.process):
            code = processes.reap(record.process.pid) if record.process else None
            ended = "" if code is None else f" (exit code {code})"
            raise self._start_failed(f"ended before it could serve{ended}", record.process_generation)

    async def _finish(self, intent: Intent, **facts: object) -> None:
        def change(record: ReplicaRecord) -> ReplicaRecord:
            if record.intent != intent:
                raise Superseded
            return finished(record, intent, **facts)

        await asyncio.to_thread(self._state.update, change)

    def _apply_failed(self, record: ReplicaRecord) -> TargetError:
        reason = ErrorReason(record.failure_reason) if record.failure_reason else ErrorReason.TARGET_APPLY_FAILED
        return TargetError(reason, record.failure, {"instance_id": self.instance_id, "op_id": record.last_op_id}, permanent=True)

    def _start_failed(self, what: str, generation: int) -> TargetError:
        return TargetError(
            ErrorReason.TARGET_APPLY_FAILED,
            f"replica {self.instance_id!r} {what}. {self._logs.last_lines(generation)}",
            {"instance_id": self.instance_id, "log": str(self._logs.of(generation))},
            permanent=True,
        )
