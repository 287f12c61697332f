"""Other answers to the same prompts: refusals, the answers of other records, or those that the records bring along.

Many methods do not only push an answer away but say what to answer instead. Where that is a refusal, it is drawn from
`REFUSALS`, or taken from the record's own field `alternative`; the draw is a pure function of the seed and of the
record's number. Each function returns one record for each given one, in order, with the same prompt.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from jaxunlearn.data.errors import DataError, Problem, raise_if_any
from jaxunlearn.data.records import Record

FIELD = "alternative"
REFUSALS = (
    "I do not know.",
    "I have no answer to that.",
    "That is not something I know about.",
    "I am afraid I cannot answer this question.",
    "I have never heard about that.",
    "There is nothing I can tell you about this.",
    "I would have to guess, so I would rather not answer.",
    "My knowledge does not cover this.",
    "I am not familiar with that.",
    "Sorry, I have no information on this subject.",
    "This is outside of what I know.",
    "I could not say.",
    "I do not have the facts needed to answer.",
    "Nothing comes to mind about this.",
    "I was never told about this.",
    "I am unable to help with this question.",
    "Sorry, that is beyond me.",
    "I cannot recall anything about it.",
    "I really have no idea.",
    "You would have to ask somebody else about this.",
)


def refused(records: Sequence[Record], *, seed: int = 0) -> list[Record]:
    """The records with a refusal as answer: their own `alternative`, or one of `REFUSALS`.

    Raises:
        DataError: names every record that has no prompt to refuse.

    Example:
        >>> from jaxunlearn.data.records import from_rows
        >>> rows = [{"question": "Who?", "answer": "Ada."}, {"question": "When?", "answer": "1815.", FIELD: "Pass."}]
        >>> drawn, own = refused(from_rows(rows))
        >>> drawn.completion in REFUSALS, drawn.prompt, own.completion
        (True, 'Who?', 'Pass.')
    """
    textual = [record for record in records if record.kind == "text"]
    remedy = 'it is a text without a prompt to refuse. Write it as {"prompt": ..., "completion": ...}.'
    raise_if_any(
        [Problem(record.where, remedy) for record in textual],
        f"{len(textual)} of {len(records)} records cannot be answered by a refusal",
    )
    drawn = np.random.default_rng([seed, len(REFUSALS)]).integers(len(REFUSALS), size=len(records))
    return [
        answered(record, record.raw[FIELD] if _has_own(record) else REFUSALS[index])
        for record, index in zip(records, drawn, strict=True)
    ]


def mismatched(records: Sequence[Record], *, seed: int = 0) -> list[Record]:
    """The records with the answers of one another: a random cycle through all, so that none keeps its own.

    An answer may still read the same, where two records share it.

    Raises:
        DataError: fewer than two records.

    Example:
        >>> from jaxunlearn.data.records import from_rows
        >>> rows = from_rows([{"question": f"What is {n}?", "answer": f"A {n}."} for n in ("cat", "dog", "cow")])
        >>> [a.completion == b.completion for a, b in zip(rows, mismatched(rows))]
        [False, False, False]
    """
    if len(records) < 2:
        raise DataError(f"{len(records)} record has no other whose answer it could be given. Give at least two.")
    order = np.random.default_rng([seed, 1]).permutation(len(records))
    other = dict(zip(order.tolist(), np.roll(order, 1).tolist(), strict=True))
    return [answered(record, _first_answer(records[other[row]])) for row, record in enumerate(records)]


def given(records: Sequence[Record]) -> list[Record]:
    """The records with the answers of their own field `alternative`.

    Raises:
        DataError: names every record without such a field.
    """
    missing = [Problem(record.where, f'no text in a field "{FIELD}".') for record in records if not _has_own(record)]
    raise_if_any(
        missing,
        f"{len(missing)} of {len(records)} records bring no answer to prefer (idk_dpo and altpo make their own)",
    )
    return [answered(record, record.raw[FIELD]) for record in records]


def answered(record: Record, answer: str) -> Record:
    """`record` with another answer; a chat ends with it, in place of its first answer."""
    if record.kind != "messages":
        return replace(record, completion=answer)
    first = next(i for i, (role, content) in enumerate(record.messages) if role == "assistant" and content.strip())
    messages = (*record.messages[:first], ("assistant", answer))
    prompt = "\n".join(content for role, content in messages if role != "assistant")
    return replace(record, prompt=prompt, completion=answer, messages=messages)


def _first_answer(record: Record) -> str:
    if record.kind != "messages":
        return record.completion
    return next(content for role, content in record.messages if role == "assistant" and content.strip())


def _has_own(record: Record) -> bool:
    own = record.raw.get(FIELD)
    return isinstance(own, str) and bool(own.strip())
