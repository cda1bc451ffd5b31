"""Keyset pages, newest first: a token names the last row shown, so rows added meanwhile neither repeat nor hide others."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

from sqlalchemy import Column, ColumnElement, Connection, Table, and_, or_, select

from perf_service.models.errors import ErrorReason, InvalidArgumentError
from perf_service.storage.ports import Page

T = TypeVar("T")

MAX_PAGE_SIZE: Final = 1000


def scope_of(listing: str, **filters: object) -> str:
    """Identity of a listing with its filters: a token of one listing is refused by every other."""
    body = json.dumps([listing, sorted((k, repr(v)) for k, v in filters.items())])
    return hashlib.sha256(body.encode()).hexdigest()[:16]


def encode_token(scope: str, at: float, key: str | int) -> str:
    """An opaque page token."""
    return base64.urlsafe_b64encode(json.dumps([scope, at, key], separators=(",", ":")).encode()).decode().rstrip("=")


def decode_token(token: str, scope: str, key_type: type[Any]) -> tuple[float, Any]:
    """The row a token names. Raises InvalidArgumentError PAGE_TOKEN_INVALID."""
    try:
        found, at, key = json.loads(base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True))
        valid = found == scope and isinstance(at, float) and math.isfinite(at) and type(key) is key_type
    except (binascii.Error, ValueError, TypeError):
        valid = False
    if not valid:
        raise InvalidArgumentError(
            "the page token was not given out for this listing and these filters; start again without one",
            field="page_token",
            reason=ErrorReason.PAGE_TOKEN_INVALID,
        )
    return at, key


def fetch_page(
    connection: Connection,
    table: Table,
    at: Column[Any],
    key: Column[Any],
    decode: Callable[[Any], T],
    *,
    scope: str,
    page_size: int,
    page_token: str,
    where: Sequence[ColumnElement[bool]] = (),
) -> Page[T]:
    """One page of decoded documents; see `fetch_rows`."""
    rows, token = fetch_rows(connection, table, at, key, scope=scope, page_size=page_size, page_token=page_token, where=where)
    return Page(tuple(decode(row[2]) for row in rows), token)


def fetch_rows(
    connection: Connection,
    table: Table,
    at: Column[Any],
    key: Column[Any],
    *,
    scope: str,
    page_size: int,
    page_token: str,
    where: Sequence[ColumnElement[bool]] = (),
) -> tuple[Sequence[Any], str]:
    """One page of rows `at`, `key`, document, ordered by (`at`, `key`) descending, and the next page's token.

    `page_size` above MAX_PAGE_SIZE is cut; below 1 is INVALID_ARGUMENT.
    """
    if page_size < 1:
        raise InvalidArgumentError(f"page_size must be at least 1, not {page_size}", field="page_size")
    size = min(page_size, MAX_PAGE_SIZE)
    query = select(at, key, table.c.document).where(*where).order_by(at.desc(), key.desc()).limit(size + 1)
    if page_token:
        last_at, last_key = decode_token(page_token, scope, key.type.python_type)
        query = query.where(or_(at < last_at, and_(at == last_at, key < last_key)))
    rows = connection.execute(query).all()
    return rows[:size], encode_token(scope, rows[size - 1][0], rows[size - 1][1]) if len(rows) > size else ""
