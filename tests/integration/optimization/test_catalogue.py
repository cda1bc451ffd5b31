"""Whatever is given as a flag's value, what comes out is within its bounds."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from perf_service.models.config import KnobValue
from perf_service.models.errors import InvalidArgumentError
from perf_service.models.metrics import Engine
from perf_service.models.plan import KnobType
from perf_service.optimization.catalogue import KnobCatalogue

CATALOGUE = KnobCatalogue.load()


ENTRIES = [(engine, entry) for engine in Engine for entry in CATALOGUE.entries(engine)]


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(ENTRIES), st.one_of(st.booleans(), st.integers(), st.floats(), st.text(max_size=12)))
def test_parsing_accepts_only_what_is_within_bounds(which, value: KnobValue) -> None:  # type: ignore[no-untyped-def]
    engine, entry = which
    try:
        parsed = CATALOGUE.parse(engine, entry.knob.name, value)
    except InvalidArgumentError:
        return
    knob = entry.knob
    if knob.type in (KnobType.INT, KnobType.FLOAT):
        assert isinstance(parsed, int | float)
        assert knob.minimum is None or parsed >= knob.minimum
        assert knob.maximum is None or parsed <= knob.maximum
    assert CATALOGUE.parse(engine, knob.name, parsed) == parsed
