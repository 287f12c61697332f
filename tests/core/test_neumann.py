"""Neumann series and LiSSA against their closed forms, and the bound that gives them their scale."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import tree
from jaxunlearn.operators import LinearOperator
from jaxunlearn.solvers import CG, LiSSA, Neumann, Status, sampled, spectral_bound

N = 16


def spd(seed=0, low=0.5, high=8.0):
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(N, N)))
    return (q * np.linspace(low, high, N)) @ q.T


def acting(matrix, like=None):
    return LinearOperator(lambda v: jnp.asarray(matrix) @ v, jnp.zeros(N, matrix.dtype))


def truncated(matrix, scale, terms, b):
    """`s sum_(j < terms) (I - s A)^j b`."""
    x = np.zeros_like(b)
    for _ in range(terms):
        x = x + scale * (b - matrix @ x)
    return x


def test_iterates_are_the_truncated_series():
    with jax.enable_x64(True):
        M, b = spd(), np.random.default_rng(1).normal(size=N)
        for terms in (1, 7):
            x, info = Neumann(8 + terms, 0.0)(acting(M), jnp.asarray(b))
            np.testing.assert_allclose(x, truncated(M, float(info.scale), terms, b), rtol=1e-12)
            norms = np.asarray(info.residual_norms)
            np.testing.assert_array_equal(norms[:9], np.full(9, norms[0]))  # probing leaves x alone
            assert norms[-1] == pytest.approx(np.linalg.norm(b - M @ np.asarray(x)), rel=1e-10)
            assert (np.diff(norms) <= 0).all()
            assert Status(int(info.status)) is Status.MAX_STEPS


@pytest.mark.parametrize("spectrum", ["flat", "spiked", "clustered", "one value"])
def test_the_bound_is_one_and_not_far_above(spectrum):
    n = 2000
    scale = {
        "flat": jnp.linspace(0.0, 5.0, n),
        "spiked": jnp.concatenate([jnp.linspace(0.0, 1.0, n - 3), jnp.array([20.0, 50.0, 300.0])]),
        "clustered": jnp.concatenate([jnp.full(n - 50, 0.1), jnp.full(50, 7.0)]),
        "one value": jnp.full(n, 3.0),
    }[spectrum]

    @jax.jit
    def bound(scale, seed):
        probe = spectral_bound.init(scale, 8, seed)
        for _ in range(8):
            probe = spectral_bound.update(probe, scale * probe.v)
        return spectral_bound.bound(probe)

    for seed in range(5):
        found = bound(scale, seed)
        top = float(scale.max())
        assert float(found.lowest) >= float(scale.min()) - 1e-4
        assert 0.9 * top <= float(found.highest) <= top * (1 + 1e-4)
        # Half would do: `s < 2 / lambda_max`.
        assert 0.99 * top <= float(found.upper) <= 1.2 * top


def test_it_costs_the_condition_number_where_cg_costs_its_root():
    scale = jnp.linspace(1.0, 50.0, 400)
    A, b = LinearOperator(lambda v: scale * v, scale), jnp.ones(400)
    x, info = Neumann(1000, 1e-3)(A, b)
    _, cg = CG(100, 1e-3, progress=None)(A, b)
    assert Status(int(info.status)) is Status.CONVERGED
    np.testing.assert_allclose(x, b / scale, atol=2e-2)
    assert int(cg.steps) <= np.sqrt(50) * np.log(2e3) / 2 + 1
    assert 3 * int(cg.steps) < int(info.steps) <= 50 * np.log(1e3) + 8


def test_damping_is_the_operators():
    scale = jnp.array([0.0, 1.0, 2.0])
    x, info = Neumann(200, 1e-4)(LinearOperator(lambda v: scale * v, scale).damped(0.5), jnp.ones(3))
    assert Status(int(info.status)) is Status.CONVERGED
    np.testing.assert_allclose(x, 1.0 / (scale + 0.5), rtol=1e-3)
    assert float(info.scale) == pytest.approx(1 / 2.5, rel=1e-3)


def test_a_bound_that_missed_the_top_is_found_out():
    """One product from a random vector cannot see one spike among many."""
    scale = jnp.ones(40_000).at[7].set(1e3)
    x, info = Neumann(50, 1e-6, probes=1)(LinearOperator(lambda v: scale * v, scale), jnp.ones(40_000))
    assert Status(int(info.status)) is Status.DIVERGED
    # The last iterate before the growth is no worse than where it began.
    assert float(tree.norm(1 - scale * x)) <= 1.01 * float(jnp.sqrt(40_000))
    assert float(info.residual_norms[-1]) == pytest.approx(float(tree.norm(1 - scale * x)), rel=1e-3)
    _, info = Neumann(50, 1e-3)(LinearOperator(lambda v: scale * v, scale), jnp.ones(40_000))
    assert Status(int(info.status)) is not Status.DIVERGED


@pytest.mark.parametrize("scale", [jnp.array([-1.0, -2.0, -3.0]), jnp.array([4.0, 2.0, -1.0]), jnp.zeros(3)])
def test_negative_and_zero_curvature_are_reported(scale):
    x, info = Neumann(100, 1e-6)(LinearOperator(lambda v: scale * v, scale), jnp.ones(3))
    assert Status(int(info.status)) is Status.NEGATIVE_CURVATURE
    assert float(info.min_curvature) <= 0
    assert bool(tree.all_finite(x))
    assert float(info.residual_norms[-1]) <= float(jnp.sqrt(3.0)) * (1 + 1e-6)


def minibatches(seed=0, count=8):
    """Random positive definite matrices and their mean."""
    rng = np.random.default_rng(seed)
    factors = rng.normal(size=(count, N, N)) / np.sqrt(N)
    matrices = factors @ factors.transpose(0, 2, 1) + np.eye(N)
    return jnp.asarray(matrices), matrices.mean(axis=0)


def drawing(matrices, seed=3):
    """Independent draws of one matrix, by index."""

    def at(index):
        i = jax.random.randint(jax.random.fold_in(jax.random.key(seed), index), (), 0, len(matrices))
        return LinearOperator(lambda v: matrices[i] @ v, jnp.zeros(N, matrices.dtype))

    return sampled(at, jnp.zeros(N, matrices.dtype))


def test_lissa_with_one_operator_is_the_neumann_series():
    with jax.enable_x64(True):
        M, b = spd(), np.random.default_rng(1).normal(size=N)
        for x0 in (None, jnp.asarray(b)):
            x, info = LiSSA(depth=6, repeats=3)(sampled(lambda i: acting(M), jnp.zeros(N)), jnp.asarray(b), x0)
            start = np.zeros(N) if x0 is None else np.asarray(x0)
            expected = start + truncated(M, float(info.scale), 6, b - M @ start)
            np.testing.assert_allclose(x, expected, rtol=1e-10)
            assert float(info.residual_norms[-1]) == pytest.approx(np.linalg.norm(b - M @ expected), rel=1e-10)
            assert float(info.residual_norms[0]) == pytest.approx(np.linalg.norm(b - M @ start), rel=1e-10)
            assert int(info.steps) == 2 * 8 + 3 * 6 + 1


def test_lissa_is_unbiased_for_the_truncated_series_and_averaging_takes_the_noise_down():
    with jax.enable_x64(True):
        matrices, mean = minibatches()
        b = np.random.default_rng(1).normal(size=N)
        error = {}
        for repeats in (25, 2500):
            x, info = jax.jit(lambda b, r=repeats: LiSSA(8, r)(drawing(matrices), b))(jnp.asarray(b))
            expected = truncated(mean, float(info.scale), 8, b)
            error[repeats] = np.linalg.norm(x - expected) / np.linalg.norm(expected)
        assert error[25] < 0.1
        assert error[2500] < 0.02
        assert error[2500] < 0.4 * error[25]  # a tenth is expected


def test_lissa_scale_suits_the_largest_minibatch_it_saw():
    matrices, _ = minibatches()
    _, info = LiSSA(depth=2, draws=12)(drawing(matrices), jnp.ones(N))
    tops = np.linalg.eigvalsh(np.asarray(matrices))[:, -1]
    assert float(info.scale) == pytest.approx(1 / tops.max(), rel=0.05)


def test_lissa_says_when_a_minibatch_blows_up():
    """Draws 0 and 1 set the scale and are harmless, a later one is not."""

    def at(index):
        c = jnp.where(index < 2, 1.0, 50.0)
        return LinearOperator(lambda v: c * v, jnp.zeros(3))

    x, info = LiSSA(depth=30, repeats=2)(sampled(at, jnp.zeros(3)), jnp.ones(3))
    assert Status(int(info.status)) is Status.DIVERGED
    assert bool(tree.all_finite(x))
    negative = sampled(lambda i: LinearOperator(lambda v: -v, jnp.zeros(3)), jnp.zeros(3))
    _, info = LiSSA()(negative, jnp.ones(3))
    assert Status(int(info.status)) is Status.NEGATIVE_CURVATURE


def test_lissa_damps_every_minibatch_and_asks_for_sampled_operators():
    A = sampled(lambda i: LinearOperator(lambda v: (1.0 + 0 * i) * v, jnp.zeros(3)), jnp.zeros(3))
    x, info = LiSSA(depth=30)(A.damped(3.0), jnp.ones(3))
    assert Status(int(info.status)) is Status.CONVERGED
    np.testing.assert_allclose(x, np.full(3, 0.25), rtol=1e-4)
    with pytest.raises(ValueError, match="solvers.sampled"):
        LiSSA()(LinearOperator(lambda v: v, jnp.zeros(3)), jnp.ones(3))


def test_the_probes_must_leave_products_for_the_series():
    with pytest.raises(ValueError, match="max_steps=8"):
        Neumann(max_steps=8, probes=8)
