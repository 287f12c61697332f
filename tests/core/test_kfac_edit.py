"""Curvature editing against a dense reconstruction in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import flat, labelled, mlp, token_batch

import jaxunlearn as ju
from jaxunlearn import methods, models
from jaxunlearn.curvature import KFAC
from jaxunlearn.curvature.kronecker import eigendecompose, kronecker_factors
from jaxunlearn.methods.kfac_edit import top_share

step = jax.jit(ju.unlearn_step, static_argnums=(0, 1))


def edit(method, model, params, batch):
    state = ju.init(method, model, params, key=jax.random.key(0))
    return step(method, model, state, batch)


def reconstructed(W, A, G, rho):
    """`U_A (M * U_A^T W U_G) U_G^T` with the fewest largest `lambda_i mu_j` that reach rho of their total; and M."""
    (lam, U_A), (mu, U_G) = np.linalg.eigh(np.asarray(A, np.float64)), np.linalg.eigh(np.asarray(G, np.float64))
    values = np.maximum(lam, 0)[:, None] * np.maximum(mu, 0)
    order = np.argsort(-values, axis=None)
    share = np.cumsum(values.reshape(-1)[order]) / values.sum()
    kept = np.zeros(values.size)
    kept[order[: np.searchsorted(share, rho) + 1]] = 1
    M = kept.reshape(values.shape)
    return U_A @ (M * (U_A.T @ np.asarray(W, np.float64) @ U_G)) @ U_G.T, M


@pytest.mark.parametrize("rho", [0.3, 0.6, 0.95])
def test_it_keeps_the_largest_products_of_eigenvalues(rho):
    model, params = mlp()
    retain = labelled(40, 2)
    factors = kronecker_factors(model, params, retain, KFAC(only=("*/w",)))
    after, info = edit(methods.kfac_edit(rho=rho, only="*/w"), model, params, ju.UnlearnBatch(None, retain))
    for layer in (0, 1):
        A, G = factors.sides(factors.table[f"{layer}/w"])[0]
        expected, M = reconstructed(params[layer]["w"], A, G, rho)
        assert 0 < M.sum() < M.size
        np.testing.assert_allclose(after.params[layer]["w"], expected, atol=2e-5)
        np.testing.assert_array_equal(after.params[layer]["b"], params[layer]["b"])
    assert info.certificate.forget_before is None  # there was no forget set
    assert float(info.certificate.kl_measured) > 0
    assert "forget" not in ju.certificate.describe(info.certificate, info.curvature)


def test_everything_is_the_identity():
    model, params = mlp()
    batch = ju.UnlearnBatch(None, labelled(8, 2))
    after, _ = edit(methods.kfac_edit(rho=1.0, only="*/w"), model, params, batch)
    np.testing.assert_array_equal(flat(after.params), flat(params))


def test_editing_twice_with_stored_factors_is_editing_once():
    """A projection, and no retain set."""
    model, params = mlp()
    eigen = eigendecompose(kronecker_factors(model, params, labelled(40, 2), KFAC()), params)
    batch = ju.UnlearnBatch(labelled(4), curvature=eigen)
    method = methods.kfac_edit(rho=0.6, only="1/w", factors="folder")
    once, info = edit(method, model, params, batch)
    twice, again = edit(method, model, once.params, batch)
    assert float(info.update_norm) > 0.1
    assert float(again.update_norm) < 1e-5
    np.testing.assert_allclose(flat(twice.params), flat(once.params), atol=1e-5)
    np.testing.assert_array_equal(once.params[0]["w"], params[0]["w"])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_top_share_is_the_shortest_prefix_of_the_sorted_values(dtype):
    rng = np.random.default_rng(0)
    with jax.enable_x64(dtype == "float64"):
        values = rng.gamma(0.3, size=(3, 5, 7)).astype(dtype)
        values[2] = 0.0
        for share in (0.05, 0.5, 0.9, 0.999):
            got = np.asarray(top_share(jnp.asarray(values), share))
            for mask, one in zip(got[:2], values[:2], strict=True):
                kept = one[mask]
                assert kept.sum() >= share * one.sum() * (1 - 1e-6)
                assert kept.sum() - kept.min() < share * one.sum() * (1 + 1e-6)
                assert kept.min() > one[~mask].max()
            assert got[2].all()  # nothing is known of this one


def test_the_gate_and_up_projections_of_a_decoder_are_edited_layer_by_layer():
    config = models.DecoderConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2
    )
    model, params = models.init(config, jax.random.key(0))
    retain = token_batch(np.random.default_rng(0), 4)
    after, _ = edit(methods.kfac_edit(), model, params, ju.UnlearnBatch(None, retain))
    only = ("*gate_proj*", "*up_proj*")
    factors = kronecker_factors(model, params, retain, KFAC(only=only))
    before = dict(ju.curvature.partition(params, lambda path: True)[0])
    changed = dict(ju.curvature.partition(after.params, lambda path: True)[0])
    edited = [path for path in before if "gate_proj" in path or "up_proj" in path]
    assert len(edited) == 2
    for path, W in before.items():
        if path not in edited:
            np.testing.assert_array_equal(changed[path], W)
            continue
        A, G = factors.sides(factors.table[path])[0]
        for layer in range(2):
            expected, _ = reconstructed(W[layer], A[layer], G[layer], 0.6)
            np.testing.assert_allclose(changed[path][layer], expected, atol=1e-5)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="rho=0"):
        methods.kfac_edit(rho=0.0)
    model, params = mlp()
    method = methods.kfac_edit()
    state = ju.init(method, model, params, key=jax.random.key(0))
    with pytest.raises(ValueError, match=r"matches none of the parameters 0/b, 0/w"):
        ju.unlearn_step(method, model, state, ju.UnlearnBatch(None, labelled(8)))
    method = methods.kfac_edit(only="*/b", factors="folder")
    eigen = eigendecompose(kronecker_factors(model, params, labelled(4), KFAC()), params)
    state = ju.init(method, model, params, key=jax.random.key(0))
    with pytest.raises(ValueError, match="no matrix among"):
        ju.unlearn_step(method, model, state, ju.UnlearnBatch(labelled(4), curvature=eigen))
