"""Block CG: dense solves with dependent, vanishing and badly scaled right-hand sides, and fewer products than CG."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import operators, tree
from jaxunlearn.operators import LinearOperator
from jaxunlearn.sharding import make_mesh
from jaxunlearn.solvers import CG, BlockCG, Status, block
from jaxunlearn.solvers.block_cg import orthonormal_rows

N = 24


def spd(seed=0, low=0.1, high=10.0):
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(N, N)))
    return (q * np.geomspace(low, high, N)) @ q.T


def acting(matrix):
    """A matrix on a tree of two leaves."""

    def mv(v):
        y = jnp.asarray(matrix) @ jnp.concatenate([v["a"], v["b"].reshape(-1)])
        return {"a": y[:4], "b": y[4:].reshape(5, 4)}

    return LinearOperator(mv, {"a": jnp.zeros(4, matrix.dtype), "b": jnp.zeros((5, 4), matrix.dtype)})


def as_tree(B):
    return {"a": jnp.asarray(B[:, :4]), "b": jnp.asarray(B[:, 4:].reshape(-1, 5, 4))}


def as_rows(V):
    return np.concatenate([np.asarray(V["a"]), np.asarray(V["b"]).reshape(len(V["a"]), -1)], axis=1)


def right_hand_sides(kind, rng):
    B = rng.normal(size=(4, N))
    if kind == "dependent":
        B[2], B[3] = B[0] - 2 * B[1], B[0]
    if kind == "nearly dependent":
        B[2] = B[0] + 1e-6 * B[2]
    if kind == "badly scaled":
        B *= np.array([1e8, 1.0, 1e-8, 0.0])[:, None]
    if kind == "eigenvector":  # it converges at the first step, long before the others
        B[1] = np.linalg.eigh(spd())[1][:, 3]
    return B


@pytest.mark.parametrize("kind", ["random", "dependent", "nearly dependent", "badly scaled", "eigenvector"])
@pytest.mark.parametrize("warm", [False, True])
def test_it_is_the_dense_solve(kind, warm):
    with jax.enable_x64(True):
        rng = np.random.default_rng(1)
        M, B = spd(), right_hand_sides(kind, rng)
        size = np.linalg.norm(B, axis=1, keepdims=True) + (B == 0).all(axis=1, keepdims=True)
        x0 = as_tree(rng.normal(size=(4, N)) * size) if warm else None
        solver = BlockCG(40, 1e-11, batch_size=2)
        X, info = jax.jit(lambda B, x0: solver(acting(M), B, x0))(as_tree(B), x0)
        assert Status(int(info.status)) is Status.CONVERGED
        np.testing.assert_allclose(as_rows(X) / size, np.linalg.solve(M, B.T).T / size, atol=1e-9)
        residuals = np.linalg.norm(B - as_rows(X) @ M, axis=1)
        # The recorded norms come from the recurrence; rounding adds to the true ones relative to where they began.
        np.testing.assert_allclose(info.residual_norms[-1], residuals, atol=1e-13 * float(info.residual_norms[0].max()))
        assert float(info.relative_residual) <= 1e-11


def test_residuals_are_orthogonal_to_the_search_space_and_recorded_by_step():
    with jax.enable_x64(True):
        rng = np.random.default_rng(1)
        M, B = spd(), rng.normal(size=(3, N))
        solver, A, directions = BlockCG(5, 0.0), acting(M), []
        state = jax.jit(solver.init)(as_tree(B))
        advance = jax.jit(lambda s: solver.update(s, operators.block_product(A, solver.direction(s))))
        for step in range(5):
            R = B - as_rows(state.x) @ M
            np.testing.assert_allclose(np.linalg.norm(R, axis=1), state.residual_norms[step], rtol=1e-8)
            np.testing.assert_allclose(state.c.T @ as_rows(state.q), R, atol=1e-9)
            for P in directions:
                np.testing.assert_allclose(P @ R.T, 0.0, atol=1e-9)
            directions.append(as_rows(state.p))
            state = advance(state)


def test_a_block_of_one_is_cg():
    with jax.enable_x64(True):
        M, b = spd(), np.random.default_rng(2).normal(size=(1, N))
        X, info = BlockCG(7, 0.0)(acting(M), as_tree(b))
        x, single = CG(7, 0.0, progress=None)(acting(M), jax.tree.map(lambda a: a[0], as_tree(b)))
        np.testing.assert_allclose(as_rows(X)[0], as_rows(jax.tree.map(lambda a: a[None], x))[0], rtol=1e-9)
        np.testing.assert_allclose(info.residual_norms[:, 0], single.residual_norms, rtol=1e-8)
        for name in ("min_curvature", "max_curvature"):
            assert float(getattr(info, name)) == pytest.approx(float(getattr(single, name)), rel=1e-9)


def test_it_takes_fewer_products_than_separate_solves_on_a_spiked_spectrum():
    scale = jnp.concatenate([jnp.linspace(1.0, 1.2, 80), jnp.geomspace(30.0, 1e3, 16)])
    A = LinearOperator(lambda v: scale * v, scale)
    B = jnp.asarray(np.random.default_rng(0).normal(size=(8, 96)), jnp.float32)
    X, info = jax.jit(lambda B: BlockCG(40, 1e-4)(A, B))(B)
    _, separate = jax.jit(lambda B: jax.lax.map(lambda b: CG(60, 1e-4, progress=None)(A, b), B))(B)
    assert Status(int(info.status)) is Status.CONVERGED
    assert bool(jnp.all(separate.status == int(Status.CONVERGED)))
    np.testing.assert_allclose(X, B / scale, atol=1e-3)
    # 16 spikes: two block products of 8 find what takes CG at least 16 steps, copies not counted.
    assert 8 * int(info.steps) < 0.6 * int(jnp.sum(separate.steps))


def test_negative_curvature_in_any_combination_of_directions_truncates():
    with jax.enable_x64(True):
        scale = jnp.array([1.0, 2.0, -0.5, 3.0, 4.0])
        A = LinearOperator(lambda v: scale * v, scale)
        # Both right-hand sides see positive curvature, their difference does not.
        B = jnp.array([[1.0, 1.0, 1.0, 1.0, 1.0], [1.0, 1.0, -1.0, 1.0, 1.0]])
        X, info = BlockCG(20, 1e-8)(A, B)
        assert Status(int(info.status)) is Status.NEGATIVE_CURVATURE
        assert bool(jnp.all(jnp.isfinite(X)))
        assert int(info.steps) == 1
        X, info = BlockCG(20, 1e-8)(LinearOperator(lambda v: -v, scale), B)
        assert float(info.max_curvature) == pytest.approx(-1.0)
        np.testing.assert_allclose(X, B, rtol=1e-12)  # along negative curvature by its absolute value


def test_a_singular_consistent_system_is_solved():
    scale = jnp.array([0.0, 1.0, 2.0, 3.0])
    B = jnp.array([[0.0, 1.0, 1.0, 1.0], [0.0, 1.0, -1.0, 2.0]])
    X, info = BlockCG(20, 1e-5)(LinearOperator(lambda v: scale * v, scale), B)
    assert Status(int(info.status)) is Status.CONVERGED
    np.testing.assert_allclose(X[:, 1:], B[:, 1:] / scale[1:], rtol=1e-4)


def test_orthonormal_rows_are_a_factorisation_that_reveals_the_rank():
    with jax.enable_x64(True):
        V = np.random.default_rng(0).normal(size=(5, N)) / np.sqrt(N)
        V[2] = V[0] + 2 * V[1]
        V[4] = V[3] + 1e-9 * V[4]  # nearly dependent is not dependent
        Q, Z = orthonormal_rows(as_tree(V))
        G = np.asarray(block.gram(Q, Q))
        np.testing.assert_allclose(G, np.diag([1.0, 1.0, 0.0, 1.0, 1.0]), atol=1e-14)
        np.testing.assert_allclose(Z.T @ as_rows(Q), V, atol=1e-14)
        np.testing.assert_array_equal(Z, np.triu(Z))
        assert 1e-10 < float(Z[4, 4]) < 1e-8


@pytest.mark.parametrize("batch_size", [None, 1, 2, 3, 7])
def test_block_product_is_the_product_of_each(batch_size):
    with jax.enable_x64(True):
        M, B = spd(), np.random.default_rng(0).normal(size=(3, N))
        np.testing.assert_allclose(
            as_rows(operators.block_product(acting(M), as_tree(B), batch_size)), B @ M, atol=1e-12
        )


@pytest.mark.parametrize("explicit", [False, True], ids=["auto", "explicit"])
@pytest.mark.parametrize("batch_size", [None, 3])
def test_block_product_keeps_the_layout(explicit, batch_size):
    mesh = make_mesh(data=2, fsdp=2, tensor=2, explicit=explicit)
    put = lambda a, *names: jax.device_put(a, jax.NamedSharding(mesh, jax.P(*names)))
    scale = {"a": jnp.arange(32.0).reshape(4, 8), "b": jnp.arange(32.0, 64.0).reshape(4, 8)}
    V = jax.tree.map(lambda s: jnp.stack([s + 1, s + 2, s * s]), scale)
    expected = jax.tree.map(jnp.multiply, V, scale)
    scale = {"a": put(scale["a"], "fsdp", None), "b": put(scale["b"], None, "tensor")}
    V = {"a": put(V["a"], None, "fsdp", None), "b": put(V["b"], None, None, "tensor")}
    A = lambda scale: LinearOperator(
        lambda v: tree.add(jax.tree.map(jnp.multiply, scale, v), tree.zeros_like(v)), scale
    )
    out = jax.jit(lambda scale, V: operators.block_product(A(scale), V, batch_size))(scale, V)
    for name in out:
        np.testing.assert_array_equal(out[name], expected[name])
        assert out[name].sharding.is_equivalent_to(V[name].sharding, 3)
