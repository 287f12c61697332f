"""The scoring pass and the divergence against plain float64 numpy, and their independence of batching."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, rel_entr

from jaxunlearn.evals.divergence import kl
from jaxunlearn.evals.score import moments, score
from jaxunlearn.types import Model

from .bigram import MODEL, VOCAB, example, examples, table


def by_hand(params: jax.Array, one) -> tuple[np.ndarray, np.ndarray]:
    """The loss tokens of one example and the float64 log-probabilities [n, V] before each."""
    places = np.flatnonzero(one.loss_mask)
    return one.tokens[places], log_softmax(np.asarray(params, np.float64)[one.tokens[places - 1]], axis=-1)


def test_scores_equal_float64_numpy():
    params = table()
    scores = score(MODEL, params, examples())
    for i, one in enumerate(examples()):
        targets, log_p = by_hand(params, one)
        p = np.exp(log_p)
        mean = (p * log_p).sum(-1)
        np.testing.assert_allclose(scores.log_probs[i], log_p[np.arange(len(targets)), targets], atol=2e-6)
        np.testing.assert_array_equal(scores.hits[i], log_p.argmax(-1) == targets)
        np.testing.assert_allclose(scores.means[i], mean, atol=2e-6)
        np.testing.assert_allclose(scores.stds[i], np.sqrt((p * (log_p - mean[:, None]) ** 2).sum(-1)), atol=5e-6)
    assert scores.nll[3] == pytest.approx(-scores.log_probs[3].mean())
    assert scores.tokens.tolist() == [int(one.loss_mask.sum()) for one in examples()]


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_batch_size_and_neighbours_change_nothing(batch_size):
    params, whole = table(), score(MODEL, table(), examples(), batch_size=7)
    other = score(MODEL, params, examples(), batch_size=batch_size)
    for name in ("log_probs", "means", "stds"):
        for a, b in zip(getattr(whole, name), getattr(other, name), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)
    alone = score(MODEL, params, examples()[5:6])
    np.testing.assert_allclose(alone.log_probs[0], whole.log_probs[5], atol=1e-6)


def test_few_shapes_are_compiled():
    traced = []

    def logits(params, tokens):
        traced.append(tokens.shape)
        return params[tokens]

    score(Model(logits=logits), table(), examples(60), batch_size=8)
    assert len(traced) <= 3


def test_moments_keep_their_digits_under_offsets_and_masks():
    """Logits far from 0, certain ones, masked ones and ties, against float64."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4, 6, 50)).astype(np.float32)
    logits[0] += 300.0
    logits[1] *= 40.0
    logits[2, :, ::3] = -np.inf
    logits[3] = np.round(logits[3])
    targets = rng.integers(0, 50, (4, 6)).astype(np.int32)
    found = jax.jit(moments)(logits, targets)
    log_p = log_softmax(logits.astype(np.float64), axis=-1)
    p = np.exp(log_p)
    finite = np.where(p > 0, log_p, 0.0)
    mean = (p * finite).sum(-1)
    std = np.sqrt((p * (finite - mean[..., None]) ** 2).sum(-1))
    true = np.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(found["log_probs"], true, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(found["hits"], logits.argmax(-1) == targets)
    # The sum of exponentials is rounded where the logits are: at 300 to 3e-5.
    np.testing.assert_allclose(found["means"], mean, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(found["stds"], std, rtol=1e-4, atol=1e-4)


def test_ties_go_to_the_lowest_id():
    scores = score(MODEL, jnp.zeros((VOCAB, VOCAB)), [example([3, 0, 1, 0])])
    assert scores.hits[0].tolist() == [True, False, True]
    np.testing.assert_allclose(scores.stds[0], 0.0, atol=1e-6)


def test_nan_logits_stay_nan_and_masked_entries_do_not_become_nan():
    broken = score(MODEL, table().at[0].set(jnp.nan), [example([0, 1]), example([1, 2])])
    assert np.isnan(broken.log_probs[0]).all()
    assert np.isnan(broken.means[0]).all()
    assert np.isfinite(broken.log_probs[1]).all()
    masked = score(MODEL, table().at[:, 4].set(-jnp.inf), [example([1, 2])])
    assert np.isfinite(masked.means[0]).all()
    assert np.isfinite(masked.stds[0]).all()


def test_slices_of_scores_are_scores():
    scores = score(MODEL, table(), examples())
    np.testing.assert_array_equal(scores[4:9].nll, scores.nll[4:9])
    assert len(scores[4:9]) == 5


def test_bad_input_is_named_before_anything_runs():
    with pytest.raises(ValueError, match="the set is empty"):
        score(MODEL, table(), [])
    with pytest.raises(ValueError, match="example 1 has no loss token"):
        score(MODEL, table(), [example([1, 2]), example([1, 2], prompt=2)])
    with pytest.raises(ValueError, match="batch_size is 0"):
        score(MODEL, table(), examples(), batch_size=0)


def test_progress_counts_examples():
    seen = []
    score(MODEL, table(), examples(), batch_size=8, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (23, 23)
    assert sorted(seen) == seen


def test_divergence_equals_float64_numpy():
    found = kl(MODEL, table(0), table(1), examples())
    for i, one in enumerate(examples()):
        p, q = (np.exp(by_hand(table(seed), one)[1]) for seed in (0, 1))
        np.testing.assert_allclose(found.kl[i], rel_entr(p, q).sum(-1), rtol=2e-5, atol=1e-6)
        np.testing.assert_allclose(found.total_variation[i], np.abs(p - q).sum(-1) / 2, atol=2e-6)
    assert found.mean_kl == pytest.approx(np.concatenate(found.kl).mean())
    assert 0 < found.mean_total_variation < 1


def test_small_divergences_keep_their_digits():
    params = table(0)
    nudged = params + 1e-3 * table(1)
    found = kl(MODEL, params, nudged, examples())
    for i, one in enumerate(examples()):
        p, q = (np.exp(by_hand(w, one)[1]) for w in (params, nudged))
        np.testing.assert_allclose(found.kl[i], rel_entr(p, q).sum(-1), rtol=5e-3)


def test_divergence_from_itself_is_zero_and_never_negative():
    assert kl(MODEL, table(), table(), examples()).mean_kl == 0.0
    for row in kl(MODEL, table(0, scale=30.0), table(1, scale=30.0), examples()).kl:
        assert np.all(np.isfinite(row))
        assert np.all(row >= 0)


def test_divergence_between_two_different_models():
    halved = Model(logits=lambda params, tokens: 0.5 * params[tokens])
    found = kl(MODEL, table(), 2.0 * table(), examples(), model_q=halved)
    np.testing.assert_allclose(found.mean_kl, 0.0, atol=1e-6)
    small = Model(logits=lambda params, tokens: params[tokens][..., :5])
    with pytest.raises(ValueError, match="vocabularies of 11 and 5 tokens"):
        kl(MODEL, table(), table(), examples(), model_q=small)


def test_bf16_parameters_are_scored_in_f32():
    params = table().astype(jnp.bfloat16)
    scores = score(MODEL, params, examples())
    np.testing.assert_allclose(scores.nll, score(MODEL, params.astype(jnp.float32), examples()).nll, atol=1e-6)
