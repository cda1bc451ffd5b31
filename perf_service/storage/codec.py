"""Models to and from JSON, exactly: bool, int, float and str stay apart, infinities and NaN survive, tuples and enums come back.

A document written by another version loads as far as it can: fields this version does not know are dropped, fields the document
does not have take their defaults. JSON here is Python's dialect (it writes Infinity and NaN); it is read back by this module only.
"""

from __future__ import annotations

import json
import zlib
from typing import Any, TypeVar

from cattrs import Converter
from cattrs.strategies import configure_union_passthrough

from perf_service.models.errors import ErrorReason, StoreError
from perf_service.models.slo import Comparison

__all__ = ["from_json", "pack", "to_json", "unpack"]

T = TypeVar("T")

_COMPRESS_ABOVE_BYTES = 512
_PLAIN, _ZLIB = b"j", b"z"


def _converter() -> Converter:
    converter = Converter(forbid_extra_keys=False, prefer_attrib_converters=False)
    configure_union_passthrough(bool | int | float | str | None, converter)
    converter.register_structure_hook(Comparison | str, lambda value, _: Comparison(value))
    converter.register_unstructure_hook(Comparison | str, str)
    return converter


_CONVERTER = _converter()


def to_json(value: object) -> str:
    """The JSON document of a model."""
    return json.dumps(_CONVERTER.unstructure(value), separators=(",", ":"))


def from_json(cls: type[T], document: str | bytes) -> T:
    """The model of a document. Raises StoreError INTERNAL where it cannot be one of `cls`."""
    try:
        return _CONVERTER.structure(json.loads(document), cls)
    except Exception as error:
        raise StoreError(
            ErrorReason.INTERNAL,
            f"a stored {cls.__name__} cannot be read: {_first_cause(error)}. It was damaged, or written by an incompatible version.",
            {"type": cls.__name__},
        ) from error


def pack(value: object) -> bytes:
    """The document as bytes, compressed where that pays (a scrape of 50 histograms shrinks about sixfold)."""
    document = to_json(value).encode()
    return _ZLIB + zlib.compress(document, 1) if len(document) > _COMPRESS_ABOVE_BYTES else _PLAIN + document


def unpack(cls: type[T], data: bytes) -> T:
    """The inverse of `pack`. Raises StoreError INTERNAL on damaged data."""
    kind, body = data[:1], data[1:]
    if kind == _ZLIB:
        try:
            body = zlib.decompress(body)
        except zlib.error as error:
            raise StoreError(
                ErrorReason.INTERNAL,
                f"a stored {cls.__name__} is damaged: {error}; restore the store from a backup",
                {"type": cls.__name__},
            ) from error
    return from_json(cls, body)


def _first_cause(error: BaseException) -> str:
    """The innermost error of cattrs' exception groups, which alone says what was wrong."""
    nested: Any = getattr(error, "exceptions", None)
    return _first_cause(nested[0]) if nested else f"{type(error).__name__}: {error}"
