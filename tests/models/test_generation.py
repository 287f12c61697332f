"""Generation with a cache equals taking the arg-max of a full forward pass again and again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoder_cases import toy

from jaxunlearn import models
from jaxunlearn.types import Model

PROMPTS = [[1, 2, 3, 4, 5], [7], [9, 8, 7], [4, 4], [30]]


@pytest.fixture(scope="module")
def decoder():
    return toy()


def test_cached_greedy_equals_full_forward_passes(decoder):
    model, params = decoder
    logits = jax.jit(model.logits)
    for prompt, continuation in zip(
        PROMPTS, models.generate(model, params, PROMPTS, max_new_tokens=6, batch_size=2), strict=True
    ):
        row = np.zeros((1, 16), np.int32)
        row[0, : len(prompt)] = prompt
        for at in range(len(prompt), len(prompt) + 6):
            row[0, at] = int(jnp.argmax(logits(params, row)[0, at - 1]))
        assert continuation == row[0, len(prompt) : len(prompt) + 6].tolist()


def test_stop_ids_end_a_text_and_are_left_out(decoder):
    model, params = decoder
    full = models.generate(model, params, PROMPTS, max_new_tokens=6)
    stop = full[0][3]
    for text, whole in zip(
        models.generate(model, params, PROMPTS, max_new_tokens=6, stop_ids=[stop]), full, strict=True
    ):
        assert text == (whole[: whole.index(stop)] if stop in whole else whole)


def test_sampling_follows_its_key_and_its_temperature(decoder):
    model, params = decoder
    prompts = [[3]] * 600
    options = {"max_new_tokens": 1, "temperature": 0.7}
    drawn = models.generate(model, params, prompts, key=jax.random.key(0), **options)
    assert drawn == models.generate(model, params, prompts, key=jax.random.key(0), **options)
    assert drawn != models.generate(model, params, prompts, key=jax.random.key(1), **options)
    counts = np.bincount(np.concatenate(drawn), minlength=61)
    expected = 600 * np.asarray(jax.nn.softmax(model.logits(params, jnp.array([[3]]))[0, 0] / 0.7))
    assert np.all(np.abs(counts - expected) < 5 * np.sqrt(expected) + 5)


def test_no_prompts_give_no_texts(decoder):
    assert models.generate(*decoder, [], max_new_tokens=3) == []


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([[1], []], {}, "prompt 1 is empty"),
        ([[1], [61]], {}, "prompt 1 holds id 61, outside the vocabulary of 61"),
        (
            [[1] * 60],
            {"max_new_tokens": 5},
            "60 tokens; with max_new_tokens=5 it passes the context of 64",
        ),
        ([[1]], {"max_new_tokens": 0}, "max_new_tokens=0"),
        ([[1]], {"temperature": -1.0}, "temperature=-1.0"),
        ([[1]], {"temperature": 1.0}, "needs key=jax.random.key"),
        ([[1]], {"batch_size": 0}, "batch_size=0"),
    ],
)
def test_bad_requests_are_named(decoder, prompts, options, message):
    with pytest.raises(ValueError, match=message):
        models.generate(*decoder, prompts, **{"max_new_tokens": 2} | options)


def test_only_decoders_generate():
    with pytest.raises(ValueError, match=r"models\.load or models\.init"):
        models.generate(Model(logits=lambda p, x: x), {}, [[1]], max_new_tokens=1)
