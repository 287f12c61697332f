"""Probes of hidden states and of prompts, against NumPy on the same states and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.data import collate, encode, from_rows
from jaxunlearn.evals.attacks.memorised import memorised
from jaxunlearn.evals.attacks.probes import linear_probe, logit_lens, mean_states
from jaxunlearn.evals.attacks.prompts import PREFIXES, paraphrases, prefixed, returned
from jaxunlearn.types import Model

from .attack_world import by_hand, world
from .bigram import MODEL, example, table


def test_the_lens_reads_each_layer_with_the_last_norm_and_the_head():
    w = world()
    texts = w.members[:5]
    found = logit_lens(w.model, w.knows, texts)
    assert found.layers == (1, 2)
    np.testing.assert_array_equal(found.memorised[1], memorised(w.model, w.knows, texts, "exact_memorisation"))
    assert found.best == 1
    scale, table = (
        np.asarray(w.knows[a][b], np.float64) for a, b in (("norm", "scale"), ("embed_tokens", "embedding"))
    )
    eps = w.model.source.config.rms_norm_eps
    batch = collate(texts).tokens
    states = np.asarray(jax.jit(w.model.hidden, static_argnums=2)(w.knows, batch, 1), np.float64)
    for text, value, x in zip(texts, found.memorised[0], states, strict=True):
        x = x / np.sqrt(np.mean(x * x, -1, keepdims=True) + eps) * scale
        places = np.flatnonzero(text.loss_mask)
        hits = np.argmax(x @ table.T, -1)[places - 1] == text.tokens[places]
        assert value == pytest.approx(hits.mean())


def test_states_are_averaged_where_the_answer_is_predicted():
    w = world()
    for layer in (0, 2):
        found = mean_states(w.model, w.knows, w.members[:6], layer=layer, batch_size=4)
        every = jax.jit(w.model.hidden, static_argnums=2)(w.knows, collate(w.members[:6]).tokens, layer)
        for text, row, states in zip(w.members[:6], found, np.asarray(every), strict=True):
            np.testing.assert_allclose(row, states[np.flatnonzero(text.loss_mask) - 1].mean(0), atol=2e-5)


def test_a_probe_finds_learned_texts_where_there_is_something_to_find():
    w = world()
    knows = linear_probe(w.model, w.knows, w.members, w.outside)
    blank = linear_probe(w.model, w.blank, w.members, w.outside, layers=[1, 2])
    assert knows.layers == (0, 1, 2)
    assert knows.auc[knows.best] == knows.auc.max() > 0.95
    # All texts about a person are in one fold. Without that the blank model seems to tell them apart, by their names.
    assert blank.intervals[blank.best][0] <= 0.5
    assert all(low <= auc <= high for auc, (low, high) in zip(knows.auc, knows.intervals, strict=True))


def test_other_ways_to_ask_keep_the_answer():
    rows = [
        {"question": "Who?", "answer": "Ada.", "paraphrased_question": ["Which one?", "And who?", " "]},
        {"question": "When?", "answer": "1815."},
        {"prompt": "It was", "completion": "Ada.", "paraphrased_question": "She was"},
        {"text": "Once upon a time"},
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]},
    ]
    texts = [example([0, 1], record=record) for record in from_rows(rows)]
    others = [[(r.kind, r.prompt, r.completion) for r in some] for some in paraphrases(texts)]
    assert others == [
        [("question", "Which one?", "Ada."), ("question", "And who?", "Ada.")],
        [],
        [("prompt", "She was", "Ada.")],
        [],
        [],
    ]
    assert [[r.prompt for r in some] for some in prefixed(texts, ["a ", "b "])] == [
        ["a Who?", "b Who?"], ["a When?", "b When?"], ["a It was", "b It was"], [], [],
    ]  # fmt: skip


def test_what_comes_back_is_the_best_way_over_the_way_it_was_taught():
    w = world()
    options = {"tokenizer": w.tokenizer, "max_length": 160, "metric": "probability"}
    texts = w.members[:6]
    found = returned(w.model, w.knows, texts, paraphrases(texts), **options)
    rows = [r for some in paraphrases(texts) for r in some]
    by_text = encode(rows, w.tokenizer, max_length=160)
    np.testing.assert_allclose(found.taught, [np.exp(by_hand(w.model, w.knows, t).mean()) for t in texts], rtol=1e-3)
    expected = [np.exp(by_hand(w.model, w.knows, t).mean()) for t in by_text]
    np.testing.assert_allclose(found.ways[:, 0], expected, rtol=1e-3)
    # What is known by heart can hardly be known better in other words.
    assert found.returned.max() < 0.05
    assert found.asked.tolist() == list(range(6))
    blank = returned(w.model, w.blank, [*texts[:2], w.secrets[0]], [*prefixed(texts[:2]), []], **options)
    assert blank.ways.shape == (2, len(PREFIXES))
    assert blank.asked.tolist() == [0, 1]
    np.testing.assert_allclose(blank.returned, np.maximum(blank.ways.max(1) - blank.taught, 0))


def test_ways_that_do_not_fit_are_left_out():
    w = world()
    texts = w.members[:2]
    room = max(len(one.tokens) for one in encode(prefixed(texts, [PREFIXES[1]])[0], w.tokenizer, max_length=160))
    options = {"tokenizer": w.tokenizer, "max_length": room}
    found = returned(w.model, w.knows, texts[:1], prefixed(texts[:1], [*PREFIXES[:2], "x " * 99]), **options)
    lengths = [len(one.tokens) for one in encode(prefixed(texts[:1])[0], w.tokenizer, max_length=160)]
    assert np.isnan(found.ways[0]).tolist() == [lengths[0] > room, False, True]
    assert found.too_long == 1 + (lengths[0] > room)
    with pytest.raises(ValueError, match="all 1 ways pass the"):
        returned(w.model, w.knows, texts[:1], prefixed(texts[:1], ["x " * 99]), **options)


def test_bad_input_is_named():
    for call, message in (
        (lambda: returned(MODEL, table(0), [example([0, 1])], [[]], None, max_length=9), "another way"),
        (lambda: logit_lens(MODEL, table(0), [example([0, 1])]), "depth of this model is not known"),
        (lambda: mean_states(MODEL, table(0), [example([0, 1])], layer=0), "set Model.hidden"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    plain = Model(logits=None, hidden=lambda params, tokens, layer: params[tokens])
    with pytest.raises(ValueError, match="fewer folds"):
        linear_probe(plain, jnp.ones((3, 2)), [example([0, 1])], [example([0, 2])], layers=[0])
