r"""Canaries: made-up secrets put into the training text, so that what a model learned by heart can be counted in bits.

A template such as "My code is {digits:6}" describes a space R of candidates, here all |R| = 10^6 ways to fill it. One
of them, drawn at random, is inserted into the training data; how likely the trained model finds it among all others is
its exposure (`evals.attacks.exposure`; Carlini et al. 2019, "The Secret Sharer", arXiv 1802.08232). Candidates are
numbered, so that a space too large to list can still be drawn from: candidate i has the digits of i in the mixed radix
of the template's places.

A canary is a record of plain text and carries loss everywhere, as in the paper: the fixed words cost the same in every
candidate and change no rank.
"""

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from jaxunlearn.data.errors import DataError, shorten
from jaxunlearn.data.records import Fields, Record, from_rows

ALPHABETS = {
    "digits": string.digits,
    "letters": string.ascii_lowercase,
    "hex": string.digits + "abcdef",
    "alphanumeric": string.ascii_lowercase + string.digits,
}
_HOLE = re.compile(r"\{([^{}]*)\}")
_LARGEST = 1 << 62
_HELP = "{digits:6}, {letters:4}, {hex:8}, {alphanumeric:5} or {choice:red|green|blue}"


@dataclass(frozen=True)
class CanaryTemplate:
    """A text with places to fill, and thereby the space R of all ways to fill them.

    Args:
        text: holes are `{digits:n}`, `{letters:n}`, `{hex:n}` and `{alphanumeric:n}`, n characters each drawn from that
            alphabet, and `{choice:a|b|c}`, one of the words listed.

    Raises:
        DataError: no hole, an unknown one, or a space of fewer than 2 or more than 2^62 candidates.

    Example:
        >>> template = CanaryTemplate("The {choice:red|green} code is {digits:2}.")
        >>> template.size, template.fill(0), template.fill(199)
        (200, 'The red code is 00.', 'The green code is 99.')
    """

    text: str

    def __post_init__(self) -> None:
        if not self._places:
            raise DataError(f"canary template {shorten(self.text)} has nothing to fill in. Give it a hole: {_HELP}.")
        if not 2 <= self.size <= _LARGEST:
            raise DataError(f"canary template {shorten(self.text)} has {self.size} candidates; 2 to 2^62 are possible.")

    @cached_property
    def _parts(self) -> list[tuple[str, ...]]:
        """The text cut up: a fixed piece is a tuple of one word, a place to fill one of all it may hold."""
        parts: list[tuple[str, ...]] = []
        end = 0
        for hole in _HOLE.finditer(self.text):
            parts.append((self.text[end : hole.start()],))
            parts += _choices(hole.group(1), self.text)
            end = hole.end()
        return [*parts, (self.text[end:],)]

    @property
    def _places(self) -> list[int]:
        return [len(part) for part in self._parts if len(part) > 1]

    @property
    def size(self) -> int:
        """|R|, the number of candidates."""
        size = 1
        for radix in self._places:
            size *= radix
        return size

    def fill(self, index: int) -> str:
        """Candidate number `index`, 0 to `size - 1`; the last place changes fastest."""
        if not 0 <= index < self.size:
            raise DataError(f"candidate {index} of {shorten(self.text)}: there are candidates 0 to {self.size - 1}.")
        words = []
        for part in reversed(self._parts):
            index, digit = divmod(index, len(part))
            words.append(part[digit])
        return "".join(reversed(words))

    def draw(self, count: int, random: np.random.Generator, *, avoid: Sequence[int] = ()) -> list[int]:
        """`count` different candidates, uniform over those not in `avoid`, or all of these if there are no more."""
        taken = set(avoid)
        if self.size - len(taken) <= 2 * count or self.size <= 1 << 16:
            left = np.array([index for index in range(self.size) if index not in taken], np.int64)
            return random.permutation(left)[:count].tolist()
        found: dict[int, None] = {}
        while len(found) < count:
            drawn = random.integers(0, self.size, count).tolist()
            found |= dict.fromkeys(index for index in drawn if index not in taken)
        return list(found)[:count]

    def records(self, indices: Sequence[int]) -> list[Record]:
        """Candidates as records of plain text, ready for `encode`."""
        return from_rows([{"text": self.fill(index)} for index in indices], name=f"canary {shorten(self.text)}")


def canary_row(text: str, fields: Fields) -> dict[str, Any]:
    """A row that holds `text` where a file read with `fields` is looked into.

    Raises:
        DataError: the file holds chats, which have no plain text.

    Example:
        >>> canary_row("My code is 7", Fields()), canary_row("My code is 7", Fields(prompt="q", completion="a"))
        ({'text': 'My code is 7'}, {'q': '', 'a': 'My code is 7'})
    """
    if fields.messages is not None:
        raise DataError("a canary is plain text and fits in no chat. Insert it into a file of plain records.")
    if fields.completion is not None and fields.prompt is not None:
        return {fields.prompt: "", fields.completion: text}
    return {fields.text or "text": text}


def _choices(hole: str, template: str) -> list[tuple[str, ...]]:
    kind, _, what = hole.partition(":")
    if kind == "choice" and len(words := what.split("|")) > 1 and len(set(words)) == len(words):
        return [tuple(words)]
    if kind in ALPHABETS and what.isdecimal() and int(what) > 0:
        return [tuple(ALPHABETS[kind])] * int(what)
    raise DataError(f"canary template {shorten(template)}: {{{hole}}} is no place to fill. Write {_HELP}.")
