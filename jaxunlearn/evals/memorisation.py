"""How much of a text the model has by heart, from the teacher-forced arg-max hits of one scoring pass.

Exact memorisation counts the hits; extraction strength asks how short a prefix already brings out all the rest. Both
are 1 for a text known by heart. Neither is 0 for a model that never saw the text (grammar and names in the question
give some tokens away), so the number to reach is the retrained model's, not 0.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float


def exact_memorisation(hits: Sequence[Bool[np.ndarray, " n"]]) -> Float[np.ndarray, " N"]:
    """Share of loss tokens whose teacher-forced arg-max is right, per example, in [0, 1].

    One forward pass. Equals the memorisation accuracy of Jang et al. 2023 (arXiv 2210.01504), up to the first token.

    Example:
        >>> exact_memorisation([np.array([True, False, True, True])]).tolist()
        [0.75]
    """
    return np.array([np.mean(row) for row in hits], dtype=np.float64)


def extraction_strength(hits: Sequence[Bool[np.ndarray, " n"]]) -> Float[np.ndarray, " N"]:
    """`1 - k/n`, k the smallest offset from which every later arg-max is right, per example, in [0, 1].

    Greedy decoding from offset k then writes the rest of the answer word for word. Nothing right at the end gives
    k = n and 0; OpenUnlearning, whose smallest suffix is one token, gives 1/n there. Carlini et al. 2021
    (arXiv 2012.07805) started this line of measures.

    Example:
        >>> known_from_the_second, ends_wrong = np.array([False, True, True, True]), np.array([True, True, False])
        >>> extraction_strength([known_from_the_second, ends_wrong]).tolist()
        [0.75, 0.0]
    """
    return np.array([_strength(np.asarray(row, bool)) for row in hits], dtype=np.float64)


def _strength(hits: Bool[np.ndarray, " n"]) -> float:
    wrong = np.flatnonzero(~hits)
    offset = 0 if wrong.size == 0 else int(wrong[-1]) + 1
    return 1.0 - offset / len(hits)
