"""What every command shares: consoles, the choice of output, errors as one line, progress."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from perf_service.models.errors import InvalidArgumentError, PerfServiceError

__all__ = ["FAILED", "USAGE", "Commands", "Output", "OutputOption", "WithDefault", "complain", "err", "out", "working"]

FAILED = 1  # the operation failed
USAGE = 2  # bad usage


class Output(StrEnum):
    """How a result is printed."""

    TABLE = "table"
    JSON = "json"


OutputOption = Annotated[Output, typer.Option("--output", "-o", help="For people, or for programs.")]


def out() -> Console:
    """Results. Made anew at each call, so that it follows a redirected stdout; colour only on a terminal."""
    return Console(highlight=False, soft_wrap=False)


def err() -> Console:
    """Progress and errors."""
    return Console(stderr=True, highlight=False)


def complain(message: str) -> None:
    """One line on stderr."""
    print(f"perf-service: {' '.join(message.split())}", file=sys.stderr)


class Commands(TyperGroup):
    """A command group that turns expected failures into one line and an exit code, never a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command. Exit 2 for a value that can never be right, 1 for everything else that was expected."""
        try:
            return super().invoke(ctx)
        except InvalidArgumentError as error:
            complain(error.message)
            raise typer.Exit(USAGE) from None
        except PerfServiceError as error:
            complain(error.message)
            raise typer.Exit(FAILED) from None


def WithDefault(name: str) -> type[Commands]:
    """A group in which everything that is no command of its own goes to the command `name`: `collect r0` is `collect now r0`."""

    class DefaultCommands(Commands):
        def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
            if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
                args = [name, *args]
            return super().parse_args(ctx, args)

    return DefaultCommands


@contextmanager
def working(message: str) -> Iterator[None]:
    """A spinner on stderr while something takes longer; nothing where stderr is no terminal."""
    console = err()
    if not console.is_terminal:
        yield
        return
    with console.status(message):
        yield
