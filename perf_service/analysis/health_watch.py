"""When a change of health is worth telling: hysteresis, so that noise around a threshold never flaps.

The status leaves its band only when the score lies more than `margin` points outside of it for `confirmations` looks in a row, and
then goes as far as all of these looks agree. The score, the verdict, the first cause and the worst alert of an error budget are told
anew when they stay changed for as long. Losing the load or the data is told at once: nothing that cannot be judged may go on being
called healthy. Coming back takes confirmation again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from perf_service.analysis.health import DEGRADED_FROM, HEALTHY_FROM, status_of
from perf_service.models.analysis import Analysis, BudgetState, Cause, HealthStatus, Verdict

DEFAULT_MARGIN: Final = 5.0
"""Points of the score; two samples of one steady load differ by less."""
DEFAULT_CONFIRMATIONS: Final = 3

_BANDS: Final = {
    HealthStatus.UNHEALTHY: (0.0, DEGRADED_FROM),
    HealthStatus.DEGRADED: (DEGRADED_FROM, HEALTHY_FROM),
    HealthStatus.HEALTHY: (HEALTHY_FROM, 100.0),
}
_ORDER: Final = tuple(_BANDS)
_ALERTS: Final = (BudgetState.FAST_BURN, BudgetState.SLOW_BURN, BudgetState.EXHAUSTED)


@dataclass(frozen=True, slots=True)
class Look:
    """What one analysis says of the health."""

    score: float | None
    status: HealthStatus
    verdict: Verdict
    cause: Cause | None = None
    alert: BudgetState | None = None  # the worst that an error budget gives cause to

    @property
    def said(self) -> tuple[Verdict, Cause | None, BudgetState | None]:
        """What is told in words, beside the score."""
        return self.verdict, self.cause, self.alert

    @classmethod
    def of(cls, analysis: Analysis) -> Look:
        """The look that an analysis gives."""
        root = analysis.root_cause
        states = [s.budget.state for s in analysis.slo_statuses if s.budget is not None and s.budget.state in _ALERTS]
        alert = max(states, key=lambda state: state.rank, default=None)
        return cls(analysis.overall_health_score, analysis.health_status, analysis.verdict, root.cause if root else None, alert)


class HealthWatch:
    """Feeds on looks and says which are worth telling. The first one always is."""

    def __init__(self, *, margin: float = DEFAULT_MARGIN, confirmations: int = DEFAULT_CONFIRMATIONS) -> None:
        self._margin = margin
        self._needed = max(1, confirmations)
        self._told: Look | None = None
        self._status = HealthStatus.UNKNOWN
        self._outside: list[HealthStatus] = []  # where the looks in a row would go that lie outside of the present band
        self._moved: list[float] = []  # their scores' distances from what was told
        self._other: list[object] = []

    @property
    def status(self) -> HealthStatus:
        """The confirmed status."""
        return self._status

    def feed(self, look: Look) -> bool:
        """Take a look in; whether it is to be told."""
        if self._told is None:
            return self._tell(look, look.status)
        if look.score is None:
            # A loss of load or data, told at once; afterwards only if it becomes the other of the two.
            changed = look.status is not self._status
            self._forget()
            return self._tell(look, look.status) if changed else False
        status = self._settled(look.score)
        moved = self._has_moved(look.score)
        other = self._is_other(look.said)
        if status is not self._status or moved or other:
            return self._tell(look, status)
        return False

    def _settled(self, score: float) -> HealthStatus:
        """The status after this look: the present one until enough looks in a row agree to leave it."""
        aim = status_of(score)
        if self._status in _BANDS:
            low, high = _BANDS[self._status]
            if low - self._margin <= score < high + self._margin or aim is self._status:
                self._outside.clear()
                return self._status
            if self._outside and (_rank(aim) > _rank(self._status)) is not (_rank(self._outside[-1]) > _rank(self._status)):
                self._outside.clear()  # out at the other end
        self._outside.append(aim)
        if len(self._outside) < self._needed:
            return self._status
        recent = self._outside[-self._needed :]
        here = _rank(self._status) if self._status in _BANDS else -1
        # The least of the way that all agree on; from no score at all, the worst that was seen.
        return min(recent, key=_rank) if here < 0 or _rank(recent[-1]) > here else max(recent, key=_rank)

    def _has_moved(self, score: float) -> bool:
        told = self._told.score if self._told is not None else None
        if told is None:
            return False  # coming back is the status' matter
        distance = score - told
        if abs(distance) < self._margin or (self._moved and (distance > 0) is not (self._moved[-1] > 0)):
            self._moved.clear()
        if abs(distance) >= self._margin:
            self._moved.append(distance)
        return len(self._moved) >= self._needed

    def _is_other(self, now: object) -> bool:
        told = self._told.said if self._told is not None else None
        if now == told or self._status not in _BANDS:
            self._other.clear()
            return False
        if self._other and self._other[-1] != now:
            self._other.clear()
        self._other.append(now)
        return len(self._other) >= self._needed

    def _tell(self, look: Look, status: HealthStatus) -> bool:
        self._told, self._status = look, status
        self._forget()
        return True

    def _forget(self) -> None:
        self._outside.clear()
        self._moved.clear()
        self._other.clear()


def _rank(status: HealthStatus) -> int:
    return _ORDER.index(status) if status in _BANDS else -1
