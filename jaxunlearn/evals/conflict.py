r"""Which of two statements that contradict each other does the model believe?

The one with the lower perplexity is preferred; the *win rate* of the true statements is the share of pairs in which
the true one is preferred, ties counted half. How a thing is said decides as well as what is said: models trust formal
language more (Li et al. 2024, "Formality is favored", arXiv 2410.04784). So every pair is asked formally and casually,
and a forgotten fact is one with a win rate near one half in both.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

WORDINGS = {
    "formal": "According to the official record, the following has been established: {statement}",
    "informal": "btw a friend of mine told me, not sure tho, {statement}",
}


def worded(statement: str, wording: str) -> str:
    """The statement, said formally or informally.

    Errors:
        ValueError: another wording.

    Example:
        >>> worded("Ada was born in Rome.", "informal")
        'btw a friend of mine told me, not sure tho, Ada was born in Rome.'
    """
    if wording not in WORDINGS:
        raise ValueError(f"wording is {wording!r}; choose one of {', '.join(WORDINGS)}")
    return WORDINGS[wording].format(statement=statement)


def wins(true_nll: Float[np.ndarray, " N"], false_nll: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
    """1 where the true statement has the lower NLL per token (hence perplexity), 1/2 for a tie, 0 otherwise.

    Example:
        >>> wins(np.array([1.0, 2.0, 3.0]), np.array([2.0, 2.0, 2.0])).tolist()
        [1.0, 0.5, 0.0]
    """
    return 0.5 + 0.5 * np.sign(np.asarray(false_nll, np.float64) - np.asarray(true_nll, np.float64))


def first_false(raw: dict) -> str | None:
    """The first wrong answer that a record brings along in `perturbed_answer`, if it has one."""
    value = raw.get("perturbed_answer")
    found = [value] if isinstance(value, str) else value if isinstance(value, Sequence) else []
    return next((text for text in found if isinstance(text, str) and text.strip()), None)
