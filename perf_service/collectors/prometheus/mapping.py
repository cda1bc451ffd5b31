"""From the raw samples of a Prometheus to the pages that the engines served.

Prometheus stamps every sample of a scrape with one time, writes them together, and adds the target's labels to each. So the samples of one
time, with those labels taken off, are the page that was scraped: it is written out again and read as any other page, through the same
parser and dialect. That is why the windows come out the same.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from perf_service.collectors.prometheus.matchers import label_name, quoted
from perf_service.collectors.prometheus.matrix import TextSeries
from perf_service.collectors.prometheus.selecting import UP, own_labels, prefixes_of
from perf_service.models.metrics import Engine

Entry = Mapping[str, Any]
_NAME: Final = "__name__"
_UP_TEXT: Final = '{"__name__":"up"'
_EXPORTED: Final = "exported_"
"""What Prometheus puts before a label of the page where the target has one of the same name (unless `honor_labels` is set)."""
_IDENTITY: Final = (
    "job", "instance", "pod", "namespace", "container", "cluster", "node", "endpoint", "service", "replica", "prometheus",
    "prometheus_replica", "__replica__", "tenant_id",
)  # fmt: skip
"""Labels that tell targets apart where there is no `up`, as in what was federated or written by an agent."""
SAME_SCRAPE_SECONDS: Final = 0.05
"""Prometheus itself stamps one time; agents may round the samples of one scrape differently, by some milliseconds."""


@dataclass(frozen=True, slots=True)
class Scrape:
    """One page as it was scraped: its time (unix seconds), its text, and how many series it has."""

    at: float
    body: bytes
    series: int


@dataclass(frozen=True, slots=True)
class TargetHistory:
    """What a Prometheus has of one target that is an engine, oldest scrape first."""

    labels: Mapping[str, str]
    scrapes: tuple[Scrape, ...]
    failed: tuple[float, ...] = ()  # times of the scrapes that failed (`up` is 0)
    native: tuple[str, ...] = ()  # histograms that are stored in Prometheus' own format, without buckets to read

    @property
    def name(self) -> str:
        """The target as a person knows it."""
        return "{" + ", ".join(f"{key}={quoted(value)}" for key, value in sorted(self.labels.items())) + "}"


@dataclass(slots=True)
class _Target:
    labels: dict[str, str]
    ups: dict[float, bool] = field(default_factory=dict)
    entries: list[Entry] = field(default_factory=list)
    job_text: str = ""

    def __post_init__(self) -> None:
        job = self.labels.get("job")
        self.job_text = f',"job":{json.dumps(job, ensure_ascii=False)}' if job is not None else ""

    def has_job_of(self, entry: Entry) -> bool:
        """Whether the series is of the same job."""
        if isinstance(entry, TextSeries) and entry.is_plain and self.job_text:
            return self.job_text in entry.labels_text
        return label_of(entry, "job") == self.labels.get("job")

    def agreement(self, metric: Mapping[str, str]) -> int:
        """How many of the target's labels the series has."""
        return sum(metric.get(key) == value for key, value in self.labels.items())


def targets_of(entries: Sequence[Entry], engine: Engine | None = None, *, newest: int = 0) -> list[TargetHistory]:
    """The engines among the series of a matrix (`metric`, `values`), each with its pages. What has no metric of an engine is left out.

    With `newest` only so many of the newest pages are made.
    """
    prefixes = prefixes_of(engine)
    engines = [target for target in _sorted_out(entries, engine) if any(name_of(entry).startswith(prefixes) for entry in target.entries)]
    return sorted((_history(target, newest) for target in engines), key=lambda history: history.name)


def merged(parts: Iterable[Sequence[TargetHistory]]) -> list[TargetHistory]:
    """The histories of consecutive ranges as one for each target; a scrape that is in two of them counts once."""
    groups: dict[str, list[TargetHistory]] = {}
    for part in parts:
        for history in part:
            groups.setdefault(history.name, []).append(history)
    whole = []
    for same in groups.values():
        scrapes = {scrape.at: scrape for history in same for scrape in history.scrapes}
        failed = {at for history in same for at in history.failed}
        native = dict.fromkeys(name for history in same for name in history.native)
        whole.append(TargetHistory(same[-1].labels, tuple(scrapes[at] for at in sorted(scrapes)), tuple(sorted(failed)), tuple(native)))
    return sorted(whole, key=lambda history: history.name)


def thinned(history: TargetHistory, every_seconds: float) -> TargetHistory:
    """With scrapes at least `every_seconds` apart, the last one always among them."""
    kept: list[Scrape] = []
    for scrape in history.scrapes:
        if not kept or scrape.at - kept[-1].at >= every_seconds or scrape is history.scrapes[-1]:
            kept.append(scrape)
    return replace(history, scrapes=tuple(kept))


def _sorted_out(entries: Sequence[Entry], engine: Engine | None) -> list[_Target]:
    targets: list[_Target] = []
    by_address: dict[str | None, list[_Target]] = {}
    rest = []
    for entry in entries:
        if not _is_up(entry):
            rest.append(entry)
            continue
        labels = {key: value for key, value in entry["metric"].items() if key != _NAME}
        target = _Target(labels, {float(at): float(value) > 0 for at, value in entry.get("values", ())})
        targets.append(target)
        by_address.setdefault(labels.get("instance"), []).append(target)
    orphans = []
    for entry in rest:
        candidates = [target for target in by_address.get(label_of(entry, "instance"), ()) if target.has_job_of(entry)]
        if not candidates:
            orphans.append(entry)
        elif len(candidates) == 1:
            candidates[0].entries.append(entry)
        else:
            agreement = [target.agreement(entry["metric"]) for target in candidates]
            candidates[agreement.index(max(agreement))].entries.append(entry)
    return targets + _inferred(orphans, engine, has_targets=any(target.entries for target in targets))


def _inferred(orphans: Sequence[Entry], engine: Engine | None, *, has_targets: bool) -> list[_Target]:
    """Targets of series that no `up` goes with: by the labels that tell targets apart; what else they have in common is theirs too."""
    groups: dict[tuple[str | None, ...], list[Entry]] = {}
    for entry in orphans:
        metric = entry["metric"]
        if has_targets and "instance" not in metric:
            continue  # an aggregate over targets that are here themselves
        groups.setdefault(tuple(metric.get(key) for key in _IDENTITY), []).append(entry)
    own = own_labels(engine)
    targets = []
    for group in groups.values():
        common = set(group[0]["metric"].items()).intersection(*(entry["metric"].items() for entry in group))
        labels = {key: value for key, value in common if key != _NAME and (key in _IDENTITY or key not in own)}
        targets.append(_Target(labels, entries=list(group)))
    return targets


def _history(target: _Target, newest: int) -> TargetHistory:
    series = [entry for entry in target.entries if _has_values(entry)]
    native = dict.fromkeys(name_of(entry) for entry in target.entries if not _has_values(entry))
    times = sorted(at for at, is_up in target.ups.items() if is_up) if target.ups else _scrape_times(series)
    times = times[-newest:]
    spell = _Speller(target.labels)
    lines: dict[float, list[str]] = {at: [] for at in times}
    # By the time as it is written, the page it belongs to: None for a time at which nothing was scraped, as the samples of rules have.
    pages: dict[str | float, list[str] | None] = {}
    # Prometheus itself stamps `up` and all else of a scrape alike; then what is near is a rule's.
    near = 0.0 if target.ups and any(at in target.ups for entry in series for at in _times(entry)) else SAME_SCRAPE_SECONDS
    for entry in series:
        if isinstance(entry, TextSeries) and entry.is_plain:
            prefix, samples = spell.text(entry), entry.samples(newest and newest + 1)
        else:
            prefix, samples = spell.metric(entry["metric"]), entry["values"]
        for at, value in samples:
            if at not in pages:
                time = _nearest(times, float(at), near)
                pages[at] = None if time is None else lines[time]
            page = pages[at]
            if page is not None:
                page.append(f"{prefix} {value}\n")
    scrapes = tuple(Scrape(at, "".join(page).encode(), len(page)) for at, page in lines.items() if page)
    failed = tuple(sorted(at for at, is_up in target.ups.items() if not is_up))
    return TargetHistory(target.labels, scrapes, failed, tuple(native))


def _is_up(entry: Entry) -> bool:
    if isinstance(entry, TextSeries) and entry.is_plain:
        return entry.labels_text.startswith(_UP_TEXT)
    return name_of(entry) == UP


def _has_values(entry: Entry) -> bool:
    return (isinstance(entry, TextSeries) and entry.is_plain) or entry.get("values") is not None


def name_of(entry: Entry) -> str:
    """The metric's name."""
    return entry.name if isinstance(entry, TextSeries) and entry.is_plain else str(entry["metric"].get(_NAME, ""))


def label_of(entry: Entry, name: str) -> str | None:
    """The value of a label; None where there is none."""
    if isinstance(entry, TextSeries) and entry.is_plain:
        return entry.label(name)
    value: str | None = entry["metric"].get(name)
    return value


def _scrape_times(series: Sequence[Entry]) -> list[float]:
    """The times at which most of the series have a sample: those of scrapes, not of rules."""
    counts = Counter(at for entry in series for at, _ in entry["values"])
    grouped: list[tuple[float, int]] = []
    for at in sorted(counts):
        if grouped and at - grouped[-1][0] <= SAME_SCRAPE_SECONDS:
            grouped[-1] = (grouped[-1][0], grouped[-1][1] + counts[at])
        else:
            grouped.append((at, counts[at]))
    most = max((count for _, count in grouped), default=0)
    return [at for at, count in grouped if 2 * count >= most]


def _times(entry: Entry) -> list[float]:
    if isinstance(entry, TextSeries) and entry.is_plain:
        return [float(at) for at, _ in entry.samples()]
    return [at for at, _ in entry["values"]]


def _nearest(times: Sequence[float], at: float, within: float) -> float | None:
    index = bisect_left(times, at)
    near = [time for time in times[max(0, index - 1) : index + 1] if abs(time - at) <= within]
    return min(near, key=lambda time: abs(time - at), default=None)


class _Speller:
    """Writes series as the engine's page had them: without the target's labels, and with its own where the target's stood in their way.

    A label that differs from the target's was the page's own and won over it (`honor_labels`). What is left when the target's labels
    are cut out of a series is the same for every replica, and is worked out once.
    """

    def __init__(self, target: Mapping[str, str]) -> None:
        self._target = target
        self._cut = [f',"{name}":{json.dumps(value, ensure_ascii=False)}' for name, value in target.items()]
        self._names = frozenset(target)

    def text(self, series: TextSeries) -> str:
        """The series before its value, as a line of a page."""
        rest = series.labels_text
        for pair in self._cut:
            rest = rest.replace(pair, "", 1)
        known = _SPELLED.get((self._names, rest))
        if known is None:
            if len(_SPELLED) >= _MOST_SPELLED:
                _SPELLED.clear()
            known = _SPELLED[self._names, rest] = self.metric(json.loads(rest))
        return known

    def metric(self, metric: Mapping[str, str]) -> str:
        """As `text`, of labels that have been read."""
        own = [key for key, value in metric.items() if key != _NAME and self._target.get(key) != value]
        names: dict[str, str] = {}
        # Of several that begin with exported_ only the shortest was renamed: the others were called so by the page itself.
        for key in sorted(own, key=len):
            bare = key
            while bare.startswith(_EXPORTED):
                bare = bare.removeprefix(_EXPORTED)
            names.setdefault(bare if bare in self._names else key, key)
        spelled = {key: name for name, key in names.items()}
        labels = [f"{label_name(spelled.get(key, key))}={_escaped(metric[key])}" for key in own]
        name = metric.get(_NAME, "")
        return f"{name}{{{','.join(labels)}}}" if labels else name


_SPELLED: dict[tuple[frozenset[str], str], str] = {}
_MOST_SPELLED: Final = 65_536


def _escaped(value: str) -> str:
    text = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{text}"'
