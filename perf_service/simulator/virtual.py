"""Simulated engines on a virtual clock: the same core as the HTTP program, some hundred times faster.

``simulate`` runs one engine under a workload and returns its pages; ``VirtualFleet`` runs many
replicas behind a round-robin balancer, restarts them with other flags and is scraped at any moment.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from perf_service.simulator.core import EngineCore, RejectedError, Request
from perf_service.simulator.exposition import PageContext, render
from perf_service.simulator.flags import EngineFlags, Hardware, StepTimes, resolve
from perf_service.simulator.workload import Ledger, LoadReport, Workload

#: A moment to start virtual clocks at; any would do, pages only need plausible Unix times.
DEFAULT_EPOCH = 1_800_000_000.0
_RETRY_SECONDS = 0.25  # a closed-loop client that got an error tries again after this


class ScrapeError(ConnectionError):
    """The replica is starting or stopped: nothing listens on its port."""


@dataclass(slots=True)
class _Call:
    """One request on its way through a replica, as the client sees it."""

    request: Request
    sent: float
    done: Callable[[float, bool], None]
    times: list[float] = field(default_factory=list)
    leaves_after: int | None = None  # tokens after which the client hangs up


class VirtualReplica:
    """One engine process at a time, with the flags of its last start."""

    def __init__(self, fleet: VirtualFleet, index: int, flags: EngineFlags, start: float, ready: float) -> None:
        self._fleet = fleet
        self.index = index
        self.restarts = 0
        self.slowdown = 1.0
        self._boot(flags, start, ready)

    def _boot(self, flags: EngineFlags, start: float, ready: float) -> None:
        self.flags = flags
        self.core = EngineCore(resolve(flags, self._fleet.step_times, self._fleet.hardware))
        self.hung = False
        self.slow_down(self.slowdown)
        self.start_time, self.ready_time = start, ready
        self.stopped = False
        self._calls: dict[int, _Call] = {}
        self._generation = self.restarts

    def slow_down(self, factor: float) -> None:
        """Makes the machine ``factor`` times slower than at first, from the next step on."""
        self.slowdown = factor
        times = resolve(self.flags, self._fleet.step_times, self._fleet.hardware).step_times
        self.core.engine = replace(self.core.engine, step_times=times.scaled(factor))

    @property
    def calls(self) -> list[_Call]:
        """What its clients wait for at present."""
        return list(self._calls.values())

    def is_ready(self, now: float) -> bool:
        return not self.stopped and now >= self.ready_time

    def page(self, now: float) -> str:
        """The /metrics text at ``now``. Raises ScrapeError while nothing listens."""
        if not self.is_ready(now):
            raise ScrapeError(f"replica {self.index}: connection refused")
        context = PageContext(
            model_name=self._fleet.model_name,
            process_start=self.start_time,
            ready_at=self.ready_time,
            process={
                "process_cpu_seconds_total": round(0.05 * (now - self.start_time) + 0.1 * self.core.busy_seconds, 2),
                "process_resident_memory_bytes": 6.5e8,
                "process_virtual_memory_bytes": 2.1e9,
                "process_open_fds": 48.0 + len(self._calls),
                "process_max_fds": 20000.0,
            },
        )
        return render(self.core, context, now)

    # -- called by the fleet ----------------------------------------------------------------------

    def accept(self, call: _Call, now: float) -> None:
        """Queues a request; raises RejectedError."""
        self._calls[self.core.submit(call.request, now)] = call
        if not self.core.in_step:
            self._begin(now)

    def _begin(self, now: float) -> None:
        duration = None if self.hung else self.core.begin_step(now)
        if duration is not None:
            generation = self._generation
            self._fleet.at(now + duration, lambda t: self._end_step(t, generation))

    def _end_step(self, now: float, generation: int) -> None:
        if generation != self._generation or self.stopped or self.hung:
            return  # the process that ran this step is gone, or it hangs in it
        result = self.core.finish_step()
        calls = self._calls
        for request_id in result.tokens:
            calls[request_id].times.append(now)
        done = [calls.pop(request_id) for request_id in result.finished]
        if self._fleet.clients_leave:
            for request_id in result.tokens:
                left = calls.get(request_id)
                if left is not None and left.leaves_after is not None and len(left.times) >= left.leaves_after:
                    self.core.abort(request_id)
                    del calls[request_id]
                    left.done(now, False)
        # The engine goes on at once; what a client sends upon its answer finds the next step under way.
        self._begin(now)
        for call in done:
            call.done(now, True)

    def kill(self, flags: EngineFlags | None, now: float, ready: float) -> None:
        """Ends the process, failing what it had; boots the next one when flags are given."""
        lost = list(self._calls.values())
        self.restarts += 1
        if flags is None:
            self.stopped, self._calls, self._generation = True, {}, self.restarts
        else:
            self._boot(flags, now, ready)
        for call in lost:
            call.done(now, False)


class VirtualFleet:
    """Replicas behind a round-robin balancer on one virtual clock.

    ``clock`` is the present time in Unix seconds; only ``advance`` moves it. Replicas are up from the
    beginning. Raises FlagError where an engine would refuse to start.
    """

    def __init__(
        self,
        replicas: int = 1,
        flags: EngineFlags | None = None,
        *,
        workload: Workload | None = None,
        step_times: StepTimes | None = None,
        hardware: Hardware | None = None,
        seed: int = 0,
        startup_seconds: float = 30.0,
        model_name: str = "sim",
        epoch: float = DEFAULT_EPOCH,
    ) -> None:
        self.step_times, self.hardware = step_times or StepTimes(), hardware or Hardware()
        self.model_name, self.startup_seconds = model_name, startup_seconds
        self.clock = self.epoch = epoch
        self.ledger = Ledger()
        self._rng = random.Random(seed)
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._serial = 0
        self._turn = 0
        self._clients = 0
        self._stopped = False
        chosen = flags or EngineFlags()
        self.replicas = [VirtualReplica(self, i, chosen, epoch - startup_seconds, epoch) for i in range(replicas)]
        self.workload = workload
        self.clients_leave = workload is not None and workload.leaving_share > 0
        if workload is not None:
            self._start_load(workload)

    # -- clock ------------------------------------------------------------------------------------

    def at(self, when: float, action: Callable[[float], None]) -> None:
        """Runs ``action(when)`` at virtual time ``when``."""
        self._serial += 1
        heapq.heappush(self._events, (when, self._serial, action))

    def advance(self, seconds: float) -> float:
        """Runs the fleet for ``seconds`` and returns the new clock."""
        return self.advance_to(self.clock + seconds)

    def advance_to(self, when: float) -> float:
        """Runs the fleet until ``when`` (Unix seconds)."""
        events = self._events
        while events and events[0][0] <= when:
            time, _, action = heapq.heappop(events)
            self.clock = time
            action(time)
        self.clock = max(self.clock, when)
        return self.clock

    # -- operations -------------------------------------------------------------------------------

    def scrape(self, index: int = 0) -> tuple[float, str]:
        """(Unix time, page) of a replica now. Raises ScrapeError while it is down or starting."""
        return self.clock, self.replicas[index].page(self.clock)

    def flags(self, index: int = 0) -> EngineFlags:
        """The flags the replica runs with."""
        return self.replicas[index].flags

    def restart(self, index: int, changes: Mapping[str, Any] | EngineFlags) -> float:
        """Restarts a replica with other flags; returns when it will be ready.

        ``changes`` are EngineFlags fields. Raises FlagError, with the replica untouched, where the
        engine would refuse to start.
        """
        replica = self.replicas[index]
        flags = changes if isinstance(changes, EngineFlags) else replica.flags.changed(changes)
        resolve(flags, self.step_times, self.hardware)
        ready = self.clock + self.startup_seconds
        replica.kill(flags, self.clock, ready)
        return ready

    def stop(self, index: int) -> None:
        """Kills a replica and leaves it down."""
        self.replicas[index].kill(None, self.clock, math.inf)

    def slow_down(self, index: int, factor: float) -> None:
        """A noisy neighbour: all steps of the replica take ``factor`` times as long; restarts do not help."""
        self.replicas[index].slow_down(factor)

    def hang(self, index: int) -> None:
        """The engine makes no progress any more while its pages are still served; a restart helps."""
        self.replicas[index].hung = True

    def stop_load(self) -> None:
        """No new requests from now on; those on their way go on."""
        self._stopped = True

    def report(self) -> LoadReport:
        """Client-side truth since the start."""
        return self.ledger.report(self.clock - self.epoch)

    # -- load -------------------------------------------------------------------------------------

    def _start_load(self, workload: Workload) -> None:
        if workload.rate is not None:
            self._schedule_arrival(self.clock)
            return
        self._adjust_clients(self.clock)
        for when, _ in workload.steps:
            # A microsecond later: Unix times round, and the new level must be in force.
            self.at(self.epoch + when + 1e-6, self._adjust_clients)

    def _schedule_arrival(self, now: float) -> None:
        assert self.workload is not None  # noqa: S101
        gap = self.workload.next_gap(self._rng, now - self.epoch)
        if math.isfinite(gap):
            self.at(now + gap, self._arrive)

    def _arrive(self, now: float) -> None:
        if not self._stopped:
            self._send(now, None)
            self._schedule_arrival(now)

    def _adjust_clients(self, now: float) -> None:
        assert self.workload is not None  # noqa: S101
        want = round(self.workload.level(now - self.epoch))
        while self._clients < want:
            self._clients += 1
            self._send(now, self._client_done)

    def _client_done(self, now: float, ok: bool) -> None:
        assert self.workload is not None  # noqa: S101
        if self._stopped or self._clients > round(self.workload.level(now - self.epoch)):
            self._clients -= 1
        elif ok:
            self._send(now, self._client_done)
        else:
            self.at(now + _RETRY_SECONDS, lambda t: self._send(t, self._client_done))

    def _send(self, now: float, then: Callable[[float, bool], None] | None) -> None:
        assert self.workload is not None  # noqa: S101
        self.submit(self.workload.draw(self._rng, now), then)

    def submit(self, request: Request, then: Callable[[float, bool], None] | None = None) -> None:
        """Sends one request now through the balancer; ``then(time, ok)`` is called at its end."""
        now, ledger = self.clock, self.ledger
        ledger.sent += 1

        def done(time: float, ok: bool) -> None:
            if ok:
                ledger.success(now, call.times, time, request.prompt_tokens, request.output_tokens)
            elif call.leaves_after is not None and len(call.times) >= call.leaves_after:
                ledger.cancelled += 1
            else:
                ledger.failure("connection reset")
            if then:
                then(time, ok)

        call = _Call(request, now, done)
        if self.clients_leave and self.workload is not None and self._rng.random() < self.workload.leaving_share:
            call.leaves_after = self.workload.leaving_after_tokens
        ready = [r for r in self.replicas if r.is_ready(now)]
        self._turn += 1
        error = "connection refused"
        if ready:
            try:
                ready[self._turn % len(ready)].accept(call, now)
            except RejectedError as rejected:
                error = f"http {rejected.status}"
            else:
                return
        ledger.failure(error)
        if then:
            # By the clock, not at once: a client must not recurse while everything refuses it.
            self.at(now, lambda t: then(t, False))


@dataclass(frozen=True, slots=True)
class Simulation:
    """Pages of a run in order (Unix seconds, text) and what the clients saw."""

    pages: list[tuple[float, str]]
    report: LoadReport


def simulate(
    flags: EngineFlags,
    step_times: StepTimes,
    workload: Workload,
    duration_s: float,
    seed: int = 0,
    *,
    scrape_every_s: float = 5.0,
    hardware: Hardware | None = None,
    model_name: str = "sim",
    drain: bool = False,
) -> Simulation:
    """Runs one engine under ``workload`` for ``duration_s`` virtual seconds.

    Pages are taken every ``scrape_every_s`` seconds, first and last moment included. With ``drain``
    the load stops at the end and the run goes on until every request is answered; the report then
    counts the whole time, as a load generator does. Raises FlagError on flags the engine refuses.
    """
    fleet = VirtualFleet(1, flags, workload=workload, step_times=step_times, hardware=hardware, seed=seed, model_name=model_name)
    pages = [fleet.scrape()]
    end = fleet.clock + duration_s
    while fleet.clock < end - 1e-9:
        fleet.advance_to(min(fleet.clock + scrape_every_s, end))
        pages.append(fleet.scrape())
    if drain:
        fleet.stop_load()
        while fleet.replicas[0].core.has_work:
            fleet.advance(0.05)
        pages.append(fleet.scrape())
    return Simulation(pages, fleet.report())
