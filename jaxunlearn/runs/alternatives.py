"""Other answers for the methods that need some: written ones before any weight is read, sampled ones by the model.

What a method asks for stands in `Method.alternative` and, for refusals on the retain set, in `Method.needs`.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxunlearn import data, models
from jaxunlearn.data.alternatives import given, mismatched, refused
from jaxunlearn.methods import Method
from jaxunlearn.runs.inputs import Reader
from jaxunlearn.types import Model, Params

TEMPERATURES = (1.0, 1.5, 2.0, 3.0)


class Alternatives(NamedTuple):
    """Encoded records with other answers, in the order of the originals.

    Attributes:
        forget: one for each forget record; None where the method asks for none.
        retain: refusals, one for each retain record; None likewise.
    """

    forget: list[data.Encoded] | None = None
    retain: list[data.Encoded] | None = None


def written(
    method: Method, forget: Sequence[data.Record], retain: Sequence[data.Record], reads: Reader, seed: int
) -> Alternatives:
    """All that `method` needs and no model is asked for.

    An answer that comes from elsewhere is cut where it does not fit into the sequence; a record's own must fit.

    Raises:
        DataError: names the records that lack an alternative, or a prompt.
    """
    makers = {
        "given": lambda: given(forget),
        "refusal": lambda: refused(forget, seed=seed),
        "mismatched": lambda: mismatched(forget, seed=seed),
    }
    answers = makers[method.alternative]() if method.alternative in makers else None
    kept = refused(retain, seed=seed + 1) if "retain_alternative" in method.needs else None
    cutting = reads._replace(text=replace(reads.text, truncate=True))
    encode = reads.encode if method.alternative == "given" else cutting.encode
    return Alternatives(None if answers is None else encode(answers), None if kept is None else cutting.encode(kept))


def sampled(
    model: Model,
    params: Params,
    forget: Sequence[data.Encoded],
    tokenizer: Any,
    *,
    max_length: int,
    seed: int,
    batch_size: int = 16,
) -> list[data.Encoded]:
    """An answer of the model's own to each forget prompt, other than the true one.

    A model that has memorised repeats the true answer at temperature 1, so records for which it does are asked again
    at the higher `TEMPERATURES`; what the hottest one gives is taken as it is. An answer has at most one and a half
    times the tokens of the longest true one, and ends with the end token.
    """
    prompts = [one.tokens[: int(np.argmax(one.loss_mask > 0))].tolist() for one in forget]
    truths = [one.tokens[one.loss_mask > 0].tolist() for one in forget]
    end = tokenizer.eos_token_id
    stops = () if end is None else (end,)
    room = max_length - max(map(len, prompts)) - len(stops)
    most = max(1, min(room, max(len(truth) for truth in truths) * 3 // 2))
    answers: list[list[int]] = [[] for _ in forget]
    open_rows = list(range(len(forget)))
    for number, temperature in enumerate(TEMPERATURES):
        if not open_rows:
            break
        found = models.generate(
            model,
            params,
            [prompts[row] for row in open_rows],
            max_new_tokens=most,
            stop_ids=stops,
            temperature=temperature,
            key=jax.random.fold_in(jax.random.key(seed), number),
            batch_size=batch_size,
        )
        for row, tokens in zip(open_rows, found, strict=True):
            answers[row] = [*tokens, *stops]
        open_rows = [row for row in open_rows if answers[row] == truths[row]]
    return [_encoded(*parts, tokenizer) for parts in zip(forget, prompts, answers, strict=True)]


def plain(answers: Sequence[data.Encoded]) -> list[dict[str, Any]]:
    """Sampled answers as arrays, which `runs.kept` can write."""
    return [{"tokens": one.tokens, "loss_mask": one.loss_mask, "text": one.text} for one in answers]


def encoded(answers: Sequence[dict[str, Any]], forget: Sequence[data.Encoded]) -> list[data.Encoded]:
    """The answers that `plain` was given, beside their records."""
    return [
        data.Encoded(**answer, offsets=np.zeros((len(answer["tokens"]), 2), np.int32), record=one.record)
        for answer, one in zip(answers, forget, strict=True)
    ]


def _encoded(one: data.Encoded, prompt: list[int], answer: list[int], tokenizer: Any) -> data.Encoded:
    tokens = np.asarray([*prompt, *answer], np.int32)
    mask = (np.arange(len(tokens)) >= len(prompt)).astype(np.float32)
    return data.Encoded(tokens, mask, np.zeros((len(tokens), 2), np.int32), tokenizer.decode(tokens), one.record)
