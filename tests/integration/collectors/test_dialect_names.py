"""No spelling of a dialect can be left out without some release being read otherwise than the table of names says."""

from __future__ import annotations

from dataclasses import replace

import pytest

from perf_service.collectors.dialects import dialect_of
from perf_service.models.metrics import Engine
from tests.support.dialect_pages import VERSIONS, page, read

OF_NO_RELEASE = {
    "vllm": [
        # No release of the engine has it, servers that imitate its page do.
        "vllm:request_failure_total",
        # Beside its successor in the oldest release opened; kept for those before.
        "vllm:time_in_queue_requests",
    ]
}


@pytest.mark.parametrize("engine", list(VERSIONS))
def test_every_spelling_is_needed(engine: str) -> None:
    """Without any one spelling of a rule, some release reads otherwise than the table says."""
    dialect = dialect_of(Engine(engine))
    pages = {version: page(engine, version) for version in VERSIONS[engine]}
    whole = {version: read(dialect, pages[version]) for version in VERSIONS[engine]}
    idle = []
    for index, rule in enumerate(dialect.rules):
        for spelling in rule.names:
            if not spelling.startswith(dialect.prefix):
                continue
            rest = tuple(name for name in rule.names if name != spelling)
            rules = (*dialect.rules[:index], *((replace(rule, names=rest),) if rest else ()), *dialect.rules[index + 1 :])
            without = replace(dialect, rules=rules)
            if all(read(without, pages[version]) == whole[version] for version in VERSIONS[engine] if spelling in pages[version]):
                idle.append(spelling)
    assert idle == OF_NO_RELEASE.get(engine, [])
