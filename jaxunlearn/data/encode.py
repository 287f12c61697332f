"""Records to tokens and loss masks: tokenise once, then let character offsets say what carries loss.

The usual way, tokenising the prompt alone and masking that many tokens, is wrong wherever a token straddles the seam:
the prompt's tokens are then no prefix of the whole. Here the rendered text is tokenised once, as the model will see
it, and a token carries loss exactly when its characters overlap the completion. The end-of-sequence token carries
loss too, since stopping is part of the answer.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jaxunlearn.data.errors import DataError, Problem, raise_if_any
from jaxunlearn.data.records import Record
from jaxunlearn.data.render import Rendered, Template, render

Tokenizer = Any


class Encoded(NamedTuple):
    """One record as the model sees it.

    Attributes:
        tokens: token ids, int32, shape [T].
        loss_mask: 1 where the token carries loss, f32, shape [T]; 0 for the first token, which nothing precedes.
        offsets: the characters of `text` each token stands for, as [start, end), int32, shape [T, 2]; empty spans for
            the begin- and end-of-sequence tokens.
        text: the rendered text.
        record: where it came from.
    """

    tokens: Int[np.ndarray, " T"]
    loss_mask: Float[np.ndarray, " T"]
    offsets: Int[np.ndarray, "T 2"]
    text: str
    record: Record


def encode(
    records: Sequence[Record],
    tokenizer: Tokenizer,
    *,
    max_length: int,
    template: Template | None = None,
    truncate: bool = False,
) -> list[Encoded]:
    """Tokens and loss masks of `records`, all checked before anything is compiled.

    Args:
        records: what `read` or `from_rows` gave.
        tokenizer: a `transformers` tokenizer. With a slow one (no offsets) the prompt must be a token prefix.
        max_length: the longest sequence allowed, in tokens, special tokens included; at most the model's context.
        template: how questions and answers are written into one text; default `Template()`.
        truncate: cut longer sequences at `max_length` instead of refusing them.

    Raises:
        DataError: names every record that is too long, carries no loss, or cannot be rendered.

    Example:
        >>> from jaxunlearn.data.records import from_rows
        >>> from jaxunlearn.data.tokenizer import train_tokenizer
        >>> tokenizer = train_tokenizer(["Question: Who is it?\\nAnswer: Ada."])
        >>> [one] = encode(from_rows([{"question": "Who is it?", "answer": "Ada."}]), tokenizer, max_length=32)
        >>> tokenizer.decode(one.tokens[one.loss_mask == 1])
        ' Ada.</s>'
    """
    rendered, problems = [], []
    for record in records:
        try:
            rendered.append(render(record, tokenizer, template or Template()))
        except DataError as error:
            problems.append(Problem(record.where, str(error)))
    raise_if_any(problems, f"{len(problems)} of {len(records)} records cannot be written as text")
    encoded = []
    for record, text, (tokens, offsets) in zip(records, rendered, tokenise(rendered, tokenizer), strict=True):
        found = Encoded(tokens, _loss_mask(offsets, text), offsets, text.text, record)
        if truncate:
            found = found._replace(
                **{key: getattr(found, key)[:max_length] for key in ("tokens", "loss_mask", "offsets")}
            )
        encoded.append(found)
        if len(found.tokens) > max_length:
            what = f"{len(tokens)} tokens, but sequences hold at most {max_length}."
            remedy = "Shorten it, raise --max-length (up to the model's context), or pass --truncate."
            problems.append(Problem(record.where, f"{what} {remedy}"))
        elif not found.loss_mask.any():
            what = f"none of its {len(found.tokens)} tokens carries loss"
            remedy = "Raise --max-length: the answer was cut off." if truncate else "Give the completion some text."
            problems.append(Problem(record.where, f"{what}. {remedy}"))
    raise_if_any(problems, f"{len(problems)} of {len(records)} records cannot be encoded")
    return encoded


def tokenise(
    rendered: Sequence[Rendered], tokenizer: Tokenizer
) -> list[tuple[Int[np.ndarray, " T"], Int[np.ndarray, "T 2"]]]:
    """Token ids and character offsets of each text, with its begin and end tokens.

    A begin token is put in front if the tokenizer has one, an end token behind, neither twice; a chat template writes
    its own. Offsets are widened to leave no gaps: byte-level tokenizers trim white space from theirs, and a token of
    white space alone would otherwise stand for no character at all.
    """
    if not rendered:
        return []
    if tokenizer.is_fast:
        called = tokenizer(
            [one.text for one in rendered], add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        pairs = list(zip(called["input_ids"], called["offset_mapping"], strict=True))
    else:
        pairs = [_without_offsets(one, tokenizer) for one in rendered]
    return [_framed(one, ids, spans, tokenizer) for one, (ids, spans) in zip(rendered, pairs, strict=True)]


def _framed(one: Rendered, ids: list[int], spans: list, tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    tokens = np.asarray(ids, np.int32)
    offsets = np.asarray(spans, np.int32).reshape(-1, 2)
    ends = np.maximum.accumulate(offsets[:, 1])
    ends_before = np.concatenate([[0], ends])[:-1]
    offsets = np.stack([np.minimum(offsets[:, 0], ends_before), ends], axis=1)
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    if one.framed and begin is not None and not (len(tokens) and tokens[0] == begin):
        tokens, offsets = np.insert(tokens, 0, begin), np.insert(offsets, 0, [0, 0], axis=0)
    if one.framed and end is not None and not (len(tokens) > 1 and tokens[-1] == end):
        last = len(one.text)
        tokens, offsets = np.append(tokens, np.int32(end)), np.append(offsets, [[last, last]], axis=0)
    return tokens.astype(np.int32), offsets.astype(np.int32)


def _loss_mask(offsets: Int[np.ndarray, "T 2"], one: Rendered) -> Float[np.ndarray, " T"]:
    start, end = offsets[:, :1], offsets[:, 1:]
    spans = np.asarray(one.spans, np.int32).reshape(-1, 2)
    mask = np.any((start < spans[:, 1]) & (end > spans[:, 0]), axis=1)
    if one.framed and len(mask):
        mask[-1] |= offsets[-1, 0] == offsets[-1, 1]
    mask[:1] = False
    return mask.astype(np.float32)


def _without_offsets(one: Rendered, tokenizer: Tokenizer) -> tuple[list[int], list[tuple[int, int]]]:
    """Offsets as coarse as the loss needs: which side of each edge of a loss span a token lies on."""
    ids = tokenizer(one.text, add_special_tokens=False)["input_ids"]
    edges = sorted({edge for span in one.spans for edge in span} | {len(one.text)})
    offsets: list[tuple[int, int]] = []
    before = 0
    for edge in edges:
        part = ids if edge == len(one.text) else tokenizer(one.text[:edge], add_special_tokens=False)["input_ids"]
        if ids[: len(part)] != part:
            raise DataError(
                f"{one.where}: a token straddles the edge between prompt and completion, and this tokenizer gives no "
                f"offsets to tell. Load a fast tokenizer (a folder with tokenizer.json)."
            )
        offsets += [(before, edge)] * (len(part) - len(offsets))
        before = edge
    return ids, offsets
