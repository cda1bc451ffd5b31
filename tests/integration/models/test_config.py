"""Hashes of any config."""

from hypothesis import given
from hypothesis import strategies as st

from perf_service.models.config import EngineConfig, KnobValue, Source, config_hash

VALUES = st.dictionaries(
    st.sampled_from(["max_num_seqs", "enable_prefix_caching", "gpu_memory_utilization", "kv_cache_dtype"]),
    st.one_of(st.booleans(), st.integers(0, 10_000), st.floats(0, 1), st.sampled_from(["auto", "fp8"])),
)


@given(VALUES)
def test_the_hash_depends_on_values_alone(values: dict[str, KnobValue]) -> None:
    reversed_order = dict(reversed(values.items()))
    assert config_hash(EngineConfig.of(values, Source.USER)) == config_hash(EngineConfig.of(reversed_order, Source.PAGE))
    assert config_hash(EngineConfig.of({**values, "extra": 1})) != config_hash(EngineConfig.of(values))
