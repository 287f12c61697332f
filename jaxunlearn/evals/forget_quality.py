r"""Forget Quality: can a statistician tell the unlearned model from the retrained one?

The two-sample Kolmogorov-Smirnov test compares the distribution of the truth ratio over the forget questions under
both models: `D = sup_x |F_unlearned(x) - F_retrained(x)|`, and its p-value under "same distribution" is TOFU's Forget
Quality (Maini et al. 2024). Near 1: nothing to see; 1e-20: certainly different. The p-value depends on the number of
questions (TOFU scores 300, OpenUnlearning all 400), so D and n are part of the result, and `log10 p`, since two models
may well differ by more than a float can say. The exact null distribution counts lattice paths (Hodges 1958), which
scipy does in floating point as far as it reaches and `_log10_exact` does in integers beyond.
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from jaxunlearn.evals.bootstrap import bootstrap


class ForgetQuality(NamedTuple):
    """A Kolmogorov-Smirnov comparison.

    Attributes:
        p_value: probability of a distance this large if both came from one distribution.
        log10_p: its decimal logarithm, finite even where `p_value` underflows to 0.
        statistic: the KS distance D, 0 (same) to 1 (separated).
        interval: bootstrap interval of D (examples resampled; biased upwards, as D is a maximum).
        n: number of examples on each side.
    """

    p_value: float
    log10_p: float
    statistic: float
    interval: tuple[float, float]
    n: tuple[int, int]


def forget_quality(
    unlearned: Float[np.ndarray, " N"],
    retrained: Float[np.ndarray, " M"],
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> ForgetQuality:
    """Two-sample KS test between per-example truth ratios (or their logarithms: ranks are all that counts).

    Errors:
        ValueError: an empty side, or values that are not finite (a model that broke has no forget quality).

    Example:
        >>> low, high = np.arange(5.0), np.arange(5.0) + 100
        >>> quality = forget_quality(low, high)
        >>> quality.statistic, round(quality.p_value, 6)  # 2 / C(10, 5)
        (1.0, 0.007937)
    """
    from scipy.stats import ks_2samp

    x, y = np.asarray(unlearned, np.float64), np.asarray(retrained, np.float64)
    for name, values in (("unlearned", x), ("retrained", y)):
        if values.size == 0:
            raise ValueError(f"forget quality needs at least one truth ratio of the {name} model")
        if not np.all(np.isfinite(values)):
            raise ValueError(
                f"{np.sum(~np.isfinite(values))} of {values.size} truth ratios of the {name} model are not finite; "
                "its outputs overflow or are NaN, so no test applies"
            )
    test = ks_2samp(x, y)
    p, distance = float(test.pvalue), float(test.statistic)
    log10_p = math.log10(p) if p > 1e-290 else _log10_exact(x.size, y.size, distance)
    interval = bootstrap(_distances, x, y, resamples=resamples, confidence=confidence, seed=seed)
    return ForgetQuality(p, log10_p, distance, interval, (x.size, y.size))


def ks_statistic(x: Float[np.ndarray, " N"], y: Float[np.ndarray, " M"]) -> float:
    """`sup |F_x - F_y|`, ties included."""
    x, y = np.sort(x), np.sort(y)
    points = np.concatenate([x, y])
    return float(
        np.max(np.abs(np.searchsorted(x, points, "right") / x.size - np.searchsorted(y, points, "right") / y.size))
    )


def _distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.array([ks_statistic(one, other) for one, other in zip(x, y, strict=True)])


def _log10_exact(n: int, m: int, distance: float) -> float:
    """`log10 P(D >= distance)` in whole numbers: of all C(n+m, n) orders, those that stray this far at some point."""
    scale = math.lcm(n, m)
    limit = round(distance * scale)
    a, b = scale // n, scale // m
    inside = [1] + [0] * m
    for i in range(n + 1):
        for j in range(m + 1):
            if abs(i * a - j * b) >= limit:
                inside[j] = 0
            elif j > 0:
                inside[j] += inside[j - 1]
    every = math.comb(n + m, n)
    return math.log10(every - inside[m]) - math.log10(every)
