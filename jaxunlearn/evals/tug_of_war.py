r"""Tug of war: one number for forgetting and keeping pulling at the same model.

Zhao et al. 2024 ("What makes unlearning hard and what to do about it", arXiv 2406.01257) multiply how close the
unlearned model u comes to the retrained model r on each set,

    ToW = prod_S (1 - d_S(u, r)),      S = forget, retain (and test),

d between 0 and 1: 1 only if u is close to r everywhere, and no gain on one set hides a loss on another. They take the
difference of accuracies for d; in output space it is the total variation, or `1 - exp(-KL)`, which bounds it from above
up to a square root (Bretagnolle and Huber 1979: `TV <= sqrt(1 - exp(-KL))`) and makes the product `exp(-sum KL)`.
"""

import math
from collections.abc import Sequence


def tug_of_war(distances: Sequence[float]) -> float:
    """`prod (1 - d)` of distances in [0, 1]: total variations, or absolute differences of accuracies.

    Errors:
        ValueError: no distance, or one outside [0, 1].

    Example:
        >>> tug_of_war([0.5, 0.2])
        0.4
    """
    if not distances or not all(0 <= d <= 1 for d in distances):
        raise ValueError(f"tug of war takes at least one distance in [0, 1], not {list(distances)}")
    return math.prod(1.0 - d for d in distances)


def tug_of_war_kl(divergences: Sequence[float]) -> float:
    """`exp(-sum KL)`, from mean KL divergences in nats.

    Errors:
        ValueError: no divergence, or a negative one.

    Example:
        >>> round(tug_of_war_kl([math.log(2), math.log(5)]), 12)
        0.1
    """
    if not divergences or not all(kl >= 0 for kl in divergences):
        raise ValueError(f"tug of war takes at least one divergence of at least 0, not {list(divergences)}")
    return math.exp(-sum(divergences))
