"""Sequential evidence: e-values that may be looked at after every sample without raising the false-alarm rate.

An e-process is a running product that starts at 1 and, as long as the null hypothesis holds, is not expected to grow; by Ville's
inequality it then ever reaches 1/alpha with a probability of at most alpha, however often one looks (Ramdas, Gruenwald, Vovk and
Shafer, "Game-theoretic statistics and safe anytime-valid inference", 2023). Fixed-horizon tests peeked at do not have that property.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

CLIP_LOG_RATIO = 0.7
"""Log ratios beyond a factor of two count as a factor of two: one wild sample must not decide."""
_MAX_STAKE = 0.9
_PRIOR_SAMPLES = 1.0
_PRIOR_MEAN = 0.15
_PRIOR_VARIANCE = 0.10


def worse_e_value(log_ratios: Iterable[float], *, margin_ratio: float) -> float:
    """The largest e-value ever reached against "not worse by more than `margin_ratio`".

    `log_ratios` are log(canary / baseline) of consecutive samples, lower being better. Null hypothesis: given the past, the expected
    log ratio (clipped) is at most log(1 + margin_ratio); where both groups are alike it is 0 by symmetry. Bets on bounded means:
    Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting", 2024; stakes follow the past only.
    """
    margin = math.log1p(margin_ratio)
    low, high = -CLIP_LOG_RATIO - margin, CLIP_LOG_RATIO
    scale = max(-low, high)
    wealth, best = 1.0, 1.0
    count, total, squares = _PRIOR_SAMPLES, _PRIOR_MEAN * _PRIOR_SAMPLES, (_PRIOR_VARIANCE + _PRIOR_MEAN**2) * _PRIOR_SAMPLES
    for ratio in log_ratios:
        y = (max(-CLIP_LOG_RATIO, min(CLIP_LOG_RATIO, ratio)) - margin) / scale
        mean = total / count
        variance = max(0.01, squares / count - mean * mean)
        stake = max(0.0, min(_MAX_STAKE, mean / (variance + mean * mean)))
        wealth *= 1.0 + stake * y
        best = max(best, wealth)
        count, total, squares = count + 1.0, total + y, squares + y * y
    return best


def more_errors_e_value(
    canary: Sequence[tuple[float, float]], baseline: Sequence[tuple[float, float]], *, margin: float = 0.01, floor: float = 0.0
) -> float:
    """The largest e-value ever reached against "the canary's error ratio exceeds the baseline's by no more than `margin`".

    Each entry is (errors, requests) of one sample. The baseline's ratio is estimated from its own requests so far, shrunk upward by
    one error (so that few requests do not look error-free), and never below `floor`, the ratio before the rollout. Against it a
    likelihood ratio bets on 3 points more than the margin.
    """
    log_wealth, best = 0.0, 0.0
    errors_before, requests_before = 0.0, 0.0
    for index, (errors, requests) in enumerate(canary):
        if index < len(baseline):
            errors_before += baseline[index][0]
            requests_before += baseline[index][1]
        known = (errors_before + 1.0) / (requests_before + 2.0) if requests_before >= 50 else 0.0
        null = min(0.95, max(known, floor, errors_before / requests_before if requests_before else 0.0) + margin)
        bet = min(0.99, null + 0.03)
        wrong = min(errors, requests)
        log_wealth += wrong * math.log(bet / null) + (requests - wrong) * math.log((1.0 - bet) / (1.0 - null))
        best = max(best, log_wealth)
    return math.exp(min(best, 500.0))


def pooled_ratio(log_ratios: Sequence[float]) -> float | None:
    """Typical ratio over the samples: the exponential of the mean log ratio. None without samples."""
    return math.exp(math.fsum(log_ratios) / len(log_ratios)) if log_ratios else None
