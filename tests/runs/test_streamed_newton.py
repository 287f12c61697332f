"""A Newton step over streamed batches solves its system, and goes on inside the solve."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lives import BIGRAM, GONE, KEPT, CrashError, crash, killed, mean_loss, same, table

from jaxunlearn.curvature import GaussNewton
from jaxunlearn.data import batches
from jaxunlearn.operators import to_dense
from jaxunlearn.runs.checkpoint import Checkpoints, UnreadableError
from jaxunlearn.runs.streamed_newton import streamed_newton
from jaxunlearn.sharding import make_mesh
from jaxunlearn.solvers import CG, MINRES

SETS = [[one.batch for one in batches(part, 4, shuffle=False)] for part in (GONE, KEPT)]


def newton(solver, damping=1e-2, mesh=None, checkpoints=None, advance=None, retain=SETS[1]):
    return streamed_newton(
        BIGRAM, table(mesh), SETS[0], retain, curvature=GaussNewton(), solver=solver, damping=damping,
        checkpoints=checkpoints, advance=advance,
    )  # fmt: skip


@pytest.mark.parametrize("solver", [CG(12, rtol=1e-7, progress=None), MINRES(12, rtol=1e-7)])
def test_a_streamed_newton_step_killed_inside_its_solve_is_the_same(solver, tmp_path):
    alone, info = newton(solver)
    passes = []

    def retain():
        passes.append(1)
        return iter(SETS[1])

    run = lambda checkpoints, advance: newton(solver, checkpoints=checkpoints, advance=advance, retain=retain)
    (again, info_again), _ = killed(run, tmp_path, 1, 3, 3, 5, every=1)
    same(again, alone)
    same(info_again, info)
    # Every product once, but for the four that were never saved.
    assert len(passes) == int(info.steps) + 4


def test_a_streamed_newton_step_solves_its_system():
    everything = [next(batches(part, len(part), shuffle=False)).batch for part in (GONE, KEPT)]
    new, _ = newton(CG(200, rtol=1e-6, progress=None))
    w = np.asarray(table(), np.float64)
    with jax.enable_x64(True):
        A = np.asarray(to_dense(GaussNewton()(BIGRAM, jnp.asarray(w), everything[1]))) + 1e-2 * np.eye(256)
        g = np.asarray(jax.grad(lambda w: mean_loss(w, everything[0]))(jnp.asarray(w))).ravel()
    expected = np.linalg.solve(A, g)
    # A condition of 2 in the damped system, f32 parameters of order 1.
    np.testing.assert_allclose(np.asarray(new).ravel() - w.ravel(), expected, atol=1e-5 * np.abs(expected).max())


def test_a_solve_goes_on_with_another_number_of_devices_and_refuses_another_problem(tmp_path):
    solver = CG(12, rtol=1e-7, progress=None)
    with pytest.raises(CrashError), Checkpoints(tmp_path, every=1) as checkpoints:
        newton(solver, mesh=make_mesh(fsdp=8), checkpoints=checkpoints, advance=crash(4))
    for wrong in (partial(newton, solver, 0.2), partial(newton, CG(13, rtol=1e-7, progress=None))):
        with pytest.raises(UnreadableError, match=r"damping was 0.01 and is 0.2|max_steps=12.* and is .*max_steps=13"):
            wrong(checkpoints=Checkpoints(tmp_path))
    one, _ = newton(solver, checkpoints=Checkpoints(tmp_path))
    np.testing.assert_allclose(one, newton(solver)[0], atol=1e-5)
