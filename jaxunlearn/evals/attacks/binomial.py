"""The exact interval of a share that was counted (Clopper and Pearson 1934): both ends are quantiles of a beta."""

import math


def clopper_pearson(k: float, m: int, confidence: float) -> tuple[float, float]:
    """Interval of a probability after k hits in m, at least as wide as asked for; half hits, from ties, widen it.

    Example:
        >>> [round(end, 4) for end in clopper_pearson(0, 20, 0.95)]
        [0.0, 0.1684]
    """
    from scipy.stats import beta

    tail = (1 - confidence) / 2
    low, high = math.floor(k), math.ceil(k)
    below = beta.ppf(tail, low, m - low + 1) if low > 0 else 0.0
    above = beta.ppf(1 - tail, high + 1, m - high) if high < m else 1.0
    return float(below), float(above)
