"""The two numbers of KnowUnDo (Tian et al. 2024, arXiv 2407.01920): was the right half forgotten, and only that?

KnowUnDo asks about one subject twice: what the law or a person's privacy wants gone (*unlearn*) and what may stay
(*retention*). Both are judged by the teacher-forced accuracy on the answers' tokens:

    unlearn success   = 100 - accuracy on unlearn, percent
    retention success = accuracy on retention, percent

with the perplexity of both beside them.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from jaxunlearn.evals.memorisation import exact_memorisation


def unlearn_success(hits: Sequence[Bool[np.ndarray, " n"]]) -> Float[np.ndarray, " N"]:
    """`100 (1 - accuracy)` of each answer, percent; higher is better.

    Example:
        >>> unlearn_success([np.array([True, False, False, False])]).tolist()
        [75.0]
    """
    return 100.0 - retention_success(hits)


def retention_success(hits: Sequence[Bool[np.ndarray, " n"]]) -> Float[np.ndarray, " N"]:
    """`100 accuracy` of each answer, percent; higher is better.

    Example:
        >>> retention_success([np.array([True, False, False, False])]).tolist()
        [25.0]
    """
    return 100.0 * exact_memorisation(hits)
