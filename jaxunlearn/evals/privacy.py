r"""Membership attacks: can an outsider tell from the model's outputs that a text was trained on?

Each attack gives every text one score. **Sign convention here, for all of them: a higher score says "member"**, hence
the names `membership_by_*`. Members are the forget set, non-members a holdout of the same kind that no model ever
saw; after perfect forgetting the AUC is that of the retrained model, near one half. An AUC *below* one half leaks as
much: text that was pushed down is as recognisable as text that was learned.

This file is the arithmetic, from what a model said to a score and from scores to rates. The passes over the model that
the costlier attacks need (gradients, perturbed texts, a prefix) are in `attacks`, and `attacks.membership` runs all.

An average hides the few texts that leak for sure, so true positive rates at 1% and .1% false positives go with the
AUC (Carlini et al. 2022, arXiv 2112.03570), and a seeded bootstrap interval.
"""

import zlib
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

Rows = Sequence[Float[np.ndarray, " n"]]


def membership_by_loss(log_probs: Rows) -> Float[np.ndarray, " N"]:
    """Minus the NLL per token (nats): the LOSS attack (Yeom et al. 2018). Higher says member.

    Example:
        >>> membership_by_loss([np.array([-1.0, -3.0])]).tolist()
        [-2.0]
    """
    return np.array([np.mean(row) for row in log_probs], dtype=np.float64)


def membership_by_min_k(log_probs: Rows, *, k: float = 0.4) -> Float[np.ndarray, " N"]:
    """Mean of the lowest share k of token log-probs, nats: Min-K% (Shi et al. 2024). Higher says member.

    Never fewer than one token, so answers of length 1 are scored by that token.

    Example:
        >>> membership_by_min_k([np.array([-1.0, -5.0, -3.0, -2.0, 0.0])], k=0.4).tolist()
        [-4.0]
    """
    _check_share(k)
    return np.array([_lowest(row, k) for row in log_probs], dtype=np.float64)


def membership_by_min_k_plus_plus(log_probs: Rows, means: Rows, stds: Rows, *, k: float = 0.4) -> np.ndarray:
    """Min-K% of token log-probs standardised by the vocabulary's moments: Min-K%++ (Zhang et al. 2024). Higher: member.

    `(log p(y) - mu) / sigma` with mu, sigma as in `score.py`. Where sigma is 0 all tokens allowed are equally likely,
    the true one says nothing, and its standardised value is 0.

    Example:
        >>> one = [np.array([-1.0])]
        >>> membership_by_min_k_plus_plus(one, [np.array([-3.0])], [np.array([2.0])]).tolist()
        [1.0]
    """
    _check_share(k)
    rows = [
        _lowest(np.divide(x - m, s, out=np.where(np.isnan(x - m), np.nan, np.zeros_like(x)), where=s != 0), k)
        for x, m, s in zip(log_probs, means, stds, strict=True)
    ]
    return np.array(rows, dtype=np.float64)


def membership_by_zlib(log_probs: Rows, texts: Sequence[str]) -> Float[np.ndarray, " N"]:
    """Minus the NLL per token over the bytes zlib needs (Carlini et al. 2021): dull text is discounted. Higher: member.

    Example:
        >>> dull, rich = "a a a a a a a a a a", "quartz jukebox vow"
        >>> bool(np.greater(*membership_by_zlib([np.array([-1.0])] * 2, [rich, dull])))
        True
    """
    pairs = zip(membership_by_loss(log_probs), texts, strict=True)
    return np.array([mean / len(zlib.compress(text.encode("utf-8"))) for mean, text in pairs], dtype=np.float64)


def membership_by_gradient_norm(norms: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
    """Minus the 2-norm of the gradient of a text's mean NLL: a text that was learned pulls no more. Higher says member.

    After Wang et al. 2024, "Pandora's white-box" (arXiv 2402.17012); the norms are `attacks.gradient_norm`'s.

    Example:
        >>> membership_by_gradient_norm(np.array([0.5, 2.0])).tolist()
        [-0.5, -2.0]
    """
    return -np.asarray(norms, np.float64)


def membership_by_reference(log_probs: Rows, reference_log_probs: Rows) -> Float[np.ndarray, " N"]:
    """NLL per token under a reference model minus that under this one (nats): easy text is discounted. Higher: member.

    The reference should be like the model but for the members (Carlini et al. 2021, arXiv 2012.07805).

    Example:
        >>> membership_by_reference([np.array([-1.0, -2.0])], [np.array([-3.0, -2.0])]).tolist()
        [1.0]
    """
    return membership_by_loss(log_probs) - membership_by_loss(reference_log_probs)


def membership_by_neighbourhood(log_probs: Rows, neighbour_nll: Float[np.ndarray, "N m"]) -> Float[np.ndarray, " N"]:
    """Mean NLL per token of a text's neighbours minus its own (nats): members lie in a dip. Higher says member.

    After Mattern et al. 2023 (arXiv 2305.18462); the neighbours are `attacks.neighbourhood`'s.

    Example:
        >>> membership_by_neighbourhood([np.array([-1.0, -1.0])], np.array([[2.0, 3.0]])).tolist()
        [1.5]
    """
    return np.mean(np.asarray(neighbour_nll, np.float64), axis=1) + membership_by_loss(log_probs)


def membership_by_recall(log_probs: Rows, conditional_log_probs: Rows) -> Float[np.ndarray, " N"]:
    """`LL(x | prefix) / LL(x)`, the prefix texts that are no members: ReCaLL (Xie et al. 2024, arXiv 2406.15968).

    Both are negative; a foreign prefix costs a member more, so a higher ratio says member. A text of probability 1 has
    no ratio: its likelihood is taken to be 1e-9 nats a token away from that.

    Example:
        >>> membership_by_recall([np.array([-1.0, -1.0])], [np.array([-2.0, -1.0])]).tolist()
        [1.5]
    """
    alone = np.minimum(membership_by_loss(log_probs), -1e-9)
    return membership_by_loss(conditional_log_probs) / alone


class Attack(NamedTuple):
    """How well one score tells members from non-members.

    Attributes:
        auc: chance that a random member scores above a random non-member, ties counted half.
        tpr_at_1pct: share of members found at a false positive rate of at most 1%.
        tpr_at_01pct: the same at .1%; below 1000 non-members that means no false positive at all.
        interval: bootstrap interval of the AUC.
        n: members and non-members.
    """

    auc: float
    tpr_at_1pct: float
    tpr_at_01pct: float
    interval: tuple[float, float]
    n: tuple[int, int]


def attack(
    members: Float[np.ndarray, " N"],
    non_members: Float[np.ndarray, " M"],
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Attack:
    """AUC, true positive rates and a seeded bootstrap interval for scores where higher says member.

    Errors:
        ValueError: an empty side or scores that are not finite.

    Example:
        >>> attack(np.array([2.0, 3.0]), np.array([0.0, 2.0])).auc
        0.875
    """
    from sklearn.metrics import roc_auc_score, roc_curve

    inside, outside = np.asarray(members, np.float64), np.asarray(non_members, np.float64)
    for name, values in (("members", inside), ("non-members", outside)):
        if values.size == 0:
            raise ValueError(f"an attack needs at least one text among the {name}")
        if not np.all(np.isfinite(values)):
            raise ValueError(f"{np.sum(~np.isfinite(values))} of {values.size} scores of the {name} are not finite")
    labels = np.concatenate([np.ones(inside.size), np.zeros(outside.size)])
    scores = np.concatenate([inside, outside])
    false_rate, true_rate, _ = roc_curve(labels, scores, drop_intermediate=False)
    found = [float(true_rate[false_rate <= limit].max()) for limit in (0.01, 0.001)]
    interval = _bootstrap_auc(inside, outside, resamples, confidence, seed)
    return Attack(float(roc_auc_score(labels, scores)), *found, interval, (inside.size, outside.size))


def auc_draws(
    inside: Float[np.ndarray, " N"],
    outside: Float[np.ndarray, " M"],
    resamples: int,
    rng: np.random.Generator,
    *,
    groups: Sequence[Sequence[Hashable]] | None = None,
) -> tuple[float, Float[np.ndarray, " R"]]:
    """The AUC, and the AUC of each of `resamples` bootstrap resamples of both sides.

    Args:
        inside, outside: scores.
        resamples: R.
        rng: draws them.
        groups: what each score of either side belongs to; groups are drawn whole. Default each score by itself.

    Example:
        >>> auc_draws(np.array([1.0, 2.0]), np.array([0.0]), 2, np.random.default_rng(0))
        (1.0, array([1., 1.]))
    """
    wins = np.sign(inside[:, None] - outside[None, :]) / 2 + 0.5
    # An AUC of a resample is a weighted mean of the same pairwise wins, so no ranking is done again.
    x, y = (_times_drawn(side, resamples, rng) for side in groups or (range(inside.size), range(outside.size)))
    draws = np.einsum("ri,ij,rj->r", x, wins, y, optimize=True) / (x.sum(axis=1) * y.sum(axis=1))
    return float(wins.mean()), draws


def _times_drawn(groups: Sequence[Hashable], resamples: int, rng: np.random.Generator) -> Int[np.ndarray, "R N"]:
    """How often each text is in each resample."""
    number = {name: index for index, name in enumerate(dict.fromkeys(groups))}
    drawn = rng.multinomial(len(number), np.full(len(number), 1 / len(number)), resamples)
    return drawn[:, [number[name] for name in groups]]


def _bootstrap_auc(
    inside: np.ndarray, outside: np.ndarray, resamples: int, confidence: float, seed: int
) -> tuple[float, float]:
    if resamples < 1:
        return float("nan"), float("nan")
    _, draws = auc_draws(inside, outside, resamples, np.random.default_rng(seed))
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return float(low), float(high)


def _lowest(values: np.ndarray, k: float) -> float:
    return float(np.mean(np.sort(values)[: max(1, int(k * len(values)))]))


def _check_share(k: float) -> None:
    if not 0 < k <= 1:
        raise ValueError(f"k is {k}; it is the share of tokens to keep, above 0 and at most 1")
