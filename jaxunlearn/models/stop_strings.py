"""Stop strings as a table over tokens, so that a compiled loop ends a text without asking the host.

The automaton of Aho and Corasick ("Efficient string matching: an aid to bibliographic search", CACM 1975) reads a text
character by character. Its states are the beginnings of the strings; after a character it is in the longest of them
that the text ends with, and having seen a whole string it stays where it is. A token is a few characters, so that the
walk over each of them from each state is done once, beforehand, for every token:

    state = table[state, token],        found when state = len(table) - 1.

The characters of a token are what it adds to the text behind another one. Tokenizers whose tokens mean something else
in other company (a letter of several tokens, a space dropped at the beginning) may be read wrongly: `found` says what
the table finds, and whether the text holds a string only the decoded text says.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Int

NONE = np.zeros((1, 1), np.int32)  # the table of no strings


def stop_table(strings: Sequence[str], pieces: Sequence[str]) -> Int[np.ndarray, "S V"]:
    """The state behind each token from each state; the last state is that of a string found.

    Args:
        strings: what to look for, none of them empty.
        pieces: the characters of each token.

    Example:
        >>> stop_table(["ab"], ["a", "b", "ca", "xabx"]).tolist()
        [[1, 0, 1, 2], [1, 2, 1, 2], [2, 2, 2, 2]]
    """
    # Beginnings that hold a whole string are never reached: the string is found before.
    begun = {one[:n] for one in strings for n in range(len(one)) if not any(other in one[:n] for other in strings)}
    states = sorted(begun, key=lambda text: (len(text), text))
    number, found = {text: at for at, text in enumerate(states)}, len(states)
    letters = {letter: at for at, letter in enumerate(sorted(set("".join(strings))))}
    # One column for letters that no string has, which lead to the beginning, and one for none.
    step = np.zeros((found + 1, len(letters) + 2), np.int32)
    step[found], step[:, -1] = found, np.arange(found + 1)
    for at, text in enumerate(states):
        for letter, column in letters.items():
            read = text + letter
            ends = any(read.endswith(one) for one in strings)
            step[at, column] = (
                found if ends else next(number[read[n:]] for n in range(len(read) + 1) if read[n:] in number)
            )
    table = np.repeat(np.arange(found + 1, dtype=np.int32)[:, None], len(pieces), axis=1)
    for at in range(max(map(len, pieces), default=0)):
        columns = [letters.get(piece[at], len(letters)) if at < len(piece) else -1 for piece in pieces]
        table = step[table, np.asarray(columns)]
    return table


@lru_cache(maxsize=4)
def token_pieces(tokenizer: Any, vocabulary: int) -> tuple[str, ...]:
    """What each token adds to a text; nothing where that cannot be told."""
    anchor = next((one for one in range(vocabulary) if tokenizer.decode([one, one]) == 2 * tokenizer.decode([one])), 0)
    before = tokenizer.decode([anchor])
    texts = (tokenizer.decode([anchor, token]) for token in range(vocabulary))
    return tuple(text.removeprefix(before) if text.startswith(before) else "" for text in texts)


def found(table: Int[np.ndarray, "S V"], ids: Sequence[int]) -> bool:
    """Whether the table finds a string in a text.

    Example:
        >>> found(stop_table(["ab"], ["a", "b"]), [0, 0, 1, 0])
        True
    """
    state = 0
    for token in ids:
        state = int(table[state, token])
    return state == len(table) - 1


def before_stop(ids: list[int], strings: Sequence[str], tokenizer: Any) -> list[int]:
    """The tokens before the first of `strings`; all of them where there is none."""
    text = tokenizer.decode(ids)
    at = [one for one in map(text.find, strings) if one >= 0]
    if not at:
        return ids
    # Not by halving: a character of several tokens decodes to another text until it is whole.
    return next(ids[:n] for n in range(len(ids), -1, -1) if len(tokenizer.decode(ids[:n])) <= min(at))
