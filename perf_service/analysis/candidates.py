"""What a rule answers: a cause with its weight, and evidence for and against it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from perf_service.analysis.facts import Facts
from perf_service.models.analysis import Cause, Evidence, EvidenceRole, Verdict


@dataclass(frozen=True, slots=True)
class Candidate:
    """A cause that could explain a harm. `weight` is relative to the other candidates of the same harm."""

    cause: Cause
    weight: float
    evidence: tuple[Evidence, ...] = ()
    verdict: Verdict = Verdict.TUNE
    settle: str = ""


@dataclass(frozen=True, slots=True)
class Harm:
    """A phase that costs requests more than the objectives allow, with the causes that could be behind it.

    `missed` is the phase's share of the missed objectives, each counted by the logarithm of value / target;
    `unknown_weight` is the belief left to causes not listed.
    """

    phase: str
    missed: float
    candidates: tuple[Candidate, ...]
    unknown_weight: float = 0.1
    evidence: tuple[Evidence, ...] = ()

    def beliefs(self) -> dict[Cause, float]:
        """The candidates' weights, normalised together with the unknown rest; the same cause named twice keeps its larger weight."""
        best: dict[Cause, float] = {}
        for candidate in self.candidates:
            best[candidate.cause] = max(best.get(candidate.cause, 0.0), candidate.weight)
        total = sum(best.values()) + self.unknown_weight
        return {cause: weight / total for cause, weight in best.items()} if total > 0 else {}

    def ranked(self) -> list[tuple[Candidate, float]]:
        """Candidates with their belief, the likeliest first."""
        beliefs = self.beliefs()
        seen: dict[Cause, Candidate] = {}
        for candidate in sorted(self.candidates, key=lambda c: -c.weight):
            seen.setdefault(candidate.cause, candidate)
        return sorted(((c, beliefs[cause]) for cause, c in seen.items()), key=lambda pair: (-pair[1], pair[0].cause.value))


def fact(
    facts: Facts,
    metric: str,
    statistic: str,
    value: float,
    text: str,
    *,
    threshold: float | None = None,
    unit: str = "",
    against: bool = False,
    samples: float = 0.0,
) -> Evidence:
    """One evidence with the window's length filled in."""
    return Evidence(
        metric=metric,
        statistic=statistic,
        value=value,
        text=text,
        threshold=threshold,
        unit=unit,
        samples=samples or facts.finished,
        window_seconds=facts.window.duration_seconds,
        role=EvidenceRole.AGAINST if against else EvidenceRole.FOR,
    )


def ramp(value: float, low: float, high: float) -> float:
    """0 at `low`, 1 at `high`, linear between (low > high ramps downwards)."""
    if low == high:
        return float(value >= high)
    return min(1.0, max(0.0, (value - low) / (high - low)))


def compact(items: Iterable[Evidence | None]) -> tuple[Evidence, ...]:
    """The evidences that are there."""
    return tuple(item for item in items if item is not None)
