r"""Perplexity: how many equally likely tokens the model hesitates between.

    PPL = exp( sum_t NLL_t / sum_t 1 )

over the loss tokens of a set, so examples count by their length; of one example, over its own tokens. A model that
was damaged by unlearning shows it here first, on text that was to be kept.
"""

import numpy as np
from jaxtyping import Float

from jaxunlearn.evals.bootstrap import Interval, bootstrap, weighted_mean


def perplexity(nll: Float[np.ndarray, " N"], tokens: Float[np.ndarray, " N"] | None = None) -> float:
    """Perplexity of a set from the mean NLL (nats per token) of its examples and their numbers of tokens.

    Example:
        >>> round(perplexity(np.log([2.0, 8.0]), np.array([3, 1])), 6)  # (2^3 8)^(1/4)
        2.828427
    """
    nll = np.asarray(nll, np.float64)
    with np.errstate(over="ignore"):  # a model that broke has an infinite perplexity, which is reported as such
        return float(np.exp(np.average(nll, weights=tokens)))


def example_perplexity(nll: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
    """Perplexity of each example by itself, from its mean NLL in nats per token.

    Example:
        >>> example_perplexity(np.log([2.0, 8.0])).round(6).tolist()
        [2.0, 8.0]
    """
    with np.errstate(over="ignore"):
        return np.exp(np.asarray(nll, np.float64))


def perplexity_interval(nll: np.ndarray, tokens: np.ndarray, *, seed: int = 0) -> Interval:
    """Bootstrap interval of `perplexity`, over examples."""

    def statistic(draws: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):
            return np.exp(weighted_mean(draws))

    return bootstrap(statistic, np.stack([nll, np.asarray(tokens, np.float64)], axis=1), seed=seed)
