"""Listings read to their end."""

from __future__ import annotations

from typing import Any, cast

from perf_service.models.fleet import Fleet, Instance
from perf_service.models.metrics import Engine
from perf_service.storage.listing import all_fleets, all_instances
from perf_service.storage.ports import Page


class ThreePages:
    """Answers one row a page."""

    def __init__(self) -> None:
        self.fleets_asked: list[str | None] = []

    async def list_instances(self, *, fleet_id: str | None, page_size: int, page_token: str) -> Page[Instance]:
        self.fleets_asked.append(fleet_id)
        number = int(page_token or 0)
        return Page((Instance(f"i{number}", Engine.VLLM, ""),), str(number + 1) if number < 2 else "")

    async def list_fleets(self, *, page_size: int, page_token: str) -> Page[Fleet]:
        return Page((Fleet("f" + page_token, Engine.TGI),), "2" if not page_token else "")


async def test_every_page_is_read_once_and_in_order() -> None:
    store = ThreePages()
    found = await all_instances(cast("Any", store), "f")
    assert [instance.instance_id for instance in found] == ["i0", "i1", "i2"]
    assert store.fleets_asked == ["f"] * 3
    assert [fleet.fleet_id for fleet in await all_fleets(cast("Any", store))] == ["f", "f2"]
