"""`perf-service demo`: the product end to end on this machine, with nothing staged but the bottleneck."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from perf_service.cli.console import FAILED, complain, out, working
from perf_service.cli.text import number, ratio, seconds
from perf_service.models.config import EngineConfig
from perf_service.models.errors import ErrorReason, PerfServiceError

if TYPE_CHECKING:
    from rich.console import Console

    from perf_service.cli.demo_stack import ClientView, Load, Stack
    from perf_service.models.workflow import Workflow

__all__ = ["demo"]

FLEET = "demo"
PLANTED = ("max_num_seqs", 2)
_OBJECTIVES = ("ttft<0.5", "itl<0.05")
_SETTLE_SECONDS = 3.0
_SCRAPE_SECONDS = 2.0


def demo(
    replicas: Annotated[int, typer.Option("--replicas", min=2, max=16, help="Simulated engines in the fleet.")] = 4,
    clients: Annotated[int, typer.Option("--clients", min=3, max=64, help="Concurrent clients for each of them.")] = 8,
    observe: Annotated[
        float, typer.Option("--observe", min=4, help="Seconds to measure before the diagnosis, and after the rollout.")
    ] = 10.0,
    bake: Annotated[float, typer.Option("--bake", min=4, help="Seconds that each stage is watched.")] = 8.0,
    seed: Annotated[int, typer.Option("--seed", help="Of the load's arrivals and lengths.")] = 1,
) -> None:
    """See a fleet with a planted bottleneck measured, diagnosed, changed 10 % -> 50 % -> 100 %, and proven better.

    Starts simulated vLLM engines, a load generator and a server on a temporary store; uses the server's own RPCs only; leaves nothing
    behind. Takes about a minute and a half. Exit code 0 only when the change was proven better.
    """
    from perf_service.cli.demo_stack import Load, Stack

    def interrupted(number: int, frame: object) -> NoReturn:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupted)
    stack, load = Stack(FLEET, replicas, EngineConfig.of(dict([PLANTED])), _OBJECTIVES), None
    try:
        load = Load(stack.endpoints, clients=clients, seed=seed)
        better = _Demo(stack, load, out(), observe, bake).run(replicas, clients)
    finally:
        with working("stopping engines and server"):
            if load is not None:
                load.stop()
            stack.close()
    if not better:
        raise typer.Exit(FAILED)


class _Demo:
    def __init__(self, stack: Stack, load: Load, console: Console, observe: float, bake: float) -> None:
        self.stack = stack
        self.load = load
        self.console = console
        self.observe = observe
        self.bake = bake
        self.step_number = 0

    def run(self, replicas: int, clients: int) -> bool:
        """The whole story. Whether the change was proven better."""
        begun = time.monotonic()
        planted = f"--{PLANTED[0].replace('_', '-')} {PLANTED[1]}"
        self.say(f"{replicas} simulated vLLM engines (a 70B model on two H100 each), started with {planted}: the planted bottleneck")
        with working("starting server and engines"):
            self.stack.start_server()
            self.register()
            self.stack.start_engines()
        self.detail(f"server {self.stack.address}, engines {', '.join(self.stack.endpoints)}")
        self.say(f"load: {clients} clients for each engine; measuring for {self.observe:g} s")
        self.load.start()
        with working("letting the load settle"):
            time.sleep(_SETTLE_SECONDS)
        mark = self.load.mark()
        with working("measuring"):
            time.sleep(self.observe)
        before = self.load.between(mark, self.load.mark())
        self.clients_saw(before)
        self.diagnose()
        plan = self.plan()
        workflow = self.roll_out(plan)
        with working("measuring what clients see now"):
            time.sleep(_SETTLE_SECONDS)
            mark = self.load.mark()
            time.sleep(self.observe)
        after = self.load.between(mark, self.load.mark())
        return self.conclude(before, after, workflow, time.monotonic() - begun)

    def register(self) -> None:
        """The fleet with its target and objectives, and its replicas with what is known of their flags and hardware."""
        from perf_service.cli.fleets import _stub
        from perf_service.rpc.convert.fleet import FLEET as AS_FLEET
        from perf_service.rpc.convert.fleet import INSTANCE as AS_INSTANCE
        from perf_service.v1 import fleet_service_pb2 as pb

        self.ask(_stub, "CreateFleet", pb.CreateFleetRequest(fleet=AS_FLEET.to_proto(self.stack.fleet)))
        for instance in self.stack.instances:
            self.ask(_stub, "RegisterInstance", pb.RegisterInstanceRequest(instance=AS_INSTANCE.to_proto(instance)))

    def diagnose(self) -> None:
        """Collect and analyze through the API."""
        from perf_service.cli import diagnosis_view, render
        from perf_service.cli.analyses import _stub
        from perf_service.rpc.convert.analysis import ANALYSIS
        from perf_service.v1 import analyze_service_pb2 as pb

        self.say("collect and analyze: what holds this fleet back?")
        with working("analyzing"):
            request = pb.AnalyzeRequest(fleet_id=FLEET)
            request.range.start.FromNanoseconds(int((time.time() - self.observe) * 1e9))
            request.range.end.GetCurrentTime()
            response = self.ask(_stub, "Analyze", request)
        self.analysis_id = response.analysis.analysis_id
        analysis = ANALYSIS.from_proto(response.analysis)
        render.sections(self.console, diagnosis_view.analysis_view(analysis))

    def plan(self) -> Any:
        """A plan from that very analysis."""
        from perf_service.cli import render
        from perf_service.cli.plans import _stub
        from perf_service.rpc.convert.plan import PLAN
        from perf_service.v1 import optimize_service_pb2 as pb

        self.say("optimize: what would help, and how much?")
        with working("planning"):
            plan = self.ask(_stub, "CreatePlan", pb.CreatePlanRequest(analysis_id=self.analysis_id)).plan
        model = PLAN.from_proto(plan)
        wanted = ("CHANGE", "COMMAND", "EFFECT", "RISKS")
        render.sections(self.console, [row for row in render.plan_view(model) if row[0] in wanted])
        if model.empty:
            raise PerfServiceError(ErrorReason.PLAN_EMPTY, "the plan changes nothing, so there is nothing to roll out")
        return plan

    def roll_out(self, plan: Any) -> Workflow:
        """Start, approve, watch. The workflow as it ended."""
        from perf_service.cli.rollout import stub
        from perf_service.cli.watch import follow
        from perf_service.rpc.convert.workflow import WORKFLOW
        from perf_service.v1 import workflow_pb2
        from perf_service.v1 import workflow_service_pb2 as pb

        self.say("roll out 10 % -> 50 % -> 100 %, each stage judged against the replicas not yet changed")
        policy = workflow_pb2.RolloutPolicy(
            stages=[workflow_pb2.StagePolicy(percent=p, bake_seconds=self.bake, min_samples=3, min_requests=20) for p in (10, 50, 100)],
            sample_interval_seconds=_SCRAPE_SECONDS,
            warmup_seconds=2.0,
            apply_timeout_seconds=60.0,
        )
        spec = workflow_pb2.WorkflowSpec(fleet_id=FLEET, plan_id=plan.plan_id, requires_approval=True, policy=policy)
        workflow = self.ask(stub, "StartWorkflow", pb.StartWorkflowRequest(workflow=spec)).workflow
        with working("measuring the baseline"):
            self.approve_when_asked(workflow.workflow_id, plan.plan_hash)
        from perf_service.cli.remote import server_token

        follow(self.stack.address, workflow.workflow_id, token=server_token(), outcome=False)
        ended = self.ask(stub, "GetWorkflow", pb.GetWorkflowRequest(workflow_id=workflow.workflow_id)).workflow
        return WORKFLOW.from_proto(ended)

    def approve_when_asked(self, workflow_id: str, plan_hash: str) -> None:
        """What a person would do: look at the plan, approve that plan."""
        from perf_service.cli.rollout import stub
        from perf_service.v1 import workflow_pb2
        from perf_service.v1 import workflow_service_pb2 as pb

        deadline = time.monotonic() + 60.0
        while True:
            workflow = self.ask(stub, "GetWorkflow", pb.GetWorkflowRequest(workflow_id=workflow_id)).workflow
            if workflow.status == workflow_pb2.WORKFLOW_STATUS_AWAITING_APPROVAL:
                break
            if workflow.status >= workflow_pb2.WORKFLOW_STATUS_COMPLETED:
                return
            if time.monotonic() > deadline:
                raise PerfServiceError(ErrorReason.INTERNAL, f"the rollout did not come to its approval: {workflow.message}")
            time.sleep(0.2)
        request = pb.ApproveWorkflowRequest(workflow_id=workflow_id, plan_hash=plan_hash, principal="demo", reason="as planned")
        self.ask(stub, "ApproveWorkflow", request)

    def conclude(self, before: ClientView | None, after: ClientView | None, workflow: Workflow, took: float) -> bool:
        """Predicted against realised, and what clients saw. Whether it is proven: by the rollout's own gates and by the clients."""
        from rich.console import Group

        from perf_service.cli.render import plain_table
        from perf_service.cli.watch_view import outcome_table
        from perf_service.models.workflow import WorkflowStatus

        self.say("before and after")
        if workflow.outcome is not None:
            self.console.print(Group("measured by the engines, against what was predicted:", outcome_table(workflow.outcome)))
        if before is not None and after is not None:
            table = plain_table("seen by the clients themselves", "before", "after", "")
            rows = (
                ("time to first token, mean", seconds, before.ttft_seconds, after.ttft_seconds),
                ("whole answer, mean", seconds, before.e2e_seconds, after.e2e_seconds),
                ("output tokens per second", number, before.output_tokens_per_second, after.output_tokens_per_second),
            )
            for name, shown, was, now in rows:
                table.add_row(name, shown(was), shown(now), ratio(now / was))
            self.console.print()
            self.console.print(table)
        failed = self.load.failed
        self.detail(f"{failed} attempts of clients were refused or broken off while replicas restarted" if failed else "no request failed")
        measured = {effect.metric: effect.ratio for effect in workflow.outcome.effects} if workflow.outcome is not None else {}
        proven = (
            workflow.status is WorkflowStatus.COMPLETED
            and before is not None
            and after is not None
            and after.ttft_seconds < before.ttft_seconds
            and any(measured.get(name, 1.0) < 1.0 for name in ("ttft_seconds_mean", "ttft_seconds"))
        )
        if proven:
            self.console.print(f"\n[bold green]✔ proven better[/] in {seconds(round(took))}")
        else:
            complain(f"not proven better: the rollout ended as {workflow.status}: {workflow.message}")
        return proven

    def clients_saw(self, view: ClientView | None) -> None:
        """One line of the clients' own truth."""
        if view is None:
            raise PerfServiceError(ErrorReason.NOT_ENOUGH_DATA, f"no request was answered in {self.observe:g} s: {self.stack.last_words()}")
        self.detail(
            f"clients see: first token after {seconds(view.ttft_seconds)}, whole answer after {seconds(view.e2e_seconds)}, "
            f"{number(view.output_tokens_per_second)} output tokens/s ({view.requests} requests)"
        )

    def ask(self, stub: Any, method: str, request: Any) -> Any:
        """One RPC of the demo's server."""
        from perf_service.cli.remote import call

        return call(self.stack.address, 60.0, stub, method, request)

    def say(self, text: str) -> None:
        """A step."""
        self.step_number += 1
        self.console.print(f"\n[bold cyan]{self.step_number}[/] [bold]{text}[/]")

    def detail(self, text: str) -> None:
        """Something beside it."""
        self.console.print(f"  {text}", style="dim")
