"""Random histories: whatever the world and people do, and wherever the process dies, the invariants hold and a safe end is reached."""

from __future__ import annotations

import contextlib

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from perf_service.models.errors import ErrorReason, WrongStateError
from perf_service.models.workflow import EventKind, ReplicaPhase, Workflow, WorkflowStatus
from perf_service.storage.codec import from_json, to_json
from perf_service.workflows.types import Abort, Approve, Pause, Problem, Promote, Reject, Resume
from tests.support.machine_driver import OLD, Machine, S, policy, workflow


class Rollout(RuleBasedStateMachine):
    """`Machine` asserts the per-decision invariants (I2 to I5, I8 to I10); what spans decisions is asserted here."""

    @initialize(
        replicas=st.integers(1, 5),
        approval=st.booleans(),
        parallel=st.integers(1, 3),
        dry_run=st.integers(0, 9).map(lambda n: n == 0),
        start=st.sampled_from(
            [None, S.AWAITING_APPROVAL, S.PREFLIGHT, S.APPLYING, S.APPLYING, S.BAKING, S.BAKING, S.DECIDING, S.FINALIZING]
        ),
    )
    def begin(self, replicas: int, approval: bool, parallel: int, dry_run: bool, start: WorkflowStatus | None) -> None:
        made = workflow(approval=approval, dry_run=dry_run, rollout=policy(max_parallel_applies=parallel))
        self.machine = Machine.of(made, replicas)
        if start is not None:
            self.machine.run(until=S.AWAITING_APPROVAL if approval else start)
            if approval and start is not S.AWAITING_APPROVAL and not self.machine.status.terminal:
                self.machine.command(Approve("ann"))
                self.machine.run(until=start)
        self.ended: Workflow | None = None
        self.aborted = False

    @rule(seconds=st.sampled_from([0.0, 1.0, 10.0, 10.0, 10.0, 60.0, 1000.0]), times=st.integers(1, 12))
    def tick(self, seconds: float, times: int) -> None:
        for _ in range(times):
            self.machine.step(seconds)

    @rule(
        order=st.sampled_from(
            [
                Approve("ann"),
                Approve("ann"),
                Approve("ann", "0" * 64),
                Reject("bob"),
                Resume("ann"),
                Pause("ann"),
                Resume("ann"),
                Promote("ann"),
            ]
        )
    )
    def order(self, order: Approve | Reject | Pause | Resume | Promote) -> None:
        with contextlib.suppress(WrongStateError):
            self.machine.command(order)

    @rule(chance=st.integers(0, 7))
    @precondition(lambda self: not self.aborted)
    def abort(self, chance: int) -> None:
        if chance == 0 and not self.machine.status.terminal:
            self.machine.command(Abort("ann"))
            assert self.machine.status in (S.CANCELLED, S.ROLLING_BACK, S.ROLLBACK_INCOMPLETE)
            self.aborted = True

    @rule(ratio=st.sampled_from([0.3, 1.0, 1.0, 1.3, 3.0]), errors=st.sampled_from([0.0, 0.0, 0.01, 0.3]))
    def traffic(self, ratio: float, errors: float) -> None:
        self.machine.ratio, self.machine.errors = ratio, errors

    @rule(
        metrics=st.sampled_from([True, True, False]),
        answers=st.sampled_from([True, True, False]),
        requests=st.sampled_from([0.0, 50.0, 50.0]),
    )
    def outage(self, metrics: bool, answers: bool, requests: float) -> None:
        self.machine.metrics_work, self.machine.target_works, self.machine.requests = metrics, answers, requests

    @rule(refuse=st.sampled_from([None, None, Problem(ErrorReason.TARGET_APPLY_FAILED, "no"), Problem(ErrorReason.INTERNAL, "no", True)]))
    def refuse(self, refuse: Problem | None) -> None:
        self.machine.refuse = refuse

    @rule(carry_out=st.booleans())
    def crash(self, carry_out: bool) -> None:
        """The process dies (perhaps between recording and acting) and another one reads what was stored."""
        self.machine.carry_out = carry_out
        self.machine.crash()
        self.machine.workflow = from_json(Workflow, to_json(self.machine.workflow))

    @rule(which=st.integers(0, 4), ready=st.sampled_from([True, True, True, False]))
    def readiness(self, which: int, ready: bool) -> None:
        names = sorted(self.machine.ready)
        self.machine.ready[names[which % len(names)]] = ready

    @rule(which=st.integers(0, 4), chance=st.integers(0, 3))
    def drift(self, which: int, chance: int) -> None:
        if chance or self.machine.status.terminal:
            return  # what happens after the end is none of the rollout's business
        names = sorted(self.machine.configs)
        name = names[which % len(names)]
        self.machine.configs[name] = OLD.of({"max_num_seqs": 9})

    @invariant()
    def history_has_no_gaps(self) -> None:
        assert [e.sequence for e in self.machine.events] == list(range(1, len(self.machine.events) + 1))

    @invariant()
    def terminal_is_terminal(self) -> None:
        if self.ended is not None:
            assert self.machine.workflow == self.ended
        elif self.machine.status.terminal:
            self.ended = self.machine.workflow

    @invariant()
    def an_aborted_rollout_never_completes(self) -> None:
        if self.aborted:
            assert self.machine.status in (S.CANCELLED, S.ROLLING_BACK, S.ROLLBACK_INCOMPLETE, S.ROLLED_BACK)

    @invariant()
    def replicas_are_changed_only_in_their_stage(self) -> None:
        made = self.machine.workflow
        assert all(r.stage <= made.stage_index for r in made.replicas)
        if made.dry_run:
            assert not self.machine.applied

    def teardown(self) -> None:
        """Once the world works again and people have decided, every rollout comes to an end, and to a safe one."""
        machine = self.machine
        machine.carry_out, machine.refuse, machine.metrics_work, machine.target_works = True, None, True, True
        machine.ratio, machine.errors, machine.requests = 1.0, 0.0, 50.0
        machine.ready = dict.fromkeys(machine.ready, True)
        for until in (S.AWAITING_APPROVAL, None):
            for order in (Resume("ann"), Approve("ann")):
                with contextlib.suppress(WrongStateError):
                    machine.command(order)
            machine.run(until=until, limit=600)
        done = machine.workflow
        states = [e.status for e in machine.events if e.kind is EventKind.STATE_CHANGED]
        assert states[-1] is done.status
        if done.status is S.ROLLED_BACK:
            for progress in done.replicas:
                if progress.stage >= 0:
                    assert progress.phase is ReplicaPhase.RESTORED
                    assert machine.configs[progress.instance_id] == progress.previous_config


Rollout.TestCase.settings = settings(
    max_examples=30, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)
TestRollout = Rollout.TestCase
