"""One tiny model that knows its texts by heart, and one that knows nothing, for all tests of attacks."""

from functools import cache, partial
from typing import NamedTuple

import jax
import numpy as np

from jaxunlearn import data, models
from jaxunlearn.data.canaries import CanaryTemplate
from jaxunlearn.runs.fit import fit

TEMPLATE = CanaryTemplate("The code of the vault is {digits:2}")
SECRETS = (47, 83)
COPIES = 8


class World(NamedTuple):
    """Texts as encoded records; `knows` has learned members and canaries, `blank` nothing at all."""

    model: object
    knows: object
    blank: object
    members: list
    outside: list
    secrets: list
    candidates: list
    tokenizer: object
    rows: data.Corpus


@cache
def world() -> World:
    rows = data.corpus(seed=11, people=12, facts=4, holdout=12, forget_share=0.5)
    codes = [{"text": TEMPLATE.fill(index)} for index in range(TEMPLATE.size)]
    # Digits stay apart: the words of the template are known, its codes are not.
    texts = [*data.training_texts(rows), TEMPLATE.text.split("{")[0]]
    tokenizer = data.train_tokenizer(texts, vocab_size=1024)

    def encode(some):
        return data.encode(data.from_rows(some), tokenizer, max_length=64)

    members, outside, candidates = encode(rows.forget + rows.retain), encode(rows.holdout), encode(codes)
    secrets = [candidates[index] for index in SECRETS]
    config = models.DecoderConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=160,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model, blank = models.init(config, jax.random.key(0), remat="none")
    start = jax.tree.map(lambda x: x.copy(), blank)
    done = fit(
        model,
        start,
        members + secrets * COPIES,
        epochs=60,
        batch_size=16,
        learning_rate=3e-2,
        stop_at_loss=0.08,
        seed=0,
    )
    return World(model, done.params, blank, members, outside, secrets, candidates, tokenizer, rows)


@partial(jax.jit, static_argnums=0)
def forward(model, params, tokens):
    return model.logits(params, tokens)


def by_hand(model, params, example) -> np.ndarray:
    """log p of each loss token of one example, from its logits in float64."""
    # One length for all, so that it compiles once; what follows a token does not reach back to it.
    padded = np.zeros((1, -(-len(example.tokens) // 64) * 64), np.int32)
    padded[0, : len(example.tokens)] = example.tokens
    logits = np.asarray(forward(model, params, padded), np.float64)[0]
    log_p = logits - np.log(np.sum(np.exp(logits - logits.max(-1, keepdims=True)), -1, keepdims=True))
    log_p -= logits.max(-1, keepdims=True)
    places = np.flatnonzero(example.loss_mask)
    return log_p[places - 1, example.tokens[places]]
