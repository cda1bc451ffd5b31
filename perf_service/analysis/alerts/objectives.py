"""Objectives as multi-window multi-burn-rate alerts (Google SRE Workbook, ch. 5), straight from the histograms' buckets.

A share of requests slower than T exceeds x exactly where the (1 - x) quantile exceeds T. So the burn rate is asked as a quantile: that
needs no bucket bounds in the rule, works for every version's and the operator's own buckets, is exact where T is a bound and interpolates
elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass

from perf_service.analysis import thresholds as t
from perf_service.analysis.alerts import texts
from perf_service.analysis.alerts.promql import RANGE, Source
from perf_service.analysis.alerts.rules import Alert, PackOptions, Record, Urgency, objective_share
from perf_service.analysis.alerts.signals import Names, recorded, seconds
from perf_service.models.analysis import Verdict
from perf_service.models.metrics import Engine, Hist
from perf_service.models.slo import SLOTarget

_MISSES = {
    Hist.TTFT_SECONDS: "requests waited more than {bound} s for their first token",
    Hist.QUEUE_SECONDS: "requests waited more than {bound} s in the queue alone",
    Hist.ITL_SECONDS: "tokens came more than {bound} s after the one before",
    Hist.TPOT_SECONDS: "requests took more than {bound} s per token",
    Hist.E2E_SECONDS: "answers took more than {bound} s",
}


@dataclass(frozen=True, slots=True)
class _Burn:
    """One pair of windows. `ceiling` is the largest share of bad requests asked for, as a share of what is beyond the budget."""

    rate: float
    long: str
    short: str
    hold: str
    urgency: Urgency
    ceiling: float
    spent: str


_BURNS = (
    _Burn(t.BURN_CRITICAL.value, "1h", "5m", "2m", Urgency.CRITICAL, 0.75, "2 % of the month's error budget in one hour"),
    _Burn(t.BURN_HIGH.value, "6h", "30m", "15m", Urgency.WARNING, 0.5, "5 % of the month's error budget in six hours"),
)


def histogram_of(options: PackOptions, objective: SLOTarget) -> Hist:
    """Where an objective is read. TGI has no time to first token: its queue time alone is a lower bound of it."""
    hist = objective.histogram
    if options.engine is Engine.TGI and hist is Hist.TTFT_SECONDS:
        return Hist.QUEUE_SECONDS
    return hist or Hist.E2E_SECONDS


def bad_share(objective: SLOTarget, rate: float, ceiling: float) -> float:
    """Share of bad requests at which the budget burns `rate` times too fast; an objective whose budget cannot burn so fast (p90 and
    below at 14.4) is asked for a share between its budget and everything instead."""
    budget = 1.0 - objective_share(objective)
    return min(rate * budget, budget + ceiling * (1.0 - budget))


def records(options: PackOptions) -> tuple[Record, ...]:
    """Bucket rates of the service; long windows are means of these, so that they cost little."""
    source = Source(options)
    found = {}
    for objective in options.objectives:
        hist = histogram_of(options, objective)
        expr = source.buckets(hist, options.service_labels)
        if expr:
            found[recorded(f"{hist.value}_bucket", f"rate{RANGE}")] = expr
    return tuple(Record(name, expr) for name, expr in found.items())


def alerts(options: PackOptions) -> tuple[Alert, ...]:
    """Two alerts per objective: fast and slow burn."""
    return tuple(_burning(options, objective, burn) for objective in options.objectives for burn in _BURNS)


def _burning(options: PackOptions, objective: SLOTarget, burn: _Burn) -> Alert:
    base, bound = objective.base_metric, objective.target_value
    hist, share = histogram_of(options, objective), bad_share(objective, burn.rate, burn.ceiling)
    rates = Names(options)(f"{hist.value}_bucket", f"rate{RANGE}")
    labels = ", ".join(options.service_labels)

    def slower(window: str) -> str:
        summed = rates if window == RANGE else f"avg_over_time({rates}[{window}])"
        return f"histogram_quantile({1.0 - share:.4g}, {summed}) > {bound:g}"

    total = f'sum by ({labels}) (avg_over_time({rates[:-1]},le="+Inf"}}[{burn.short}]))'
    enough = f"{total} * {seconds(burn.short)} >= {t.REQUESTS_MIN.value:g}"
    missed = _MISSES[hist].format(bound=f"{bound:g}")
    quantile = f"p{100 * (1.0 - share):.3g}"
    may = f"{100 * (1.0 - objective_share(objective)):.3g} %"
    return Alert(
        f"LLM{base.upper()}BudgetBurn",
        f"{slower(burn.long)}\nand {slower(burn.short)}\nand on ({labels}) {enough}",
        burn.hold,
        burn.urgency,
        "slo_burn",
        Verdict.NOT_ENOUGH_EVIDENCE,
        f"{texts.service(options)}: more than {share:.0%} of the {missed} over the last {burn.long} and {burn.short}, where {may} may "
        f"({quantile} is {texts.SECONDS}); the cause alerts beside this one say why.",
        f"The objective `{objective}` is being missed fast enough to matter",
        "burn rate " + "; ".join(f"{b.rate:g} over {b.long} and {b.short} ({b.spent}): {b.urgency}" for b in _BURNS),
        "Look at the cause alerts of this service; without one, run `perf-service doctor` on a replica.",
        symptom=True,
    )
