"""`perf-service simulate-engine`: hands everything behind it to the simulated engine, whose flags are the real engine's."""

from __future__ import annotations

import typer

__all__ = ["PASS_THROUGH", "simulate_engine"]

PASS_THROUGH = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def simulate_engine(ctx: typer.Context) -> None:
    """Run one simulated engine; its flags are named as the real engine's (simulate-engine --help)."""
    from perf_service.simulator.args import run_simulated_engine

    raise typer.Exit(run_simulated_engine(ctx.args))
