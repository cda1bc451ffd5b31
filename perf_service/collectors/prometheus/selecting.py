"""Which series of a Prometheus are an engine's: by the names that its dialect knows."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from perf_service.collectors.dialects import DIALECTS, Dialect
from perf_service.collectors.prometheus.matchers import Matcher, any_of
from perf_service.models.metrics import Engine, Gauge, Hist

UP: Final = "up"
"""Written by Prometheus for every scrape, with the target's labels alone: tells when it was scraped, whether that worked, and which labels
of the other series are the target's and not the engine's."""
_LEFT_OUT: Final = Matcher("__name__", "!~", ".+_created|.+:.+:.+")
"""Times of creation; and recording rules, whose names have several colons by convention and no engine's has."""


def dialects_of(engine: Engine | None) -> tuple[Dialect, ...]:
    """The tables of an engine, of all where it is not known."""
    return (DIALECTS[engine],) if engine else tuple(DIALECTS.values())


@lru_cache
def prefixes_of(engine: Engine | None) -> tuple[str, ...]:
    """What the engine's own names begin with."""
    return tuple(dict.fromkeys(prefix for dialect in dialects_of(engine) for prefix in (dialect.prefix, *dialect.aliases)))


@lru_cache
def name_matchers(engine: Engine | None) -> tuple[Matcher, ...]:
    """Matchers of every name that the dialect may use: all of the engine's own, the foreign ones that it reads, and `up`.

    The engine's own are taken by their prefix and not one by one, so that a name of a future version is seen and reported.
    """
    foreign: dict[str, None] = {UP: None}
    for dialect in dialects_of(engine):
        foreign.update(dict.fromkeys(dialect.start_names))
        for rule in dialect.rules:
            for name in rule.names if rule.foreign else ():
                spelled = [name + suffix for suffix in ("_bucket", "_sum", "_count")] if isinstance(rule.target, Hist) else [name]
                foreign.update(dict.fromkeys(spelled))
    pattern = "|".join([*(f"{prefix}.+" for prefix in prefixes_of(engine)), any_of(list(foreign))])
    return (Matcher("__name__", "=~", pattern), _LEFT_OUT)


@lru_cache
def anchors_of(engine: Engine | None) -> tuple[str, ...]:
    """Names of one gauge that every engine of the kind has, in each spelling."""
    found: dict[str, None] = {}
    for dialect in dialects_of(engine):
        names = [name for rule in dialect.rules if rule.target is Gauge.RUNNING_REQUESTS for name in rule.names]
        found.update(dict.fromkeys(names))
        found.update((alias + name.removeprefix(dialect.prefix), None) for alias in dialect.aliases for name in names)
    return tuple(found)


@lru_cache
def own_labels(engine: Engine | None) -> frozenset[str]:
    """Labels that the engine itself sets and that mean something to its dialect."""
    found = {"le", "model_name"}
    for dialect in dialects_of(engine):
        found.update(dialect.rank_labels, dialect.replica_labels, dialect.totals)
        found.update(label for rule in dialect.rules for label, _, _ in rule.where)
        found.update(label.label for label in dialect.info_labels)
        found.update(label for names in dialect.name_lists for label in names.labels)
    return frozenset(found)
