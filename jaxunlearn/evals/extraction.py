r"""Extraction by greedy decoding: how much of a text comes out once its beginning is put in.

*Extraction likelihood* (Jang et al. 2023, arXiv 2210.01504) continues every prefix of a text x of T tokens greedily to
the length of the text and asks which n-grams of the truth turn up:

    EL_n(x) = 1/(T - n) sum_{i=1}^{T-1} overlap_n( greedy(x_<=i), x_>i )
    overlap_n(a, b) = #{ n-grams of a, with multiplicity, that occur in b } / #{ n-grams of b },   0 if b has none.

T - 1 prefixes do not need T - 1 generations. The scoring pass knows whether the arg-max after a prefix is the true
next token; where it is, the greedy continuation of x_<=i is that token followed by the continuation of x_<=i+1,
exactly. So only prefixes after which the model errs are continued (`erring`), and the rest is put together
(`continuations`): a text known by heart costs nothing at all.

By the same argument a text is *k-extractable* (Carlini et al. 2023, arXiv 2202.07646: the k tokens after a k-token
prefix come out word for word) exactly when those k teacher-forced arg-maxes are right.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool

from jaxunlearn.evals.diversity import ngrams


def overlap(continuation: Sequence[int], suffix: Sequence[int], n: int) -> float:
    """`overlap_n` above, in [0, 1] for a continuation no longer than the suffix.

    Example:
        >>> overlap([1, 2, 1, 2], [1, 2, 3, 4], 2)  # (1, 2) twice, of three n-grams
        0.6666666666666666
        >>> overlap([1], [1], 2)
        0.0
    """
    true = ngrams(suffix, n)
    known = set(true)
    return sum(gram in known for gram in ngrams(continuation, n)) / len(true) if true else 0.0


def erring(hits: Bool[np.ndarray, " T"]) -> list[int]:
    """Lengths i >= 1 of the prefixes after which the arg-max is not the true token: those to be continued.

    Example:
        >>> erring(np.array([False, True, False, True]))
        [2]
    """
    return [int(i) for i in np.flatnonzero(~np.asarray(hits, bool)) if i >= 1]


def continuations(
    truth: Sequence[int], hits: Bool[np.ndarray, " T"], written: Mapping[int, Sequence[int]]
) -> list[list[int]]:
    """The greedy continuation of each prefix, to the end of the text; entry i belongs to the prefix of i + 1 tokens.

    Args:
        truth: the T tokens.
        hits: whether the arg-max before token t is token t, T of them.
        written: by length of the prefix, what the model wrote after each of `erring(hits)`, at least T - i tokens
            (fewer where it stopped).

    Example:
        >>> continuations([7, 8, 9], np.array([True, True, False]), {2: [5]})
        [[8, 5], [5]]
    """
    T = len(truth)
    found: list[list[int]] = [[]]
    for i in range(T - 1, 0, -1):
        found.append([int(truth[i]), *found[-1]] if hits[i] else [int(token) for token in written[i]][: T - i])
    return found[:0:-1]


def extraction_likelihood(truth: Sequence[int], continued: Sequence[Sequence[int]], n: int = 10) -> float:
    """EL_n of one text from the continuation of every prefix (`continuations`); NaN for texts of at most n tokens.

    Example:
        >>> extraction_likelihood([1, 2, 3, 4], [[2, 3, 4], [3, 4], [4]], n=2)
        1.0
        >>> extraction_likelihood([1], [], n=2)
        nan
    """
    T = len(truth)
    if n >= T:
        return float("nan")
    return sum(overlap(text, truth[i:], n) for i, text in enumerate(continued, start=1)) / (T - n)


def k_extractable(hits: Sequence[Bool[np.ndarray, " T"]], *, prefix: int = 50, k: int = 50) -> np.ndarray:
    """1 where the k tokens after a prefix of `prefix` tokens come out greedily, 0 where not, NaN in shorter texts.

    Args:
        hits: for each text, whether the arg-max before token t is token t; only tokens from `prefix` on are read.
        prefix, k: lengths in tokens.

    Example:
        >>> k_extractable([np.array([0, 0, 1, 1]), np.array([1, 1, 1, 0]), np.array([1])], prefix=2, k=2).tolist()
        [1.0, 0.0, nan]
    """
    spans = [np.asarray(row, bool)[prefix : prefix + k] for row in hits]
    return np.array([float(span.all()) if len(span) == k else np.nan for span in spans])
