r"""Exposure: how many bits of an inserted secret the model gives away (Carlini et al. 2019, arXiv 1802.08232).

Order all candidates r of a space R by their log-perplexity under the model, `sum_t -log p(r_t | r_<t)` in nats:

    exposure(s) = log2 |R| - log2 rank(s),      rank(s) = 1 + #{r : nll(r) < nll(s)} + #{r != s : nll(r) = nll(s)} / 2.

A secret the model would guess first has log2 |R| bits, one it ranks in the middle 1 bit. A secret that was never seen
has a uniform rank, so its exposure is 1/ln 2 = 1.44 on average and 1 in the median: that is where forgetting ends.

Three ways to a rank, named in the result:

* `exact`: all other candidates are scored.
* `sampled`: m of them, drawn uniformly. With k of m below s, `-log2((k + 1) / (m + 1))`, equal to the exact value when
  all are drawn, and never above log2(m + 1): a sample cannot see further. Interval: Clopper and Pearson's for k of m.
* `skew_normal`: the paper's extrapolation. A skew-normal density is fitted by maximum likelihood to the sampled
  log-perplexities, and `-log2 P(nll <= nll(s))`, at most log2 |R|, is read from its tail. Interval: bootstrap over the
  sample. How well the density fits is given as the p-value of a Kolmogorov-Smirnov test (optimistic, since the
  parameters were fitted to the same sample); it says little about the tail, where the value comes from.

    exposure(model, params, canary, candidates, space=|R|, method="exact") -> Exposure
    exposures_from_nll(canary_nll [C], candidate_nll [m], space=|R|, method=...) -> list[Exposure]
"""

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from jaxunlearn.data import Encoded
from jaxunlearn.evals.attacks.binomial import clopper_pearson
from jaxunlearn.evals.score import score
from jaxunlearn.types import Model, Params

Method = Literal["exact", "sampled", "skew_normal"]


class Exposure(NamedTuple):
    """Exposure of one canary.

    Attributes:
        bits: the exposure; `log2 space` for a secret that the model would guess first.
        interval: at the confidence asked for; a point where the rank is exact.
        method: "exact", "sampled" or "skew_normal".
        nll: log-perplexity of the canary, nats.
        rank: among `space` candidates, 1 the likeliest; estimated unless exact.
        space: |R|.
        candidates: how many others were scored.
        fit_p_value: Kolmogorov-Smirnov p-value of the skew-normal fit, where there is one.
    """

    bits: float
    interval: tuple[float, float]
    method: Method
    nll: float
    rank: float
    space: int
    candidates: int
    fit_p_value: float | None = None


def exposure(
    model: Model,
    params: Params,
    canary: Encoded,
    candidates: Sequence[Encoded],
    *,
    space: int | None = None,
    method: Method | None = None,
    confidence: float = 0.95,
    seed: int = 0,
    **options: Any,
) -> Exposure:
    """Exposure of one canary among other candidates of its template.

    Args:
        model, params: the model asked.
        canary: the secret, encoded as the model was trained on it.
        candidates: other candidates, the canary not among them: all of them, or a uniform sample.
        space: |R|; default all that is given, `len(candidates) + 1`.
        method: default "exact" when all candidates are given, "skew_normal" otherwise.
        confidence, seed: of the interval.
        options: `batch_size`, `mesh`, `progress` of `score`.

    Errors:
        ValueError: no candidates, a `space` they do not fit in, "exact" with fewer than all, a model whose output is
            not finite.

    Example:
        >>> import jax.numpy as jnp
        >>> bigram = Model(logits=lambda params, tokens: params[tokens])
        >>> codes = [Encoded(np.array([0, i], np.int32), np.array([0.0, 1.0]), None, "", None) for i in range(4)]
        >>> likes_three = jnp.zeros((4, 4)).at[0, 3].set(2.0)
        >>> exposure(bigram, likes_three, codes[3], codes[:3]).bits
        2.0
    """
    nll = sequence_nll(model, params, [canary, *candidates], **options)
    return exposures_from_nll(nll[:1], nll[1:], space=space, method=method, confidence=confidence, seed=seed)[0]


def sequence_nll(model: Model, params: Params, encoded: Sequence[Encoded], **options: Any) -> Float[np.ndarray, " N"]:
    """Log-perplexity of each text: the *sum* of its tokens' NLL, nats."""
    return np.array([-np.sum(row) for row in score(model, params, encoded, **options).log_probs])


def exposures_from_nll(
    canary_nll: Float[np.ndarray, " C"],
    candidate_nll: Float[np.ndarray, " m"],
    *,
    space: int | None = None,
    method: Method | None = None,
    confidence: float = 0.95,
    resamples: int = 100,
    seed: int = 0,
) -> list[Exposure]:
    """Exposure of several canaries of one template, from log-perplexities that are known.

    Example:
        >>> [one.bits for one in exposures_from_nll(np.array([0.5, 9.0]), np.arange(1.0, 8.0))]
        [3.0, 0.0]
    """
    canaries, others = np.asarray(canary_nll, np.float64), np.asarray(candidate_nll, np.float64)
    m = others.size
    space = m + 1 if space is None else space
    method = method or ("exact" if space == m + 1 else "skew_normal")
    if m < 1 or space < m + 1:
        raise ValueError(f"{m} candidates in a space of {space}: give at least one besides the canary, at most all")
    if method == "exact" and space != m + 1:
        raise ValueError(f"an exact rank needs all {space - 1} other candidates; {m} were given: sample instead")
    if not (np.all(np.isfinite(canaries)) and np.all(np.isfinite(others))):
        raise ValueError("some log-perplexities are not finite: the model's outputs overflow or are NaN")
    if method == "skew_normal":
        return _extrapolated(canaries, others, space, confidence, resamples, seed)
    return [_counted(value, others, space, method, confidence) for value in canaries]


def _counted(value: float, others: np.ndarray, space: int, method: Method, confidence: float) -> Exposure:
    m = others.size
    below = float(np.sum(others < value) + np.sum(others == value) / 2)
    bits = math.log2(m + 1) - math.log2(below + 1)
    interval = (bits, bits)
    if space > m + 1:
        low, high = clopper_pearson(below, m, confidence)
        interval = tuple(math.log2(space) - math.log2(1 + share * (space - 1)) for share in (high, low))
    return Exposure(bits, interval, method, float(value), space * 2.0**-bits, space, m)


def _extrapolated(
    canaries: np.ndarray, others: np.ndarray, space: int, confidence: float, resamples: int, seed: int
) -> list[Exposure]:
    from scipy.stats import kstest, skewnorm

    if np.ptp(others) == 0:
        raise ValueError(
            f"all {others.size} sampled candidates have the same log-perplexity, so no density fits: the model does "
            "not tell them apart; use method 'sampled'"
        )
    shape = skewnorm.fit(others)
    fit = float(kstest(others, skewnorm(*shape).cdf).pvalue)
    rng = np.random.default_rng(seed)
    draws = [_tail_bits(canaries, skewnorm.fit(rng.choice(others, others.size)), space) for _ in range(resamples)]
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws, [tail, 1 - tail], axis=0)
    columns = zip(canaries.tolist(), _tail_bits(canaries, shape, space).tolist(), low, high, strict=True)
    return [
        Exposure(bits, (float(a), float(b)), "skew_normal", value, space * 2.0**-bits, space, others.size, fit)
        for value, bits, a, b in columns
    ]


def _tail_bits(values: np.ndarray, shape: tuple[float, ...], space: int) -> np.ndarray:
    from scipy.stats import skewnorm

    # No rank is better than 1, however thin the fitted tail.
    return np.minimum(-skewnorm.logcdf(values, *shape) / math.log(2), math.log2(space))
