"""A metrics page for any release of an engine, made from the table of its names (tests/fixtures/dialects/names.csv).

    python -m tests.support.dialect_pages vllm 0.13.0

prints one. The table says from which release on a name is known to exist (`since`), the newest release opened that has it not (`absent`),
from which on it is hidden unless asked for (`hidden`) and gone (`gone`), what it is read as (`target`), and how that is known (`source`).
The values are invented, one of its own for each series.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Final

from perf_service.collectors.dialects.base import Dialect
from perf_service.collectors.exposition import ExpositionParser
from perf_service.collectors.plan import Plan
from perf_service.collectors.reading import Reading
from tests.support.pages import FIXTURES

# Every release whose source was opened to find where names begin and end.
_OPENED: Final = """
vllm 0.6.6 0.7.3 0.8.5 0.9.2 0.10.0 0.10.2 0.11.0 0.12.0 0.13.0 0.14.1 0.16.0 0.18.1 0.20.2 0.23.0 0.26.0 0.29.0 0.31.0 0.32.0 0.33.0
sglang 0.4.3 0.4.6 0.4.8 0.4.10 0.5.2 0.5.3 0.5.4 0.5.6 0.5.7 0.5.8 0.5.9 0.5.10 0.5.11 0.5.12 0.5.14 0.5.16 0.5.18 0.5.20 0.5.22 0.5.23
tgi 2.0.4 2.3.0 2.4.0 3.3.7
"""
VERSIONS: Final[Mapping[str, tuple[str, ...]]] = {
    engine: tuple(versions) for engine, *versions in map(str.split, _OPENED.strip().splitlines())
}
_LABEL_VALUES: Final[Mapping[str, tuple[str, ...]]] = {
    "reason": ("capacity", "deferred"),
    "finished_reason": ("stop", "length", "abort", "error", "repetition"),
    "err": ("overloaded", "validation", "generation"),
    "method": ("prefill", "decode"),
    "mode": ("device_hit", "host_hit", "storage_hit", "input"),
    "stage": ("prefill_forward", "request_process"),
    "is_streaming": ("true", "false"),
    "sleep_state": ("awake", "weights_offloaded"),
    "status_code": ("200", "404", "503"),
    "endpoint": ("/generate", "/v1/completions"),
    "cache_source": ("total", "device", "host"),
}
_BASE_LABELS: Final[Mapping[str, str]] = {"vllm": 'engine="0",model_name="m"', "sglang": 'engine_type="unified",model_name="m"', "tgi": ""}
_INFO_LABELS: Final[Mapping[str, str]] = {
    "vllm:cache_config_info": 'block_size="16",num_gpu_blocks="1000",enable_prefix_caching="True"',
    "sglang:cache_config_info": 'page_size="16",num_pages="640"',
}


@dataclass(frozen=True, slots=True)
class Name:
    """One row of the table. `targets` are `gauge:...`, `counter:...`, `hist:...` or `config:...`; empty for names that are not used."""

    engine: str
    name: str
    type: str
    labels: tuple[str, ...]
    since: str
    absent: str
    gone: str
    hidden: str
    targets: tuple[str, ...]
    source: str

    @property
    def exposed(self) -> str:
        """The name on the page: prometheus_client ends every counter in _total, TGI's exporter none."""
        needs = self.type == "counter" and self.engine != "tgi" and not self.name.endswith("_total")
        return f"{self.name}_total" if needs else self.name

    def is_on(self, version: str) -> bool:
        """Whether a page of this release has the name without being asked for it."""
        ends = self.hidden or self.gone
        return order(self.since) <= order(version) and not (ends and order(version) >= order(ends))


def order(version: str) -> tuple[int, ...]:
    """A version as numbers, to be compared."""
    return tuple(map(int, version.split(".")))


@cache
def names() -> tuple[Name, ...]:
    """The table."""
    with (FIXTURES / "dialects/names.csv").open(newline="") as file:
        return tuple(
            Name(labels=tuple(row.pop("labels").split()), targets=tuple(row.pop("target").split()), **row) for row in csv.DictReader(file)
        )


def series_of(name: Name, number: int) -> list[tuple[dict[str, str], float]]:
    """The label sets of a name on one page, each with a value of its own. `number` is the row's place in the table."""
    if name.name in _INFO_LABELS:
        return [({}, 1.0)]
    sets = [dict(zip(name.labels, values, strict=True)) for values in product(*(_LABEL_VALUES.get(label, ("x",)) for label in name.labels))]
    if "method" in name.labels and name.engine == "sglang":
        sets = [{**labels, "method": "POST"} for labels in sets if labels["method"] == "prefill"]
    values = [(labels, float(1000 * (number + 1) + place + 1)) for place, labels in enumerate(sets)]
    if name.labels == ("cache_source",):
        # The parts of a total that stands beside them.
        return [({"cache_source": "total"}, 30.0 + number), ({"cache_source": "device"}, 20.0 + number), ({"cache_source": "host"}, 10.0)]
    return values


def page(engine: str, version: str) -> str:
    """The page of one release."""
    text = []
    for number, name in enumerate(names()):
        if name.engine == engine and name.is_on(version):
            text.append(f"# HELP {name.name} Invented.\n# TYPE {name.name} {'gauge' if name.type == 'info' else name.type}\n")
            for labels, value in series_of(name, number):
                text.append(_lines(name, labels, value))
    return "".join(text)


def _lines(name: Name, labels: Mapping[str, str], value: float) -> str:
    own = ",".join(f'{label}="{text}"' for label, text in labels.items())
    inside = ",".join(filter(None, (_BASE_LABELS[name.engine], own, _INFO_LABELS.get(name.name, ""))))
    braced = f"{{{inside}}}" if inside else ""
    if name.type in ("histogram", "gaugehistogram"):
        comma = "," if inside else ""
        half = value // 2
        return (
            f'{name.name}_bucket{{{inside}{comma}le="1.0"}} {half}\n{name.name}_bucket{{{inside}{comma}le="+Inf"}} {value}\n'
            f"{name.name}_sum{braced} {value * 3}\n{name.name}_count{braced} {value}\n"
        )
    if name.type == "summary":
        return f"{name.name}_sum{braced} {value * 3}\n{name.name}_count{braced} {value}\n"
    return f"{name.exposed}{braced} {value}\n"


def read(dialect: Dialect, text: str) -> dict[str, object]:
    """What a page reads as, by target; what is worked out from other metrics is left out where the engine has no name for it."""
    parsed = ExpositionParser(dialect.bind).parse(text)
    reading = Reading(dialect, parsed, Plan(dialect, parsed.series))
    assert not reading.issues
    found: dict[str, object] = {f"config:{knob}": value for knob, value in reading.config.values().items()}
    found |= {f"gauge:{target.value}": value for target, value in reading.gauges.items()}
    found |= {f"counter:{target.value}": value for target, value in reading.counters.items()}
    found |= {f"hist:{target.value}": (histogram.count, histogram.sum) for target, histogram in reading.histograms.items()}
    return {
        target: value
        for target, value in found.items()
        if target.partition(":")[2] not in reading.derived or target in TARGETS[dialect.engine.value]
    }


TARGETS: Final = {engine: {target for row in names() if row.engine == engine for target in row.targets} for engine in VERSIONS}
"""All targets of an engine's names."""


if __name__ == "__main__":
    print(page(sys.argv[1], sys.argv[2]), end="")
