"""Counterfactual answers pushed away from the entity's own: against the rule on whole distributions, and bisected."""

import numpy as np
import pytest
from scipy.special import log_softmax

from jaxunlearn.models.contrast import WHPRule
from jaxunlearn.objectives.generic import MOST, alpha_for, generic, true_nll
from jaxunlearn.types import TopK

VOCAB, PLACES = 11, 7


@pytest.fixture(scope="module")
def pair():
    """log q and log p of two rows, in float64; the entity makes the true class, 0, likelier."""
    random = np.random.default_rng(0)
    log_q, log_p = log_softmax(random.normal(size=(2, 2, PLACES, VOCAB)), axis=-1)
    log_p[..., 0] += 3.0
    return log_q, log_softmax(log_p, axis=-1)


def kept(log_probs, k):
    """Of every place the first `k` classes."""
    ids = np.broadcast_to(np.arange(k), (*log_probs.shape[:2], k))
    weights = np.ones(log_probs.shape[:2])
    weights[1, 4:] = 0
    return TopK(ids, log_probs[..., :k], weights)


@pytest.mark.parametrize("alpha", [0.0, 0.7, 5.0])
def test_whole_distributions_are_combined_as_by_the_decoder_of_its_authors(pair, alpha):
    log_q, log_p = pair
    got = generic(kept(log_q, VOCAB), log_p, alpha)
    expected = log_softmax(WHPRule(alpha)(log_q, log_p), axis=-1)
    np.testing.assert_allclose(got.log_probs, expected, atol=1e-5)  # float32 inside the decoder


def test_what_is_not_kept_counts_as_one_class(pair):
    log_q, log_p = pair
    k, alpha = 4, 2.0
    lump = lambda x: np.concatenate([x[..., :k], np.log(np.exp(x[..., k:]).sum(-1, keepdims=True))], axis=-1)
    lumped_q, lumped_p = lump(log_q), lump(log_p)
    expected = log_softmax(lumped_q - alpha * np.clip(lumped_p - lumped_q, 0, None), axis=-1)[..., :k]
    got = generic(kept(log_q, k), log_p[..., :k], alpha)
    np.testing.assert_allclose(got.log_probs, expected, atol=1e-9)
    assert np.exp(got.log_probs).sum(-1).max() < 1, "the rest keeps a share"


def test_classes_that_the_entity_makes_no_likelier_keep_their_proportions(pair):
    log_q, log_p = pair
    got = generic(kept(log_q, VOCAB), log_p, 3.0).log_probs
    free = log_p <= log_q
    shift = (got - log_q)[free].reshape(-1) - np.broadcast_to((got - log_q).max(-1, keepdims=True), got.shape)[free]
    np.testing.assert_allclose(shift, 0.0, atol=1e-9)


def test_the_least_alpha_that_makes_the_true_classes_as_surprising_as_asked(pair):
    log_q, log_p = pair
    q = kept(log_q, VOCAB)
    before = true_nll(q)
    np.testing.assert_allclose(before, -(q.weights * log_q[..., 0]).sum() / q.weights.sum())
    assert alpha_for(q, log_p, before - 0.1) == 0.0
    alpha = alpha_for(q, log_p, before + 1.0)
    assert true_nll(generic(q, log_p, alpha)) == pytest.approx(before + 1.0, abs=1e-2)
    assert true_nll(generic(q, log_p, 0.99 * alpha)) < before + 1.0
    assert alpha_for(q, log_q, before + 1.0) == MOST, "an entity that adds nothing cannot be pushed away from"


def test_without_answers_nothing_is_pushed(pair):
    log_q, log_p = pair
    q = kept(log_q, VOCAB)
    none = q._replace(weights=np.zeros_like(q.weights))
    assert true_nll(none) is None
    assert alpha_for(none, log_p, 3.0) == 0.0
