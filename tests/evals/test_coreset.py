"""Coresets: choices from numbers by hand and by search, features against torch-free dense gradients."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.evals.coreset import (
    ACQUISITIONS,
    coreset,
    gradient_features,
    hidden_features,
    highest,
    match_mean,
    nearest_to_centres,
)
from jaxunlearn.evals.score import score
from jaxunlearn.types import Model

from .bigram import MODEL, VOCAB, example, examples, table

SEEN = MODEL._replace(hidden=lambda params, tokens, layer=None: params[tokens])


@pytest.mark.parametrize("name", ACQUISITIONS)
def test_a_coreset_is_some_of_the_examples_whatever_the_batch(name):
    rows = coreset(name, SEEN, table(), examples(), 5, seed=1)
    assert len(set(rows)) == 5
    assert rows == sorted(rows)
    assert set(rows) <= set(range(23))
    assert rows == coreset(name, SEEN, table(), examples(), 5, seed=1, batch_size=3)
    assert coreset(name, SEEN, table(), examples(), 23) == list(range(23))


def test_uncertainty_is_entropy_or_the_loss_of_the_true_answer():
    scores = score(MODEL, table(), examples())
    p = np.asarray(jax.nn.softmax(table()), np.float64)
    entropy = -(p * np.log(p)).sum(-1)
    mean = [entropy[one.tokens[np.flatnonzero(one.loss_mask) - 1]].mean() for one in examples()]
    assert coreset("entropy", MODEL, table(), examples(), 4) == sorted(np.argsort(mean)[-4:].tolist())
    assert coreset("least_confidence", MODEL, table(), examples(), 4) == sorted(np.argsort(scores.nll)[-4:].tolist())
    assert highest(np.array([2.0, 2.0, 1.0]), 1).tolist() == [0]


def test_random_choices_are_fair_and_seeded():
    counts = np.zeros(23)
    for seed in range(400):
        counts[coreset("random", MODEL, table(), examples(), 5, seed=seed)] += 1
    assert np.all(np.abs(counts - 400 * 5 / 23) < 5 * np.sqrt(400 * 5 / 23))


def test_clusters_give_one_example_each():
    rng = np.random.default_rng(0)
    centres = 20 * rng.normal(size=(4, 3))
    features = np.repeat(centres, 6, axis=0) + rng.normal(size=(24, 3))
    rows = nearest_to_centres(features, 4)
    assert sorted(rows // 6) == [0, 1, 2, 3]
    for row in rows:
        group = features[6 * (row // 6) : 6 * (row // 6) + 6]
        assert row % 6 == np.argmin(np.linalg.norm(group - group.mean(0), axis=1))
    assert sorted(nearest_to_centres(np.arange(5.0)[:, None], 5).tolist()) == [0, 1, 2, 3, 4]


def test_matching_is_greedy_and_near_the_best_there_is():
    rng = np.random.default_rng(1)
    features = rng.normal(size=(12, 4))
    apart = lambda rows: np.linalg.norm(features[list(rows)].mean(0) - features.mean(0))
    found = match_mean(features, 3)
    first = min(range(12), key=lambda row: apart([row]))
    assert found[0] == first
    assert apart(found) <= min(apart([*found[:2], row]) for row in range(12) if row not in found[:2]) + 1e-12
    every = sorted(apart(rows) for rows in itertools.combinations(range(12), 3))
    assert apart(found) < every[len(every) // 4]
    assert sorted(match_mean(features, 12).tolist()) == list(range(12))


def test_gradient_features_keep_inner_products():
    texts = examples(6)
    p = np.asarray(jax.nn.softmax(table()), np.float64)

    def gradient(one):
        places, out = np.flatnonzero(one.loss_mask), np.zeros((VOCAB, VOCAB))
        for at in places:
            row = p[one.tokens[at - 1]].copy()
            row[one.tokens[at]] -= 1
            out[one.tokens[at - 1]] += row / len(places)
        return out.ravel()

    exact = np.stack([gradient(one) for one in texts])
    features = gradient_features(MODEL, table(), texts, directions=400)
    expected = exact @ exact.T
    # An average of 400 products of normals: standard error at most sqrt(2 / 400) times the norms.
    allowed = 4 * np.sqrt(2 / 400) * np.sqrt(np.outer(np.diag(expected), np.diag(expected)))
    assert np.all(np.abs(features @ features.T - expected) < allowed)


def test_hidden_features_are_means_where_tokens_are_predicted():
    [features] = hidden_features(SEEN, table(), [example([3, 1, 4, 1, 5], prompt=2)])
    np.testing.assert_allclose(features, np.asarray(table())[[1, 4, 1]].mean(0), rtol=1e-5)
    with pytest.raises(ValueError, match="this model has no `hidden`"):
        hidden_features(Model(logits=MODEL.logits), jnp.zeros((VOCAB, VOCAB)), examples())


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="no coreset is called 'best'"):
        coreset("best", MODEL, table(), examples(), 2)
    with pytest.raises(ValueError, match="a coreset of 24 from 23 examples"):
        coreset("random", MODEL, table(), examples(), 24)
