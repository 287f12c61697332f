r"""Bootstrap intervals (Efron 1979): how far a number would move with another sample of examples.

The examples are drawn again with replacement R times, the statistic is taken of each draw, and the interval runs
between two quantiles of what came out (the percentile method). It speaks of the sampling of *examples* and of nothing
else: another seed of the model's training is not in it. Everything is seeded and on the host in float64.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

RESAMPLES = 1000
CONFIDENCE = 0.95
_AT_ONCE = 1 << 22

Interval = tuple[float, float]


def bootstrap(
    statistic: Callable[..., Float[np.ndarray, " R"]],
    *samples: Float[np.ndarray, "n ..."],
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Interval:
    """Percentile interval of a statistic of one or several samples, each resampled by itself.

    Args:
        statistic: takes the draws `[R, n_i, ...]` of each sample and returns one value a draw, `[R]`.
        samples: examples along the first axis; give what belongs together (values and weights) as columns of one.
        resamples: draws.
        confidence: share of the draws inside the interval.
        seed: of the draws.

    Returns:
        `(low, high)`; NaN without resamples, with an empty sample, or where the statistic is NaN.

    Example:
        >>> low, high = bootstrap(mean, np.arange(100.0))
        >>> 40 < low < 49.5 < high < 60
        True
        >>> bootstrap(mean, np.full(10, 3.0))
        (3.0, 3.0)
    """
    arrays = [np.asarray(sample, np.float64) for sample in samples]
    if resamples < 1 or any(len(array) == 0 for array in arrays):
        return float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    step = max(1, _AT_ONCE // max(1, sum(array.size for array in arrays)))
    drawn = []
    for start in range(0, resamples, step):
        count = min(step, resamples - start)
        drawn.append(statistic(*(array[rng.integers(0, len(array), (count, len(array)))] for array in arrays)))
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(drawn), [tail, 1 - tail])
    return float(low), float(high)


def mean(draws: Float[np.ndarray, "R n"]) -> Float[np.ndarray, " R"]:
    """Mean of each draw."""
    return draws.mean(axis=1)


def weighted_mean(draws: Float[np.ndarray, "R n 2"]) -> Float[np.ndarray, " R"]:
    """`sum w x / sum w` of each draw; the columns are x and w."""
    return np.sum(draws[..., 0] * draws[..., 1], axis=1) / np.sum(draws[..., 1], axis=1)
