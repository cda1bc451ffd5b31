"""Real runs and simulated engines through Prometheus' rule engine: silent where all is well, the right cause first where not."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from perf_service.models.metrics import Engine
from tests.support import alert_cases as cases
from tests.support.promtool import Firing

SYMPTOM = "BudgetBurn"
SPECIAL = {"engine_hang": "LLMEngineHang", "hang_in_flight": "LLMEngineHang", "h_restart": None, "crash_loop": "LLMEngineRestarting"}
EXPECTED: list[tuple[Engine, str, str | None]] = [
    *((Engine.SGLANG if "sglang" in name else Engine.VLLM, name, alert) for name, alert in (cases.CAPTURES | cases.HELD_OUT).items()),
    *((engine, name, case[2]) for engine in Engine for name, case in cases.simulations(engine).items()),
    *((Engine.VLLM, name, alert) for name, alert in SPECIAL.items()),
]
HEALTHY = [(engine, name) for engine, name, alert in EXPECTED if alert is None]
FAULTY = [(engine, name, alert) for engine, name, alert in EXPECTED if alert is not None]
Fired = Callable[[Engine, float], dict[str, list[Firing]]]


@pytest.mark.parametrize(("engine", "name"), HEALTHY)
def test_a_healthy_replica_is_left_alone(fired: Fired, engine: Engine, name: str) -> None:
    assert fired(engine, 15.0)[name] == []


@pytest.mark.parametrize(("engine", "name", "alert"), FAULTY)
def test_the_cause_is_the_first_to_fire(fired: Fired, engine: Engine, name: str, alert: str) -> None:
    causes = [firing.name for firing in fired(engine, 15.0)[name] if SYMPTOM not in firing.name]
    assert causes[:1] == [alert]


@pytest.mark.parametrize(("engine", "name", "alert"), FAULTY)
def test_nothing_but_the_cause_fires_beside_the_symptoms(fired: Fired, engine: Engine, name: str, alert: str) -> None:
    # What else may be said of a replica: a hang or a full queue has consequences, and a long prefill stalls those who write.
    also = {
        "LLMEngineHang": {"LLMClientAborts", "LLMQueueUnexplained", "LLMBatchLimit"},
        "LLMRequestsRejected": {"LLMBatchLimit"},
        "LLMPrefillComputeBound": {"LLMPrefillInterference"},
    }
    causes = {firing.name for firing in fired(engine, 15.0)[name] if SYMPTOM not in firing.name}
    assert causes <= {alert} | also.get(alert, set())


def test_the_cause_is_told_within_eleven_minutes(fired: Fired) -> None:
    for engine, name, alert in FAULTY:
        first = next(firing for firing in fired(engine, 15.0)[name] if firing.name == alert)
        assert first.minute <= (8 + 6 if "hang" in name else 11), (name, first)


@pytest.mark.parametrize(("name", "alert"), cases.SPARSE.items())
def test_a_scrape_a_minute_is_enough(fired: Fired, name: str, alert: str | None) -> None:
    causes = [firing.name for firing in fired(Engine.VLLM, 60.0)[name] if SYMPTOM not in firing.name]
    assert causes[:1] == ([] if alert is None else [alert])
