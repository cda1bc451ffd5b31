"""Comparing engine versions as far as the catalogue needs it."""

from __future__ import annotations

import re

_RELEASE = re.compile(r"^[vV]?(\d+(?:\.\d+)*)")


def release(version: str) -> tuple[int, ...] | None:
    """The numeric release of a version: `0.32.0+cpu`, `v3.3.7` and `0.8.5.post1` give (0, 32), (3, 3, 7) and (0, 8, 5).

    None where there is no number to read (empty, `dev`, a commit). Trailing zeros are dropped so that 0.20 equals 0.20.0;
    pre- and post-release marks are ignored, as flags come and go with releases.
    """
    match = _RELEASE.match(version.strip())
    if not match:
        return None
    parts = [int(part) for part in match[1].split(".")]
    while len(parts) > 1 and parts[-1] == 0:
        parts.pop()
    return tuple(parts)


def in_bracket(version: str, since: str, removed: str) -> bool | None:
    """Whether a version lies in [since, removed). An empty bound is open. None: the version is unknown and a bound matters."""
    if not since and not removed:
        return True
    at = release(version)
    if at is None:
        return None
    lower, upper = release(since), release(removed)
    return (lower is None or at >= lower) and (upper is None or at < upper)


def capability(text: str) -> tuple[int, int] | None:
    """A compute capability as (major, minor): `9.0`, `90`, `sm_90` and `100` (10.0) are read. None where unknown."""
    match = re.match(r"^(?:sm_?)?(\d+)(?:\.(\d+))?[a-z]?$", text.strip().lower())
    if not match:
        return None
    if match[2] is not None:
        return int(match[1]), int(match[2])
    number = int(match[1])
    return (number // 10, number % 10) if number >= 20 else (number, 0)
