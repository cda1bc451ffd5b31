"""Launch flags as people type them."""

import pytest

from perf_service.cli.settings_text import parse_settings, parse_value
from perf_service.models.config import Source
from perf_service.models.errors import InvalidArgumentError


def test_dashes_underscores_and_leading_dashes_are_alike() -> None:
    config = parse_settings(["--max-num-seqs=256", "enable_prefix_caching=off", "gpu-memory-utilization=0.92"], option="--config")
    assert config.values() == {"max_num_seqs": 256, "enable_prefix_caching": False, "gpu_memory_utilization": 0.92}
    assert config.source("max_num_seqs") is Source.USER


@pytest.mark.parametrize("pair", ["max_num_seqs", "=3", "max_num_seqs=", "--=1", ""])
def test_anything_else_says_how_to_write_it(pair: str) -> None:
    with pytest.raises(InvalidArgumentError, match="NAME=VALUE"):
        parse_settings([pair], option="--what-if")


def test_a_name_told_twice_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="twice"):
        parse_settings(["max_num_seqs=1", "max-num-seqs=2"], option="--config")


def test_values_are_typed_and_never_infinite() -> None:
    assert parse_value("8") == 8
    assert isinstance(parse_value("8"), int)
    assert parse_value("TRUE") is True
    assert parse_value("fp8_e4m3") == "fp8_e4m3"
    assert parse_value("inf") == "inf"
    assert parse_value("nan") == "nan"
