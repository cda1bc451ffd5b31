"""The committed packs over all replicas at once, one run of Prometheus' rule engine per engine and scrape interval."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest

from perf_service.models.metrics import Engine
from tests.support import alert_cases as cases
from tests.support.promtool import Firing, firing, wanted
from tests.support.replay import Values

Fired = Callable[[Engine, float], dict[str, list[Firing]]]


def every_case(engine: Engine, step: float) -> dict[str, Values]:
    """Each case's series at this scrape interval."""
    names = wanted(cases.DEPLOYED / f"{engine.value}.rules.yaml")
    if step > 15.0:
        return {name: cases.looped(cases.capture(name), name, names, step) for name in cases.SPARSE}
    found = {name: cases.looped(cases.simulated(engine, name), name, names, step) for name in cases.simulations(engine)}
    saved = [name for name in (*cases.CAPTURES, *cases.HELD_OUT) if ("sglang" in name) is (engine is Engine.SGLANG)]
    if engine is not Engine.TGI:
        found |= {name: cases.looped(cases.capture(name), name, names, step) for name in saved}
    if engine is Engine.VLLM:
        found |= {"engine_hang": cases.hang(names, step), "hang_in_flight": cases.hang_in_flight(names, step)}
        found |= {
            "h_restart": cases.restart(names, step),
            "crash_loop": cases.looped(cases.capture("h_restart"), "crash_loop", names, step),
        }
    return found


@pytest.fixture(scope="session")
def fired(tmp_path_factory: pytest.TempPathFactory) -> Fired:
    """What fires in each case of an engine, scraped at an interval in seconds."""

    failed: list[str] = []

    @cache
    def run(engine: Engine, step: float) -> dict[str, list[Firing]]:
        assert not failed, "the rules could not be evaluated: see the first test that failed"
        failed.append(engine.value)  # until it has run through
        folder = tmp_path_factory.mktemp(f"{engine.value}{step:.0f}")
        rules = cases.DEPLOYED / f"{engine.value}.rules.yaml"
        found = firing(rules, every_case(engine, step), folder, step=f"{step:.0f}s", minutes=range(2, cases.MINUTES))
        failed.clear()
        return found

    return run
