"""A Newton step over more data than fits, which survives being killed between two products.

    theta + step_size (A + damping I)^-1 g

g is the mean gradient of the NLL of the forget set, A the curvature of the retain set, both summed over batches that
the host walks through (`curvature.streamed`): the step of `methods.newton_removal`, or with `GaussNewton()` that of its
positive semidefinite sibling, whose solve passes over the whole retain set once a product. On a large set that takes
hours. The solver is driven from the host (`solvers.solve_on_host`), and between two products its state is all there is:
with `checkpoints` it is saved there with g, and another process goes on inside the solve. On the same mesh the step is
then the same to the bit, because the same programs run on the same numbers.

Source: Guo et al., "Certified data removal from machine learning models", ICML 2020, arXiv:1911.03030; conjugate
gradients on such products: Martens, "Deep learning via Hessian-free optimization", ICML 2010.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from jaxunlearn import losses, tree
from jaxunlearn.curvature import Hessian, streamed, streamed_product
from jaxunlearn.curvature.streamed import Additive, Batches
from jaxunlearn.runs.checkpoint import Checkpoints
from jaxunlearn.solvers import CG, SolveInfo, fingerprint, solve_on_host
from jaxunlearn.solvers.host import initial_state
from jaxunlearn.types import Batch, Model, Params


class Solving(NamedTuple):
    """The arrays of a checkpoint: state of the solver, and the right-hand side it solves for."""

    state: PyTree
    rhs: PyTree


def streamed_newton(
    model: Model,
    params: Params,
    forget: Batches,
    retain: Batches,
    *,
    curvature: Additive | None = None,
    solver: Any = None,
    damping: float = 1e-2,
    step_size: float = 1.0,
    checkpoints: Checkpoints | None = None,
    advance: Callable[..., None] | None = None,
) -> tuple[Params, SolveInfo]:
    """The parameters after one step, and how the solve went.

    Args:
        model: pure functions.
        params: where to start; kept.
        forget: batches whose mean loss rises; a collection, or a function that starts a pass, as `streamed` takes them.
        retain: batches whose curvature says what a step costs; the same at every pass and in every process.
        curvature: default `Hessian()`; any that `streamed` takes.
        solver: default `CG()`; any `IterativeSolver`.
        damping: lambda >= 0, in the units of the curvature.
        step_size: gamma.
        checkpoints: where to go on from and what to leave, by products. The caller enters them.
        advance: called after each product with `products` and the relative `residual`; first, when a checkpoint is
            gone on from, `advance(products)`.

    Raises:
        ValueError: a negative damping, batches that are empty or differ between passes, or a checkpoint of another
            solve; it says what differs.

    Example:
        >>> from jaxunlearn.types import LabelledBatch
        >>> model = Model(logits=lambda w, x: x @ w)
        >>> x = jax.random.normal(jax.random.key(0), (40, 4))
        >>> data = LabelledBatch(x, jnp.argmax(x[:, :3], axis=1))
        >>> part = lambda *rows: jax.tree.map(lambda a: a[slice(*rows)], data)
        >>> w = jnp.zeros((4, 3))
        >>> new, info = streamed_newton(model, w, [part(0, 8)], [part(8, 24), part(24, 40)], damping=0.1)
        >>> before, after = (float(losses.nll(model, p, part(0, 8))[0]) for p in (w, new))
        >>> after > before
        True
    """
    if not damping >= 0:
        raise ValueError(f"damping={damping}: a negative damping makes the metric indefinite; use 0 or more")
    curvature = Hessian() if curvature is None else curvature
    solver = CG() if solver is None else solver
    A = streamed(curvature, model, params, retain).damped(damping)
    state, rhs = None, None
    problem = {}
    if checkpoints is not None:
        problem = fingerprint(solver, params, curvature=curvature, damping=damping)
        problem["params"] = problem.pop("b")
        found = checkpoints.restore(lambda facts: _like(solver, params, facts, problem))
        if found is not None:
            state, rhs = found.state
            if advance is not None:
                advance(found.step)
    if rhs is None:
        rhs = streamed_product(_Gradient(model), params, forget)(tree.zeros_like(params))

    def stepped(state: Any) -> None:
        steps = int(state.steps)
        if advance is not None:
            advance(products=steps, residual=float(solver.result(state)[1].relative_residual))
        if checkpoints is not None:
            checkpoints.after(steps, lambda: (Solving(state, rhs), {"problem": problem}))

    x, info = solve_on_host(solver, A, rhs, state=state, callback=stepped)
    return _step(params, x, jnp.float32(step_size)), info


def _like(solver: Any, params: Params, facts: dict[str, Any], problem: dict[str, str]) -> Solving:
    there = facts["problem"]
    changed = [f"{name} was {there.get(name)} and is {now}" for name, now in problem.items() if there.get(name) != now]
    if changed:
        raise ValueError(f"it is of another solve: {'; '.join(changed)}")
    return Solving(initial_state(solver, tree.zeros_like(params)), tree.zeros_like(params))


@dataclass(frozen=True)
class _Gradient:
    """Gradient of the summed NLL of a batch, and its loss tokens; the vector it is given plays no part."""

    model: Model

    def __call__(self, params: Params, batch: Batch, v: PyTree) -> tuple[PyTree, Array]:
        gradient, count = jax.grad(partial(losses.nll, self.model), has_aux=True)(params, batch)
        return gradient, count


@jax.jit
def _step(params: Params, x: PyTree, step_size: Array) -> Params:
    moved = jax.tree.map(lambda a, b: (a.astype(b.dtype) + step_size * b).astype(a.dtype), params, x)
    return tree.shard_like(moved, params)
