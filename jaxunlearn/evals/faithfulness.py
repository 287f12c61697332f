r"""Meta-evaluation: does a metric tell models that know a text from models that never saw it?

A metric of knowledge is *faithful* if it ranks every model that was trained on the text above every one that was not
(Dorna et al. 2025, OpenUnlearning, arXiv 2506.12618): its faithfulness is the AUC between the two pools,

    P( metric(knows) > metric(never knew) ) + 1/2 P( equal ),

1 for a perfect metric, 1/2 for one that says nothing, below 1/2 for one that points the wrong way.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from jaxunlearn.evals.privacy import Attack, attack


def faithfulness(
    knows: Sequence[float],
    never_knew: Sequence[float],
    *,
    knowing_is: Literal["higher", "lower"] = "higher",
    seed: int = 0,
) -> Attack:
    """AUC of a metric between models that know and models that never knew, with its bootstrap interval.

    Args:
        knows: the metric's value on each model that was trained on the text.
        never_knew: on each model that was not.
        knowing_is: whether knowing gives the metric higher values (exact memorisation) or lower ones (NLL).
        seed: of the interval.

    Errors:
        ValueError: an empty pool or values that are not finite.

    Example:
        >>> faithfulness([0.9, 0.8], [0.3, 0.8]).auc
        0.875
        >>> faithfulness([0.1, 0.2], [3.0, 2.0], knowing_is="lower").auc
        1.0
    """
    sign = 1.0 if knowing_is == "higher" else -1.0
    return attack(sign * np.asarray(knows, np.float64), sign * np.asarray(never_knew, np.float64), seed=seed)
