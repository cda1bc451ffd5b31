"""Settings of the property tests. They are all below this folder: see `test_property_tests_are_integration_tests`."""

from __future__ import annotations

from hypothesis import settings

from tests.support.examples import examples

settings.register_profile("perf-service", max_examples=examples(100), deadline=None)
settings.load_profile("perf-service")
