"""Listings read to their end, for the service's own work. Who answers a caller hands pages on instead."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from perf_service.models.fleet import Fleet, Instance
from perf_service.storage.ports import FleetStore, Page

T = TypeVar("T")
_PAGE_SIZE: Final = 500


async def all_instances(store: FleetStore, fleet_id: str | None = None) -> list[Instance]:
    """Every registered instance, or every one of a fleet. Raises StoreError."""
    return await _all(lambda token: store.list_instances(fleet_id=fleet_id, page_size=_PAGE_SIZE, page_token=token))


async def all_fleets(store: FleetStore) -> list[Fleet]:
    """Every fleet. Raises StoreError."""
    return await _all(lambda token: store.list_fleets(page_size=_PAGE_SIZE, page_token=token))


async def _all(page_after: Callable[[str], Awaitable[Page[T]]]) -> list[T]:
    found: list[T] = []
    token = ""
    while True:
        page = await page_after(token)
        found += page.items
        token = page.next_page_token
        if not token:
            return found
