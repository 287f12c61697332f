"""States on disk: whole or not at all, laid out as before, and only for the problem they belong to."""

import os
import signal
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn.operators import LinearOperator
from jaxunlearn.sharding import make_mesh
from jaxunlearn.solvers import (
    CG,
    BlockCG,
    Status,
    fingerprint,
    initial_state,
    load_state,
    save_state,
    solve_on_host,
)
from jaxunlearn.solvers.state_file import digest

SCALE = np.linspace(1.0, 30.0, 40, dtype=np.float32)
A = LinearOperator(lambda v: SCALE * np.asarray(v), jnp.zeros(40))
B = jnp.linspace(-1.0, 1.0, 40)


def reversed_residual(r):
    return r[::-1]


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "state.safetensors"
    solve_on_host(CG(4, 0.0), A, B, checkpoint=path, problem={"damping": 0.1})
    return path


def test_a_finished_file_is_read_without_a_product(saved):
    _, info = solve_on_host(
        CG(4, 0.0), LinearOperator(None, jnp.zeros(40)), B, checkpoint=saved, problem={"damping": 0.1}
    )
    assert (int(info.steps), Status(int(info.status))) == (4, Status.MAX_STEPS)
    assert [p.name for p in saved.parent.iterdir()] == ["state.safetensors"]


@pytest.mark.parametrize(
    ("solver", "b", "damping", "match"),
    [
        (CG(4, 0.0), B, 1.0, "damping is 0.1 there and 1.0 here"),
        (CG(4, 0.1), B, 0.1, "rtol=0.0.*there and.*rtol=0.1.*here"),
        (CG(4, 0.0, preconditioner=reversed_residual), B, 0.1, "preconditioner=reversed_residual"),
        (CG(4, 0.0), B.at[3].add(1e-7), 0.1, "b is [0-9a-f]+ there"),
        (CG(5, 0.0), B, 0.1, r"alphas is \[4\] there and \[5\] here"),
        (CG(4, 0.0), jnp.ones(41), 0.1, r"\.x is \[40\] there and \[41\] here"),
        (BlockCG(4, 0.0), B[None], 0.1, "it is a CGState, not a BlockCGState"),
    ],
)
def test_a_state_of_another_problem_is_refused_with_what_differs(saved, solver, b, damping, match):
    with pytest.raises(ValueError, match=f"another problem.*{match}"):
        load_state(saved, initial_state(solver, b), fingerprint(solver, b, damping=damping))


def test_a_file_that_is_no_state_is_refused(tmp_path):
    from safetensors.numpy import save_file

    path = tmp_path / "file.safetensors"
    path.write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="is not a solver state"):
        load_state(path, initial_state(CG(), B))
    save_file({"x": np.ones(3)}, path)
    with pytest.raises(ValueError, match="is not a solver state"):
        load_state(path, initial_state(CG(), B))


def test_a_save_that_fails_leaves_the_state_before(saved, monkeypatch):
    before = saved.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        save_state(saved, initial_state(CG(), B))
    assert saved.read_bytes() == before
    assert [p.name for p in saved.parent.iterdir()] == ["state.safetensors"]


@pytest.mark.parametrize("explicit", [False, True], ids=["auto", "explicit"])
def test_a_state_moves_between_layouts(tmp_path, explicit):
    """Saved on one device, loaded onto eight, and the other way: it is the same state, laid out like its `like`."""
    mesh = make_mesh(data=2, fsdp=2, tensor=2, explicit=explicit)
    spread = jax.device_put(B, jax.NamedSharding(mesh, jax.P(("fsdp", "tensor"))))
    path, solver = tmp_path / "state.safetensors", CG(4, 0.0)
    assert fingerprint(solver, spread) == fingerprint(solver, B)
    for here, there in ((B, spread), (spread, B)):
        state = initial_state(solver, here)
        save_state(path, state, fingerprint(solver, here))
        loaded = load_state(path, initial_state(solver, there), fingerprint(solver, there))
        jax.tree.map(np.testing.assert_array_equal, loaded, state)
        assert loaded.r.sharding.is_equivalent_to(there.sharding, 1)


def test_the_digest_sees_every_bit_and_every_place():
    x = {"a": jnp.arange(6.0).reshape(2, 3), "b": jnp.zeros(2)}
    others = [
        {"a": x["a"].at[1, 2].add(1e-6), "b": x["b"]},
        {"a": x["a"].at[0, 0].set(1.0).at[0, 1].set(0.0), "b": x["b"]},
        {"a": x["a"], "b": jnp.array([0.0, -0.0])},
        {"a": x["a"].reshape(6), "b": jnp.array([0.0, 1e-45])},
    ]
    assert len({digest(other) for other in [x, *others]}) == 5
    assert digest(x) == digest(jax.tree.map(jnp.copy, x))


def test_operator_and_right_hand_side_must_fit():
    with pytest.raises(ValueError, match=r"leaf of the tree is \(3,\) in b and \(40,\) in the operator"):
        solve_on_host(CG(), A, jnp.ones(3))
    with pytest.raises(ValueError, match="operators.block_product"):
        solve_on_host(BlockCG(), A, jnp.ones((2, 40)))


def test_a_state_that_was_given_stays_usable(tmp_path):
    state = initial_state(CG(6, 0.0), B)
    first, _ = solve_on_host(CG(6, 0.0), A, B, state=state)
    second, _ = solve_on_host(CG(6, 0.0), A, B, state=state)
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(state.r, B)


def test_it_writes_every_few_steps_and_at_the_end(tmp_path):
    path, written = tmp_path / "state.safetensors", []

    def look(state):
        stored = int(load_state(path, initial_state(CG(5, 0.0), B), marks).steps) if path.exists() else 0
        written.append(stored)

    marks = fingerprint(CG(5, 0.0), B)
    solve_on_host(CG(5, 0.0), A, B, checkpoint=path, every=2, callback=look)
    assert written == [0, 2, 2, 4, 5]
    with pytest.raises(ValueError, match="every=0"):
        solve_on_host(CG(), A, B, every=0)
    with pytest.raises(ValueError, match="choose one"):
        solve_on_host(CG(5, 0.0), A, B, checkpoint=path, state=initial_state(CG(5, 0.0), B))


def test_killed_in_the_middle_of_a_product_it_goes_on_to_the_same_bits(tmp_path):
    path = tmp_path / "state.safetensors"
    program = """
        import os, signal, sys
        import jax.numpy as jnp, numpy as np
        from jaxunlearn.operators import LinearOperator
        from jaxunlearn.solvers import CG, solve_on_host
        scale, products = np.linspace(1.0, 30.0, 40, dtype=np.float32), []
        def product(v):
            products.append(v)
            if len(products) == 5:
                os.kill(os.getpid(), signal.SIGKILL)
            return scale * np.asarray(v)
        A = LinearOperator(product, jnp.zeros(40))
        solve_on_host(CG(12, 0.0), A, jnp.linspace(-1.0, 1.0, 40), checkpoint=sys.argv[1])
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program), path], timeout=300)
    assert done.returncode == -signal.SIGKILL
    steps = []
    resumed = solve_on_host(CG(12, 0.0), A, B, checkpoint=path, callback=lambda s: steps.append(int(s.steps)))
    assert steps == list(range(5, 13))
    jax.tree.map(np.testing.assert_array_equal, resumed, solve_on_host(CG(12, 0.0), A, B))
