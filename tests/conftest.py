"""Settings of the property tests."""

from __future__ import annotations

from hypothesis import settings

from tests.support.examples import examples

settings.register_profile("perf-service", max_examples=examples(100), deadline=None)
settings.load_profile("perf-service")
