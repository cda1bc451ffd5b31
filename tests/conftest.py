"""Keeps the start and the end of a run cheap."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import pytest

# Rewritten tests and the package are compiled once, not at each run, also where the environment forbids byte code beside the sources.
if sys.dont_write_bytecode:
    sys.dont_write_bytecode = False
    sys.pycache_prefix = str(Path(__file__).parents[1] / ".pytest_cache" / "bytecode")

# What collection makes (modules, tests) lives to the end: looking at it for garbage again and again is a tenth of a unit run.
gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """The summary of Hypothesis would import all of it, also where no test has used it."""
    plugins = session.config.pluginmanager
    if "hypothesis" not in sys.modules and plugins.has_plugin("hypothesispytest"):
        plugins.unregister(name="hypothesispytest")
