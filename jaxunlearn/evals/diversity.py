r"""Is what the model writes still language? Distinct n-grams and repetition of generated text.

A model can score well on every forget metric by writing the same word for ever. With G_n the list of n-grams of a
text (of words, or of tokens),

    distinct_n = |set(G_n)| / |G_n|            Li et al. 2016 (arXiv 1510.03055)
    repetition_n = 1 - distinct_n              "seq-rep-n" of Welleck et al. 2020 (arXiv 1908.04319)

A text too short to hold an n-gram repeats nothing: its distinct_n is 1. So empty answers are counted beside them.
"""

from collections.abc import Hashable, Sequence

import numpy as np
from jaxtyping import Float


def ngrams(text: Sequence[Hashable], n: int) -> list[tuple[Hashable, ...]]:
    """All runs of n elements, in order, with repeats.

    Example:
        >>> ngrams("abab", 2)
        [('a', 'b'), ('b', 'a'), ('a', 'b')]
    """
    if n < 1:
        raise ValueError(f"n is {n}; an n-gram has at least one element")
    return [tuple(text[at : at + n]) for at in range(len(text) - n + 1)]


def distinct_n(texts: Sequence[Sequence[Hashable]], n: int) -> Float[np.ndarray, " N"]:
    """Distinct n-grams over n-grams, of each text, in (0, 1].

    Example:
        >>> distinct_n([["a", "b", "a", "b"], ["a"], []], 2).round(3).tolist()
        [0.667, 1.0, 1.0]
    """
    grams = [ngrams(text, n) for text in texts]
    return np.array([len(set(found)) / len(found) if found else 1.0 for found in grams], np.float64)


def repetition(texts: Sequence[Sequence[Hashable]], n: int = 4) -> Float[np.ndarray, " N"]:
    """Share of each text's n-grams that stood there before, in [0, 1): 0 for language, near 1 for a loop.

    Example:
        >>> repetition([["so"] * 10], 4).round(3).tolist()
        [0.857]
    """
    return 1.0 - distinct_n(texts, n)
