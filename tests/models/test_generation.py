"""Generation with a cache equals taking the arg-max of a full forward pass again and again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoder_cases import toy

from jaxunlearn import models
from jaxunlearn.models.sampling import restricted
from jaxunlearn.models.stop_strings import found, stop_table
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


def test_top_k_and_top_p_keep_the_tokens_of_their_definition():
    logits = np.random.default_rng(0).normal(size=(40, 17)).astype(np.float32) * 2
    for k, p in ((3, None), (None, 0.7), (5, 0.7), (1, None), (40, 1e-6), (17, 1.0)):
        kept = np.isfinite(restricted(jnp.asarray(logits), k, p))
        for row, which in zip(logits.astype(np.float64), kept, strict=True):
            order = np.argsort(-row)[: k or 17]
            share = np.exp(row[order]) / np.exp(row[order]).sum()
            number = 17 if p is None or p == 1.0 else int(np.searchsorted(np.cumsum(share), p)) + 1
            assert set(np.flatnonzero(which)) == set(order[:number]), (k, p)


def test_restricted_sampling_draws_only_what_is_allowed(decoder):
    model, params = decoder
    likeliest = np.argsort(-np.asarray(model.logits(params, jnp.array([[3]]))[0, 0]))
    options = {"max_new_tokens": 1, "temperature": 3.0, "key": jax.random.key(0)}
    drawn = models.generate(model, params, [[3]] * 200, top_k=4, **options)
    assert {token for (token,) in drawn} == set(likeliest[:4].tolist())
    greedy = models.generate(model, params, [[3]], max_new_tokens=1)
    assert models.generate(model, params, [[3]], top_p=1e-6, **options) == greedy


class Words:
    """A tokenizer of which id i is the letter i and, every third, a space after it."""

    def decode(self, ids):
        return "".join(chr(97 + i % 26) + (" " if i % 3 == 0 else "") for i in ids)


def test_stop_strings_end_a_text_before_the_token_that_reaches_into_them(decoder):
    model, params = decoder
    decode = Words().decode
    full = models.generate(model, params, PROMPTS, max_new_tokens=9)
    stop = decode(full[0])[3:5]
    cut = models.generate(model, params, PROMPTS, max_new_tokens=9, stop_strings=(stop, "nowhere"), tokenizer=Words())
    for ids, whole in zip(cut, full, strict=True):
        at = decode(whole).find(stop)
        assert ids == whole[: len(ids)]
        assert (at < 0 and ids == whole) or len(decode(ids)) <= at < len(decode(whole[: len(ids) + 1]))
    assert len(cut[0]) < 9
    with pytest.raises(ValueError, match="pass tokenizer="):
        models.generate(model, params, PROMPTS, max_new_tokens=9, stop_strings=(stop,))
    with pytest.raises(ValueError, match="give a tuple of texts, none of them empty"):
        models.generate(model, params, PROMPTS, max_new_tokens=9, stop_strings=("",), tokenizer=Words())


def test_the_table_of_stop_strings_finds_them_as_soon_as_they_are_there():
    draw = np.random.default_rng(0)

    def texts(number, least, most):
        return ["".join(draw.choice(list("ab "), draw.integers(least, most))) for _ in range(number)]

    some = 0
    for _ in range(150):
        strings, pieces = texts(draw.integers(1, 4), 1, 6), [*texts(6, 0, 5), "x"]
        table, ids = stop_table(strings, pieces), draw.integers(0, 7, 8).tolist()
        for n in range(9):
            text = "".join(pieces[i] for i in ids[:n])
            assert found(table, ids[:n]) == any(one in text for one in strings), (strings, text)
        some += found(table, ids) and max(map(len, strings)) > 3
    assert some > 20


def test_a_text_ended_by_a_string_that_decoding_changes_is_written_on(decoder):
    class Merging(Words):
        """Of three tokens or more, the text is another one."""

        def decode(self, ids):
            return super().decode(ids) if len(ids) < 3 else "?" * len(ids)

    model, params = decoder
    full = models.generate(model, params, PROMPTS, max_new_tokens=9)
    stop = Words().decode(full[0][2:4])
    options = {"max_new_tokens": 9, "stop_strings": (stop,), "tokenizer": Merging()}
    assert models.generate(model, params, PROMPTS, **options) == full


def test_longrope_takes_the_text_up_anew_where_its_frequencies_change():
    """Each token is what a full pass over all before it says, by the frequencies of that length."""
    rope = {"rope_type": "longrope", "rope_theta": 50.0, "original_max_position_embeddings": 5}
    rope |= {"attention_factor": 1.2, "short_factor": [1.0] * 3, "long_factor": [3.0, 9.0, 30.0]}
    model, params = toy(rope_parameters=rope, model_type="phi3")
    logits = jax.jit(model.logits)
    texts = models.generate(model, params, [[9, 50, 1, 20], [9, 9]], max_new_tokens=3)
    row = [9, 50, 1, 20]
    for _ in range(3):
        row.append(int(jnp.argmax(logits(params, jnp.asarray([row]))[0, -1])))
    assert texts[0] == row[4:]
    always_short = toy(rope_parameters=rope | {"original_max_position_embeddings": 60}, model_type="phi3")[0]
    short = models.generate(always_short, params, [[9, 50, 1, 20]], max_new_tokens=3)[0]
    assert texts[0][:2] == short[:2]
    assert texts[0] != short


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
        ([[1]], {"temperature": 1.0, "top_k": 0}, "top_k=0"),
        ([[1]], {"temperature": 1.0, "top_p": 1.5}, "top_p=1.5"),
        ([[1]], {"top_k": 5}, "temperature above 0"),
    ],
)
def test_bad_requests_are_named(decoder, prompts, options, message):
    with pytest.raises(ValueError, match=message):
        models.generate(*decoder, prompts, **{"max_new_tokens": 2} | options)


def test_only_decoders_generate():
    with pytest.raises(ValueError, match=r"models\.load or models\.init"):
        models.generate(Model(logits=lambda p, x: x), {}, [[1]], max_new_tokens=1)
