"""Counterfactual prompts: what a model says when the same question is asked about people it has never heard of.

After Liu et al. 2024 ("Revisiting Who's Harry Potter: Towards Targeted Unlearning from a Causal Intervention
Perspective"): the entity of a forget record is replaced by K unseen names, in prompt and completion. The original
model's answers to these, averaged, estimate what a model that never saw the entity would say, and are what the forget
records are matched to. For that, each token of the original must know its counterpart in every replaced sequence:
a token outside the names corresponds to the token that stands for the same characters of the unreplaced text. The
tokens of a name correspond one by one to those of its substitute where there are as many, else only the first ones do;
whoever reads an answer off such a place must swap the two tokens back (`objectives.reference.counterfactual_top` does).
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jaxunlearn.data.batches import shapes_of
from jaxunlearn.data.encode import Encoded, Tokenizer, tokenise
from jaxunlearn.data.entities import Mention, detect, mentions, replacement
from jaxunlearn.data.errors import SHOWN, DataError
from jaxunlearn.data.names import substitutes
from jaxunlearn.data.records import Record
from jaxunlearn.data.render import Rendered


class Counterfactuals(NamedTuple):
    """K replaced sequences for each of B records.

    Attributes:
        tokens: right-padded token ids, int32, shape [B, K, T'].
        places: for each loss token of the original, in the order of `TokenBatch.positions`, the index of its
            counterpart, 0 where there is none; int32, shape [B, K, P]. Outside names both tokens are the same.
        covered: share of a record's loss tokens with a counterpart under at least one substitute, f32, shape [B];
            0 where no entity stands in the prompt.
    """

    tokens: Int[np.ndarray, "B K T"]
    places: Int[np.ndarray, "B K P"]
    covered: Float[np.ndarray, " B"]


def counterfactuals(
    encoded: Sequence[Encoded],
    tokenizer: Tokenizer,
    *,
    k: int = 32,
    seed: int = 0,
    names: Mapping[str, Sequence[str]] | None = None,
    avoid: Iterable[str] = (),
    places: int | None = None,
    max_length: int | None = None,
    pad_id: int = 0,
) -> Counterfactuals:
    """Replace the entities of each record by `k` unseen names and align the tokens.

    Args:
        encoded: the forget records.
        tokenizer: the one they were encoded with; it must give offsets.
        k: substitutes a record.
        seed: fixes the substitutes.
        names: replacements by entity, where generated names will not do (a place, a company); taken in turn.
        avoid: the texts of the retain set, whose words no substitute may have; the forget texts are avoided anyway.
        places: P, as given to `collate`; default that of `shapes_of(encoded)`.
        max_length: cut the replaced sequences, which may be longer than the originals, at the model's context.
        pad_id: fills the tokens.

    Raises:
        DataError: a slow tokenizer, `k` below 1, an empty list of replacements, or no unseen names left.

    Example:
        >>> from jaxunlearn.data.encode import encode
        >>> from jaxunlearn.data.records import from_rows
        >>> from jaxunlearn.data.tokenizer import train_tokenizer
        >>> rows = from_rows([{"question": "Where is Ada Byron?", "answer": "Ada is here."}])
        >>> tokenizer = train_tokenizer(["Question: Where is Ada Byron?\\nAnswer: Ada is here. Holan Ashwick"])
        >>> found = counterfactuals(encode(rows, tokenizer, max_length=64), tokenizer, k=2)
        >>> found.covered.tolist()  # " Ada" stands where the substitute's name does
        [1.0]
    """
    if not tokenizer.is_fast:
        raise DataError("counterfactual prompts need a tokenizer with offsets. Load a fast one (with tokenizer.json).")
    if k < 1:
        raise DataError(f"k={k} substitutes asked for. Give at least 1.")
    for entity, given in (names or {}).items():
        if isinstance(given, str) or not given or not all(isinstance(name, str) and name.strip() for name in given):
            raise DataError(f"replacements of {entity!r} are {given!r}. Give a list with at least one name.")
    entities = [entities_of(one.record, names or {}) for one in encoded]
    most = max(map(len, entities), default=0)
    unseen = substitutes(k * most, seed, [*(one.text for one in encoded), *avoid])
    replaced, aligned = [], []
    for one, found in zip(encoded, entities, strict=True):
        marks = mentions(one.text, found)
        texts = []
        for index in range(k):
            chosen = [_substitute(entity, j, index, k, unseen, names or {}) for j, entity in enumerate(found)]
            texts.append(_replaced(one, marks, [replacement(m, found[m.entity], chosen[m.entity]) for m in marks]))
        pairs = tokenise([text for text, _ in texts], tokenizer)
        pairs = [(tokens[:max_length], offsets[:max_length]) for tokens, offsets in pairs]
        replaced.append([tokens for tokens, _ in pairs])
        shifts = [lengths for _, lengths in texts]
        aligned.append([_align(one, marks, s, *pair) if marks else [] for s, pair in zip(shifts, pairs, strict=True)])
    return _packed(encoded, replaced, aligned, k, places, pad_id)


def corrupted(found: Counterfactuals, tokenizer: Tokenizer, *, rate: float, seed: int = 0) -> Counterfactuals:
    """The replaced sequences with a share of their tokens drawn anew from all of them.

    A record learned by heart goes on by itself once it has begun, whoever it is about. Where some of the words so far
    are others, in every substitute others, it does not, and the mean over substitutes is what the language alone says.

    Args:
        found: counterfactual prompts.
        tokenizer: its special tokens stay, and so does padding.
        rate: share of the other tokens, 0 to 1; 0.2 sufficed on TOFU's records.
        seed: fixes which, and what stands there instead.

    Example:
        >>> from types import SimpleNamespace
        >>> tokens = np.arange(12).reshape(1, 2, 6)
        >>> prompts = Counterfactuals(tokens, np.zeros((1, 2, 1), np.int32), np.ones(1))
        >>> got = corrupted(prompts, SimpleNamespace(all_special_ids=[1]), rate=1.0).tokens
        >>> got[0, 0, :2].tolist(), set(got.ravel().tolist()) <= set(range(12))
        ([0, 1], True)
    """
    if not 0 <= rate <= 1:
        raise DataError(f"rate={rate} of the tokens. Give a number from 0 to 1.")
    random = np.random.default_rng([seed, 7])
    free = ~np.isin(found.tokens, [0, *tokenizer.all_special_ids])
    hit = free & (random.random(found.tokens.shape) < rate)
    tokens = found.tokens.copy()
    tokens[hit] = random.choice(found.tokens[free], int(hit.sum()))
    return found._replace(tokens=tokens)


def entities_of(record: Record, names: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """The entities to replace; empty when nothing in the prompt tells whom the record is about.

    The record's own, and the keys of `names`, as far as they are mentioned; where none stands in the prompt (for a
    `{text}` record: in the text), what is detected there besides.
    """
    prompt = record.completion if record.kind == "text" else record.prompt
    known = [
        name for name in dict.fromkeys([*record.entity, *names]) if mentions(f"{prompt}\n{record.completion}", [name])
    ]
    if any(mentions(prompt, [name]) for name in known):
        return tuple(known)
    detected = detect(prompt)
    return (*known, *(name for name in detected if name not in known)) if detected else ()


def uncovered_message(encoded: Sequence[Encoded], found: Counterfactuals) -> str:
    """What to tell the user about records without any counterfactual target; empty when all have some.

    Example:
        >>> uncovered_message([], Counterfactuals(np.zeros((0, 1, 16)), np.zeros((0, 1, 8)), np.zeros(0)))
        ''
    """
    places = [one.record.where for one, share in zip(encoded, found.covered, strict=True) if share == 0]
    if not places:
        return ""
    more = f" and {len(places) - SHOWN} more" if len(places) > SHOWN else ""
    return (
        f"{len(places)} of {len(encoded)} forget records name nobody in the prompt whose name could be replaced, so "
        f'they have no answer to match: {"; ".join(places[:SHOWN])}{more}. Add to each an "entity" field with the name '
        f"as the prompt writes it."
    )


def _substitute(
    entity: str, number: int, index: int, k: int, unseen: Sequence[str], names: Mapping[str, Sequence[str]]
) -> str:
    if entity in names:
        return names[entity][index % len(names[entity])]
    name = unseen[number * k + index]
    return name if len(entity.split()) > 1 else name.split()[-1]


def _replaced(one: Encoded, marks: Sequence[Mention], names: Sequence[str]) -> tuple[Rendered, list[int]]:
    """The replaced text, and how much longer each mention became."""
    pieces, at = [], 0
    for mark, name in zip(marks, names, strict=True):
        pieces += [one.text[at : mark.start], name]
        at = mark.end
    text = "".join([*pieces, one.text[at:]])
    grown = [len(name) - (mark.end - mark.start) for mark, name in zip(marks, names, strict=True)]
    return Rendered(text, (), one.record.kind != "messages", one.record.where), grown


def _align(
    one: Encoded, marks: Sequence[Mention], grown: Sequence[int], tokens: np.ndarray, offsets: np.ndarray
) -> list[int]:
    """The counterpart of each loss token of `one` in the replaced sequence, 0 for none."""
    starts, ends = np.array([mark.start for mark in marks]), np.array([mark.end for mark in marks])
    counterpart = {key: (index, int(tokens[index])) for index, key in enumerate(_keys(offsets))}
    # A token behind a mention stands as much further on as the mentions before it grew.
    shift = np.concatenate([[0], np.cumsum(grown)])[np.searchsorted(ends, one.offsets[:, 0], side="right")]
    keys = _keys(one.offsets + shift[:, None])
    loss = np.flatnonzero(one.loss_mask)
    inside = np.any((one.offsets[loss, :1] < ends) & (one.offsets[loss, 1:] > starts), axis=1)
    named = _align_names(one, marks, grown, offsets)
    places = []
    for index, hidden in zip(loss.tolist(), inside.tolist(), strict=True):
        place, token = counterpart.get(keys[index], (0, -1))
        places.append(named.get(index, 0) if hidden else place if token == one.tokens[index] else 0)
    return places


def _align_names(one: Encoded, marks: Sequence[Mention], grown: Sequence[int], offsets: np.ndarray) -> dict[int, int]:
    """The counterparts of the tokens of names: in order where original and substitute have as many, else the first."""
    found: dict[int, int] = {}
    before = 0
    for mark, growth in zip(marks, grown, strict=True):
        ours = _overlapping(one.offsets, mark.start, mark.end)
        theirs = _overlapping(offsets, mark.start + before, mark.end + before + growth)
        before += growth
        known = min(len(ours), len(theirs)) if len(ours) == len(theirs) else min(1, len(ours), len(theirs))
        found |= dict(zip(ours[:known], theirs[:known], strict=True))
    return found


def _overlapping(offsets: np.ndarray, start: int, end: int) -> list[int]:
    return np.flatnonzero((offsets[:, 0] < end) & (offsets[:, 1] > start)).tolist()


def _keys(offsets: np.ndarray) -> list[tuple[int, int, int]]:
    """Characters of each token, with a running number where several tokens share one character (its bytes)."""
    keys: list[tuple[int, int, int]] = []
    for start, end in offsets.tolist():
        again = keys[-1][2] + 1 if keys and keys[-1][:2] == (start, end) else 0
        keys.append((start, end, again))
    return keys


def _packed(
    encoded: Sequence[Encoded],
    replaced: list[list[np.ndarray]],
    aligned: list[list[list[int]]],
    k: int,
    places: int | None,
    pad_id: int,
) -> Counterfactuals:
    longest = max((len(tokens) for group in replaced for tokens in group), default=1)
    width = places or shapes_of(encoded)[1]
    tokens = np.full((len(encoded), k, -(-longest // 16) * 16), pad_id, np.int32)
    found = np.zeros((len(encoded), k, width), np.int32)
    covered = np.zeros(len(encoded), np.float32)
    for row, one in enumerate(encoded):
        for index in range(k):
            tokens[row, index, : len(replaced[row][index])] = replaced[row][index]
            found[row, index, : len(aligned[row][index])] = aligned[row][index]
        covered[row] = np.any(found[row] > 0, axis=0).sum() / max(np.count_nonzero(one.loss_mask), 1)
    return Counterfactuals(tokens, found, covered)
