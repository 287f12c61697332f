"""A question's other answers: the paraphrase of the right one and the perturbed, wrong ones.

TOFU's files carry them as `paraphrased_answer` (a string) and `perturbed_answer` (a list); they are asked after the
original question, through the same template. In its real-authors and world-facts files the plain answer stands in for
the paraphrase.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxunlearn.data import Encoded, Template, encode
from jaxunlearn.evals.score import Scores

_UNLIMITED = 2**31 - 1


class Variants(NamedTuple):
    """The variants of N questions, laid out one after another for a single scoring pass.

    Attributes:
        encoded: N paraphrases (none when the plain answers stand in), then all wrong answers, question by question.
        stand_in: True when the plain answers stand in for the paraphrases.
        counts: number of wrong answers of each question.
    """

    encoded: list[Encoded]
    stand_in: bool
    counts: list[int]


def variants(
    examples: Sequence[Encoded],
    tokenizer: Any,
    *,
    stand_in: bool = False,
    template: Template | None = None,
    max_length: int | None = None,
    truncate: bool = False,
) -> Variants | str:
    """The other answers of every example, or in words why there are none.

    Args:
        examples: encoded answers; their records' `raw` holds the variants.
        tokenizer: the tokenizer they were encoded with.
        stand_in: let the plain answer be the paraphrase where a record has none.
        template: the template they were encoded with.
        max_length: the model's context, tokens; longer variants are an error that names the record.
        truncate: cut longer variants instead.
    """
    records = [example.record for example in examples]
    whole = [r for r in records if getattr(r, "kind", None) not in ("question", "prompt")]
    if whole:
        return f"{len(whole)} of {len(records)} records are no questions with an answer"
    asked = ["perturbed_answer"] if stand_in else ["paraphrased_answer", "perturbed_answer"]
    for name in asked:
        lacking = [r for r in records if not _texts(r.raw.get(name))]
        if lacking:
            return f'{len(lacking)} of {len(records)} records have no "{name}" (first: {lacking[0].where})'
    right = [] if stand_in else [_with(r, "paraphrased_answer", r.raw["paraphrased_answer"]) for r in records]
    wrong = [[_with(r, "perturbed_answer", text) for text in _texts(r.raw["perturbed_answer"])] for r in records]
    flat = right + [record for row in wrong for record in row]
    encoded = encode(flat, tokenizer, max_length=max_length or _UNLIMITED, template=template, truncate=truncate)
    return Variants(encoded, stand_in, [len(row) for row in wrong])


def variant_nll(scores: Scores, laid_out: Variants, plain: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """`(paraphrase NLL [N], wrong NLL [N][K])`, nats per token, from the scores of `laid_out.encoded`."""
    nll = scores.nll
    start = 0 if laid_out.stand_in else len(laid_out.counts)
    right = plain if laid_out.stand_in else nll[:start]
    return right, np.split(nll[start:], np.cumsum(laid_out.counts)[:-1])


def _texts(value: Any) -> list[str]:
    found = [value] if isinstance(value, str) else list(value) if isinstance(value, Sequence) else []
    return [text for text in found if isinstance(text, str) and text.strip()]


def _with(record: Any, name: str, text: Any) -> Any:
    return dataclasses.replace(record, completion=_texts(text)[0], where=f"{record.where}, {name}")
