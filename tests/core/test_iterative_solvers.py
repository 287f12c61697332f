"""What every iterative solver promises, one table: dense oracle, edge cases, both drivers, any mesh, no gathering."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxunlearn import tree
from jaxunlearn.operators import LinearOperator, block_product
from jaxunlearn.sharding import make_mesh
from jaxunlearn.solvers import (
    CG,
    MINRES,
    BlockCG,
    LiSSA,
    Neumann,
    Status,
    fingerprint,
    initial_state,
    load_state,
    sampled,
    save_state,
    solve_on_host,
)

K = 3  # right-hand sides of a block


def halved(r):
    """A preconditioner."""
    return tree.scale(0.5, r)


SOLVERS = {
    "cg": CG(40, 1e-6, progress=None),
    "cg, preconditioned": CG(40, 1e-6, progress=None, preconditioner=halved),
    "minres": MINRES(40, 1e-6),
    "minres, preconditioned": MINRES(40, 1e-6, preconditioner=halved),
    "block_cg": BlockCG(40, 1e-6, batch_size=2),
    "neumann": Neumann(80, 1e-6),
    "lissa": LiSSA(depth=40, repeats=2, rtol=1e-5),
}


def problem(spread=3.0):
    """A diagonal operator on a tree with leaves of one shape, and a right-hand side."""
    rng = np.random.default_rng(0)
    shapes = {"a": (4, 4, 4), "b": (4, 4, 4), "c": (4, 4, 4), "d": (8,)}
    scale = {name: jnp.asarray(rng.uniform(1.0, spread, shape), jnp.float32) for name, shape in shapes.items()}
    b = {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}
    return scale, b


def rhs(name, b):
    """b, or a block of multiples of b and of its square."""
    if name != "block_cg":
        return b
    return jax.tree.map(lambda a: jnp.stack([a, a * a, a * a - 2 * a]), b)


def operator(name, scale):
    A = LinearOperator(lambda v: jax.tree.map(jnp.multiply, scale, v), scale, psd=True)
    return sampled(lambda index: A, scale) if name == "lissa" else A


def on_host(name, scale, b):
    """The operator for the host driver: numpy, so that tracing it would fail."""

    def multiply(v):
        return jax.tree.map(lambda s, a: np.asarray(s) * np.asarray(a), scale, v)

    return sampled(lambda index: LinearOperator(multiply, b), b) if name == "lissa" else LinearOperator(multiply, b)


def solve(name, scale, b, x0=None):
    return SOLVERS[name](operator(name, scale), b, x0)


run = jax.jit(solve, static_argnums=0)


def assert_close(x, y, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(np.asarray(a), np.asarray(b), **tolerance), x, y)


def error_bound(name, b):
    """`||x - A^-1 b|| <= ||r|| / lambda_min`, and lambda_min is 1 here; twice that for the rounding of r."""
    return 2 * SOLVERS[name].rtol * float(tree.norm(b))


@pytest.fixture(scope="module")
def solved():
    """Every solver's answer on one device, computed once."""
    scale, b = problem()
    return {name: run(name, scale, rhs(name, b)) for name in SOLVERS}


@pytest.mark.parametrize("name", SOLVERS)
def test_solves_and_says_so(name, solved):
    scale, b = problem()
    x, info = solved[name]
    b = rhs(name, b)
    assert_close(x, jax.tree.map(lambda r, s: r / s, b, scale), atol=error_bound(name, b))
    assert Status(int(info.status)) is Status.CONVERGED
    assert float(info.relative_residual) <= SOLVERS[name].rtol
    assert 1.0 - 1e-5 <= float(info.min_curvature) <= float(info.max_curvature) <= 3.0 + 1e-5


@pytest.mark.parametrize("name", SOLVERS)
def test_zero_right_hand_side_is_zero_from_anywhere(name):
    scale, b = problem()
    b = rhs(name, b)
    zero = tree.zeros_like(b)
    for x0 in (None, b):
        x, info = run(name, scale, zero, x0)
        assert Status(int(info.status)) is Status.CONVERGED
        assert int(info.steps) == 0
        assert float(info.relative_residual) == 0.0
        assert_close(x, zero, atol=0.0)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_solution_as_warm_start_costs_no_step(name, solved):
    scale, b = problem()
    b = rhs(name, b)
    x, info = run(name, scale, b, jax.tree.map(lambda r, s: r / s, b, scale))
    assert Status(int(info.status)) is Status.CONVERGED
    assert int(info.steps) == 0
    assert_close(x, solved[name][0], atol=error_bound(name, b))


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_a_non_finite_product_ends_with_a_finite_iterate(name, bad):
    scale, b = problem()
    scale["d"] = scale["d"].at[3].set(bad)
    x, info = run(name, scale, rhs(name, b))
    assert Status(int(info.status)) is Status.NON_FINITE
    assert int(info.steps) == 1
    assert bool(tree.all_finite(x))
    assert bool(jnp.all(jnp.isfinite(info.residual_norms)))


@pytest.mark.parametrize("name", SOLVERS)
def test_solver_vectors_are_f32_whatever_comes_in(name):
    scale, b = problem()
    narrow = jax.tree.map(lambda a: a.astype(jnp.bfloat16), rhs(name, b))
    asked = []

    def spy(v):
        asked.extend(leaf.dtype for leaf in jax.tree.leaves(v))
        return jax.tree.map(lambda s, a: (s * a).astype(jnp.bfloat16), scale, v)  # a product that comes back narrow

    A = LinearOperator(spy, scale)
    A = sampled(lambda index: LinearOperator(spy, scale), scale) if name == "lissa" else A
    x, _ = jax.eval_shape(lambda b: SOLVERS[name](A, b, b), narrow)
    assert {leaf.dtype for leaf in jax.tree.leaves(x)} | set(asked) == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize("name", SOLVERS)
def test_the_host_agrees_with_the_loop_inside_jit(name, solved):
    scale, b = problem()
    b = rhs(name, b)
    statuses = []
    x, info = solve_on_host(
        SOLVERS[name], on_host(name, scale, b), b, callback=lambda s: statuses.append(Status(int(s.status)))
    )
    expected, expected_info = solved[name]
    assert_close(x, expected, atol=error_bound(name, b))
    assert abs(int(info.steps) - int(expected_info.steps)) <= 1
    assert statuses[:-1] == [Status.RUNNING] * (len(statuses) - 1)
    assert statuses[-1] is Status.CONVERGED


class _InterruptedError(Exception):
    pass


@pytest.mark.parametrize("name", SOLVERS)
def test_interrupted_and_resumed_is_uninterrupted_in_every_bit(name, tmp_path):
    scale, b = problem()
    b = rhs(name, b)
    A, solver, path = on_host(name, scale, b), SOLVERS[name], tmp_path / "state.safetensors"
    x0 = tree.scale(0.1, b)
    straight = solve_on_host(solver, A, b, x0)

    def stop(state):
        if int(state.steps) == 3:
            raise _InterruptedError

    with pytest.raises(_InterruptedError):
        solve_on_host(solver, A, b, x0, checkpoint=path, callback=stop)
    steps = []
    resumed = solve_on_host(solver, A, b, x0, checkpoint=path, callback=lambda s: steps.append(int(s.steps)))
    assert steps[0] == 4
    jax.tree.map(np.testing.assert_array_equal, resumed, straight)
    # The file of a solve that is over gives its result again, without a product.
    again = solve_on_host(solver, LinearOperator(None, A.like), b, x0, checkpoint=path)
    jax.tree.map(np.testing.assert_array_equal, again, straight)


def place(values, explicit):
    """On eight devices, leaves of one shape each sharded along another of their axes (those of one vector)."""
    mesh = make_mesh(data=2, fsdp=2, tensor=2, explicit=explicit)
    axes = {"a": 3, "b": 2, "c": 1, "d": 1}

    def put(a, axis):
        names = [None] * a.ndim
        names[-axis] = ("fsdp", "tensor")
        return jax.device_put(a, NamedSharding(mesh, PartitionSpec(*names)))

    return {name: put(values[name], axes[name]) for name in values}


def assert_laid_out_like(x, y):
    for a, b in zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True):
        assert a.sharding.is_equivalent_to(b.sharding, a.ndim), f"{a.sharding} is not {b.sharding}"


@pytest.mark.parametrize("explicit", [False, True], ids=["auto", "explicit"])
@pytest.mark.parametrize("name", SOLVERS)
def test_eight_devices_equal_one_and_gather_nothing(name, explicit, solved):
    scale, b = problem()
    b = rhs(name, b)
    bound = error_bound(name, b)
    scale, b = place(scale, explicit), place(b, explicit)
    compiled = run.lower(name, scale, b).compile()
    text = compiled.as_text()
    assert "all-reduce" in text
    for gathering in ("all-gather", "all-to-all", "collective-permute"):
        assert gathering not in text, [line for line in text.splitlines() if gathering in line]
    x, info = compiled(scale, b)
    assert Status(int(info.status)) is Status.CONVERGED
    assert_close(x, solved[name][0], atol=bound)
    assert_laid_out_like(x, b)


@pytest.mark.parametrize(("name", "explicit"), [("cg", False), ("cg", True), ("block_cg", False)])
def test_the_host_resumes_on_a_mesh_with_the_same_layout_and_bits(name, explicit, tmp_path):
    scale, b = problem()
    scale, b = place(scale, explicit), place(rhs(name, b), explicit)
    solver, A, path = SOLVERS[name], operator(name, scale), tmp_path / "state.safetensors"
    if name == "block_cg":
        A = LinearOperator(jax.jit(lambda V: block_product(operator(name, scale), V)), b)
    marks = fingerprint(solver, b)

    def save(state):
        if int(state.steps) == 3:
            save_state(path, state, marks)

    straight, info = solve_on_host(solver, A, b, callback=save)
    state = load_state(path, initial_state(solver, b), marks)
    resumed, _ = solve_on_host(solver, A, b, state=state)
    jax.tree.map(np.testing.assert_array_equal, resumed, straight)
    assert_laid_out_like(resumed, b)
    assert Status(int(info.status)) is Status.CONVERGED


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("arguments", [{"max_steps": 0}, {"rtol": 1.5}, {"rtol": -0.1}, {"depth": 0}, {"probes": 0}])
def test_settings_are_checked(name, arguments):
    kind, setting = type(SOLVERS[name]), next(iter(arguments))
    if setting in kind.__dataclass_fields__:
        with pytest.raises(ValueError, match=f"{kind.__name__}.{setting}="):
            kind(**arguments)


def test_every_status_has_a_message():
    assert all(len(status.message) > 20 for status in Status)
