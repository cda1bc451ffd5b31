"""What the optimizers propose in any situation."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from perf_service.models.analysis import Bottleneck, BottleneckType, Cause, Severity
from perf_service.models.config import EngineConfig, Source
from perf_service.models.fleet import Hardware
from perf_service.models.metrics import Engine
from perf_service.optimization.batching_optimizer import BatchingOptimizer
from perf_service.optimization.catalogue import KnobCatalogue, find_conflicts
from perf_service.optimization.configs import BatchingConfig
from perf_service.optimization.kv_cache_optimizer import KVCacheOptimizer
from perf_service.optimization.quantization_optimizer import QuantizationOptimizer
from perf_service.optimization.situation import Situation
from tests.support.real_runs import finding, overall

OPTIMIZERS = (BatchingOptimizer(), KVCacheOptimizer(), QuantizationOptimizer())


VERSIONS = {
    Engine.VLLM: ("", "0.6.6", "0.9.2", "0.18.1", "0.26.0", "0.33.0"),
    Engine.SGLANG: ("", "0.4.3", "0.5.6", "0.5.23"),
    Engine.TGI: ("", "2.4.0", "3.3.7"),
}


HARDWARE = (Hardware(), Hardware("A100", 1, 80 << 30, "8.0"), Hardware("T4", 1, 16 << 30, "7.5"), Hardware("H100", 8, 80 << 30, "9.0"))


CATALOGUE = KnobCatalogue.load()


@st.composite
def situations(draw: st.DrawFn) -> tuple[Situation, Bottleneck]:
    engine = draw(st.sampled_from(list(Engine)))
    values: dict[str, Any] = {}
    for entry in CATALOGUE.entries(engine):
        knob = entry.knob
        if not knob.tunable or draw(st.booleans()):
            continue
        if entry.brackets:
            values[knob.name] = draw(st.sampled_from(entry.choices("")))
        elif knob.minimum is not None:
            low, high = int(max(1, knob.minimum)), int(min(knob.maximum or 4096, 4096))
            number = draw(st.integers(low, high) if high > low else st.floats(float(knob.minimum), float(knob.maximum or 1)))
            values[knob.name] = number
        else:
            values[knob.name] = draw(st.booleans())
    at = Situation(
        engine,
        draw(st.sampled_from(VERSIONS[engine])),
        hardware=draw(st.sampled_from(HARDWARE)),
        config=EngineConfig.of(values, Source.LAUNCH_ARGS),
        window=draw(st.sampled_from([None, overall("b_queue_bad_r2"), overall("c_kv_bad_r2"), overall("d_prefill_bad_r2")])),
    )
    kind, cause = draw(st.sampled_from(list(BottleneckType))), draw(st.sampled_from(list(Cause)))
    return at, finding(kind, cause, severity=draw(st.sampled_from(list(Severity))))


@settings(max_examples=30, deadline=None)
@given(situations())
def test_whatever_is_proposed_is_valid_there_new_and_free_of_conflict(drawn: tuple[Situation, Bottleneck]) -> None:
    at, bottleneck = drawn
    for optimizer in OPTIMIZERS:
        found, config = optimizer.generate_optimizations([bottleneck], at.engine, situation=at)
        assert (config is None) == (not found)
        if isinstance(config, BatchingConfig):
            assert config.max_batch_size is not None
            assert config.max_batch_size <= 256
        for one in found:
            assert one.title
            assert one.description
            assert one.evidence
            for change in one.config_changes:
                entry = CATALOGUE.entry(at.engine, change.parameter)
                assert entry.supported(at.version) is not False
                assert change.recommended_value != change.current_value
                assert change.flag
                if change.recommended_value is not None:
                    again = CATALOGUE.change(
                        at.engine, change.parameter, change.recommended_value, current=at.config, version=at.version, hardware=at.hardware
                    )
                    assert again.recommended_value == change.recommended_value
            after = at.config.with_changes(one.config_changes)
            assert not find_conflicts(CATALOGUE, at.engine, after, frozenset(c.parameter for c in one.config_changes))
            assert bool(one.rollback) == bool(one.config_changes)
