"""The table of thresholds."""

from perf_service.analysis import thresholds


def test_every_threshold_has_a_source() -> None:
    table = thresholds.table()
    assert len(table) > 30
    assert all(item.source and item.unit for item in table.values())
