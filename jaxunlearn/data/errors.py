"""One clear error for bad data: which file, which line, which value, and what to do about it.

Bad records come in groups (a whole column with the wrong name, a page of blank answers), so everything wrong with a
file is gathered first and told in one message: the first five places, then a count of the rest.
"""

import difflib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

SHOWN = 5
_LONGEST_VALUE = 60


class DataError(ValueError):
    """Data that cannot be used; the message names file, line, value and remedy."""


class Problem(NamedTuple):
    """One thing wrong at one place: `where` ("line 3", "forget.jsonl, line 3") and `what`, remedy included."""

    where: str
    what: str


def raise_if_any(problems: Sequence[Problem], headline: str) -> None:
    """Raise one `DataError` telling all `problems`, the first five in full; do nothing when there are none.

    Example:
        >>> raise_if_any([], "a.jsonl: nothing wrong")
        >>> raise_if_any([Problem("line 2", "is blank. Remove it.")], "a.jsonl: 1 of 2 records cannot be used")
        Traceback (most recent call last):
        ...
        jaxunlearn.data.errors.DataError: a.jsonl: 1 of 2 records cannot be used:
          line 2: is blank. Remove it.
    """
    if not problems:
        return
    lines = [f"{headline}:"] + [f"  {problem.where}: {problem.what}" for problem in problems[:SHOWN]]
    if len(problems) > SHOWN:
        lines.append(f"  and {len(problems) - SHOWN} more.")
    raise DataError("\n".join(lines))


def shorten(value: object) -> str:
    """A value as it can stand in a message: its repr, cut after 60 characters."""
    text = repr(value)
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 3] + "..."


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The name most like `name`, or None when nothing is alike.

    Example:
        >>> nearest("forget1.json", ["retain.json", "forget01.json"])
        'forget01.json'
    """
    found = difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)
    return found[0] if found else None
