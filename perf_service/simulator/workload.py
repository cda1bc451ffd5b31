"""Seeded workloads: when requests arrive, how long they are, what they share. Times in seconds."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from perf_service.simulator.core import Request
from perf_service.simulator.flags import FlagError


@dataclass(frozen=True, slots=True)
class Lengths:
    """A distribution of token counts, clipped to [low, high].

    ``fixed`` is always ``low``; ``uniform`` is flat over [low, high]; ``lognormal`` has the given
    ``median`` and ``sigma`` (of the logarithm).
    """

    kind: Literal["fixed", "uniform", "lognormal"]
    low: int
    high: int
    median: float = 0.0
    sigma: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.low <= self.high:
            raise FlagError(f"lengths must satisfy 1 <= low <= high, got {self.low}..{self.high}")
        if self.kind == "lognormal" and (self.median <= 0 or self.sigma < 0):
            raise FlagError(f"lognormal lengths need median > 0 and sigma >= 0, got {self.median}, {self.sigma}")

    @classmethod
    def fixed(cls, tokens: int) -> Lengths:
        """Always ``tokens``."""
        return cls("fixed", tokens, tokens)

    @classmethod
    def uniform(cls, low: int, high: int) -> Lengths:
        """Flat over [low, high]."""
        return cls("uniform", low, high)

    @classmethod
    def lognormal(cls, median: float, sigma: float, low: int = 1, high: int = 1_000_000) -> Lengths:
        """Long-tailed, as chat traffic is."""
        return cls("lognormal", low, high, median, sigma)

    def sample(self, rng: random.Random) -> int:
        """One draw."""
        if self.kind == "fixed":
            return self.low
        if self.kind == "uniform":
            return rng.randint(self.low, self.high)
        value = round(math.exp(rng.gauss(math.log(self.median), self.sigma)))
        return min(max(value, self.low), self.high)


@dataclass(frozen=True, slots=True)
class Workload:
    """Arrivals and request shapes. Exactly one of ``rate`` (open loop) and ``concurrency`` (closed) is set.

    ``steps`` changes the load in mid-run: ``(seconds since start, new rate or concurrency)``.
    ``shared_prefix_share`` of the requests start with one of ``prefixes`` common prefixes of
    ``shared_prefix_tokens`` tokens; the prefix is part of the prompt length, which is raised to one
    token more where it would not fit. ``max_tokens`` is what clients ask for at most (None: exactly
    what they get). ``leaving_share`` of the clients hang up once they have ``leaving_after_tokens``
    tokens (virtual clock only).
    """

    prompt: Lengths = field(default_factory=lambda: Lengths.uniform(100, 300))
    output: Lengths = field(default_factory=lambda: Lengths.uniform(50, 150))
    rate: float | None = None
    concurrency: int | None = None
    steps: Sequence[tuple[float, float]] = ()
    shared_prefix_tokens: int = 0
    shared_prefix_share: float = 1.0
    prefixes: int = 1
    max_tokens: int | None = None
    leaving_share: float = 0.0
    leaving_after_tokens: int = 1

    def __post_init__(self) -> None:
        if (self.rate is None) == (self.concurrency is None):
            raise FlagError("a workload needs either rate (open loop) or concurrency (closed loop), not both")
        for name, value in (("rate", self.rate), ("concurrency", self.concurrency)):
            if value is not None and not 0 <= value < 1e6:
                raise FlagError(f"{name} is {value}; it must be between 0 and 1e6")
        for name, value in (("shared_prefix_share", self.shared_prefix_share), ("leaving_share", self.leaving_share)):
            if not 0 <= value <= 1:
                raise FlagError(f"{name} is {value}; it must lie in [0, 1]")
        if self.prefixes < 1:
            raise FlagError(f"prefixes is {self.prefixes}; it must be at least 1")

    def level(self, elapsed: float) -> float:
        """Rate or concurrency in force ``elapsed`` seconds after the start."""
        current = float(self.rate if self.rate is not None else self.concurrency or 0)
        for at, value in self.steps:
            if elapsed >= at:
                current = value
        return current

    def draw(self, rng: random.Random, arrival: float) -> Request:
        """The next request."""
        prompt, output = self.prompt.sample(rng), self.output.sample(rng)
        request = Request(arrival, prompt, output, max_tokens=self.max_tokens)
        if self.shared_prefix_tokens and rng.random() < self.shared_prefix_share:
            request = replace(
                request,
                prompt_tokens=max(prompt, self.shared_prefix_tokens + 1),
                prefix_id=rng.randrange(self.prefixes),
                shared_prefix_tokens=self.shared_prefix_tokens,
            )
        return request

    def next_gap(self, rng: random.Random, elapsed: float) -> float:
        """Seconds to the next open-loop arrival; infinite once the rate is 0 for good.

        Exact for a rate that changes in steps: the exponential is carried over each change.
        """
        need, at = rng.expovariate(1.0), elapsed
        for change, _ in sorted(self.steps):
            if change <= at:
                continue
            rate = self.level(at)
            if need <= rate * (change - at):
                return at + need / rate - elapsed
            need -= rate * (change - at)
            at = change
        rate = self.level(at)
        return at + need / rate - elapsed if rate > 0 else math.inf


@dataclass(frozen=True, slots=True)
class Summary:
    """Mean and quantiles of a sample, in seconds; ``count`` 0 means that nothing was measured."""

    count: int = 0
    mean: float = math.nan
    p50: float = math.nan
    p95: float = math.nan
    p99: float = math.nan
    max: float = math.nan

    @classmethod
    def of(cls, values: Sequence[float]) -> Summary:
        """Quantiles by linear interpolation between order statistics."""
        if not values:
            return cls()
        xs = sorted(values)

        def quantile(q: float) -> float:
            k = (len(xs) - 1) * q
            low = int(k)
            return xs[low] + (xs[min(low + 1, len(xs) - 1)] - xs[low]) * (k - low)

        return cls(len(xs), sum(xs) / len(xs), quantile(0.5), quantile(0.95), quantile(0.99), xs[-1])


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What the clients saw. Latencies in seconds; rates over ``duration_seconds`` (first send to last answer)."""

    duration_seconds: float
    sent: int
    succeeded: int
    failed: int
    cancelled: int
    errors: dict[str, int]
    prompt_tokens: int
    output_tokens: int
    ttft_seconds: Summary
    itl_seconds: Summary
    tpot_seconds: Summary
    e2e_seconds: Summary

    @property
    def requests_per_second(self) -> float:
        return self.succeeded / self.duration_seconds if self.duration_seconds > 0 else 0.0

    @property
    def output_tokens_per_second(self) -> float:
        return self.output_tokens / self.duration_seconds if self.duration_seconds > 0 else 0.0


class Ledger:
    """Collects what clients see and makes the report. One entry per request, at its end."""

    def __init__(self) -> None:
        self.sent = self.cancelled = self.prompt_tokens = self.output_tokens = 0
        self.errors: dict[str, int] = {}
        self.ttft: list[float] = []
        self.itl: list[float] = []
        self.tpot: list[float] = []
        self.e2e: list[float] = []

    def success(self, sent: float, times: Sequence[float], end: float, prompt_tokens: int, output_tokens: int) -> None:
        """``times``: when each token (or streamed chunk of tokens) came."""
        self.prompt_tokens += prompt_tokens
        self.output_tokens += output_tokens
        self.e2e.append(end - sent)
        if times:
            self.ttft.append(times[0] - sent)
            self.itl.extend(b - a for a, b in itertools.pairwise(times))
            if output_tokens > 1:
                self.tpot.append((end - times[0]) / (output_tokens - 1))

    def failure(self, kind: str) -> None:
        """Counts a failed request under a short cause."""
        self.errors[kind] = self.errors.get(kind, 0) + 1

    def report(self, duration: float) -> LoadReport:
        """The totals so far, with ``duration`` seconds as the base of rates."""
        return LoadReport(
            duration, self.sent, len(self.e2e), sum(self.errors.values()), self.cancelled, dict(self.errors),
            self.prompt_tokens, self.output_tokens, Summary.of(self.ttft), Summary.of(self.itl),
            Summary.of(self.tpot), Summary.of(self.e2e),
        )  # fmt: skip
