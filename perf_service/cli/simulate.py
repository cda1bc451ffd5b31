"""`perf-service simulate-engine` and `simulate-load`: something to try the service on."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from perf_service.cli.console import FAILED, complain, out

__all__ = ["PASS_THROUGH", "simulate_engine", "simulate_load"]

PASS_THROUGH = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def simulate_engine(ctx: typer.Context) -> None:
    """Run one simulated engine; its flags are named as the real engine's (simulate-engine --help)."""
    from perf_service.simulator.args import run_simulated_engine

    raise typer.Exit(run_simulated_engine(ctx.args))


def simulate_load(
    urls: Annotated[list[str], typer.Argument(metavar="URL...", help="Base URLs of engines, e.g. http://127.0.0.1:8000.")],
    clients: Annotated[int, typer.Option("--clients", min=1, max=1000, help="Clients for each engine; each waits for its answer.")] = 8,
    seconds: Annotated[float, typer.Option("--seconds", min=1, max=86400, help="For how long.")] = 600.0,
    seed: Annotated[int, typer.Option("--seed", help="Of the lengths of prompts and answers.")] = 1,
) -> None:
    """Send completions to engines, simulated or real, until the time is over or Ctrl-C; then say what the clients saw.

    Prompts of 64 to 192 tokens, answers of 16 to 48. An engine that refuses is tried again.
    """
    from perf_service.cli import text
    from perf_service.simulator.loadgen import LoadGenerator
    from perf_service.simulator.workload import Lengths, LoadReport, Workload

    async def everything() -> list[LoadReport]:
        workload = Workload(prompt=Lengths.uniform(64, 192), output=Lengths.uniform(16, 48), concurrency=clients)
        load = [LoadGenerator([url], workload, duration_seconds=seconds, seed=seed + index) for index, url in enumerate(urls)]
        return list(await asyncio.gather(*(generator.run() for generator in load)))

    reports = asyncio.run(everything())
    for url, report in zip(urls, reports, strict=True):
        errors = ", ".join(f"{count} {kind}" for kind, count in report.errors.items())
        out().print(
            f"{url}  {report.succeeded} answers, first token after {text.seconds(report.ttft_seconds.mean)}, "
            f"whole answer after {text.seconds(report.e2e_seconds.mean)}, {text.number(report.output_tokens_per_second)} output tokens/s"
            + (f"; failed: {errors}" if errors else "")
        )
    if not any(report.succeeded for report in reports):
        complain("no engine answered; check the URLs")
        raise typer.Exit(FAILED)
