"""The supervisor of one replica: brings its one process to the recorded intent, whatever it finds, and keeps it there.

Each step looks at reality first, so it may be cut off anywhere and begun again, by this process or by another one. Two locks: the state
file's own (short), and a work lock that is held while processes are stopped and started and that the kernel frees when its holder dies.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import shutil
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from perf_service.models.config import EngineConfig, config_hash
from perf_service.models.errors import ErrorReason, TargetError
from perf_service.models.metrics import Engine
from perf_service.optimization import render
from perf_service.targets.base import Op, ReplicaState
from perf_service.targets.checks import check_expected, check_fence
from perf_service.targets.files import safe_name, try_lock, unusable
from perf_service.targets.local import processes
from perf_service.targets.local.options import LocalOptions
from perf_service.targets.local.probe import EngineProbe
from perf_service.targets.local.state import Intent, ReplicaRecord, StateFile, finished

_log = logging.getLogger(__name__)
_TICK_SECONDS: Final = 0.05
_PROBE_EVERY_SECONDS: Final = 0.25
_PROBE_TIMEOUT_SECONDS: Final = 120.0  # of one completion: the fleet's clients may have filled the new engine's queue before it
_HEALTH_TIMEOUT_SECONDS: Final = 5.0
_LOG_LINES: Final = 8
_LOGS_KEPT: Final = 5
_KILL_SECONDS: Final = 30.0  # after SIGKILL only the kernel's own work is waited for; a loaded host needs seconds for it
_LEFT_BEHIND_SECONDS: Final = 5.0  # for workers whose server has gone already
_BACKOFF_SECONDS: Final = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


class Superseded(Exception):
    """A newer intent has replaced the one that was being worked on: a signal between two steps, not an error."""


class ReplicaSupervisor:
    """One replica. `environment` None: the engines inherit ours."""

    def __init__(
        self,
        *,
        instance_id: str,
        engine: Engine,
        endpoint: str,
        port: int,
        model: str,
        engine_version: str,
        initial: EngineConfig,
        options: LocalOptions,
        directory: Path,
        probe: EngineProbe,
        clock: Callable[[], float],
        environment: Mapping[str, str] | None,
    ) -> None:
        self.instance_id = instance_id
        self._engine = engine
        self._endpoint = endpoint
        self._port = port
        self._model = model
        self._engine_version = engine_version
        self._options = options
        self._probe = probe
        self._clock = clock
        self._environment = environment
        name = safe_name(instance_id)
        self._state = StateFile(directory / f"{name}.json", initial)
        self._work_lock = directory / f"{name}.work"
        self._logs = directory / f"{name}."  # + generation + ".log"
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
            ready, message = await self._probe.health(self._port, self._options.health_path, timeout_seconds=_HEALTH_TIMEOUT_SECONDS)
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
            engine_version=self._engine_version,
            restarts=record.restarts,
            message=message,
            failed=bool(record.failure),
        )

    async def problems(self, desired: EngineConfig) -> list[str]:
        """What would keep `desired` from being applied, as far as can be told without touching anything."""
        found = []
        argv = self._argv(desired)
        if shutil.which(argv[0]) is None:
            found.append(f"the program {argv[0]!r} of the fleet's command is not installed on this host")
        record = await asyncio.to_thread(self._state.read)
        foreign = "" if processes.alive(record.process) else await asyncio.to_thread(self._foreign_listener)
        if foreign:
            found.append(foreign)
        return found

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
        async with self._working():
            await self._end_processes()
            await asyncio.to_thread(self._state.update, lambda record: replace(record, process=None, proven=False))

    # The work

    async def _work(self) -> None:
        while True:
            record = await asyncio.to_thread(self._state.read)
            if record.intent is None and not self._restart_is_due(record):
                return
            try:
                async with self._working():
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
            note = f"the engine died by itself{how} and was started again ({count} so far). {self._last_lines(record.generation)}"
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
        """SIGTERM, then SIGKILL for what is left after the time-out, children that left the process group included."""
        leader = (await asyncio.to_thread(self._state.read)).process
        # The server first and alone: an engine shuts its workers down in order, and takes their sudden end for a crash.
        if leader is not None and processes.alive(leader):
            processes.send(leader, signal.SIGTERM)
            await self._gone([leader], self._options.stop_timeout_seconds)
        rest = await asyncio.to_thread(processes.belonging, self._mark, self._logs, leader)
        for process in rest:
            processes.send(process, signal.SIGTERM)
        await self._gone(rest, min(_LEFT_BEHIND_SECONDS, self._options.stop_timeout_seconds))
        deadline = time.monotonic() + _KILL_SECONDS
        while rest := await asyncio.to_thread(processes.belonging, self._mark, self._logs, leader):
            for process in rest:
                processes.send(process, signal.SIGKILL)
            await self._gone(rest, 1.0)
            if time.monotonic() > deadline:
                pids = ", ".join(str(p.pid) for p in rest)
                raise TargetError(
                    ErrorReason.TARGET_APPLY_FAILED,
                    f"replica {self.instance_id!r}: processes {pids} survive SIGKILL (waiting in the kernel for a device or a disk?)",
                    {"instance_id": self.instance_id, "pids": pids},
                )

    @staticmethod
    async def _gone(group: Sequence[processes.ProcessId], timeout_seconds: float) -> None:
        deadline = time.monotonic() + timeout_seconds
        while any(processes.alive(p) for p in group) and time.monotonic() < deadline:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(_TICK_SECONDS)

    async def _start(self, config: EngineConfig, generation: int, intent: Intent | None) -> None:
        foreign = await asyncio.to_thread(self._foreign_listener)
        if foreign:
            raise TargetError(ErrorReason.TARGET_APPLY_FAILED, foreign, {"instance_id": self.instance_id, "port": str(self._port)})
        argv = self._argv(config)
        variables = {**render.env(config, self._engine, only=True), **self._options.environment, processes.REPLICA_VARIABLE: self._mark}

        def begin(record: ReplicaRecord) -> ReplicaRecord:
            # Inside the state's lock: whoever replaces the intent does so before this process exists, or knows of it.
            if record.intent != intent or not record.wanted:
                raise Superseded
            if processes.alive(record.process):
                # Another worker was cut off in this very step, yet its start went through.
                return record
            process = processes.spawn(argv, log=self._log(generation), variables=variables, environment=self._environment)
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
        self._drop_old_logs(generation)

    async def _prove(self, intent: Intent | None) -> None:
        """Wait for the first completion. Raises TargetError TARGET_APPLY_FAILED where the process dies or takes too long."""
        deadline = time.monotonic() + self._options.startup_timeout_seconds
        why = "nothing has answered yet"
        attempt: asyncio.Task[str] | None = None
        try:
            while True:
                record = await asyncio.to_thread(self._state.read)
                if record.intent != intent or not record.wanted:
                    raise Superseded
                if not processes.alive(record.process):
                    code = processes.reap(record.process.pid) if record.process else None
                    ended = "" if code is None else f" (exit code {code})"
                    raise self._start_failed(f"ended before it could serve{ended}", record.process_generation)
                # The answer counts only if it came from our process: it was there a moment ago, and the port was free before it.
                if attempt is not None and attempt.done():
                    why = attempt.result()
                    if not why:
                        return
                    attempt = None
                if time.monotonic() > deadline:
                    limit = self._options.startup_timeout_seconds
                    raise self._start_failed(f"served no completion within {limit:g} s: {why}", record.process_generation)
                if attempt is None:
                    left = max(_TICK_SECONDS, min(_PROBE_TIMEOUT_SECONDS, deadline - time.monotonic()))
                    attempt = asyncio.create_task(self._ask(left))
                # A completion may wait in the engine's queue for long; a newer intent or the process's end must not.
                begun = time.monotonic()
                await asyncio.wait({attempt}, timeout=_PROBE_EVERY_SECONDS)
                if attempt.done() and attempt.result():
                    await asyncio.sleep(_PROBE_EVERY_SECONDS - (time.monotonic() - begun))
        finally:
            if attempt is not None:
                attempt.cancel()

    async def _ask(self, timeout_seconds: float) -> str:
        """Ask for one completion: why there is none, empty where there is."""
        model = await self._probe.served_model(self._port) or self._model
        path, body = self._options.probe(self._engine, model)
        return await self._probe.completion(self._port, path, body, timeout_seconds=timeout_seconds)

    async def _finish(self, intent: Intent, **facts: object) -> None:
        def change(record: ReplicaRecord) -> ReplicaRecord:
            if record.intent != intent:
                raise Superseded
            return finished(record, intent, **facts)

        await asyncio.to_thread(self._state.update, change)

    @contextlib.asynccontextmanager
    async def _working(self) -> AsyncIterator[None]:
        """Hold the work lock, waiting for another worker to let go of it."""
        try:
            descriptor = os.open(self._work_lock, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise unusable(self._work_lock, error) from error
        try:
            while not try_lock(descriptor):  # noqa: ASYNC110 - other processes hold it too
                await asyncio.sleep(_TICK_SECONDS)
            yield
        finally:
            os.close(descriptor)

    # Small facts

    def _argv(self, config: EngineConfig) -> list[str]:
        flags = render.flags(render.settable(config, self._engine, version=self._engine_version), self._engine)
        return self._options.argv(port=self._port, instance_id=self.instance_id, model=self._model, flags=flags)

    def _foreign_listener(self) -> str:
        """A sentence where somebody else listens on the replica's port, else empty."""
        family = socket.AF_INET6 if ":" in self._options.host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as trial:
            # Connections of the old process that linger in TIME_WAIT do not count.
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                trial.bind((self._options.host, self._port))
            except OSError as error:
                pid = processes.listener_of(self._port)
                who = f"process {pid} ({processes.command_of(pid)})" if pid else f"another process ({error.strerror})"
                return (
                    f"replica {self.instance_id!r} cannot have port {self._port}: {who} uses it and was not started by this target. "
                    "End that process, or give the replica another port."
                )
        return ""

    def _apply_failed(self, record: ReplicaRecord) -> TargetError:
        reason = ErrorReason(record.failure_reason) if record.failure_reason else ErrorReason.TARGET_APPLY_FAILED
        return TargetError(reason, record.failure, {"instance_id": self.instance_id, "op_id": record.last_op_id}, permanent=True)

    def _start_failed(self, what: str, generation: int) -> TargetError:
        return TargetError(
            ErrorReason.TARGET_APPLY_FAILED,
            f"replica {self.instance_id!r} {what}. {self._last_lines(generation)}",
            {"instance_id": self.instance_id, "log": str(self._log(generation))},
            permanent=True,
        )

    def _log(self, generation: int) -> Path:
        return Path(f"{self._logs}{generation}.log")

    def _last_lines(self, generation: int) -> str:
        """The end of a generation's log, for a message."""
        try:
            with self._log(generation).open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 8192))
                text = file.read().decode(errors="replace")
        except OSError:
            return "It left no log."
        lines = [line for line in re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines() if line.strip()][-_LOG_LINES:]
        return "Its last log lines: " + " | ".join(lines) if lines else f"Its log {self._log(generation)} is empty."

    def _drop_old_logs(self, generation: int) -> None:
        """Old generations' logs would fill the disk in the long run."""
        for path in self._logs.parent.glob(f"{self._logs.name}*.log"):
            number = path.name.removeprefix(self._logs.name).removesuffix(".log")
            if number.isdigit() and int(number) <= generation - _LOGS_KEPT:
                path.unlink(missing_ok=True)
