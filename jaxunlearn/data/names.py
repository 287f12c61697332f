"""Names of people who do not exist: for the built-in corpus, and as substitutes in counterfactual prompts.

A name is a first and a last name, each put together from a stem and an ending: 140 of either kind, so that every
person of the corpus can have both to themselves and enough are left that nobody in the data carries.
"""

import re
from collections.abc import Iterable

import numpy as np

from jaxunlearn.data.errors import DataError


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_FIRST_STEMS = _words("Bel Cor Dar Eli Fen Gal Hol Iri Jor Kel Lor Mar Nor Tam")
_FIRST_ENDINGS = _words("an wen ric dis mir nah vek sy tho lia")
_LAST_STEMS = _words("Ash Brack Cold Dun Elm Fair Grim Hart Kings Lang Marsh Oak Pen Thorn")
_LAST_ENDINGS = _words("wick mere holt stead brook combe field grave lock worth")

FIRST_NAMES = tuple(stem + ending for stem in _FIRST_STEMS for ending in _FIRST_ENDINGS)
LAST_NAMES = tuple(stem + ending for stem in _LAST_STEMS for ending in _LAST_ENDINGS)


def substitutes(k: int, seed: int = 0, avoid: Iterable[str] = ()) -> list[str]:
    """`k` distinct names of which neither part occurs as a word in the texts of `avoid`.

    Args:
        k: how many.
        seed: fixes the choice.
        avoid: texts of the forget and retain sets.

    Raises:
        DataError: the texts leave fewer than `k` names.

    Example:
        >>> names = substitutes(3, seed=1, avoid=["Belan Ashwick was here."])
        >>> len(set(names)), any("Belan" in name for name in names)
        (3, False)
    """
    taken = {word.casefold() for text in avoid for word in re.findall(r"\w+", text)}
    random = np.random.default_rng(seed)
    first = [str(name) for name in random.permutation(FIRST_NAMES) if name.casefold() not in taken]
    last = [str(name) for name in random.permutation(LAST_NAMES) if name.casefold() not in taken]
    if k > len(first) * len(last):
        raise DataError(
            f"{k} substitute names asked for, but the texts leave only {len(first) * len(last)} unseen ones. Ask for "
            f"fewer, or supply replacements by hand."
        )
    return [f"{first[i % len(first)]} {last[(i % len(first) + i // len(first)) % len(last)]}" for i in range(k)]
