"""Knob catalogue as data per engine: flags, types, bounds, versions, hardware needs, conflicts, what each trades."""

from perf_service.optimization.catalogue.catalogue import KnobCatalogue, canonical
from perf_service.optimization.catalogue.conflicts import check_config, find_conflicts, kv_capacity_tokens
from perf_service.optimization.catalogue.entry import KnobEntry
from perf_service.optimization.catalogue.versions import capability, in_bracket, release

__all__ = [
    "KnobCatalogue",
    "KnobEntry",
    "canonical",
    "capability",
    "check_config",
    "find_conflicts",
    "in_bracket",
    "kv_capacity_tokens",
    "release",
]
