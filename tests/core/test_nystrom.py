"""Nystrom approximation: its order relations, its spectrum, and what its preconditioner does to CG."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from krylov_cases import SPECTRA, N, diagonal_operator, on_mesh, operator_of, right_hand_side, rotated, tree_of
from toys import flat, labelled, mlp, unlearn_batch

import jaxunlearn as ju
from jaxunlearn import methods, operators, tree
from jaxunlearn.curvature import GaussNewton, streamed
from jaxunlearn.solvers import CG, NystromCG, Status, block, nystrom, solve_on_host

PSD = {
    "geometric": SPECTRA["geometric"],
    "spiked": SPECTRA["spiked"],
    "low rank": np.concatenate([np.zeros(N - 6), np.geomspace(1.0, 100.0, 6)]),
}


def approximate(M, rank, seed=0):
    return jax.jit(lambda M: (lambda a: (a.vectors, a.values, operators.to_dense(a)))(
        nystrom(operator_of(M, psd=True), jax.random.key(seed), rank)
    ))(jnp.asarray(M))  # fmt: skip


@pytest.mark.parametrize("name", PSD)
def test_it_lies_between_zero_and_the_operator(name):
    """`0 <= A_nys <= A`, orthonormal vectors, values descending and, by interlacing, under the operator's own."""
    with jax.enable_x64(True):
        M, rank = rotated(PSD[name]), 12
        U, s, A = approximate(M, rank)
        size = PSD[name].max()
        tolerance = 1e-12 * size
        assert np.all(np.diff(s) <= 0)
        assert np.linalg.eigvalsh(A)[0] >= -tolerance
        assert np.linalg.eigvalsh(M - A)[0] >= -tolerance
        assert np.all(np.asarray(s) <= np.sort(np.linalg.eigvalsh(M))[::-1][:rank] + tolerance)
        gram = np.asarray(block.gram(U, U))
        real = np.asarray(s) > 0
        np.testing.assert_allclose(gram, np.diag(real.astype(float)), atol=1e-10)
        if name == "low rank":  # six products with random vectors say everything
            np.testing.assert_allclose(A, M, atol=1e-10 * size)
            assert real.sum() == 6


@pytest.mark.parametrize("name", PSD)
def test_f32_vectors_are_orthonormal_and_values_are_right_to_rounding(name):
    M = rotated(PSD[name])
    U, s, A = approximate(np.asarray(M, np.float32), 12)
    gram = np.asarray(block.gram(U, U))
    np.testing.assert_allclose(gram, np.diag((np.asarray(s) > 0).astype(float)), atol=1e-4)
    unit = np.finfo(np.float32).eps * PSD[name].max()
    assert np.linalg.eigvalsh(M - np.asarray(A, np.float64))[0] >= -50 * unit


def test_it_catches_the_outliers():
    """With twice as many vectors as outliers each is found to a small part of the bulk (Halko et al. 2011)."""
    with jax.enable_x64(True):
        _, s, A = approximate(rotated(SPECTRA["spiked"]), 10)
        spikes = np.geomspace(1e3, 10, 5)
        np.testing.assert_allclose(s[:4], spikes[:4], rtol=0.05)
        assert np.linalg.norm(rotated(SPECTRA["spiked"]) - A, 2) < 10.0  # a few times the bulk, not the outliers


def test_the_preconditioned_condition_number_is_under_its_bound():
    """`kappa <= (s_k + mu + ||A - A_nys||) (1 / (s_k + mu) + 1 / (lambda_n + mu))` (Frangella et al. 2023)."""
    with jax.enable_x64(True):
        M, mu = rotated(SPECTRA["spiked"]), 0.1
        A = operator_of(M, psd=True)

        @jax.jit
        def dense(key):
            found = nystrom(A, key, 10)
            root = operators.LinearOperator(found.preconditioner(mu), A.like)
            return operators.to_dense(root), operators.to_dense(found), found.values

        P_inverse, low, s = (np.asarray(x) for x in dense(jax.random.key(0)))
        L = np.linalg.cholesky(P_inverse)
        values = np.linalg.eigvalsh(L.T @ (M + mu * np.eye(N)) @ L)
        error, floor = np.linalg.norm(M - low, 2), SPECTRA["spiked"].min() + mu
        bound = (s[-1] + mu + error) * (1 / (s[-1] + mu) + 1 / floor)
        assert values[-1] / values[0] <= bound
        assert values[-1] / values[0] < 0.02 * (1e3 + mu) / floor


def test_it_halves_the_steps_of_cg_and_more():
    """On a spiked spectrum, f32, for several dampings from one sketch; the solution is the same."""
    n = 400
    scale = jnp.concatenate([jnp.linspace(0.5, 1.0, n - 30), jnp.geomspace(2.0, 1e4, 30)])
    A, b = diagonal_operator(scale), jnp.asarray(right_hand_side(n), jnp.float32)

    @jax.jit
    def both(mu):
        found = nystrom(A, jax.random.key(0), 60)
        plain = CG(400, 1e-4, None)(A.damped(mu), b)
        return plain, CG(400, 1e-4, None, found.preconditioner(mu))(A.damped(mu), b)

    for mu in (0.01, 1.0):
        (x, plain), (y, helped) = both(mu)
        assert Status(int(helped.status)) is Status.CONVERGED
        assert int(helped.steps) < int(plain.steps) / 2
        assert int(helped.steps) < 15
        np.testing.assert_allclose(y, b / (scale + mu), atol=1e-3)
        np.testing.assert_allclose(x, y, atol=2e-3)


@pytest.mark.parametrize("power", [-1.0, -0.25, 0.5])
def test_damping_and_powers_are_those_of_the_matrix(power):
    with jax.enable_x64(True):
        M = jnp.asarray(rotated(PSD["low rank"]))

        @jax.jit
        def dense(M):
            found = nystrom(operator_of(M, psd=True), jax.random.key(0), 10).damped(0.2).damped(0.1)
            return operators.to_dense(found), operators.to_dense(found.power(power))

        damped, powered = (np.asarray(x) for x in dense(M))
        np.testing.assert_allclose(damped, M + 0.3 * np.eye(N), atol=1e-9)
        values, vectors = np.linalg.eigh(damped)
        np.testing.assert_allclose(powered, (vectors * values**power) @ vectors.T, atol=1e-9)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_on_a_model(dtype):
    """Rounding of a bf16 product is not mistaken for curvature: no value exceeds the operator's own by more than it."""
    model, params = mlp(dtype=dtype)
    retain = labelled(16)

    @jax.jit
    def find(key):
        A = GaussNewton()(model, params, retain)
        found = nystrom(A, key, 20)
        x, info = CG(100, 1e-3, None, found.preconditioner(0.1))(A.damped(0.1), tree.normal_like(key, params))
        return found.values, block.gram(found.vectors, found.vectors), x, info

    values, gram, x, info = find(jax.random.key(0))
    wide = jax.tree.map(lambda p: p.astype(jnp.float32), params)
    dense = jax.jit(lambda p: operators.to_dense(GaussNewton()(model, p, retain)))(wide)
    exact = np.linalg.eigvalsh(dense)[::-1]
    slack = (0.05 if dtype == jnp.bfloat16 else 1e-4) * float(exact[0])
    assert np.all(np.asarray(values) <= exact[:20] + slack)
    assert float(values[0]) == pytest.approx(float(exact[0]), rel=0.05)
    np.testing.assert_allclose(gram, np.diag((np.asarray(values) > 0).astype(float)), atol=1e-3)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(x))
    assert dtype == jnp.bfloat16 or Status(int(info.status)) is Status.CONVERGED


def test_as_the_solver_of_a_method():
    net, params = mlp()
    batch = unlearn_batch(net, params)
    objective = ju.objectives.Objective(((-1.0, ju.objectives.NLL("forget")),))
    method = methods.compose("nystrom", objective, GaussNewton(), NystromCG(6, 8), damping=0.1, step_size=0.05)
    state = ju.init(method, net, params, key=jax.random.key(0))
    state, _ = jax.jit(ju.unlearn_step, static_argnums=(0, 1))(method, net, state, batch)
    assert float(objective.value(net, state.params, batch)) < float(objective.value(net, params, batch))


@pytest.mark.parametrize("explicit", [False, True], ids=["auto", "explicit"])
def test_eight_devices_equal_one_without_a_gather(explicit):
    put = on_mesh("both", explicit)
    scale = tree_of(jnp.asarray(np.concatenate([np.geomspace(10.0, 100.0, 4), np.ones(16)]), jnp.float32))
    b = tree_of(jnp.asarray(right_hand_side(20), jnp.float32))

    @jax.jit
    def solve(scale, b):
        found = nystrom(diagonal_operator(scale), jax.random.key(0), 6, batch_size=2)
        return found.values, found.damped(0.1).power(-1.0)(b), found.preconditioner(0.1)(b)

    program = solve.lower(put(scale), put(b)).compile()
    one, many = solve(scale, b), program(put(scale), put(b))
    assert "all-gather" not in program.as_text()
    np.testing.assert_allclose(many[0], one[0], rtol=1e-4)
    for x, y in zip(many[1:], one[1:], strict=True):
        np.testing.assert_allclose(flat(jax.device_get(x)), flat(y), atol=1e-4)
        for leaf, like in zip(jax.tree.leaves(x), jax.tree.leaves(put(b)), strict=True):
            assert leaf.sharding.is_equivalent_to(like.sharding, like.ndim)


@pytest.mark.parametrize("seed", range(3))
def test_blocks_are_orthonormalised_whatever_their_condition(seed):
    """Dependent rows become zero rows, the others span what was there."""
    rng = np.random.default_rng(seed)
    V = rng.normal(size=(5, 20)) * np.geomspace(1.0, 0.03, 5)[:, None]
    V = jnp.asarray(np.concatenate([V, V[:1] + V[1:2]]), jnp.float32)
    Q = np.asarray(block.orthonormalise(V))
    sizes = np.linalg.norm(Q, axis=1)
    assert (sizes > 0.5).sum() == 5
    kept = Q[sizes > 0.5]
    np.testing.assert_allclose(kept @ kept.T, np.eye(5), atol=1e-5)
    np.testing.assert_allclose(V @ kept.T @ kept, V, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda A, key: nystrom(operators.scaled(-1.0, A), key, 2), "psd"),
        (lambda A, key: nystrom(A, key, 0), "rank"),
        (lambda A, key: NystromCG(0), "rank"),
        (lambda A, key: NystromCG(5, 0), "max_steps"),
    ],
)
def test_settings_are_checked(make, word):
    with pytest.raises(ValueError, match=word):
        make(diagonal_operator(jnp.ones(3)), jax.random.key(0))


def test_a_streamed_operator_is_sketched_from_the_host():
    model, params = mlp()
    data = labelled(12)
    parts = [jax.tree.map(lambda x: x[rows], data) for rows in (slice(0, 4), slice(4, 12))]  # noqa: B023
    whole, pieces = GaussNewton()(model, params, data), streamed(GaussNewton(), model, params, parts)
    expected, got = (
        nystrom(A, jax.random.key(0), 6, on_host=on_host) for A, on_host in ((whole, False), (pieces, True))
    )
    np.testing.assert_allclose(got.values, expected.values, rtol=1e-4)
    v = tree.normal_like(jax.random.key(1), params)
    np.testing.assert_allclose(flat(got(v)), flat(expected(v)), atol=1e-4 * float(tree.norm(v)))
    helped = CG(60, 1e-4, None, preconditioner=got.preconditioner(0.01))
    x, info = solve_on_host(helped, pieces.damped(0.01), v)
    assert float(info.relative_residual) <= 1e-4
    residual = tree.norm(tree.sub(whole.damped(0.01)(x), v))
    assert float(residual) <= 2e-4 * float(tree.norm(v))
