r"""Multiple choice: which of the answers offered does the model find likeliest?

The schema of MMLU (Hendrycks et al. 2021) and WMDP (Li et al. 2024, arXiv 2403.03218): a question, its choices, the
index of the right one, and the task it belongs to. Each choice is scored as the answer to the question,

    s_c = 1/|c| sum_t log p(c_t | question, c_<t),       picked = arg max_c s_c,

normalised by its number of tokens so that short choices have no advantage; the lowest index wins a tie. Models that
were trained on it can be asked for the letter instead: the choices are then part of the question.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jaxunlearn.data import DataError, Encoded, Record, Template, encode
from jaxunlearn.evals.prompts import without_end

Style = Literal["answers", "letters"]
_UNLIMITED = 2**31 - 1
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class Choices(NamedTuple):
    """Questions with their choices, encoded one after another for a single scoring pass.

    Attributes:
        encoded: all choices, question by question.
        counts: number of choices of each question.
        answers: index of the right choice of each.
        tasks: what each belongs to.
        cut: how many questions lost their beginning because they pass the model's context.
    """

    encoded: list[Encoded]
    counts: list[int]
    answers: list[int]
    tasks: list[str]
    cut: int = 0


def choices(
    rows: Sequence[Mapping[str, Any]],
    tokenizer: Any,
    *,
    style: Style = "answers",
    template: Template | None = None,
    max_length: int,
    truncate: bool = False,
) -> Choices:
    """Encodes questions of the schema `question, choices, answer` and, if it is there, `task` or `subject`.

    Args:
        rows: checked rows (`data.layouts` reads them).
        tokenizer: the model's.
        style: score the choices themselves, or the letters that stand before them in the question.
        template: how questions and answers are written.
        max_length: the model's context, tokens.
        truncate: cut the beginning of longer questions, by as much as the longest choice asks for and for all choices
            alike, instead of refusing them.

    Errors:
        DataError: questions that do not fit; with `truncate`, choices that do not fit by themselves.
    """
    records = [
        Record("question", _asked(row, style), text, file="choices", line=number, where=f"question {number}")
        for number, row in enumerate(rows, start=1)
        for text in (row["choices"] if style == "answers" else LETTERS[: len(row["choices"])])
    ]
    limit = _UNLIMITED if truncate else max_length
    encoded = [without_end(one) for one in encode(records, tokenizer, max_length=limit, template=template)]
    counts = [len(row["choices"]) for row in rows]
    questions = [encoded[end - count : end] for count, end in zip(counts, np.cumsum(counts), strict=True)]
    excess = [max(len(one.tokens) for one in question) - max_length for question in questions]
    fitting = [_later(question, over, tokenizer) for question, over in zip(questions, excess, strict=True)]
    return Choices(
        [one for question in fitting for one in question],
        counts,
        [int(row["answer"]) for row in rows],
        [str(row.get("task") or row.get("subject") or "all") for row in rows],
        sum(over > 0 for over in excess),
    )


def pick(nll: Float[np.ndarray, " M"], counts: Sequence[int]) -> Int[np.ndarray, " N"]:
    """Index of the likeliest choice of each question, from the choices' NLL per token, laid out one after another.

    A question with a score that is not a number gets -1, which is never right.

    Example:
        >>> pick(np.array([2.0, 1.0, 3.0, 3.0]), [2, 2]).tolist()  # a tie goes to the first
        [1, 0]
    """
    rows = np.split(np.asarray(nll, np.float64), np.cumsum(counts)[:-1])
    return np.array([int(np.argmin(row)) if np.isfinite(row).all() else -1 for row in rows])


def choice_probability(
    nll: Float[np.ndarray, " M"], counts: Sequence[int], answers: Sequence[int]
) -> Float[np.ndarray, " N"]:
    """Share of the right choice: `exp(s_right) / sum_c exp(s_c)`.

    Example:
        >>> choice_probability(np.log([1.0, 0.5]) * -1, [2], [0]).round(4).tolist()
        [0.6667]
    """
    rows = np.split(np.asarray(nll, np.float64), np.cumsum(counts)[:-1])
    return np.array([1.0 / np.sum(np.exp(row[right] - row)) for row, right in zip(rows, answers, strict=True)])


def by_task(values: Float[np.ndarray, " N"], tasks: Sequence[str]) -> dict[str, dict[str, float | None]]:
    """Mean and number of questions of each task, by name; no mean where a value is not finite.

    Example:
        >>> by_task(np.array([1.0, 0.0, 1.0]), ["law", "law", "art"])
        {'art': {'mean': 1.0, 'n': 1}, 'law': {'mean': 0.5, 'n': 2}}
    """
    names = np.asarray(tasks)
    found = {name: values[names == name] for name in sorted(set(tasks))}
    means = {name: float(np.mean(part)) if np.isfinite(part).all() else None for name, part in found.items()}
    return {name: {"mean": means[name], "n": len(part)} for name, part in found.items()}


def _later(question: Sequence[Encoded], over: int, tokenizer: Any) -> Sequence[Encoded]:
    """The choices of a question without its first `over` tokens, those after a begin token."""
    if over <= 0:
        return question
    first = int(question[0].tokens[0] == tokenizer.bos_token_id)
    if any(np.flatnonzero(one.loss_mask)[0] <= first + over for one in question):
        where = question[0].record.where
        raise DataError(
            f"{where}: a choice does not fit in the model's context even by itself. Leave the question out."
        )
    kept = [np.r_[0:first, first + over : len(one.tokens)] for one in question]
    return [
        one._replace(tokens=one.tokens[at], loss_mask=one.loss_mask[at], offsets=one.offsets[at])
        for one, at in zip(question, kept, strict=True)
    ]


def _asked(row: Mapping[str, Any], style: Style) -> str:
    if style == "answers":
        return row["question"]
    listed = "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, row["choices"], strict=False))
    return f"{row['question']}\n{listed}"
