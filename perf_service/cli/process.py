"""What a long-running server asks of its own process; programs call it once, libraries never."""

from __future__ import annotations

import contextlib
import gc
import resource
from typing import Final

_GC_THRESHOLDS: Final = (20_000, 20, 20)
"""A scrape makes about a thousand tuples and dicts that live until it is stored, so Python's default of 700 looks through them twice per
scrape, in vain: hardly anything here is a cycle."""


def settle() -> None:
    """Once everything is loaded and started: more open files where the system allows, and short pauses of the garbage collector.

    Each instance keeps a connection, and the usual soft limit is 1024. What is loaded by now (some 300,000 objects of libraries) stays for
    good; collections that look through it again and again stop the event loop for a tenth of a second each.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)
