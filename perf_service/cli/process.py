"""What a long-running server asks of its own process; programs call it once, libraries never."""

from __future__ import annotations

import contextlib
import gc
import resource
import sys
from typing import Final

_GC_THRESHOLDS: Final = (20_000, 20, 20)
"""A scrape makes about a thousand tuples and dicts that live until it is stored, so Python's default of 700 looks through them twice per
scrape, in vain: hardly anything here is a cycle."""
_SWITCH_SECONDS: Final = 0.001
"""A thread that packs snapshots keeps the interpreter for as long whenever the event loop lets go of it, which is at each system call;
with Python's default of 5 ms ten answers read meanwhile take the loop 50 ms."""


def settle() -> None:
    """Once everything is loaded and started: more open files where the system allows, and an event loop that others stop for shorter.

    Each instance keeps a connection, and the usual soft limit is 1024. What is loaded by now (some 300,000 objects of libraries) stays for
    good; collections that look through it again and again stop the event loop for a tenth of a second each.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    sys.setswitchinterval(_SWITCH_SECONDS)
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)
