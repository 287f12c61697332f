"""A tokenizer of one token a character and a bigram model over it: everything can be worked out by hand."""

from collections.abc import Sequence

import jax
import numpy as np
from scipy.special import log_softmax

from jaxunlearn.data import encode
from jaxunlearn.data.records import from_rows
from jaxunlearn.types import Model

ALPHABET = "abcdefghijklmnopqrstuvwxyzQA:?, \n."
SIZE = len(ALPHABET) + 2


class Letters:
    """One token a character, 0 begins and 1 ends."""

    bos_token_id, eos_token_id, is_fast = 0, 1, True

    def __call__(self, texts, **_):
        texts = [texts] if isinstance(texts, str) else texts
        ids = [[ALPHABET.index(c) + 2 for c in text] for text in texts]
        return {"input_ids": ids, "offset_mapping": [[(i, i + 1) for i in range(len(text))] for text in texts]}

    def decode(self, ids, skip_special_tokens=True):
        return "".join(ALPHABET[i - 2] for i in ids if i > 1)


def logits(params, tokens):
    return params[tokens]


MODEL, TOKENIZER = Model(logits=logits), Letters()


def table(seed: int) -> jax.Array:
    return 1.5 * jax.random.normal(jax.random.key(seed), (SIZE, SIZE))


def word(rng: np.random.Generator) -> str:
    return "".join(rng.choice(list("abcdefgh"), rng.integers(3, 8)))


def nll_of(tokens, places) -> np.ndarray:
    """NLL of the tokens at those places under `table(0)`, nats."""
    log_p = log_softmax(np.asarray(table(0), np.float64), axis=-1)
    return -log_p[np.asarray(tokens)[np.asarray(places) - 1], np.asarray(tokens)[places]]


def questions(seed: int, tasks: Sequence[str]) -> list[dict]:
    """Multiple choice in the schema of WMDP and MMLU, a question for each task."""
    rng, rows = np.random.default_rng(seed), []
    for task in tasks:
        offered = {"question": word(rng), "choices": [word(rng) for _ in range(4)]}
        rows.append(offered | {"answer": int(rng.integers(4)), "task": task})
    return rows


QUESTIONS = questions(8, ("law", "law", "art", "art", "art"))


def encoded(count: int, seed: int, *, wrong: int = 3, paraphrase: bool = True):
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        row = {"prompt": f"Q: {word(rng)}?\nA:", "completion": f"{word(rng)} {word(rng)}."}
        if wrong:
            row["perturbed_answer"] = [f"{word(rng)} {word(rng)}." for _ in range(wrong)]
        if paraphrase:
            row["paraphrased_answer"] = f"{word(rng)} {word(rng)}."
        rows.append(row)
    return encode(from_rows(rows), TOKENIZER, max_length=64)


def generate(model, params, prompts, *, max_new_tokens, stop_ids):
    out = []
    for prompt in prompts:
        written, last = [], prompt[-1]
        while len(written) < max_new_tokens:
            last = int(np.argmax(np.asarray(params)[last]))
            if last in stop_ids:
                break
            written.append(last)
        out.append(written)
    return out
