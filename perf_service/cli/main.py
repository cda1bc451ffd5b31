"""The `perf-service` command: assembles the commands; each lives in a module of its own and imports what it needs when it runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version as distribution_version
from typing import Any

import typer

from perf_service.cli import (
    alerts,
    analyses,
    demo,
    discover,
    doctor,
    engines,
    fleets,
    instances,
    metrics,
    plans,
    rollout,
    serve,
    simulate,
    system,
)
from perf_service.cli.console import FAILED, Commands, complain

__all__ = ["app", "main", "run"]

INTERRUPTED = 130  # as a shell has it: 128 + SIGINT

app = typer.Typer(
    cls=Commands,
    name="perf-service",
    help="Finds why an LLM serving fleet misses its SLOs, proposes the exact config change, rolls it out and proves the effect.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("doctor")(doctor.doctor)
app.command("demo")(demo.demo)
app.command("serve")(serve.serve)
app.command("simulate-engine", context_settings=simulate.PASS_THROUGH)(simulate.simulate_engine)
app.command("simulate-load")(simulate.simulate_load)
_ = (engines, discover)  # add `up` and `down` to the fleets, `discover` to the instances
app.add_typer(fleets.fleets, name="fleets")
app.add_typer(instances.instances, name="instances")
app.add_typer(metrics.collect, name="collect")
app.add_typer(analyses.analyze, name="analyze")
app.add_typer(plans.plan, name="plan")
app.command("predict")(plans.predict)
app.add_typer(rollout.rollout, name="rollout")
app.add_typer(alerts.alerts, name="alerts")
app.add_typer(system.system, name="system")

# typer carries its own copy of click since 0.26; the class is reached by way of what typer exports, so that both work.
_UsageBase: type[Exception] = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"perf-service {distribution_version('perf-service')}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", help="Show the version and exit.", callback=_version, is_eager=True),
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of an unexpected failure."),
) -> None:
    """Options before the command."""


@cache
def _command() -> Any:
    """The command tree; typer would build it anew at every call."""
    return typer.main.get_command(app)


def run(argv: Sequence[str] | None = None) -> int:
    """The command with these arguments (default: the process's own); returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _command().main(args=arguments, prog_name="perf-service", standalone_mode=False)
    except _UsageBase as error:
        # A group without a command has printed its help: there is nothing to add.
        # What a newer typer's own types say of a value begins with how they found out.
        if said := error.format_message().strip().replace("Value error, ", ""):  # type: ignore[attr-defined]
            complain(f"{said} (see: perf-service --help)")
        return int(getattr(error, "exit_code", FAILED))
    except (typer.Abort, KeyboardInterrupt):
        complain("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        # The reader (head, less) has gone: not an error, but nothing more may be flushed into the pipe at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if "--debug" in arguments:
            raise
        complain(f"unexpected {type(error).__name__}: {error} (this is a bug; 'perf-service --debug ...' shows where)")
        return FAILED
    if code == INTERRUPTED:  # some versions of typer swallow it and say nothing
        complain("interrupted")
    return int(code or 0)


def main() -> None:
    """Entry point of the console script."""
    sys.exit(run())
