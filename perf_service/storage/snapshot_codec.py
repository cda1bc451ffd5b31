"""Snapshots in little space: what a server's scrapes have in common (its shape) once, and of each scrape only the numbers.

A scrape of a vLLM page is 5 kB of JSON, of which names, bucket bounds, config and model never change from one to the next. The numbers
are packed as doubles in the shape's order, so every value comes back exactly, and deflated. A document is the letter `s`, the 16
bytes that name the shape, and those numbers with what else is one scrape's own. Snapshots that do not fit (or came from an earlier
version) are documents of `codec`.
"""

from __future__ import annotations

import hashlib
import math
import sys
import zlib
from array import array
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Final

from perf_service.models.errors import ErrorReason, StoreError
from perf_service.models.metrics import DataQuality, Histogram, Snapshot
from perf_service.storage.codec import from_json, pack, to_json, unpack

_SHAPED: Final = b"s"
_ID_BYTES: Final = 16
_LEVEL: Final = 1
"""Levels above save a tenth of the bytes for three times the time."""
_MAX_REMEMBERED: Final = 20_000
_NONE: Final = math.nan
"""Stands for a time that is not known. No time is NaN (see `packed`)."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What scrapes have in common, as a snapshot without numbers. `shape_id` is a digest of it, so that equal ones are one."""

    shape_id: bytes
    document: bytes

    @property
    def key(self) -> str:
        """The id as text, as tables name it."""
        return self.shape_id.hex()


def shape_of(document: bytes) -> str | None:
    """The key of the shape that a document needs; None where it needs none."""
    return document[1 : 1 + _ID_BYTES].hex() if document[:1] == _SHAPED else None


class SnapshotCodec:
    """Packs and unpacks snapshots, and remembers shapes. One per store."""

    def __init__(self) -> None:
        self._shapes: dict[Hashable, Shape] = {}
        self._skeletons: dict[str, tuple[Snapshot, int]] = {}  # with the number of their values
        self._bounds: dict[tuple[float, ...], tuple[float, ...]] = {}

    def packed(self, snapshot: Snapshot) -> tuple[bytes, Shape | None]:
        """The document of a snapshot, without its id, and the shape that must be stored for it to be read again."""
        values = _values(snapshot)
        if values is None:
            return pack(snapshot), None
        shape = self._shape(snapshot)
        own = to_json(snapshot.quality.issues).encode() if snapshot.quality.issues else b""
        count = len(values).to_bytes(4, "little")
        return _SHAPED + shape.shape_id + zlib.compress(count + values + own, _LEVEL), shape

    def unpacked(self, document: bytes, snapshot_id: str, shape_document: Callable[[str], bytes | None]) -> Snapshot:
        """The snapshot of a document. `shape_document` finds a stored shape by its key. Raises StoreError INTERNAL on damaged data."""
        key = shape_of(document)
        if key is None:
            return unpack(Snapshot, document)
        known = self._skeletons.get(key)
        if known is None:
            found = shape_document(key)
            if found is None:
                raise _damaged("its shape is gone")
            skeleton = unpack(Snapshot, found)
            if len(self._skeletons) >= _MAX_REMEMBERED:
                self._skeletons.clear()
            known = self._skeletons[key] = skeleton, _size(skeleton)
        skeleton, size = known
        try:
            plain = zlib.decompress(document[1 + _ID_BYTES :])
            end = 4 + int.from_bytes(plain[:4], "little")
            values = array("d", plain[4:end])
        except (zlib.error, ValueError) as error:
            raise _damaged(str(error)) from error
        if len(values) != size:
            raise _damaged(f"it has {len(values)} numbers, and its shape {size}")
        if sys.byteorder == "big":
            values.byteswap()
        return _filled(skeleton, values, plain[end:], snapshot_id)

    def forget(self) -> None:
        """Shapes may have been deleted."""
        self._shapes.clear()
        self._skeletons.clear()

    def _shape(self, snapshot: Snapshot) -> Shape:
        known = self._bounds
        key = (
            snapshot.instance_id,
            snapshot.engine,
            snapshot.endpoint,
            snapshot.engine_version,
            snapshot.model_name,
            snapshot.derived,
            snapshot.quality.known_metrics,
            tuple(snapshot.gauges),
            tuple(snapshot.counters),
            tuple((name, known.setdefault(histogram.bounds, histogram.bounds)) for name, histogram in snapshot.histograms.items()),
            tuple((rank, tuple(gauges)) for rank, gauges in snapshot.ranks.items()),
            tuple((name, setting.value, type(setting.value), setting.source) for name, setting in snapshot.config.settings.items()),
        )
        shape = self._shapes.get(key)
        if shape is None:
            document = pack(_skeleton(snapshot))
            shape = Shape(hashlib.blake2b(document, digest_size=_ID_BYTES).digest(), document)
            if len(self._shapes) >= _MAX_REMEMBERED:
                self._shapes.clear()
                self._bounds.clear()
            self._shapes[key] = shape
        return shape


def progress_of(snapshot: Snapshot) -> float:
    """A number that never falls while the server's process lives: all of its counts together. A restart sets it back."""
    total = math.fsum(chain(snapshot.counters.values(), (histogram.count for histogram in snapshot.histograms.values())))
    return total if math.isfinite(total) else 0.0


def _skeleton(snapshot: Snapshot) -> Snapshot:
    return replace(
        snapshot,
        snapshot_id="",
        collected_at=None,
        process_start_time=None,
        gauges=dict.fromkeys(snapshot.gauges, 0.0),
        counters=dict.fromkeys(snapshot.counters, 0.0),
        histograms={name: Histogram(0.0, 0.0, histogram.bounds) for name, histogram in snapshot.histograms.items()},
        ranks={rank: dict.fromkeys(gauges, 0.0) for rank, gauges in snapshot.ranks.items()},
        quality=DataQuality((), snapshot.quality.known_metrics),
    )


def _values(snapshot: Snapshot) -> bytes | None:
    """Every number of a snapshot, in the order of its shape; None where one is missing or is not a plain float."""
    taken, started = snapshot.collected_at, snapshot.process_start_time
    numbers = [_NONE if taken is None else taken, _NONE if started is None else started]
    numbers += snapshot.gauges.values()
    numbers += snapshot.counters.values()
    for gauges in snapshot.ranks.values():
        numbers += gauges.values()
    for histogram in snapshot.histograms.values():
        if len(histogram.cumulative) != len(histogram.bounds):
            return None
        numbers += (histogram.count, histogram.sum)
        numbers += histogram.cumulative
    if taken != taken or started != started:
        return None
    try:
        packed = array("d", numbers)
    except (TypeError, OverflowError):
        return None
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def _size(skeleton: Snapshot) -> int:
    """How many numbers belong to a shape."""
    ranks = sum(map(len, skeleton.ranks.values()))
    histograms = sum(2 + len(histogram.bounds) for histogram in skeleton.histograms.values())
    return 2 + len(skeleton.gauges) + len(skeleton.counters) + ranks + histograms


def _filled(skeleton: Snapshot, numbers: Iterable[float], own: bytes, snapshot_id: str) -> Snapshot:
    """The snapshot of a shape and just as many numbers as belong to it."""
    left = iter(numbers)
    taken, started = next(left), next(left)
    # zip asks its first argument first: a number is taken only when there is a name for it.
    gauges = dict(zip(skeleton.gauges, left, strict=False))
    counters = dict(zip(skeleton.counters, left, strict=False))
    ranks = {rank: dict(zip(names, left, strict=False)) for rank, names in skeleton.ranks.items()}
    histograms = {}
    for name, histogram in skeleton.histograms.items():
        count, total = next(left), next(left)
        histograms[name] = Histogram(count, total, histogram.bounds, tuple(islice(left, len(histogram.bounds))))
    quality = skeleton.quality
    if own:
        quality = replace(quality, issues=from_json(DataQuality, b'{"issues":' + own + b"}").issues)
    return replace(
        skeleton,
        snapshot_id=snapshot_id,
        collected_at=None if taken != taken else taken,
        process_start_time=None if started != started else started,
        gauges=gauges,
        counters=counters,
        ranks=ranks,
        histograms=histograms,
        quality=quality,
    )


def _damaged(why: str) -> StoreError:
    return StoreError(
        ErrorReason.INTERNAL, f"a stored Snapshot is damaged: {why}; restore the store from a backup", {"type": Snapshot.__name__}
    )
