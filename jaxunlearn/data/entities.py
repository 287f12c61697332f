"""Whom or what a text is about, and the same text about somebody else.

Entities come from the record's own `entity` field, or are detected as capitalised spans of the prompt ("Basil Mahfouz
Al-Kuwaiti", "Kuwait City"); scripts without capitals need the field. Replacing covers every mention, in whole or in
part: the first name alone becomes the substitute's first name, the surname the substitute's.
"""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

_WORD = re.compile(r"[^\W\d_]\w*(?:[-'’.][^\W\d_]\w*)*")
_POSSESSIVE = re.compile(r"['’]s$")
_SENTENCE_END = re.compile(r"""(?:^|[.?!:\n]["'”’)]*\s+|\n)["'“‘(]*$""")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_LINKS = _words("de la van von der den bin ibn ben abu al el da di du del dos of the")
# Words that begin sentences without naming anything; a capital tells nothing there.
_OPENERS = _words(
    """what who whom whose which where when why how in on at of for from by with to is are was were do does did can
    could would will shall should has have had may might must the a an and or but if as it its this that these
    those there here his her their our your my he she they we you i describe name tell list explain discuss give
    identify provide mention state share write please let considering given based according regarding during
    despite apart besides within through throughout among since after before while although though not no yes any
    some all many most one also elaborate summarize summarise compare say complete answer about author question"""
)
_DATES = _words(
    """January February March April May June July August September October November December
    Monday Tuesday Wednesday Thursday Friday Saturday Sunday"""
)


class Mention(NamedTuple):
    """Characters [start, end) of a text that name words [first, last) of the entity number `entity`."""

    start: int
    end: int
    entity: int
    first: int
    last: int


def detect(text: str) -> list[str]:
    """Capitalised spans of `text`, in order and without repeats, none contained in another.

    Example:
        >>> detect("What gender is author Basil Mahfouz Al-Kuwaiti, born in Kuwait City?")
        ['Basil Mahfouz Al-Kuwaiti', 'Kuwait City']
        >>> detect("O'Brien's brother met Ana de la Cruz in May.")
        ["O'Brien", 'Ana de la Cruz']
    """
    spans = list(dict.fromkeys(_POSSESSIVE.sub("", " ".join(text[a:b].split())) for a, b in _capitalised_spans(text)))
    named = [span for span in spans if span not in _DATES and span.casefold() not in _OPENERS]
    named = [span for span in named if " " in span or not (span.isupper() and len(span) < 6)]
    return [span for span in named if not any(span != other and f" {span} " in f" {other} " for other in named)]


def mentions(text: str, entities: Sequence[str]) -> list[Mention]:
    """Every mention of the entities in `text`, whole or by some of their words, longest first, none overlapping.

    Example:
        >>> [text[m.start : m.end] for text in ["Lily's hat? Lily Ash wore it."] for m in mentions(text, ["Lily Ash"])]
        ['Lily', 'Lily Ash']
    """
    forms: dict[str, tuple[int, int, int]] = {}
    for number, entity in enumerate(entities):
        words = entity.split()
        for first in range(len(words)):
            for last in range(len(words), first, -1):
                if (first, last) == (0, len(words)) or _stands_alone(words[first:last]):
                    forms.setdefault(" ".join(words[first:last]), (number, first, last))
    ordered = sorted(forms, key=lambda form: (-len(form.split()), -len(form)))
    if not ordered:
        return []
    # Groups are named by their order, so that the match says which form it was.
    pattern = "|".join(f"(?P<f{index}>{_pattern(form)})" for index, form in enumerate(ordered))
    found = []
    for match in re.finditer(pattern, text):
        number, first, last = forms[ordered[int(match.lastgroup[1:])]]
        found.append(Mention(match.start(), match.end(), number, first, last))
    return found


def replacement(mention: Mention, entity: str, substitute: str) -> str:
    """What stands in for one mention: the corresponding words of `substitute`.

    Example:
        >>> replacement(Mention(0, 7, 0, 2, 3), "Basil Mahfouz Al-Kuwaiti", "Lorvek Ashwick")
        'Ashwick'
    """
    words, others = entity.split(), substitute.split()
    if (mention.first, mention.last) == (0, len(words)):
        return substitute
    if len(words) == len(others):
        return " ".join(others[mention.first : mention.last])
    return others[0] if mention.first == 0 else others[-1]


def _capitalised_spans(text: str) -> Iterator[tuple[int, int]]:
    start = end = None
    pending = None
    for word in _WORD.finditer(text):
        capital = word.group()[0].isupper()
        if start is not None:
            gap = text[pending : word.start()]
            # A one-letter word before the dot is an initial, and the name goes on.
            joined = gap.isspace() or (gap.strip() == "." and text[pending - 2 : pending - 1] in (" ", ".", ""))
            if joined and word.group() in _LINKS:
                pending = word.end()
                continue
            if joined and capital:
                end = pending = word.end()
                if _POSSESSIVE.search(word.group()):
                    yield start, end
                    start = None
                continue
            yield start, end
            start = None
        opens = _SENTENCE_END.search(text[: word.start()]) and word.group().casefold() in _OPENERS
        if capital and not opens:
            start, end, pending = word.start(), word.end(), word.end()
            if _POSSESSIVE.search(word.group()):
                yield start, end
                start = None
    if start is not None:
        yield start, end


def _stands_alone(words: Sequence[str]) -> bool:
    """A part of a name that names its bearer: begins and ends with a word that is neither a link nor an initial."""
    return all(
        len(word.rstrip(".")) > 1 and word not in _LINKS and word.casefold() not in _OPENERS and not word.islower()
        for word in (words[0], words[-1])
    )


def _pattern(form: str) -> str:
    body = r"\s+".join(re.sub("['’]", "['’]", re.escape(word)) for word in form.split())
    body = f"(?i:{body})" if " " in form else body
    before = r"(?<!\w)(?<!\w[-'’])" if _cased(form[0]) else ""
    return f"{before}{body}" + (r"(?!\w)" if _cased(form[-1]) else "")


def _cased(character: str) -> bool:
    """Scripts without case are written without spaces too often for word boundaries to mean anything."""
    return character.upper() != character.lower()
