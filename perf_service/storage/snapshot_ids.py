"""Ids of snapshots: the same moment of the same instance has the same id, whoever saw it and however often."""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b

_INSTANCE_BYTES = 6


def snapshot_id_of(instance_id: str, taken_at: float) -> str:
    """`snap-`, the time in microseconds (13 hex digits) and 12 digits of a hash of the instance. `taken_at` is finite unix seconds.

    A scrape that is kept in the background, collected on demand and read back from a Prometheus is so stored once. The time comes first:
    rows of high frequency then end up at the end of their index, not all over it.
    """
    return f"snap-{round(taken_at * 1e6) & 0xFFFFFFFFFFFFF:013x}{_instance_part(instance_id)}"


@lru_cache(65_536)
def _instance_part(instance_id: str) -> str:
    return blake2b(instance_id.encode("utf-8", "surrogatepass"), digest_size=_INSTANCE_BYTES).hexdigest()
