"""What a model is given to continue: the tokens before an answer, and texts made into prompts."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxunlearn.data import Encoded
from jaxunlearn.data.encode import tokenise
from jaxunlearn.data.render import Rendered


class Prompts(NamedTuple):
    """Prompts to continue greedily.

    Attributes:
        tokens: token ids of each prompt, at least one.
        new: most tokens to add to each.
        stop: whether the end-of-sequence token ends a continuation; else it is a token like any other.
    """

    tokens: list[list[int]]
    new: list[int]
    stop: bool = True


def before_answer(examples: Sequence[Encoded]) -> list[list[int]]:
    """The tokens before the first loss token of each example."""
    return [example.tokens[: int(np.flatnonzero(example.loss_mask)[0])].tolist() for example in examples]


def answer_prompts(
    sets: Mapping[str, Sequence[Encoded]], new: int, max_length: int | None = None
) -> dict[str, Prompts]:
    """The prompts of each set of examples, as far as all of a set have one; fewer new tokens where the context ends."""
    found = {}
    for name, examples in sets.items():
        prompts = before_answer(examples)
        if all(prompts):
            room = [new if max_length is None else min(new, max_length - len(prompt)) for prompt in prompts]
            found[name] = Prompts(prompts, room)
    return found


def as_prompts(texts: Sequence[str], tokenizer: Any, *, new: int, max_length: int, name: str) -> Prompts:
    """Texts as prompts, begun with the tokenizer's begin token, if it has one.

    Errors:
        ValueError: a prompt that leaves no room for `new` tokens in the model's context.
    """
    end, found = tokenizer.eos_token_id, []
    for number, (ids, _) in enumerate(tokenise([Rendered(text, ()) for text in texts], tokenizer), start=1):
        ids = ids.tolist()
        found.append(ids[:-1] if end is not None and len(ids) > 1 and ids[-1] == end else ids)
        if len(found[-1]) + new > max_length:
            raise ValueError(
                f"{name}, prompt {number}: {len(found[-1])} tokens and {new} new ones pass the model's context of "
                f"{max_length}; evaluate a model with a longer context, or shorten the prompts"
            )
    return Prompts(found, [new] * len(found))


def decoded(written: Sequence[Sequence[int]], tokenizer: Any) -> list[str]:
    """What was written, as text without special tokens and without space around it."""
    return [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in written]


def without_end(one: Encoded) -> Encoded:
    """The example without its end-of-sequence token, which says that a text is over, not which it is.

    It would weigh most on the shortest texts. A text that consists of nothing else keeps it.
    """
    if one.offsets[-1, 0] < one.offsets[-1, 1] or np.count_nonzero(one.loss_mask) < 2:
        return one
    return one._replace(tokens=one.tokens[:-1], loss_mask=one.loss_mask[:-1], offsets=one.offsets[:-1])
